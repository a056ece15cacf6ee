"""Rows of a Parquet file from any row on, decoded once even where parts share a row group.

Parquet readers can start at a row group only. Writers such as pandas make row groups of a million
rows, parts are often smaller, and a part in the middle of a group would decode all that comes
before it. So a reader that stops inside a group is kept, and the next part goes on from there.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.errors import BatchnormToolError, Damaged, InputError
from batchnorm_tool.formats import local_file
from batchnorm_tool.formats.contract import MEBIBYTE

# Without a buffer the compressed column of a whole row group is read at once: 540 MB instead of
# 90 MB for 1 M rows x 128 float32 in one group, and slower (0.64 against 0.92 M rows/s).
BUFFER_BYTES = MEBIBYTE
# Of wide tables: 200 columns x 600 k rows in one group took 1.3 GB less memory with small buffers.
ALL_BUFFERS_BYTES = 64 * MEBIBYTE
LEAST_BUFFER_BYTES = MEBIBYTE // 16

# A part up to this size is decoded at one go, so that the next part need not wait or start over.
# Each worker holds as much until it has worked on it.
READ_AHEAD_BYTES = 16 * MEBIBYTE

# Each holds a file handle, a page of each column and a decoded batch.
MOST_CURSORS = 16
MOST_GROUPS = 4096

_LARGE_BYTES = 4 * MEBIBYTE
_PHYSICAL_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}


@dataclass(frozen=True)
class Stretch:
    """What to read: a file as it is now, its columns, and the batch size; the name of a cursor."""

    path: str
    identity: tuple[int, ...]
    columns: tuple[str, ...]
    batch_rows: int


@dataclass(frozen=True)
class Footer:
    """What a file's footer says.

    Attributes:
        metadata: As Arrow has it.
        names: Of the columns.
        starts: The first row of each row group, and the number of rows.
    """

    metadata: pq.FileMetaData
    names: tuple[str, ...]
    starts: tuple[int, ...]


@functools.lru_cache(maxsize=MOST_CURSORS)
def read_footer(path: str, identity: tuple[int, ...]) -> Footer:
    """Read the footer, once for all parts of a file as it is now: ``identity`` tells that."""
    del identity
    with local_file.refusing(path), open_parquet(path) as file:
        starts = (0, *itertools.accumulate(group_sizes(file.metadata)))
        return Footer(file.metadata, tuple(file.schema_arrow.names), starts)


@dataclass(frozen=True)
class GroupRange:
    """Consecutive row groups of a file.

    Attributes:
        numbers: Their numbers.
        start: The first row of the file in them.
        rows: Their rows, together.
    """

    numbers: range
    start: int
    rows: int


class Cursor:
    """A place in row groups, from which rows are decoded in order.

    Attributes:
        position: The row of the file that comes next.
        rows: Rows of the groups.
    """

    def __init__(self, stretch: Stretch, footer: Footer, groups: GroupRange) -> None:
        self._stretch, self._footer, self._groups = stretch, footer, groups
        self.rows = groups.rows
        self.position = groups.start
        # Knows nothing of this object: in a cycle, both would hold their pages until a collection.
        self._batches = _decoded(stretch, footer, groups)
        self._rest: pa.RecordBatch | None = None

    def read(self, stop: int, most_bytes: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield rows from the position on, up to row `stop` or about `most_bytes`."""
        taken = 0
        while self.position < stop and (most_bytes is None or taken < most_bytes):
            batch = self._next(stop - self.position)
            self.position += batch.num_rows
            taken += batch.nbytes
            yield batch

    def skip(self, start: int) -> None:
        """Move on to row `start`."""
        for _ in self.read(start):
            pass

    def _next(self, most_rows: int) -> pa.RecordBatch:
        with local_file.working(self._stretch.path, self._unread):
            batch = self._rest if self._rest is not None else next(self._batches)
        self._rest = batch.slice(most_rows) if batch.num_rows > most_rows else None
        return batch.slice(0, most_rows)

    def _unread(self) -> int:
        """The row from which on nothing can be read: of the groups in a batch, one is bad."""
        numbers, starts = self._groups.numbers, self._footer.starts
        for number in numbers if len(numbers) > 1 else ():
            start, stop = starts[number : number + 2]
            alone = GroupRange(range(number, number + 1), start, stop - start)
            try:
                if start < stop and stop > self.position:
                    Cursor(self._stretch, self._footer, alone).skip(stop)
            except BatchnormToolError:
                return max(start, self.position)
        return self.position


def _decoded(stretch: Stretch, footer: Footer, groups: GroupRange) -> Iterator[pa.RecordBatch]:
    columns, numbers, rows = list(stretch.columns), list(groups.numbers), 0
    with open_parquet(stretch.path, footer.metadata, len(columns)) as file:
        for batch in file.iter_batches(stretch.batch_rows, numbers, columns, use_threads=False):
            rows += batch.num_rows
            if batch.num_rows:
                yield local_file.validate(batch.select(columns))
    # Some damaged files yield fewer rows than their footer claims, without an error. Whoever asks
    # for one more row than there is in the groups gets here.
    message = (
        f"{stretch.path}, row group {numbers[0]} or one up to {numbers[-1]}: holds other rows than "
        f"the footer claims. Expected: {groups.rows} rows. Received: {rows}. "
        "The file is damaged: write or copy it again."
    )
    raise Damaged(message)


def buffer_bytes(columns: int) -> int:
    """The read buffer of one column among so many.

    Example:
        >>> buffer_bytes(2), buffer_bytes(512)
        (1048576, 131072)
    """
    return max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES, ALL_BUFFERS_BYTES // max(1, columns)))


