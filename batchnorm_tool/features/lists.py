"""List columns taken apart: the innermost values of a block of rows, and what is wrong with them.

Nothing is copied where every row has the right length and nothing is null. Otherwise the values are
gathered, with a null in every place that a bad row leaves open, so that row ``i`` always begins at
value ``i * width``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason

if TYPE_CHECKING:
    from batchnorm_tool.features.columns import Shape


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
    """A column as one array of its storage type: a copy only where it has several chunks.

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
    """Walks down the list levels; ``state`` holds a `Reason` for each entry of the level."""

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
        self.state[marked & (self.state == Reason.GOOD)] = reason
        if len(self.state):
            entries = self.state.reshape(rows, -1)
            np.maximum(self.faults, entries.max(axis=1), out=self.faults)


def _gather(values: pa.Array, starts: np.ndarray, length: int, absent: np.ndarray) -> pa.Array:
    """``length`` values from each start, and nulls in the places of absent lists."""
    places = starts.astype(np.int64)[:, None] + np.arange(length)
    mask = np.repeat(absent, length)
    return values.take(pa.array(places.ravel(), mask=mask))


def _most_common(sizes: np.ndarray) -> int:
    """The most common size above 0, the smallest of several; 1 where there is none to go by."""
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1
    found, counts = np.unique(sizes, return_counts=True)
    return int(found[counts.argmax()])


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _decoded(array: pa.Array) -> pa.Array:
    """The array without its dictionary, whose values may be null as well as its indices."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
