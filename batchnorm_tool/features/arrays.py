"""Stored columns turned into the array that a model input takes, with a fault for each row."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason
from batchnorm_tool.features import columns as stored
from batchnorm_tool.features import values
from batchnorm_tool.features.columns import InputBinding
from batchnorm_tool.features.values import Conversion, Shape

# Rows of many columns interleaved at a time: 16,384 rows of 128 float32 columns took 4 ms in any
# block from 1,024 rows up, 131,072 rows 35 ms in blocks of 1,024 to 4,096 and 126 ms without.
_BLOCK_ROWS = 2048


@dataclass
class _FlatRows:
    """Rows of one input, not yet in shape; ``faults`` is ``None`` where all rows are good."""

    values: np.ndarray
    faults: np.ndarray | None
    lengths: tuple[int, ...]


def read_input(
    table: pa.Table, binding: InputBinding, *, check_nonfinite: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the array for one model input, and the faults; see `FeatureReader.read`."""
    lengths = stored.check_fit(table.schema, binding)
    columns = [table.column(name) for name in binding.columns]
    if binding.image_kind is not None:
        return _read_images(columns[0], binding.image_kind, binding)
    each = () if len(columns) > 1 else lengths
    conversions = map(binding.conversion, binding.columns)
    pairs = zip(columns, conversions, strict=True)
    rows = _stack([_read_column(column, each, conversion) for column, conversion in pairs])
    if check_nonfinite and binding.field.dtype != values.STRING:
        bad = values.nonfinite_rows(rows.values)
        if bad is not None:
            faults = np.where(bad, Reason.NONFINITE_FEATURE, Reason.GOOD).astype(np.uint8)
            rows.faults = _first_fault(rows.faults, faults)
    column = stored.stored_column(table.schema, binding.columns)
    shape = stored.filled_shape(column, binding.field.shape, rows.lengths)
    return _filled(rows.values.reshape(table.num_rows, *shape), rows.faults)


def _read_images(
    column: pa.ChunkedArray, kind: str, binding: InputBinding
) -> tuple[np.ndarray, np.ndarray]:
    encoded = _one_array(column).to_pylist()
    images, faults = values.decode_images(encoded, kind, binding.field.shape)
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    pixels, unfit = values.convert(flat, binding.conversion(binding.columns[0]))
    if unfit is not None:
        faults = np.where(faults == Reason.GOOD, unfit, faults)
    return pixels.reshape(images.shape), faults


def _read_column(column: pa.ChunkedArray, lengths: Shape, conversion: Conversion) -> _FlatRows:
    array = _one_array(column)
    leaves = _Leaves(array, lengths)
    shape = (len(array), math.prod(leaves.lengths))
    if conversion.field.dtype == values.STRING:
        found, unfit = values.texts_of(leaves.values).reshape(shape), None
    else:
        found, unfit = values.convert(_numbers(leaves, conversion).reshape(shape), conversion)
    faults, missing, filler = leaves.faults, leaves.missing, conversion.filler()
    # Once the column's filler stands where a null is, it is no fault any more.
    if filler is not None and missing is not None and faults is not None:
        found[missing.reshape(shape)] = filler
        faults = np.where(faults == Reason.NULL_FEATURE, 0, faults)
    return _FlatRows(found, _first_fault(faults, unfit), leaves.lengths)


def _numbers(leaves: "_Leaves", conversion: Conversion) -> np.ndarray:
    whole = not values.is_float(values.array_dtype(conversion.field))
    numbers, missing = values.numbers_of(leaves.values, whole=whole), leaves.missing
    # What lies in memory under a null is arbitrary, and no reason to complain.
    return numbers if missing is None else np.where(missing, numbers.dtype.type(0), numbers)


def _stack(blocks: Sequence[_FlatRows]) -> _FlatRows:
    """Return columns side by side, ``[n, len(blocks)]``; a null in any beats a NaN in another."""
    if len(blocks) == 1:
        return blocks[0]
    faults = [block.faults for block in blocks if block.faults is not None]
    least = functools.reduce(_least_fault, faults) if faults else None
    return _FlatRows(_interleave([block.values[:, 0] for block in blocks]), least, (len(blocks),))


def _interleave(columns: Sequence[np.ndarray]) -> np.ndarray:
    rows = len(columns[0])
    stacked = np.empty((rows, len(columns)), columns[0].dtype)
    for start in range(0, rows, _BLOCK_ROWS):
        # Within a block the cache holds every line of the result until all columns have filled it.
        block = stacked[start : start + _BLOCK_ROWS]
        for place, column in enumerate(columns):
            block[:, place] = column[start : start + _BLOCK_ROWS]
    return stacked


