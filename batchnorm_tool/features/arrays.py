"""Stored columns turned into the array that a model input takes, with a fault for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason
from batchnorm_tool.features.columns import (
    InputBinding,
    Shape,
    check_fit,
    filled_shape,
    stored_column,
)
from batchnorm_tool.features.images import decode_images
from batchnorm_tool.features.values import (
    STRING,
    Conversion,
    array_dtype,
    convert,
    is_float,
    nonfinite_rows,
    numbers_of,
    texts_of,
)

# Rows of many columns interleaved at a time: 16,384 rows of 128 float32 columns took 4 ms in any
# block from 1,024 rows up, 131,072 rows 35 ms in blocks of 1,024 to 4,096 and 126 ms without.
_BLOCK_ROWS = 2048


@dataclass
class _FlatRows:
    """Rows of one input, not yet in shape; ``faults`` is ``None`` where all rows are good."""

    values: np.ndarray
    faults: np.ndarray | None
    lengths: tuple[int, ...]


def read_input(table: pa.Table, binding: InputBinding) -> tuple[np.ndarray, np.ndarray]:
    """Return the array for one model input.

    Args:
        table: ``n`` rows with at least the columns of ``binding``.
        binding: Which columns, for which input.

    Returns:
        The array ``[n, *shape]``, C-ordered and possibly read-only, without a copy where Arrow has
        it so, with zeros (``""`` for strings) in bad rows; and the faults ``uint8[n]``.
    """
    lengths = check_fit(table.schema, binding)
    columns = [table.column(name) for name in binding.columns]
    if binding.image_kind is not None:
        return _read_images(columns[0], binding.image_kind, binding)
    block = _stack(
        [
            _read_column(column, () if len(columns) > 1 else lengths, binding.conversion(name))
            for name, column in zip(binding.columns, columns, strict=True)
        ]
    )
    _check_block(block, binding)
    stored = stored_column(table.schema, binding.columns)
    shape = filled_shape(stored, binding.field.shape, block.lengths)
    return _filled(block.values.reshape(table.num_rows, *shape), block.faults)


def _read_images(
    column: pa.ChunkedArray, kind: str, binding: InputBinding
) -> tuple[np.ndarray, np.ndarray]:
    encoded = one_array(column).to_pylist()
    images, faults = decode_images(encoded, kind, binding.field.shape)
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    values, unfit = convert(flat, binding.conversion(binding.columns[0]))
    if unfit is not None:
        faults = _first_fault(faults, unfit)
    return values.reshape(images.shape), faults


def _read_column(column: pa.ChunkedArray, lengths: Shape, conversion: Conversion) -> _FlatRows:
    array = one_array(column)
    leaves = read_leaves(array, lengths)
    take = _texts if conversion.field.dtype == STRING else _numbers
    return take(leaves, len(array), conversion)


def _texts(leaves: Leaves, rows: int, conversion: Conversion) -> _FlatRows:
    texts = texts_of(leaves.values).reshape(rows, _width(leaves))
    return _filled_in(texts, leaves, conversion)


def _numbers(leaves: Leaves, rows: int, conversion: Conversion) -> _FlatRows:
    whole = not is_float(array_dtype(conversion.field))
    numbers = numbers_of(leaves.values, whole=whole)
    if leaves.missing is not None:
        # What lies in memory under a null is arbitrary, and no reason to complain.
        numbers = np.where(leaves.missing, numbers.dtype.type(0), numbers)
    values, unfit = convert(numbers.reshape(rows, _width(leaves)), conversion)
    block = _filled_in(values, leaves, conversion)
    if unfit is not None:
        block.faults = unfit if block.faults is None else _first_fault(block.faults, unfit)
    return block


def _filled_in(values: np.ndarray, leaves: Leaves, conversion: Conversion) -> _FlatRows:
    """Put the column's filler where a null is; then a null is no fault any more."""
    block = _FlatRows(values, leaves.faults, leaves.lengths)
    filler = conversion.filler()
    if filler is not None and leaves.missing is not None and leaves.faults is not None:
        values[leaves.missing.reshape(values.shape)] = filler
        block.faults = np.where(leaves.faults == Reason.NULL_FEATURE, 0, leaves.faults)
    return block


