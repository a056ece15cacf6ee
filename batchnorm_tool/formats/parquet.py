"""Parquet: footers, rows in bounded memory, and a plain layout that every reader knows."""

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
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.errors import BatchnormToolError, Damaged, InputError, OutputError
from batchnorm_tool.formats import (
    MEBIBYTE,
    CreateFile,
    Format,
    Inspected,
    Layout,
    Sink,
    codec_of,
    files,
)
from batchnorm_tool.formats.arrow_columns import GroupedSink, plain_batch, plain_schema
from batchnorm_tool.storage import OutputFile

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"
TRAILER_BYTES = 8
_COMPRESSION = "zstd:1"
# Values encoded at a time: 1 M vectors of 64 took 1.01 to 1.05 CPU seconds in 16,384 at a time, and
# 1.13 in Arrow's default of 1,024.
WRITE_BATCH_VALUES = 16384
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
class ReadSpec:
    """What to read: a file as it is now, its columns, and the batch size; the name of a cursor."""

    path: str
    identity: tuple[int, ...]
    columns: tuple[str, ...]
    batch_rows: int


@dataclass(frozen=True)
class Footer:
    """What a file's footer says; `starts` has the first row of each row group, and all rows."""

    metadata: pq.FileMetaData
    names: tuple[str, ...]
    starts: tuple[int, ...]


@functools.lru_cache(maxsize=MOST_CURSORS)
def read_footer(path: str, identity: tuple[int, ...]) -> Footer:
    """Read the footer, once for all parts of a file as it is now: ``identity`` tells that."""
    # It is there for the cache alone: a file that was replaced under its name has another one.
    del identity
    with files.refusing(path), open_parquet(path) as file:
        starts = (0, *itertools.accumulate(group_sizes(file.metadata)))
        return Footer(file.metadata, tuple(file.schema_arrow.names), starts)


@dataclass(frozen=True)
class GroupRange:
    """Consecutive row groups of a file, from row `start` of it on, with `rows` rows together."""

    numbers: range
    start: int
    rows: int


class Cursor:
    """A place in row groups, from which rows are decoded in order; row `position` comes next."""

    def __init__(self, spec: ReadSpec, footer: Footer, groups: GroupRange) -> None:
        self._spec, self._footer, self._groups = spec, footer, groups
        self.rows = groups.rows
        self.position = groups.start
        # Knows nothing of this object: in a cycle, both would hold their pages until a collection.
        self._batches = _decoded(spec, footer, groups)
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
        with files.working(self._spec.path, self._unread):
            batch = self._rest if self._rest is not None else next(self._batches)
        self._rest = batch.slice(most_rows) if batch.num_rows > most_rows else None
        return batch.slice(0, most_rows)

    def _unread(self) -> int:
        """Find the row from which on nothing can be read: of the groups in a batch, one is bad."""
        numbers, starts = self._groups.numbers, self._footer.starts
        for number in numbers if len(numbers) > 1 else ():
            start, stop = starts[number : number + 2]
            alone = GroupRange(range(number, number + 1), start, stop - start)
            try:
                if start < stop and stop > self.position:
                    Cursor(self._spec, self._footer, alone).skip(stop)
            except BatchnormToolError:
                return max(start, self.position)
        return self.position


def _decoded(spec: ReadSpec, footer: Footer, groups: GroupRange) -> Iterator[pa.RecordBatch]:
    columns, numbers, rows = list(spec.columns), list(groups.numbers), 0
    with open_parquet(spec.path, footer.metadata, len(columns)) as file:
        for batch in file.iter_batches(spec.batch_rows, numbers, columns, use_threads=False):
            rows += batch.num_rows
            if batch.num_rows:
                yield files.validate(batch.select(columns))
    # Some damaged files yield fewer rows than their footer claims, without an error. Whoever asks
    # for one more row than there is in the groups gets here.
    raise Damaged(
        f"{spec.path}, row group {numbers[0]} or one up to {numbers[-1]}: its rows differ from "
        f"those in the footer. Expected: {groups.rows} rows. Received: {rows}. The file is "
        "damaged: write or copy it again."
    )


def buffer_bytes(columns: int) -> int:
    """Return the read buffer of one column among so many."""
    return max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES, ALL_BUFFERS_BYTES // max(1, columns)))


