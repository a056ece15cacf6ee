"""Lists of fixed size as NumPy arrays, and the true shape of a flat column."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa

SHAPE = b"shape"
TENSOR = "arrow.fixed_shape_tensor"


def shape_of(field: pa.Field) -> tuple[int, ...]:
    """The true shape of one row of a column.

    Args:
        field: A column; a list of fixed size may carry its shape in the metadata.

    Returns:
        Its shape without the row axis; ``()`` for a plain column, ``(size,)`` for a list of fixed
        size without metadata or with metadata that does not fit.

    Example:
        >>> shape_of(pa.field("image", pa.list_(pa.uint8(), 64), metadata={"shape": "[8, 8]"}))
        (8, 8)
    """
    if not pa.types.is_fixed_size_list(field.type):
        return ()
    size = int(field.type.list_size)
    text = (field.metadata or {}).get(SHAPE)
    try:
        shape = tuple(int(length) for length in json.loads(text)) if text else (size,)
    except (ValueError, TypeError):
        return (size,)
    return shape if math.prod(shape) == size else (size,)


def vector_field(name: str, dtype: pa.DataType, shape: tuple[int, ...]) -> pa.Field:
    """A column of fixed shape: a plain column for ``()``, else a flat list with its shape.

    Example:
        >>> vector_field("image", pa.uint8(), (8, 8)).type
        FixedSizeListType(fixed_size_list<item: uint8>[64])
    """
    if not shape:
        return pa.field(name, dtype)
    metadata = {SHAPE: json.dumps(list(shape)).encode()}
    return pa.field(name, pa.list_(dtype, math.prod(shape)), metadata=metadata)


def rows_of(array: pa.Array) -> np.ndarray:
    """A column of floats as ``float[n, size]`` (or ``float[n]``), nulls as NaN.

    ``.values`` of a list of fixed size ignores the slice, and ``.flatten()`` drops null rows, so
    that neither is used on its own. No copy is made where there are no nulls.
    """
    if not pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    rows = values.to_numpy(zero_copy_only=False).reshape(len(array), size)
    if array.null_count:
        rows = rows.copy()
        rows[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return rows


def plain_field(field: pa.Field) -> pa.Field:
    """The field under which a tensor extension column is presented: its flat list and shape."""
    if not _is_tensor(field.type):
        return field
    metadata = {**(field.metadata or {}), SHAPE: json.dumps(list(field.type.shape)).encode()}
    return pa.field(field.name, field.type.storage_type, field.nullable, metadata)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema in which tensor extension columns are flat lists; all else is as it was."""
    return pa.schema([plain_field(field) for field in schema], schema.metadata)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch in which tensor extension columns are flat lists; no values are copied."""
    if not any(_is_tensor(field.type) for field in batch.schema):
        return batch
    columns = [c.storage if _is_tensor(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=plain_schema(batch.schema))


def _is_tensor(dtype: pa.DataType) -> bool:
    # Tensors with a permuted axis order would change meaning when flattened: they stay as they are.
    if not isinstance(dtype, pa.FixedShapeTensorType):
        return False
    permutation = dtype.permutation
    return permutation is None or list(permutation) == sorted(permutation)