def _stack(blocks: Sequence[_FlatRows]) -> _FlatRows:
    """Return columns side by side, ``[n, len(blocks)]``; a null in any beats a NaN in another."""
    if len(blocks) == 1:
        return blocks[0]
    faults = None
    for block in blocks:
        if block.faults is not None:
            faults = block.faults if faults is None else _least_fault(faults, block.faults)
    columns = [block.values[:, 0] for block in blocks]
    return _FlatRows(_interleave(columns), faults, (len(blocks),))


def _interleave(columns: Sequence[np.ndarray]) -> np.ndarray:
    rows = len(columns[0])
    stacked = np.empty((rows, len(columns)), columns[0].dtype)
    for start in range(0, rows, _BLOCK_ROWS):
        # Within a block the cache holds every line of the result until all columns have filled it.
        block = stacked[start : start + _BLOCK_ROWS]
        for place, column in enumerate(columns):
            block[:, place] = column[start : start + _BLOCK_ROWS]
    return stacked


def _check_block(block: _FlatRows, binding: InputBinding) -> None:
    if binding.check_nonfinite and binding.field.dtype != STRING:
        bad = nonfinite_rows(block.values)
        if bad is not None:
            _mark_fault(block, bad, Reason.NONFINITE_FEATURE)


def _mark_fault(block: _FlatRows, rows: np.ndarray, reason: Reason) -> None:
    marked = np.where(rows, np.uint8(reason), np.uint8(Reason.GOOD))
    block.faults = marked if block.faults is None else _first_fault(block.faults, marked)


def _first_fault(faults: np.ndarray, later: np.ndarray) -> np.ndarray:
    return np.where(faults == Reason.GOOD, later, faults)


def _least_fault(faults: np.ndarray, others: np.ndarray) -> np.ndarray:
    # 0, which is good, wraps around to 255, and loses against every fault.
    return np.minimum(faults - np.uint8(1), others - np.uint8(1)) + np.uint8(1)