class Cursors:
    """The furthest cursor in each row group, for the part that goes on from there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[ReadSpec, int], Cursor] = OrderedDict()
        self._turns: dict[tuple[ReadSpec, int], threading.Lock] = {}
        self._rows_left: dict[tuple[ReadSpec, int], int] = {}

    def read(
        self, spec: ReadSpec, footer: Footer, start: int, stop: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows `start` to `stop` of a file, one row group after the other."""
        for groups in _overlapping(footer.starts, start, stop):
            begin, end = max(start, groups.start), min(stop, groups.start + groups.rows)
            if end - begin == groups.rows:
                # No other part has rows of these groups: no turn to wait for, nothing to keep.
                yield from Cursor(spec, footer, groups).read(end)
            else:
                yield from self._read_shared(spec, footer, groups, (begin, end))

    def _read_shared(
        self, spec: ReadSpec, footer: Footer, groups: GroupRange, rows: tuple[int, int]
    ) -> Iterator[pa.RecordBatch]:
        (start, stop), key = rows, (spec, groups.numbers[0])
        # Parts of one row group share a cursor, for the pages in front of a row must be decoded to
        # get at it. The next in turn goes on where the other stopped, and decodes nothing twice.
        with self._turn(key):
            cursor = self._take(key, start) or Cursor(spec, footer, groups)
            cursor.skip(start)
            ahead = deque(cursor.read(stop, READ_AHEAD_BYTES))
            is_whole = cursor.position >= stop
            if is_whole:
                self._give_back(key, cursor, stop - start)
        # After the turn: the next need not wait for what is made of these rows.
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

    def _turn(self, key: tuple[ReadSpec, int]) -> threading.Lock:
        """Lock a row group: who waits finds the cursor where the other one left it."""
        with self._lock:
            # A lock that is held stays with its holder; another one for the same group costs time,
            # not rows.
            if len(self._turns) > MOST_GROUPS:
                self._turns.clear()
                self._rows_left.clear()
            return self._turns.setdefault(key, threading.Lock())

    def _take(self, key: tuple[ReadSpec, int], start: int) -> Cursor | None:
        with self._lock:
            cursor = self._idle.get(key)
            if cursor is None or cursor.position > start:
                return None
            return self._idle.pop(key)

    def _give_back(self, key: tuple[ReadSpec, int], cursor: Cursor, rows: int) -> None:
        """Keep a cursor, unless all rows of its group have been read by someone."""
        with self._lock:
            self._rows_left[key] = self._rows_left.get(key, cursor.rows) - rows
            # Of two, the furthest: parts are begun in order, and those to come lie behind it.
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
    """Return rows of each row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def value_bytes(path: str) -> dict[str, int]:
    """Estimate the bytes that a row of each column takes in memory, by the first row group."""
    # A dictionary far beyond its stored size counts whole: each row may be all of it.
    with files.refusing(path), open_parquet(path) as file:
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
        raise InputError(
            f"{path}: the footer's description of the columns is damaged. Expected one that can "
            f"be read. Received: {done.stderr.decode(errors='replace')[-200:].strip()}. Write or "
            "copy the file again."
        )
    return [_Chunk(*chunk) for chunk in json.loads(done.stdout)]


_READ_CHUNKS = """
import json, sys
import pyarrow.parquet as pq
group = pq.ParquetFile(sys.argv[1]).metadata.row_group(0)
chunks = [group.column(place) for place in range(group.num_columns)]
print(json.dumps([(c.path_in_schema, c.physical_type, c.num_values, c.has_dictionary_page,
                   c.total_compressed_size, c.total_uncompressed_size) for c in chunks]))
