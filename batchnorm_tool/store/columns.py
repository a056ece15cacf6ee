"""The columns of a store: those that a refresh leaves behind, and the types that they can have."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.formats.arrow_columns import is_any, plain_type, with_children
from batchnorm_tool.inputs.row_hash import type_name
from batchnorm_tool.job import Job, Store
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.output_schema import StoredOutput
from batchnorm_tool.pipeline.plan import ResolvedOptions
from batchnorm_tool.store.state import BOOKKEEPING, StoreSchema

# Names that Lance keeps for itself, and those that it can find again.
_OF_LANCE = (
    "_rowid",
    "_rowaddr",
    "_rowoffset",
    "_row_created_at_version",
    "_row_last_updated_at_version",
)
_NAME = re.compile(r"[^.`\0]+")
# Parquet, through which rows pass, gives these back as others: the values fit exactly.
_THROUGH_PARQUET = {pa.date64(): pa.date32(), pa.time32("s"): pa.time32("ms")}


def store_layout(
    job: Job, store: Store, resolved: ResolvedOptions, before: StoreSchema | None
) -> StoreSchema:
    """Return the columns of the store that a refresh leaves behind, after those of ``before``.

    A column with the same values in another encoding, as another program writes it, keeps its type.
    """
    output = _only_output(resolved.layouts(job))
    carried = [_as_before(_kept(field), before) for field in resolved.carried]
    keys = output_schema.key_columns(job.input)
    by_name = {field.name: field for field in carried}
    rest = [field for field in carried if field.name not in keys]
    vector = output_schema.stored_field(output, (output.stored_width,))
    norm = pa.field(output.norm_column, pa.float64())
    names = tuple(name for _, name in store.columns)
    ours = [field.with_name(name) for field, name in zip(BOOKKEEPING, names, strict=True)]
    fields = [*(by_name[name] for name in keys), vector, norm, *ours, *rest]
    keys_of = {vector.name: "output.columns.vector", norm.name: "output.columns.norm"}
    keys_of |= {name: f"store.columns.{key}" for key, name in store.columns}
    _check_names([field.name for field in fields], keys_of)
    is_plain = output.normalization == Normalization(output.norm)
    rows = StoreSchema(
        keys=keys,
        passthrough=tuple(field.name for field in rest),
        vector=vector.name,
        norm=norm.name,
        norm_label=output.norm.label,
        schema=pa.schema(fields),
        bookkeeping=names,
        output=None if is_plain else StoredOutput.of(output),
    )
    if before is not None:
        _check_keys(rows, before)
        if store.mode == "delta":
            _check_types(rows, before)
    return rows


def _kept(field: pa.Field) -> pa.Field:
    """Return a column as a store keeps it."""
    kind = stored_type(field.type)
    if kind is None:
        raise InputError(
            f"The column `{field.name}` cannot be stored. Expected a type that Lance and Parquet "
            f"support. Received: {field.type}. Write it as numbers, text or lists, or remove it "
            "from `input.passthrough`."
        )
    return pa.field(field.name, kind)


def _as_before(field: pa.Field, before: StoreSchema | None) -> pa.Field:
    """Return a column with the type that it has in the store, where that takes all its values."""
    if before is None or field.name not in before.carried.names:
        return field
    stored = before.schema.field(field.name)
    is_taken = holds(stored.type, field.type) or stored_type(stored.type) == field.type
    return stored if is_taken else field


def _only_output(outputs: Sequence[OutputSpec]) -> OutputSpec:
    output = outputs[0]
    if len(outputs) > 1 or output.vectors > 1 or output.norm_per_vector:
        shapes = "; ".join(f"`{one.name}` of shape {one.shape}" for one in outputs)
        raise JobError(
            "A store holds one vector for each row. Expected one output with one axis. "
            f"Received: {shapes}. Choose one with `model.outputs`, or set `normalize.axis: all`."
        )
    return output


def _check_names(names: list[str], ours: dict[str, str]) -> None:
    """Refuse names that a dataset cannot have; ``ours`` tells which key of the job renames one."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise JobError(
            f"Two columns of the store would be named `{twice}`. Expected: unique names. "
            f"Received: {', '.join(names)}. Rename the store's own with "
            f"`--set {ours[twice]}=NAME`, or remove the other from `input.passthrough`."
        )
    wrong = next((name for name in names if name in _OF_LANCE or not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise JobError(
            f"The column `{wrong}` cannot be kept in a Lance dataset. Expected a name that Lance "
            f"does not reserve ({', '.join(_OF_LANCE)}), without a dot, backtick or NUL. "
            f"Received: {', '.join(names)}. Rename the column in the input, or remove it from "
            "`input.passthrough`."
        )


def _check_keys(rows: StoreSchema, before: StoreSchema) -> None:
    if before.key_schema != rows.key_schema:
        expected, received = (
            ", ".join(f"`{field.name}` ({field.type})" for field in schema)
            for schema in (before.key_schema, rows.key_schema)
        )
        raise InputError(
            f"`input.key`: the store has a different key. Expected {expected}. "
            f"Received: {received}. Use the same key, or start a new store with another "
            "`store.path`."
        )


def _check_types(rows: StoreSchema, before: StoreSchema) -> None:
    """Refuse a column of another type in a delta: rows that it lacks keep their values."""
    for name in {*before.passthrough} & {*rows.passthrough}:
        expected, received = (each.schema.field(name).type for each in (before, rows))
        if not holds(received, expected):
            raise InputError(
                f"`store.mode: delta`, column `{name}`: rows that are not in the input keep their "
                f"values. Expected: {expected}. Received: {received}. Write the column with its "
                "type in the store, or provide all rows once, with `--set store.mode=full`."
            )


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a store keeps a column: ``None`` where Lance or Parquet has none.

    Example:
        >>> stored_type(pa.list_(pa.date64())), stored_type(pa.month_day_nano_interval())
        (ListType(list<item: date32[day]>), None)
    """
    kind = plain_type(kind)
    if isinstance(kind, pa.BaseExtensionType):
        storage = stored_type(kind.storage_type)
        return kind if storage == kind.storage_type else storage
    if pa.types.is_nested(kind):
        return _nested_type(kind)
    if kind == pa.timestamp("s", getattr(kind, "tz", None)):
        return pa.timestamp("ms", kind.tz)
    return None if pa.types.is_interval(kind) else _THROUGH_PARQUET.get(kind, kind)


def _nested_type(kind: pa.DataType) -> pa.DataType | None:
    children = [kind.field(place) for place in range(kind.num_fields)]
    types = [held for child in children if (held := stored_type(child.type)) is not None]
    if not types or len(types) < len(children) or pa.types.is_union(kind):
        return None
    if pa.types.is_map(kind):  # its children get their standard names: two writers differ in them
        return pa.map_(*(entry.type for entry in types[0]))
    if pa.types.is_fixed_size_list(kind) and not kind.list_size:
        return None
    if pa.types.is_fixed_size_list(kind) and not _has_width(types[0]):
        return pa.list_(children[0].with_type(types[0]))  # Lance fails at those of texts or lists
    fields = [child.with_type(held) for child, held in zip(children, types, strict=True)]
    return with_children(kind, fields)


def _has_width(kind: pa.DataType) -> bool:
    types = pa.types
    tests = types.is_primitive, types.is_decimal, types.is_fixed_size_binary
    return is_any(kind, (*tests, types.is_fixed_size_list))


def holds(stored: pa.DataType, kind: pa.DataType) -> bool:
    """Tell whether a stored type takes the values of another: another encoding, or only nulls.

    Example:
        >>> holds(pa.string(), pa.large_string()), holds(pa.list_(pa.int8()), pa.list_(pa.null()))
        (True, True)
        >>> holds(pa.int64(), pa.int32())
        False
    """
    # The hashes of rows see values, not encodings: the same holds of what a store takes.
    if pa.types.is_null(kind) or type_name(stored) == type_name(kind):
        return True
    if not (pa.types.is_nested(kind) and stored.num_fields == kind.num_fields):
        return False
    pairs = [(stored.field(place), kind.field(place)) for place in range(kind.num_fields)]
    if pa.types.is_struct(kind) and any(one.name != other.name for one, other in pairs):
        return False
    return type(stored) is type(kind) and all(holds(one.type, other.type) for one, other in pairs)
