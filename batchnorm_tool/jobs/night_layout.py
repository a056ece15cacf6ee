"""What the rows of a store look like, as a job asks for it and as the live version has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool import layout
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.formats.row_groups import decoded_schema
from batchnorm_tool.row_hash import type_name
from batchnorm_tool.store.index import index_schema
from batchnorm_tool.store.state import BOOKKEEPING, StoreLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchnorm_tool.job import Job
    from batchnorm_tool.layout import OutputLayout
    from batchnorm_tool.plan import Resolved


def store_layout(job: Job, resolved: Resolved, before: StoreLayout | None) -> StoreLayout:
    """The columns of the store that a night leaves behind.

    Args:
        job: What was asked for.
        resolved: Every open choice, made.
        before: The columns of the live version. A column that holds the same values in another
            encoding, as another program writes it, keeps its type.

    Raises:
        JobError: A row would have several vectors, or two columns one name.
        InputError: The key is another, or a column of a delta has another type.
    """
    output = _only_output(layout.output_layouts(job, resolved.outputs))
    carried = [_as_before(field, before) for field in decoded_schema(resolved.carried)]
    keys = layout.key_columns(job.input)
    by_name = {field.name: field for field in carried}
    rest = [field for field in carried if field.name not in keys]
    vector = layout.flat_field(output.vector_column, job.output.dtype, (output.width,))
    norm = pa.field(output.norm_column, pa.float64())
    fields = [*(by_name[name] for name in keys), vector, norm, *BOOKKEEPING, *rest]
    _check_names(fields)
    names_of_rest = tuple(field.name for field in rest)
    rows = StoreLayout(
        keys, names_of_rest, vector.name, norm.name, output.norm.label, pa.schema(fields)
    )
    index_schema(rows.key_schema)  # refuses names that the index needs itself
    if before is not None:
        _check_keys(rows, before)
        if job.store is not None and job.store.mode == "delta":
            _check_types(rows, before)
    return rows


def _as_before(field: pa.Field, before: StoreLayout | None) -> pa.Field:
    """A column with the type that it has in the store, where only the encoding differs."""
    field = field.with_nullable(True)  # noqa: FBT003
    carried = (*before.keys, *before.passthrough) if before else ()
    if before is None or field.name not in carried:
        return field
    stored = before.schema.field(field.name)
    return stored if type_name(stored.type) == type_name(field.type) else field


def _only_output(outputs: Sequence[OutputLayout]) -> OutputLayout:
    output = outputs[0]
    if len(outputs) > 1 or output.vectors > 1 or output.norm_per_vector:
        shapes = "; ".join(f"`{one.name}` of shape {one.shape}" for one in outputs)
        msg = (
            "A store holds one vector for each row. Expected one output with one axis. Received: "
            f"{shapes}. Name one in `model.outputs`, or take `normalize.axis: all`."
        )
        raise JobError(msg)
    return output


def _check_names(fields: list[pa.Field]) -> None:
    names = [field.name for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        msg = (
            f"Two columns of the store would be called `{twice}`. Rename the result with "
            f"`output.columns`, or leave the column out of `input.passthrough`. The store's own "
            f"are {', '.join(f'`{field.name}`' for field in BOOKKEEPING)}."
        )
        raise JobError(msg)
    dotted = next((name for name in names if "." in name), None)
    if dotted is not None:
        msg = (
            f"The column `{dotted}` cannot be kept in a Lance dataset, where a dot leads into a "
            f"nested column. Expected names without one. Received: {', '.join(names)}. Rename the "
            "column in the input, or leave it out of `input.passthrough`."
        )
        raise JobError(msg)


def _check_keys(rows: StoreLayout, before: StoreLayout) -> None:
    if before.key_schema != rows.key_schema:
        expected, received = (
            ", ".join(f"`{field.name}` ({field.type})" for field in schema)
            for schema in (before.key_schema, rows.key_schema)
        )
        msg = (
            "`input.key`: the store knows its rows by another key. "
            f"Expected {expected}. Received: {received}. "
            "Give the input the same key, or begin a new store with another `store.path`."
        )
        raise InputError(msg)


def _check_types(rows: StoreLayout, before: StoreLayout) -> None:
    """Rows that a delta does not hold keep their values, so that a column keeps its type."""
    for name in {*before.passthrough} & {*rows.passthrough}:
        expected, received = (each.schema.field(name).type for each in (before, rows))
        if expected != received:
            msg = (
                f"`store.mode: delta`, column `{name}`: rows that the input lacks keep what they "
                f"have. Expected: {expected}. Received: {received}. Write the column with the type "
                "that it has, or give all rows once, with `--set store.mode=full`."
            )
            raise InputError(msg)