"""


_cursors = Cursors()


def close_cached_files() -> None:
    """Close the files that are kept open for the next part."""
    _cursors.clear()


@dataclass(frozen=True)
class Parquet(Format):
    """The Parquet format."""

    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Tell whether a file begins (or, damaged in front, ends) as Parquet does."""
        magics = (MAGIC, ENCRYPTED_MAGIC)
        return head.startswith(magics) or tail.endswith(magics)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """Return the size in bytes, and SHA-256 of the footer and of both ends of the data."""
        # The footer holds the compressed size of every column chunk and, mostly, the extremes of
        # its values, but no checksum of the data.
        size = files.regular_file(path).st_size
        _check_trailer(path, size)
        with files.refusing(path), Path(path).open("rb") as file:
            trailer = files.read_exactly(file, size - TRAILER_BYTES, TRAILER_BYTES)
            length = int.from_bytes(trailer[:4], "little") + TRAILER_BYTES
            footer = files.read_exactly(file, size - length, length)
            return size, files.sampled_sha256(file, footer, len(MAGIC), size - length)

    def inspect(self, path: str) -> Inspected:
        """Read the footer."""
        size, fingerprint = self.fingerprint(path)
        with files.refusing(path), open_parquet(path) as file:
            metadata, schema = file.metadata, plain_schema(file.schema_arrow)
            sizes, written_by = group_sizes(metadata), metadata.created_by
        files.check_schema(path, schema)
        _check_rows(path, metadata.num_rows, sizes)
        details: dict[str, object] = {
            "row_groups": len(sizes),
            "largest_row_group": max(sizes, default=0),
            "written_by": written_by,
        }
        return Inspected(schema, metadata.num_rows, fingerprint, size, details)

    def read(
        self, path: str, columns: Sequence[str], start: int, stop: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows ``start`` to ``stop``, decoding only the row groups that hold them.

        At most 16 MiB (or one batch) are held decoded; a part that shares its row group with the
        part read before goes on where that one stopped.
        """
        status = files.regular_file(path)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        footer = read_footer(path, identity)
        files.check_columns(path, columns, footer.names)
        files.check_range(path, start, stop, footer.starts[-1])
        spec = ReadSpec(path, identity, tuple(columns), batch_rows)
        yield from map(plain_batch, _cursors.read(spec, footer, start, stop))

    def open_sink(self, create: CreateFile, stem: str, schema: pa.Schema, layout: Layout) -> Sink:
        """Open ``STEM.parquet``."""
        return ParquetSink(create(f"{stem}.parquet"), schema, layout)

    def check_storable(self, schema: pa.Schema) -> None:
        """Refuse a type that Parquet does not have."""
        for field in schema:
            one, nothing = pa.schema([field]), Layout(rows=0, vector_columns=())
            _open_writer(pa.BufferOutputStream(), one, nothing).close()


class ParquetSink(GroupedSink):
    """A writer of one Parquet file: PLAIN, page checksums, groups of equal bytes."""

    def __init__(self, file: OutputFile, schema: pa.Schema, layout: Layout) -> None:
        super().__init__(schema, layout)
        self._writer = _open_writer(file, self._groups.schema, layout)

    def _write_group(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=group.num_rows)


def _open_writer(
    file: OutputFile | pa.NativeFile, schema: pa.Schema, layout: Layout
) -> pq.ParquetWriter:
    measured = {*layout.vector_columns, *layout.norm_columns}
    # Floats that hardly repeat: a dictionary halves the speed of reading, and extremes of a
    # vector's components help no reader to skip anything.
    others = [f.name for f in schema if f.name not in measured and not pa.types.is_nested(f.type)]
    norms = [f.name for f in schema if f.name in layout.norm_columns]
    codec, level = codec_of(layout.compression or _COMPRESSION)
    split = [_leaf(schema.field(name)) for name in layout.vector_columns]
    try:
        return pq.ParquetWriter(
            file,
            schema,
            compression=codec,
            compression_level=level,
            use_dictionary=others,
            write_statistics=others + norms,
            use_byte_stream_split=split if layout.byte_stream_split else False,
            write_page_checksum=True,
            write_batch_size=WRITE_BATCH_VALUES,
        )
    except pa.ArrowNotImplementedError as error:
        names = "`, `".join(schema.names)
        raise OutputError(
            f"output: `{names}` cannot be stored in Parquet. Received: {error}. Remove it from "
            "`input.passthrough`, or set `output.format: arrow`."
        ) from error


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else str(field.name)


def _check_trailer(path: str, size: int) -> None:
    head, tail = files.edges(path)
    if ENCRYPTED_MAGIC in (head[:4], tail[-4:]):
        raise InputError(
            f"{path}: is an encrypted Parquet file. Expected an unencrypted one. "
            f"Received: {ENCRYPTED_MAGIC!r} at its end. Decrypt it first."
        )
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != MAGIC or size < len(MAGIC) + TRAILER_BYTES + length or not length:
        raise InputError(
            f"{path}: the Parquet footer is missing or truncated. Expected a footer that ends "
            f"in {MAGIC!r}. Received: {size} bytes that end in {tail[-8:]!r}. "
            "Write or copy the file again."
        )


def _check_rows(path: str, rows: int, sizes: Sequence[int]) -> None:
    if rows != sum(sizes) or min(sizes, default=0) < 0:
        raise InputError(
            f"{path}: its footer is inconsistent. Expected the total of its row "
            f"groups: {sum(sizes)} rows. Received: {rows}. Write or copy the file again."
        )