def _filled(array: np.ndarray, faults: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the array with harmless values in its bad rows, and faults for every row."""
    if faults is None:
        return array, np.zeros(len(array), np.uint8)
    if faults.any():
        # Only here: as long as all rows are good, what Arrow holds is handed on without a copy.
        array = array if array.flags.writeable else array.copy()
        array[faults != Reason.GOOD] = "" if array.dtype == object else 0
    return array, faults


def _width(leaves: Leaves) -> int:
    return math.prod(leaves.lengths)


@dataclass(frozen=True)
class Leaves:
    """The innermost values of ``n`` rows of a column.

    Attributes:
        values: Arrow array of ``n * prod(lengths)`` values, row after row; dictionaries decoded.
        lengths: Length of each list level.
        missing: ``bool[n * prod(lengths)]``, true where there is no value: a null at any level, or
            the place of a ragged row. ``None`` where every value is there.
        faults: ``uint8[n]``: ``RAGGED_FEATURE``, else ``NULL_FEATURE``, else ``GOOD``. ``None``
            where all rows are good.
    """

    values: pa.Array
    lengths: tuple[int, ...]
    missing: np.ndarray | None
    faults: np.ndarray | None


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array of its storage type: a copy only where it has several chunks.

    Example:
        >>> one_array(pa.chunked_array([[1], [2, 3]])).to_pylist()
        [1, 2, 3]
    """
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return _storage(array)


def read_leaves(array: pa.Array, lengths: Shape) -> Leaves:
    """Find the innermost values of every row.

    Args:
        array: As many list levels as there are ``lengths``; slices with an offset are welcome.
        lengths: What each level's length must be; where ``None``, the most common one counts, and
            an empty list is a ragged row.

    Returns:
        The values. A row is null if anything in it is, and ragged if a list in it has another
        length; what lies hidden under a null does not count.

    Example:
        >>> leaves = read_leaves(pa.array([[1, 2], [3], None, [4, 5]]), (2,))
        >>> leaves.values.to_pylist(), leaves.faults
        ([1, 2, None, None, None, None, 4, 5], array([0, 2, 1, 0], dtype=uint8))
    """
    rows = len(array)
    reader = _LevelReader(array)
    found = tuple([reader.descend(length, rows) for length in lengths])
    values = _decoded(reader.array)
    reader.mark_nulls(values, rows)
    return Leaves(values, found, reader.missing, reader.faults)


class _LevelReader:
    """A walk down the list levels; ``state`` holds a `Reason` for each entry of the level."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array
        self.state: np.ndarray | None = None
        self.faults: np.ndarray | None = None

    @property
    def missing(self) -> np.ndarray | None:
        return None if self.state is None else self.state != Reason.GOOD

    def descend(self, length: int | None, rows: int) -> int:
        """Go one level down, and return the length of this level's lists."""
        self.mark_nulls(self.array, rows)
        if pa.types.is_fixed_size_list(self.array.type):
            length = self._open_fixed()
        else:
            length = self._open_variable(length, rows)
        if self.state is not None:
            self.state = np.repeat(self.state, length)
        return length

    def mark_nulls(self, array: pa.Array, rows: int) -> None:
        if array.null_count:
            self._mark(array.is_null().to_numpy(zero_copy_only=False), Reason.NULL_FEATURE, rows)

    def _open_fixed(self) -> int:
        # `values` knows neither the slice's offset nor its nulls; `flatten` would drop null rows.
        length: int = self.array.type.list_size
        values = self.array.values.slice(self.array.offset * length, len(self.array) * length)
        self.array = _storage(values)
        return length

    def _open_variable(self, length: int | None, rows: int) -> int:
        offsets = self.array.offsets.to_numpy()
        sizes = np.diff(offsets)
        if length is None:
            length = _most_common(sizes if self.state is None else sizes[self.state == Reason.GOOD])
        wrong = sizes != length
        if wrong.any():
            self._mark(wrong, Reason.RAGGED_FEATURE, rows)
        values = _storage(self.array.values)
        # Every list has the length, and they follow one another: a slice, without a copy.
        if self.state is None or not self.state.any():
            start = int(offsets[0]) if len(offsets) else 0
            self.array = values.slice(start, len(sizes) * length)
        else:
            self.array = _gather(values, offsets[:-1], length, self.state != Reason.GOOD)
        return length

    def _mark(self, marked: np.ndarray, reason: Reason, rows: int) -> None:
        """Give ``reason`` to the entries marked that have none yet, and to their rows.

        Ragged beats null in a row with both, wherever in the row they lie.
        """
        if self.state is None:
            self.state = np.zeros(len(marked), np.uint8)
        if self.faults is None:
            self.faults = np.zeros(rows, np.uint8)
        # The outermost counts: what lies under a null list is filler, and says nothing of the row.
        self.state[marked & (self.state == Reason.GOOD)] = reason
        if len(self.state):
            entries = self.state.reshape(rows, -1)
            np.maximum(self.faults, entries.max(axis=1), out=self.faults)


def _gather(values: pa.Array, starts: np.ndarray, length: int, absent: np.ndarray) -> pa.Array:
    """Return ``length`` values from each start, and nulls in the places of absent lists."""
    places = starts.astype(np.int64)[:, None] + np.arange(length)
    mask = np.repeat(absent, length)
    return values.take(pa.array(places.ravel(), mask=mask))


def _most_common(sizes: np.ndarray) -> int:
    """Return the most common size above 0, the smallest of several; 1 where there is none."""
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1
    found, counts = np.unique(sizes, return_counts=True)
    return int(found[counts.argmax()])


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _decoded(array: pa.Array) -> pa.Array:
    """Return the array without its dictionary, whose values may be null as well as its indices."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
