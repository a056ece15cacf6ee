"""In which types a store keeps the values of keys and passed-through columns."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from batchnorm_tool.formats.vectors import plain_type, with_children
from batchnorm_tool.row_hash import type_name
from batchnorm_tool.row_hash.records import is_any

# Parquet, through which rows pass, gives these back as others: the values fit exactly.
_THROUGH_PARQUET = {
    pa.date64(): pa.date32(),
    pa.time32("s"): pa.time32("ms"),
}


@dataclass(frozen=True)
class Unfit:
    """A value that a target cannot take.

    Attributes:
        row: Of the table that was looked at.
        column: Its name.
        reason: Which target, why, and what to do.
    """

    row: int
    column: str
    reason: str


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a store keeps the values of a column.

    Args:
        kind: Of the column in the input.

    Returns:
        A type that holds the same values; ``None`` where neither Lance nor Parquet has one.

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
    tests = (
        pa.types.is_primitive,
        pa.types.is_decimal,
        pa.types.is_fixed_size_binary,
        pa.types.is_fixed_size_list,
    )
    return is_any(kind, tests)


def holds(stored: pa.DataType, kind: pa.DataType) -> bool:
    """Whether a stored type takes the values of another: of another encoding, or nothing but nulls.

    Example:
        >>> holds(pa.string(), pa.large_string()), holds(pa.list_(pa.int8()), pa.list_(pa.null()))
        (True, True)
        >>> holds(pa.int64(), pa.int32())
        False
    """
    if pa.types.is_null(kind) or type_name(stored) == type_name(kind):
        return True
    if not (pa.types.is_nested(kind) and stored.num_fields == kind.num_fields):
        return False
    pairs = [(stored.field(place), kind.field(place)) for place in range(kind.num_fields)]
    if pa.types.is_struct(kind) and any(one.name != other.name for one, other in pairs):
        return False
    return type(stored) is type(kind) and all(holds(one.type, other.type) for one, other in pairs)
