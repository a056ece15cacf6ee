"""What the rows of a store look like, as a job asks for it and as the live version has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool import layout
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.store.column_types import holds, stored_type
from batchnorm_tool.store.state import BOOKKEEPING, StoreLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchnorm_tool.job import Job
    from batchnorm_tool.layout import OutputLayout
    from batchnorm_tool.plan import Resolved


# Names that Lance keeps for itself, and those that it can find again.
_OF_LANCE = (
    "_rowid",
    "_rowaddr",
    "_rowoffset",
    "_row_created_at_version",
    "_row_last_updated_at_version",
)
_NAME = re.compile(r"[^.`\0]+")


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
    carried = [_as_before(_kept(field), before) for field in resolved.carried]
    keys = layout.key_columns(job.input)
    by_name = {field.name: field for field in carried}
    rest = [field for field in carried if field.name not in keys]
    vector = layout.flat_field(output.vector_column, job.output.dtype, (output.width,))
    norm = pa.field(output.norm_column, pa.float64())
    assert job.store is not None  # noqa: S101  (a refresh has one)
    names = tuple(name for _, name in job.store.columns)
    ours = [field.with_name(name) for field, name in zip(BOOKKEEPING, names, strict=True)]
    fields = [*(by_name[name] for name in keys), vector, norm, *ours, *rest]
    by_key = {"output.columns.vector": vector.name, "output.columns.norm": norm.name}
    by_key |= {f"store.columns.{key}": name for key, name in job.store.columns}
    _check_names([field.name for field in fields], {name: key for key, name in by_key.items()})
    rows = StoreLayout(
        keys=keys,
        passthrough=tuple(field.name for field in rest),
        vector=vector.name,
        norm=norm.name,
        norm_label=output.norm.label,
        schema=pa.schema(fields),
        bookkeeping=names,
    )
    if before is not None:
        _check_keys(rows, before)
        if job.store.mode == "delta":
            _check_types(rows, before)
    return rows


def _kept(field: pa.Field) -> pa.Field:
    """Return a column as a store keeps it.

    Raises:
        InputError: It cannot.
    """
    kind = stored_type(field.type)
    if kind is None:
        msg = (
            f"The column `{field.name}` cannot be kept in a store. Expected a type that Lance and "
            f"Parquet have. Received: {field.type}. Write it as numbers, text or lists, or leave "
            "it out of `input.passthrough`."
        )
        raise InputError(msg)
    return pa.field(field.name, kind)


def _as_before(field: pa.Field, before: StoreLayout | None) -> pa.Field:
    """A column with the type that it has in the store, where that takes all of tonight's values."""
    if before is None or field.name not in before.carried.names:
        return field
    stored = before.schema.field(field.name)
    is_taken = holds(stored.type, field.type) or stored_type(stored.type) == field.type
    return stored if is_taken else field


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


def _check_names(names: list[str], ours: dict[str, str]) -> None:
    """Refuse names that a dataset cannot have; ``ours`` tells which key of the job renames one."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        msg = (
            f"Two columns of the store would be called `{twice}`. Expected: each name once. "
            f"Received: {', '.join(names)}. Rename the store's own with "
            f"`--set {ours[twice]}=NAME`, or leave the other out of `input.passthrough`."
        )
        raise JobError(msg)
    wrong = next((name for name in names if name in _OF_LANCE or not _NAME.fullmatch(name)), None)
    if wrong is not None:
        msg = (
            f"The column `{wrong}` cannot be kept in a Lance dataset. Expected a name that is none "
            f"of Lance's own ({', '.join(_OF_LANCE)}), without a dot, which leads into a nested "
            f"column, a backtick or NUL. Received: {', '.join(names)}. Rename the column in the "
            "input, or leave it out of `input.passthrough`."
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
        if not holds(received, expected):
            msg = (
                f"`store.mode: delta`, column `{name}`: rows that the input lacks keep what they "
                f"have. Expected: {expected}. Received: {received}. Write the column with the type "
                "that it has, or give all rows once, with `--set store.mode=full`."
            )
            raise InputError(msg)
