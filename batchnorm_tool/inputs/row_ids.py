"""Rows found by 128-bit ids, of keys or features: in a list, in a join that spills, and repeated.

Ids are ``uint64[n, 2]``: `row_hash.key_ids`, or hashes by `row_hash.as_ids`.
"""

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.errors import WorkFailed

ENTRY = np.dtype([("row", np.int64), ("id", np.uint64, 2)])
"""A row and its id; entries with more fields begin like this."""
# Of an entry, its sorted copies, and what is found.
_ENTRY_BYTES = 200
_MOST_BITS = 10
# Between two writes: with fewer rows, a thousand files would get a few bytes each.
_BUFFERED_ROWS = 2**18
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads every bit (Knuth 6.4)


class IdLookup:
    """Places of ids in a list ``uint64[m, 2]``; takes at most 20 bytes for each beside the list."""

    def __init__(self, ids: np.ndarray) -> None:
        # Of integers the second words are all zero, and often the first ones ascend.
        has_second = bool(ids[:, 1].any())
        self._order = None if _ascends(ids[:, 0]) else np.argsort(ids[:, 0], kind="stable")
        self._first = np.ascontiguousarray(self._ordered(ids[:, 0]))
        # Sorting by both words takes longer, and is needed only where two ids begin alike: keys
        # that are integers, and nearly all hashes, differ in their first word.
        if has_second and (self._first[1:] == self._first[:-1]).any():
            self._order = np.lexsort((ids[:, 1], ids[:, 0]))
            self._first = ids[self._order, 0]
        self._second = np.ascontiguousarray(self._ordered(ids[:, 1])) if has_second else None
        if self._order is not None and len(ids) < 2**31:
            self._order = self._order.astype(np.int32)

    def __len__(self) -> int:
        return len(self._first)

    def _ordered(self, words: np.ndarray) -> np.ndarray:
        return words if self._order is None else words[self._order]

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return ``int64[n]``, the first place of each of ``uint64[n, 2]``; -1: it is not there."""
        if not len(self) or not len(ids):
            return np.full(len(ids), -1, np.int64)
        if _ascends(ids[:, 0]):
            return self._find_ascending(ids)
        # Ascending queries find their neighbourhood in the cache: twice as fast, sorting included.
        sorting = np.argsort(ids[:, 0])
        found = np.empty(len(ids), np.int64)
        found[sorting] = self._find_ascending(ids[sorting])
        return found

    def _find_ascending(self, ids: np.ndarray) -> np.ndarray:
        start = int(np.searchsorted(self._first, ids[0, 0]))
        if self._stand_from(start, ids):
            places = np.arange(start, start + len(ids))
            return places if self._order is None else self._order[places].astype(np.int64)
        at = np.searchsorted(self._first, ids[:, 0])
        is_here, begins = self._compare(at, ids)
        more = np.flatnonzero(begins & ~is_here)
        while len(more):  # ids that begin alike stand beside one another
            at[more] += 1
            is_here[more], begins = self._compare(at[more], ids[more])
            more = more[begins & ~is_here[more]]
        places = np.minimum(at, len(self) - 1)
        places = places if self._order is None else self._order[places].astype(np.int64)
        return np.where(is_here, places, -1)

    def _stand_from(self, start: int, ids: np.ndarray) -> bool:
        """Tell whether ids, none of them repeated, stand in a row in the order."""
        # Of integers that both sides have in order they do: told in a tenth of a search's time.
        run = slice(start, start + len(ids))
        first = self._first[run]
        if len(first) < len(ids) or first[-1] != ids[-1, 0]:
            return False
        second = np.zeros(1, np.uint64) if self._second is None else self._second[run]
        return bool(
            (first == ids[:, 0]).all()
            and (first[1:] > first[:-1]).all()
            and (second == ids[:, 1]).all()
        )

    def _compare(self, at: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tell where ids stand at places of the order, and where their first words do."""
        inside = np.minimum(at, len(self) - 1)
        begins = (self._first[inside] == ids[:, 0]) & (at == inside)
        if self._second is None:
            is_here = begins & (ids[:, 1] == 0)
            return is_here, is_here
        return begins & (self._second[inside] == ids[:, 1]), begins

    def among(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Return those of many ids, ``uint64[n, 2]`` in each block, that are in the list."""
        # A table of their lowest bits tells nearly all others apart, in a tenth of the time.
        mask = np.uint64((1 << min(24, max(16, (64 * len(self)).bit_length()))) - 1)
        table = np.zeros(int(mask) + 1, bool)
        table[self._first & mask] = True
        likely = (ids[table[ids[:, 0] & mask]] for ids in blocks)
        found = [ids[self.find(ids) >= 0] for ids in likely]
        return np.concatenate([np.empty((0, 2), np.uint64), *found])

    def repeated(self) -> np.ndarray:
        """See `repeats`."""
        same = self._first[1:] == self._first[:-1]
        if self._second is not None:
            same &= self._second[1:] == self._second[:-1]
        again = np.flatnonzero(same) + 1
        # In the order, what has the id of the one before; where that one is no such, it is first.
        begins = np.diff(again, prepend=-1) != 1
        pairs = np.column_stack(((again - 1)[begins][np.cumsum(begins) - 1], again))
        if self._order is not None:
            pairs = self._order[pairs].astype(np.int64)
        return pairs[np.argsort(pairs[:, 1])]


def _ascends(words: np.ndarray) -> bool:
    return bool((words[1:] >= words[:-1]).all())


def repeats(ids: np.ndarray) -> np.ndarray:
    """Return ``int64[r, 2]``: the first place of an id, and each further one, in order of these."""
    words = np.sort(ids[:, 0])
    # Mostly so, and told in a third of the time that it takes to sort both words.
    if not (words[1:] == words[:-1]).any():
        return np.empty((0, 2), np.int64)
    return IdLookup(ids).repeated()


def find_repeated(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    rows: int,
    memory_bytes: int,
    retry: str = "run it",
) -> Iterator[np.ndarray]:
    """Yield pairs of rows that have the same id, ``int64[m, 2]``: the first one, a further one.

    Each row that repeats an id is in one pair. Pairs of an array are in the order of their further
    rows; two arrays are in no order. Memory is bounded however often an id occurs: beyond it, rows
    go to temporary files, which take 24 bytes for each.

    Args:
        blocks: Row numbers ``int64[n]``, ascending from block to block, gaps allowed, and the ids
            of these rows, ``uint64[n, 2]``.
        rows: How many there are at most.
        memory_bytes: About how much memory to take.
        retry: What to do again where there is no room for the files.
    """
    entries = (entries_of(ENTRY, *block) for block in blocks)
    if rows * _ENTRY_BYTES <= memory_bytes:
        yield from _repeated([joined(entries, ENTRY)])
        return
    with bucket_directory(retry) as directory:
        buckets = Buckets(directory, "rows", bucket_bits(rows, memory_bytes), ENTRY)
        for block in entries:
            buckets.add(block)
        # In pieces, as a bucket has all rows of an id, which may be most of the input.
        for pieces in buckets.take(max(1, memory_bytes // _ENTRY_BYTES)):
            yield from _repeated(pieces)


def entries_of(dtype: np.dtype, rows: np.ndarray, *columns: Any) -> np.ndarray:
    """Return entries with their fields in order: row numbers ``int64[n]``, ids, and the rest."""
    entries = np.empty(len(rows), dtype)
    for name, column in zip(dtype.names or (), (rows, *columns), strict=True):
        entries[name] = column
    return entries


def joined(blocks: Iterable[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Return all entries, none where there are no blocks."""
    return np.concatenate([np.empty(0, dtype), *blocks])


def _repeated(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield pairs from entries that ascend by row; memory is for a piece and all different ids."""
    known = np.empty(0, ENTRY)
    for piece in pieces:
        known = np.concatenate([known, piece])
        pairs = repeats(known["id"])
        if len(pairs):
            yield known["row"][pairs]
            known = np.delete(known, pairs[:, 1])


def bucket_bits(rows: int, memory_bytes: int) -> int:
    """Return the binary logarithm of how many buckets it takes for each to fit the memory."""
    wanted = (rows * _ENTRY_BYTES // max(1, memory_bytes)).bit_length()
    return min(max(1, wanted), _MOST_BITS)


@contextlib.contextmanager
def bucket_directory(retry: str) -> Iterator[Path]:
    """Open a temporary directory, gone afterwards; ``retry`` is what to do again if that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="batchnorm-tool-keys-") as directory:
            yield Path(directory)
    except OSError as error:
        msg = (
            f"Writing hashes of rows to `{tempfile.gettempdir()}` failed: {error.strerror}. "
            f"Free some space, or set TMPDIR to another directory, and {retry} again."
        )
        raise WorkFailed(msg) from error


class Buckets:
    """Entries in ``2 ** bits`` files, by what their ids begin with; threads may share it.

    Two sides of a join take as many: each bucket of one has all the ids that its partner has. Of
    the entries' ``dtype``, the fields begin as `ENTRY`.
    """

    def __init__(self, directory: Path, name: str, bits: int, dtype: np.dtype) -> None:
        self._paths = [directory / f"{name}-{number:04d}" for number in range(1 << bits)]
        self._shift = np.uint64(64 - bits)
        self._dtype = dtype
        self._lock = threading.Lock()
        self._waiting: list[np.ndarray] = []
        self._rows = 0

    def add(self, entries: np.ndarray) -> None:
        """Take in entries, in any order."""
        with self._lock:
            self._waiting.append(entries)
            self._rows += len(entries)
            if self._rows >= _BUFFERED_ROWS:
                self._write()

    def _write(self) -> None:
        entries = joined(self._waiting, self._dtype)
        self._waiting, self._rows = [], 0
        mixed = (entries["id"][:, 0] * _MULTIPLIER) ^ entries["id"][:, 1]
        numbers = mixed * _MULTIPLIER >> self._shift
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(len(self._paths)), side="right")
        for path, found in zip(self._paths, np.split(entries[order], ends[:-1]), strict=True):
            if len(found):
                with path.open("ab") as file:
                    file.write(found.tobytes())

    def take(self, piece_rows: int = -1) -> Iterator[Iterator[np.ndarray]]:
        """Yield one bucket after another, each in pieces of so many entries as they were added."""
        self._write()
        for path in self._paths:
            yield self._pieces(path, piece_rows)
            path.unlink(missing_ok=True)

    def _pieces(self, path: Path, rows: int) -> Iterator[np.ndarray]:
        if path.exists():
            with path.open("rb") as file:
                while len(piece := np.fromfile(file, self._dtype, rows)):
                    yield piece
