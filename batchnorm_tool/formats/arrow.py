"""Arrow IPC files (Feather version 2) and streams: read without copies; files are written."""

from __future__ import annotations

import functools
import itertools
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from batchnorm_tool.chunk import overlaps
from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.formats import (
    CreateFile,
    Format,
    Inspected,
    Layout,
    Sink,
    arrow_columns,
    codec_of,
    files,
)
from batchnorm_tool.storage import OutputFile

MAGIC = b"ARROW1"
TRAILER_BYTES = 4 + len(MAGIC)
# A message of a stream begins with this and its length, and the last one has none.
CONTINUATION = b"\xff\xff\xff\xff"
END_OF_STREAM = CONTINUATION + bytes(4)
_MOST_HEADER_BYTES = 1 << 28
_Places = tuple[int, ...]
_Stream = tuple[pa.RecordBatchReader, pa.BufferReader]


@dataclass(frozen=True)
class Arrow(Format):
    """The Arrow IPC file format, which is also Feather version 2, and the stream format.

    A stream, such as Hugging Face datasets keep, has no index of its batches: one is made.
    """

    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Tell whether a file begins (or, damaged in front, ends) as Arrow files or streams do."""
        return _begins_stream(head) or head.startswith(MAGIC) or tail.endswith(MAGIC)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """Return size in bytes, and SHA-256 of the footer, if any, with samples of the data."""
        size = files.regular_file(path).st_size
        start = size if _begins_stream(files.edges(path)[0]) else _footer_start(path, size)
        with files.refusing(path), Path(path).open("rb") as file:
            footer = files.read_exactly(file, start, size - start)
            return size, files.sampled_sha256(file, footer, 0, start)

    def inspect(self, path: str) -> Inspected:
        """Read the footer and the lengths of the batches."""
        size, fingerprint = self.fingerprint(path)
        lengths, _ = _batches(path, fingerprint)
        with files.refusing(path), _Mapped(path) as mapped:
            schema = arrow_columns.plain_schema(mapped.schema())
        return Inspected(schema, sum(lengths), fingerprint, size, {"batches": len(lengths)})

    def read(
        self, path: str, columns: Sequence[str], start: int, stop: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows ``start`` to ``stop``.

        Uncompressed batches are views of the mapped file, whose pages are given back after each;
        of a compressed file one stored batch is held.
        """
        lengths, starts = _batches(path, self.fingerprint(path)[1])
        files.check_range(path, start, stop, sum(lengths))
        row = start
        with files.working(path, lambda: row), _Mapped(path) as mapped:
            files.check_columns(path, columns, mapped.schema().names)
            get_batch = mapped.batches(starts, columns)
            for number, first, last in overlaps([0, *itertools.accumulate(lengths)], start, stop):
                stored = get_batch(number).select(list(columns))
                _check_length(path, number, lengths[number], stored.num_rows)
                for at in range(first, last, batch_rows):
                    batch = stored.slice(at, min(batch_rows, last - at))
                    yield arrow_columns.plain_batch(files.validate(batch))
                    row += batch.num_rows
                    mapped.forget()

    def open_sink(self, create: CreateFile, stem: str, schema: pa.Schema, layout: Layout) -> Sink:
        """Open ``STEM.arrow``."""
        return ArrowSink(create(f"{stem}.arrow"), schema, layout)


class ArrowSink(arrow_columns.GroupedSink):
    """A writer of one IPC file; uncompressed, unless asked otherwise, it can be mapped."""

    def __init__(self, file: OutputFile, schema: pa.Schema, layout: Layout) -> None:
        super().__init__(schema, layout)
        name, level = codec_of(layout.compression or "none")
        codec = None if name == "none" else pa.Codec(name, level)
        options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
        self._writer = pa.ipc.new_file(file, self._groups.schema, options=options)

    def _write_group(self, group: pa.Table) -> None:
        self._writer.write_table(_without_hidden_bytes(group.combine_chunks()))