class Cursors:
    """The furthest cursor in each row group, for the part that goes on from there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[Stretch, int], Cursor] = OrderedDict()
        self._turns: dict[tuple[Stretch, int], threading.Lock] = {}
        self._rows_left: dict[tuple[Stretch, int], int] = {}

    def read(
        self, stretch: Stretch, footer: Footer, start: int, stop: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows `start` to `stop` of a file, one row group after the other."""
        for groups in _overlapping(footer.starts, start, stop):
            begin, end = max(start, groups.start), min(stop, groups.start + groups.rows)
            if end - begin == groups.rows:
                yield from Cursor(stretch, footer, groups).read(end)
            else:
                yield from self._read_shared(stretch, footer, groups, (begin, end))

    def _read_shared(
        self, stretch: Stretch, footer: Footer, groups: GroupRange, rows: tuple[int, int]
    ) -> Iterator[pa.RecordBatch]:
        (start, stop), key = rows, (stretch, groups.numbers[0])
        with self._turn(key):
            cursor = self._take(key, start) or Cursor(stretch, footer, groups)
            cursor.skip(start)
            ahead = deque(cursor.read(stop, READ_AHEAD_BYTES))
            is_whole = cursor.position >= stop
            if is_whole:
                self._give_back(key, cursor, stop - start)
        while ahead:
            yield ahead.popleft()
        if not is_whole:
            yield from cursor.read(stop)
            self._give_back(key, cursor, stop - start)

    def clear(self) -> None:
        """Let go of all files and pages; who still reads starts its row group over."""
        with self._lock:
            self._idle.clear()
            self._turns.clear()
            self._rows_left.clear()

    def _turn(self, key: tuple[Stretch, int]) -> threading.Lock:
        """A lock for each row group: who waits finds the cursor where the other one left it."""
        with self._lock:
            if len(self._turns) > MOST_GROUPS:
                self._turns.clear()
                self._rows_left.clear()
            return self._turns.setdefault(key, threading.Lock())

    def _take(self, key: tuple[Stretch, int], start: int) -> Cursor | None:
        with self._lock:
            cursor = self._idle.get(key)
            if cursor is None or cursor.position > start:
                return None
            return self._idle.pop(key)

    def _give_back(self, key: tuple[Stretch, int], cursor: Cursor, rows: int) -> None:
        """Keep a cursor, unless all rows of its group have been read by someone."""
        with self._lock:
            self._rows_left[key] = self._rows_left.get(key, cursor.rows) - rows
            other = self._idle.pop(key, cursor)
            if self._rows_left[key] > 0:
                self._idle[key] = max(cursor, other, key=lambda each: each.position)
            else:
                del self._rows_left[key]
            while len(self._idle) > MOST_CURSORS:
                self._idle.popitem(last=False)


def _overlapping(starts: Sequence[int], start: int, stop: int) -> Iterator[GroupRange]:
    """Yield the row groups that hold rows `start` to `stop`; those wholly within are one."""
    number, last = bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop)
    while number < last:
        after = number + 1
        if starts[number] >= start:
            after = max(after, min(last, bisect.bisect_right(starts, stop) - 1))
        rows = starts[after] - starts[number]
        if rows:
            yield GroupRange(range(number, after), starts[number], rows)
        number = after


def open_parquet(
    path: str, metadata: pq.FileMetaData | None = None, columns: int = 1
) -> pq.ParquetFile:
    """Open a file for streaming: checksums verified, no read-ahead of whole column chunks."""
    return pq.ParquetFile(
        path,
        metadata=metadata,
        pre_buffer=False,
        buffer_size=buffer_bytes(columns),
        page_checksum_verification=True,
    )


def group_sizes(metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def value_bytes(path: str) -> dict[str, int]:
    """About how many bytes a row of each column takes in memory, by a file's first row group.

    A dictionary far beyond its stored size counts whole: each row may be all of it.

    Raises:
        InputError: The footer is damaged.
    """
    with local_file.refusing(path), open_parquet(path) as file:
        metadata, names = file.metadata, frozenset(file.schema_arrow.names)
    if not metadata.num_row_groups:
        return {}
    rows = max(1, metadata.row_group(0).num_rows)
    sizes: Counter[str] = Counter()
    for chunk in _chunks_of_first_group(path):
        is_bomb = chunk.has_dictionary and chunk.size > max(_LARGE_BYTES, 100 * chunk.stored)
        values = _PHYSICAL_BYTES.get(chunk.kind, 0) * chunk.values
        name = chunk.path
        while name not in names and "." in name:
            name = name.rpartition(".")[0]
        sizes[name] += chunk.size if is_bomb else max(chunk.size, values) // rows
    return dict(sizes)


class _Chunk(NamedTuple):
    """What the footer says of a column chunk: its values, and its bytes stored and unpacked."""

    path: str
    kind: str
    values: int
    has_dictionary: bool
    stored: int
    size: int


def _chunks_of_first_group(path: str) -> list[_Chunk]:
    """Read them in another process: Arrow ends the one that asks for a damaged chunk's metadata."""
    import subprocess

    command = [sys.executable, "-c", _READ_CHUNKS, path]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        message = (
            f"{path}: the footer's description of the columns is damaged. Expected one that can "
            f"be read. Received: {done.stderr.decode(errors='replace')[-200:].strip()}. Write or "
            "copy the file again."
        )
        raise InputError(message)
    return [_Chunk(*chunk) for chunk in json.loads(done.stdout)]


_READ_CHUNKS = """
import json, sys
import pyarrow.parquet as pq
group = pq.ParquetFile(sys.argv[1]).metadata.row_group(0)
chunks = [group.column(place) for place in range(group.num_columns)]
print(json.dumps([(c.path_in_schema, c.physical_type, c.num_values, c.has_dictionary_page,
                   c.total_compressed_size, c.total_uncompressed_size) for c in chunks]))
"""
