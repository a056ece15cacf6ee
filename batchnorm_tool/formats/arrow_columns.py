"""Columns of Arrow: lists as NumPy arrays and their true shapes, plain types, groups of rows."""

import functools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.formats import Layout

SHAPE = b"shape"
LISTS = (pa.types.is_list, pa.types.is_large_list)
STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BINARY = (*STRINGS, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
VIEWS = (pa.types.is_string_view, pa.types.is_binary_view)
# What a value of unknown or nested variable length is taken for; only the group sizes depend on it.
ASSUMED_BYTES = 16
# The key under which the footer of a run's part tells where it came from.
_PROVENANCE = b"batchnorm_tool"


def shape_of(field: pa.Field) -> tuple[int, ...]:
    """Return the true shape of a row: ``(size,)`` without metadata that fits, ``()`` for no list.

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
    """Return a column of fixed shape: plain for ``()``, else flat lists with their shape."""
    if not shape:
        return pa.field(name, dtype)
    metadata = {SHAPE: json.dumps(list(shape)).encode()}
    return pa.field(name, pa.list_(dtype, math.prod(shape)), metadata=metadata)


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Return a name with as many ``_`` at its end as it takes to be none of those taken."""
    while wanted in taken:
        wanted += "_"
    return wanted


def rows_of(array: pa.Array) -> np.ndarray:
    """Return a column of numbers as ``[n, size]`` (or ``[n]``), nulls as NaN; of integers as 0."""
    # `.values` of a list of fixed size ignores the slice, and `.flatten()` drops null rows, so that
    # neither is used on its own. No copy is made where there are no nulls.
    if not pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    if pa.types.is_integer(values.type) and values.null_count:  # NumPy would make them floats
        values = values.fill_null(0)
    rows = values.to_numpy(zero_copy_only=False).reshape(len(array), size)
    if array.null_count:
        rows = rows.copy()
        null = array.is_null().to_numpy(zero_copy_only=False)
        rows[null] = np.nan if rows.dtype.kind == "f" else 0
    return rows


def is_any(dtype: pa.DataType, tests: Iterable[Callable[[pa.DataType], bool]]) -> bool:
    """Tell whether a type is one of several kinds, such as `BINARY`."""
    return any(test(dtype) for test in tests)


def is_list(dtype: pa.DataType) -> bool:
    """Tell whether values are lists of any kind but views."""
    return is_any(dtype, LISTS) or pa.types.is_fixed_size_list(dtype)


def holds(dtype: pa.DataType, is_kind: Callable[[pa.DataType], bool]) -> bool:
    """Tell whether a type, or one within it, is of some kind."""
    children = [dtype.field(place).type for place in range(dtype.num_fields)]
    return is_kind(dtype) or any(holds(child, is_kind) for child in children)


def is_empty_list(dtype: pa.DataType) -> bool:
    """Tell whether values are lists of width 0, by which Arrow divides."""
    return pa.types.is_fixed_size_list(dtype) and dtype.list_size == 0


def with_children(dtype: pa.DataType, children: list[pa.Field]) -> pa.DataType:
    """Return a list, struct or map of other children; a list view becomes a list."""
    if pa.types.is_struct(dtype):
        return pa.struct(children)
    if pa.types.is_map(dtype):
        (entries,) = children
        return pa.map_(entries.type.field(0), entries.type.field(1), dtype.keys_sorted)
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(children[0], dtype.list_size)
    is_large = pa.types.is_large_list(dtype) or pa.types.is_large_list_view(dtype)
    return pa.large_list(children[0]) if is_large else pa.list_(children[0])


@functools.lru_cache(maxsize=1024)
def plain_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type as which values are presented, however they are encoded.

    Example:
        >>> plain_type(pa.list_view(pa.string_view())), plain_type(pa.dictionary("int8", "string"))
        (ListType(list<item: large_string>), DataType(string))
    """
    # Views (what Polars writes) and run ends are known to few of Arrow's functions, and
    # dictionaries of several batches cannot always be joined.
    types = pa.types
    if types.is_string_view(dtype):
        return pa.large_string()
    if types.is_binary_view(dtype):
        return pa.large_binary()
    if types.is_dictionary(dtype) or types.is_run_end_encoded(dtype):
        return plain_type(dtype.value_type)
    if types.is_decimal32(dtype) or types.is_decimal64(dtype):
        return pa.decimal128(dtype.precision, dtype.scale)
    if _is_tensor(dtype) or not types.is_nested(dtype) or types.is_union(dtype):
        return dtype.storage_type if _is_tensor(dtype) else dtype
    children = [dtype.field(place) for place in range(dtype.num_fields)]
    return with_children(dtype, [child.with_type(plain_type(child.type)) for child in children])


def plain_field(field: pa.Field) -> pa.Field:
    """Return the field of a column as presented; a tensor is its flat list, with its shape."""
    kind = plain_type(field.type)
    if not _is_tensor(field.type):
        return field if kind == field.type else field.with_type(kind)
    metadata = {**(field.metadata or {}), SHAPE: json.dumps(list(field.type.shape)).encode()}
    return pa.field(field.name, kind, field.nullable, metadata)


def provenance_in(schema: pa.Schema) -> dict[str, object]:
    """Return what the footer of a run's part tells of where it came from; nothing of others."""
    try:
        found = json.loads((schema.metadata or {}).get(_PROVENANCE, b"null"))
    except ValueError:  # another program's
        found = None
    return found if isinstance(found, dict) else {}


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema of the types of `plain_type`; all else is as it was."""
    return pa.schema([plain_field(field) for field in schema], schema.metadata)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of the types of `plain_type`; values that are plain already are not copied."""
    if all(plain_type(kind) == kind for kind in batch.schema.types):
        return batch
    columns = [_plain_array(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=plain_schema(batch.schema))


def _plain_array(array: pa.Array) -> pa.Array:
    # Imported where it is needed: it takes a tenth of the time of a run with nothing to do.
    import pyarrow.compute as pc

    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if _is_tensor(array.type):
        return array.storage
    if pa.types.is_run_end_encoded(array.type):
        # The values first, here and below: views are neither repeated nor gathered.
        runs = pa.RunEndEncodedArray.from_arrays(array.run_ends, _plain_array(array.values))
        array = pc.run_end_decode(runs.slice(array.offset, len(array)))
    elif pa.types.is_dictionary(array.type):
        array = _plain_array(array.dictionary).take(array.indices)  # no cast decodes lists
    elif isinstance(array, pa.ListViewArray | pa.LargeListViewArray):
        return _gathered_lists(array, kind)
    return array.cast(kind)


def _gathered_lists(array: pa.ListViewArray, kind: pa.DataType) -> pa.Array:
    """Gather list views in any order; Arrow's own cast breaks on views within views."""
    import pyarrow.compute as pc

    sizes = pc.list_value_length(array).fill_null(0).to_numpy()
    ends = np.append(np.zeros(1, sizes.dtype), np.cumsum(sizes, dtype=sizes.dtype))
    lists = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
    mask = array.is_null() if array.null_count else None
    return lists.from_arrays(pa.array(ends), _plain_array(array.flatten()), type=kind, mask=mask)


def _is_tensor(dtype: pa.DataType) -> bool:
    # Tensors with a permuted axis order would change meaning when flattened: they stay as they are.
    if not isinstance(dtype, pa.FixedShapeTensorType):
        return False
    permutation = dtype.permutation
    return permutation is None or list(permutation) == sorted(permutation)


class RowGroups:
    """A collector of tables, with groups whose borders depend on the rows alone.

    A group is full after ``group_bytes`` uncompressed bytes.
    """

    def __init__(self, schema: pa.Schema, group_bytes: int) -> None:
        # Plain types: the order of a dictionary depends on how the rows arrived.
        self.schema = plain_schema(schema)
        self._group_bytes = group_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the groups that these rows complete, in the chunks in which they came."""
        table = table.cast(self.schema)
        ends = np.cumsum(row_bytes(table))
        done, base = 0, -self._bytes
        while done < len(ends) and ends[-1] - base >= self._group_bytes:
            stop = int(np.searchsorted(ends, base + self._group_bytes)) + 1
            self._waiting.append(table.slice(done, stop - done))
            yield self._group()
            done, base = stop, int(ends[stop - 1])
        if done < len(ends):
            self._waiting.append(table.slice(done))
        self._bytes = int(ends[-1]) - base if len(ends) else self._bytes

    def rest(self) -> pa.Table | None:
        """Return the last, smaller group, if there is one."""
        return self._group() if self._waiting else None

    def _group(self) -> pa.Table:
        group = pa.concat_tables(self._waiting)
        self._waiting = []
        return group


class GroupedSink(ABC):
    """A writer of one file in groups of rows; how a group is written is the format's."""

    _writer: Any  # of Arrow, with `write_table` and `close`

    def __init__(self, schema: pa.Schema, layout: Layout) -> None:
        schema = schema.with_metadata({**(schema.metadata or {}), **layout.metadata})
        self._groups = RowGroups(schema, layout.row_group_bytes)

    def write(self, table: pa.Table) -> None:
        """Append rows; full groups are written."""
        for group in self._groups.add(table):
            self._write_group(group)

    def close(self) -> None:
        """Write the last group and the footer."""
        rest = self._groups.rest()
        if rest is not None:
            self._write_group(rest)
        self._writer.close()

    @abstractmethod
    def _write_group(self, group: pa.Table) -> None: ...


def row_bytes(table: pa.Table) -> np.ndarray:
    """Return uncompressed bytes of each row, ``int64[n]``; at least 1."""
    sizes = np.ones(table.num_rows, dtype=np.int64)
    for column in table.columns:
        sizes += _column_bytes(column)
    return sizes


def _column_bytes(column: pa.ChunkedArray) -> int | np.ndarray:
    width = fixed_bytes(column.type)
    if width is not None:
        return width
    if is_any(column.type, BINARY) and not is_any(column.type, VIEWS):  # which it has no kernel for
        return _lengths(column, "binary_length") + 4
    if is_list(column.type):
        item = fixed_bytes(column.type.value_type) or ASSUMED_BYTES
        return _lengths(column, "list_value_length") * item + 4
    return ASSUMED_BYTES


def _lengths(column: pa.ChunkedArray, function: str) -> np.ndarray:
    # Imported where rows are written: it takes a tenth of the time of a run with nothing to do.
    import pyarrow.compute as pc

    lengths = pc.call_function(function, [column])
    return np.asarray(lengths.fill_null(0).to_numpy(), dtype=np.int64)


def fixed_bytes(dtype: pa.DataType, assumed: int | None = None) -> int | None:
    """Return bytes of a value of fixed width; ``None`` where the rows decide."""
    if pa.types.is_fixed_size_list(dtype):
        item = fixed_bytes(dtype.value_type, assumed)
        return None if item is None else item * int(dtype.list_size)
    if pa.types.is_nested(dtype):
        return assumed
    try:
        return max(1, int(dtype.bit_width) // 8)
    except ValueError:
        return assumed


def regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of ``rows`` rows each, the last one shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for arrived in batches:
        batch = arrived
        while held + batch.num_rows >= rows:
            yield pa.Table.from_batches([*pending, batch.slice(0, rows - held)])
            batch = batch.slice(rows - held)
            pending, held = [], 0
        if batch.num_rows:
            pending.append(batch)
            held += batch.num_rows
    if pending:
        yield pa.Table.from_batches(pending)