def _first_fault(faults: np.ndarray | None, later: np.ndarray | None) -> np.ndarray | None:
    if faults is None or later is None:
        return later if faults is None else faults
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


class _Leaves:
    """The innermost values of ``n`` rows of a column, found one list level after another.

    A row is null if anything in it is, and ragged if a list in it has another length; what lies
    hidden under a null does not count.

    The column, whose slices may have an offset, has as many list levels as there are ``lengths``:
    what each level's length must be; where ``None``, the most common one counts, and an empty list
    is a ragged row.

    Attributes:
        values: Arrow array of ``n * prod(lengths)`` values, row after row; dictionaries decoded.
        lengths: The length of each level.
        faults: ``uint8[n]``: ``RAGGED_FEATURE``, else ``NULL_FEATURE``, else ``GOOD``; ``None``
            where all rows are good.
    """

    def __init__(self, array: pa.Array, lengths: Shape) -> None:
        self.values = array
        self.faults: np.ndarray | None = None
        self._rows = len(array)
        # A `Reason` for each entry of the level that is reached.
        self._state: np.ndarray | None = None
        self.lengths = tuple([self._descend(length) for length in lengths])
        if pa.types.is_dictionary(self.values.type):
            # Its values may be null as well as its indices.
            self.values = self.values.dictionary_decode()
        self._mark_nulls()

    @property
    def missing(self) -> np.ndarray | None:
        """``bool`` for each value: no value is there, or its row is ragged; ``None`` for none."""
        return None if self._state is None else self._state != Reason.GOOD

    def _descend(self, length: int | None) -> int:
        """Go one level down, and return the length of this level's lists."""
        self._mark_nulls()
        if pa.types.is_fixed_size_list(self.values.type):
            length = self._open_fixed()
        else:
            length = self._open_variable(length)
        if self._state is not None:
            self._state = np.repeat(self._state, length)
        return length

    def _mark_nulls(self) -> None:
        if self.values.null_count:
            self._mark(self.values.is_null().to_numpy(zero_copy_only=False), Reason.NULL_FEATURE)

    def _open_fixed(self) -> int:
        # `values` knows neither the slice's offset nor its nulls; `flatten` would drop null rows.
        array = self.values
        length: int = array.type.list_size
        self.values = _storage(array.values.slice(array.offset * length, len(array) * length))
        return length

    def _open_variable(self, length: int | None) -> int:
        offsets = self.values.offsets.to_numpy()
        sizes = np.diff(offsets)
        if length is None:
            good = sizes if self._state is None else sizes[self._state == Reason.GOOD]
            length = _most_common(good)
        wrong = sizes != length
        if wrong.any():
            self._mark(wrong, Reason.RAGGED_FEATURE)
        inner = _storage(self.values.values)
        # Every list has the length, and they follow one another: a slice, without a copy.
        if self._state is None or not self._state.any():
            start = int(offsets[0]) if len(offsets) else 0
            self.values = inner.slice(start, len(sizes) * length)
        else:
            self.values = _gather(inner, offsets[:-1], length, self._state != Reason.GOOD)
        return length

    def _mark(self, marked: np.ndarray, reason: Reason) -> None:
        """Give ``reason`` to the entries marked that have none yet, and to their rows.

        Ragged beats null in a row with both, wherever in the row they lie.
        """
        if self._state is None:
            self._state = np.zeros(len(marked), np.uint8)
        if self.faults is None:
            self.faults = np.zeros(self._rows, np.uint8)
        # The outermost counts: what lies under a null list is filler, and says nothing of the row.
        self._state[marked & (self._state == Reason.GOOD)] = reason
        if len(self._state):
            entries = self._state.reshape(self._rows, -1)
            np.maximum(self.faults, entries.max(axis=1), out=self.faults)


def _gather(values: pa.Array, starts: np.ndarray, length: int, absent: np.ndarray) -> pa.Array:
    """Return ``length`` values from each start, and nulls in the places of absent lists."""
    places = starts.astype(np.int64)[:, None] + np.arange(length)
    mask = np.repeat(absent, length)
    return values.take(pa.array(places.ravel(), mask=mask))


def _most_common(sizes: np.ndarray) -> int:
    """Return the most common size above 0, the smallest of several; 1 where there is none."""
    found, counts = np.unique(sizes[sizes > 0], return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 1


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array of its storage type: a copy only where it has several chunks."""
    return _storage(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array
