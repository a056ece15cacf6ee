"""Keys and hashes of a store's live version, in a Parquet file and in memory.

A night with nothing to do needs nothing else of the store. Readers of the store need none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.store.index_file import (
    INDEX_FIELDS,
    KEY_ID,
    IndexWriter,
    binary_rows,
    fixed_binary,
    index_rows,
    index_schema,
    is_quarantined,
    read_index,
    read_key_schema,
)
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH, STATUS

if TYPE_CHECKING:
    from batchnorm_tool.storage import Storage

__all__ = [
    "INDEX_FIELDS",
    "KEY_ID",
    "IndexWriter",
    "LiveIndex",
    "binary_rows",
    "fixed_binary",
    "index_rows",
    "index_schema",
    "is_quarantined",
    "read_index",
    "read_key_schema",
]


@dataclass(frozen=True)
class LiveIndex:
    """The rows of a live version by the ids of their keys; at most 45 bytes a row.

    Attributes:
        feature_hash: ``uint8[n, 16]`` by position.
        passthrough_hash: ``uint8[n, 8]`` by position.
        quarantined: ``bool[n]`` by position: remembered as bad, and not in the dataset.
        first: ``uint64[n]``, the first words of the ids, ascending.
        second: ``uint64[n]``, the second words in the same order; ``None`` where all are zero.
        order: ``int32[n]`` or ``int64[n]``, the positions in the same order; ``None`` where they
            ascend too.
    """

    feature_hash: np.ndarray
    passthrough_hash: np.ndarray
    quarantined: np.ndarray
    first: np.ndarray
    second: np.ndarray | None
    order: np.ndarray | None

    @classmethod
    def load(cls, storage: Storage, path: str) -> LiveIndex:
        """Read an index into memory.

        Raises:
            WorkFailed: It cannot be read.
        """
        rows = index_rows(storage, path)
        ids = np.empty((rows, 16), np.uint8)
        _fill(storage, path, {KEY_ID: ids})
        first, second, order = _sorted_ids(ids.view(np.uint64))
        del ids
        features, passthrough = np.empty((rows, 16), np.uint8), np.empty((rows, 8), np.uint8)
        quarantined = np.empty(rows, bool)
        columns = {FEATURE_HASH: features, PASSTHROUGH_HASH: passthrough, STATUS: quarantined}
        _fill(storage, path, columns)
        return cls(features, passthrough, quarantined, first, second, order)

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        feature_hash: np.ndarray,
        passthrough_hash: np.ndarray,
        quarantined: np.ndarray,
    ) -> LiveIndex:
        """The same from arrays.

        Args:
            ids: ``uint64[n, 2]``, each once.
            feature_hash: ``uint8[n, 16]``.
            passthrough_hash: ``uint8[n, 8]``.
            quarantined: ``bool[n]``.
        """
        return cls(feature_hash, passthrough_hash, quarantined, *_sorted_ids(ids))

    def __len__(self) -> int:
        return len(self.first)

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """The position of each key.

        Args:
            ids: ``uint64[m, 2]``, of `key_ids`.

        Returns:
            ``int64[m]``: the row of the index that has this key; -1 for none.

        Example:
            >>> ids = np.array([[7, 0], [5, 0]], np.uint64)
            >>> hashes = np.zeros((2, 16), np.uint8), np.zeros((2, 8), np.uint8)
            >>> index = LiveIndex.of(ids, *hashes, np.zeros(2, bool))
            >>> index.lookup(np.array([[5, 0], [6, 0], [7, 0]], np.uint64)).tolist()
            [1, -1, 0]
        """
        words = ids[:, 0]
        if not len(self) or not len(words):
            return np.full(len(words), -1, np.int64)
        # Ascending queries find their neighbourhood in the cache: twice as fast, sorting included.
        sorting = None if _ascends(words) else np.argsort(words)
        places = self._places(ids if sorting is None else ids[sorting])
        found = places >= 0
        positions = places if self.order is None else self.order[places].astype(np.int64)
        positions = np.where(found, positions, -1)
        if sorting is None:
            return positions
        result = np.empty(len(words), np.int64)
        result[sorting] = positions
        return result

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Places in the sorted order, ``int64[m]``; -1 for none."""
        places = np.searchsorted(self.first, ids[:, 0]).astype(np.int64)
        known = self._is_at(places, ids[:, 0])
        if self.second is None:
            return np.where(known & (ids[:, 1] == 0), places, -1)
        there = known.copy()
        there[known] = self.second[places[known]] == ids[known, 1]
        for row in np.flatnonzero(known & ~there).tolist():
            places[row] = self._search_equal(int(places[row]), ids[row])
            there[row] = True
        return np.where(there, places, -1)

    def _is_at(self, places: np.ndarray, words: np.ndarray) -> np.ndarray:
        inside = np.minimum(places, len(self) - 1)
        return np.asarray(self.first[inside] == words)

    def _search_equal(self, start: int, wanted: np.ndarray) -> int:
        """Among ids with the same first word, the place of the one with the second word too."""
        assert self.second is not None  # noqa: S101  (whoever has no second words does not search)
        stop = int(np.searchsorted(self.first, wanted[0], side="right"))
        found = np.flatnonzero(self.second[start:stop] == wanted[1])
        return start + int(found[0]) if len(found) else -1


def _ascends(words: np.ndarray) -> bool:
    return bool((words[1:] >= words[:-1]).all())


def _sorted_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """First words ascending, second words and positions in the same order."""
    second = np.ascontiguousarray(ids[:, 1]) if ids[:, 1].any() else None
    if _ascends(ids[:, 0]):
        return np.ascontiguousarray(ids[:, 0]), second, None
    order = np.argsort(ids[:, 0])
    if len(order) < 2**31:
        order = order.astype(np.int32)
    return ids[order, 0], None if second is None else second[order], order


def _fill(storage: Storage, path: str, columns: dict[str, np.ndarray]) -> None:
    """Read columns of an index into arrays made for them."""
    row = 0
    for table in read_index(storage, path, list(columns)):
        stop = row + table.num_rows
        for name, array in columns.items():
            column = table.column(name).combine_chunks()
            array[row:stop] = is_quarantined(column) if name == STATUS else binary_rows(column)
        row = stop
