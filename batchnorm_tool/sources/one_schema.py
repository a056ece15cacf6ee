"""One schema for all files of an input: what differs only in how it is stored is read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import starmap

import numpy as np
import pyarrow as pa

from batchnorm_tool.formats.vectors import SHAPE, is_list, with_children

# Types of one family hold the same kind of value: the wider of two holds the other's exactly.
_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_decimal,
    pa.types.is_timestamp,
    pa.types.is_time,
    pa.types.is_duration,
    pa.types.is_date,
    lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    lambda kind: any(
        is_kind(kind)
        for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    ),
)


def merge_schemas(schemas: Iterable[pa.Schema]) -> tuple[pa.Schema, dict[str, int]]:
    """Find the schema as which files of one table can be read.

    Columns match by name. A type is widened where every value of both keeps its meaning; whether
    a column may be null, what a list calls its items, and other programs' metadata do not count.

    Args:
        schemas: Of each file, in order; at least one.

    Returns:
        The schema, and for each column that cannot be read as one the number of the first file in
        which it is unlike those before, or lacks; its field is the first one found.

    Example:
        >>> merge_schemas([pa.schema({"x": pa.int32()}), pa.schema({"x": pa.int64()})])
        (x: int64, {})
    """
    first, *others = schemas
    fields = {field.name: field for field in first}
    differing: dict[str, int] = {}
    for number, other in enumerate(others, 1):
        if other.equals(first, check_metadata=True):
            continue
        for name in dict.fromkeys([*fields, *other.names]):
            merged = _merge(fields.get(name), other.field(name) if name in other.names else None)
            if merged is None:
                differing.setdefault(name, number)
                fields.setdefault(name, other.field(name) if name in other.names else None)
            elif name not in differing:
                fields[name] = merged
    return pa.schema(list(fields.values()), first.metadata), differing


def _merge(first: pa.Field | None, other: pa.Field | None) -> pa.Field | None:
    if first is None or other is None:
        return None
    if (first.metadata or {}).get(SHAPE) != (other.metadata or {}).get(SHAPE):
        return None
    kind = _merge_types(first.type, other.type)
    if kind is None:
        return None
    return first.with_type(kind).with_nullable(first.nullable or other.nullable)


def _merge_types(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if first == other or pa.types.is_null(other):
        return first
    if pa.types.is_null(first):
        return other
    if pa.types.is_nested(first) or pa.types.is_nested(other):
        both_lists = is_list(first) and is_list(other)
        return (_merge_lists if both_lists else _merge_children)(first, other)
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (first, other)):
        return _merge_numbers(first, other)
    return _merge_others(first, other)


def _merge_others(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not any(is_kind(first) and is_kind(other) for is_kind in _FAMILIES):
        return None
    try:
        schemas = [pa.schema({"": kind}) for kind in (first, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # two time zones, or too many digits
        return None


def _merge_lists(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    item = _merge(first.field(0), other.field(0))
    are_fixed = [pa.types.is_fixed_size_list(kind) for kind in (first, other)]
    if item is None or (all(are_fixed) and first.list_size != other.list_size):
        return None
    if all(are_fixed):
        return pa.list_(item, first.list_size)
    is_large = any(pa.types.is_large_list(kind) for kind in (first, other))
    return pa.large_list(item) if is_large else pa.list_(item)


def _merge_children(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Structs with the same names in the same order, and maps."""
    if first.id != other.id or first.num_fields != other.num_fields:
        return None
    sides = [[kind.field(place) for place in range(kind.num_fields)] for kind in (first, other)]
    children = list(starmap(_merge, zip(*sides, strict=True)))
    names = [[child.name for child in side] for side in sides]
    if any(child is None for child in children) or (
        pa.types.is_struct(first) and names[0] != names[1]
    ):
        return None
    return with_children(first, children)


def _merge_numbers(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    dtypes = [np.dtype(kind.to_pandas_dtype()) for kind in (first, other)]
    merged = np.promote_types(*dtypes)
    # No float holds every integer of 64 bits.
    is_inexact = merged.kind == "f" and any(d.kind in "iu" and d.itemsize == 8 for d in dtypes)
    return None if is_inexact else pa.from_numpy_dtype(merged)