class _Mapped:
    """A file mapped into memory, with its readers."""

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._buffer = pa.py_buffer(self._map)

    def reader(self, columns: list[int] | None = None) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.BufferReader(self._buffer), options=_options(columns))

    def schema(self) -> pa.Schema:
        return self.stream()[0].schema if self.is_stream else self.reader().schema

    @property
    def is_stream(self) -> bool:
        return _begins_stream(self._map[: files.EDGE_BYTES])

    def stream(self, columns: list[int] | None = None) -> _Stream:
        """Return the batches in order, and the bytes, which tell how far they are read."""
        source = pa.BufferReader(self._buffer)
        return pa.ipc.open_stream(source, options=_options(columns)), source

    def batches(
        self, starts: Sequence[int] | None, columns: Sequence[str]
    ) -> Callable[[int], pa.RecordBatch]:
        """Give any batch: of a file by its index, of a stream by where each one begins."""
        schema = self.schema()
        if starts is None:
            return self.reader([schema.names.index(column) for column in columns]).get_batch
        if not any(arrow_columns.holds(kind, pa.types.is_dictionary) for kind in schema.types):
            return lambda number: pa.ipc.read_record_batch(
                pa.ipc.read_message(self._buffer.slice(starts[number])), schema
            )
        # What batches mean depends on the dictionaries before them: they are asked for in order.
        stream = enumerate(self.stream()[0])
        none = pa.RecordBatch.from_pylist([], schema)
        return lambda number: next((batch for place, batch in stream if place == number), none)

    def forget(self) -> None:
        """Give the pages back: they count as this process's memory until then."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not closed: batches that a caller still holds are views of it. It goes when they go.
        del self._buffer


def _options(columns: list[int] | None) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(use_threads=False, included_fields=columns)


@functools.lru_cache(maxsize=4096)
def _batches(path: str, fingerprint: str) -> tuple[_Places, _Places | None]:
    """Count the rows of each record batch, and find where a stream's begin; cached by content."""
    del fingerprint
    with files.refusing(path), _Mapped(path) as mapped:
        schema = mapped.schema()
        files.check_schema(path, schema)
        # Lengths are not in the footer: read them with the column that costs the least.
        costs = [arrow_columns.fixed_bytes(kind, 1 << 28) or 0 for kind in schema.types]
        narrow = costs.index(min(costs))
        if mapped.is_stream:
            return _stream_batches(path, mapped, narrow)
        reader = mapped.reader([narrow])
        return tuple(reader.get_batch(n).num_rows for n in range(reader.num_record_batches)), None


def _stream_batches(path: str, mapped: _Mapped, narrow: int) -> tuple[_Places, _Places]:
    stream, source = mapped.stream([narrow])
    lengths, starts = [], [source.tell()]
    for batch in stream:
        lengths.append(batch.num_rows)
        starts.append(source.tell())
    size = source.size()
    # Whether a stream is whole shows in its end alone.
    if source.tell() != size or starts[-1] != size - len(END_OF_STREAM):
        raise InputError(
            f"{path}: the Arrow stream has no end marker, or bytes after it. Expected the end "
            f"marker of a closed stream. Received: {size} bytes, of which {starts[-1]} are "
            "batches. The file is truncated, or still being written: write or copy it again."
        )
    return tuple(lengths), tuple(starts[:-1])


def _begins_stream(head: bytes) -> bool:
    length = int.from_bytes(head[4:8], "little", signed=True)
    return head.startswith(CONTINUATION) and 0 < length < _MOST_HEADER_BYTES


def _check_length(path: str, number: int, expected: int, received: int) -> None:
    if expected != received:
        raise Damaged(
            f"{path}, record batch {number}: its columns differ in length. Expected: {expected} "
            f"rows. Received: {received}. The file is damaged: write or copy it again."
        )


def _footer_start(path: str, size: int) -> int:
    _, tail = files.edges(path)
    length = int.from_bytes(tail[-TRAILER_BYTES : -len(MAGIC)], "little", signed=True)
    start = size - TRAILER_BYTES - length
    if not tail.endswith(MAGIC) or length <= 0 or start < len(MAGIC):
        raise InputError(
            f"{path}: the Arrow footer is missing or truncated. Expected a footer that ends in "
            f"{MAGIC!r}. Received: {size} bytes that end in {tail[-10:]!r}. "
            "Write or copy the file again."
        )
    return start


def _without_hidden_bytes(table: pa.Table) -> pa.Table:
    """Return zeros in null slots and at the ends of bitmaps: what hides there would be written."""
    suspects = (c for c in table.columns if c.null_count or pa.types.is_boolean(c.type))
    if next(suspects, None) is None:
        return table
    return table.take(pa.array(range(table.num_rows), pa.int64())).combine_chunks()
