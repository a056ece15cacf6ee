"""Parquet: footers, rows in bounded memory, and a plain layout that every reader knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.errors import InputError, OutputError
from batchnorm_tool.formats import local_file
from batchnorm_tool.formats.contract import Inspected, Layout, OutputFile
from batchnorm_tool.formats.parquet_rows import (
    Cursors,
    Stretch,
    group_sizes,
    open_parquet,
    read_footer,
)
from batchnorm_tool.formats.row_groups import RowGroups
from batchnorm_tool.formats.vectors import plain_batch, plain_schema

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"
TRAILER_BYTES = 8
ZSTD_LEVEL = 1
# Values encoded at a time: 1 M vectors of 64 took 1.01 to 1.05 CPU seconds in 16,384 at a time, and
# 1.13 in Arrow's default of 1,024.
WRITE_BATCH_VALUES = 16384

_cursors = Cursors()


def let_go() -> None:
    """Close the files that are kept open for the next part."""
    _cursors.clear()


@dataclass(frozen=True)
class Parquet:
    """The Parquet format.

    Example:
        >>> Parquet().recognises(b"PAR1", b"PAR1")
        True
    """

    name: str = "parquet"

    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Whether a file begins (or, damaged in front, ends) as Parquet does."""
        magics = (MAGIC, ENCRYPTED_MAGIC)
        return head.startswith(magics) or tail.endswith(magics)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """Size in bytes, and SHA-256 of the footer and of both ends of the data.

        The footer holds the compressed size of every column chunk and, mostly, the extremes of
        its values, but no checksum of the data.
        """
        size = local_file.regular_file(path).st_size
        _check_trailer(path, size)
        with local_file.refusing(path), Path(path).open("rb") as file:
            trailer = local_file.read_exactly(file, size - TRAILER_BYTES, TRAILER_BYTES)
            length = int.from_bytes(trailer[:4], "little") + TRAILER_BYTES
            footer = local_file.read_exactly(file, size - length, length)
            return size, local_file.sampled_sha256(file, footer, len(MAGIC), size - length)

    def inspect(self, path: str) -> Inspected:
        """Read the footer."""
        size, fingerprint = self.fingerprint(path)
        with local_file.refusing(path), open_parquet(path) as file:
            metadata, schema = file.metadata, plain_schema(file.schema_arrow)
            sizes, written_by = group_sizes(metadata), metadata.created_by
        local_file.check_schema(path, schema)
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
        status = local_file.regular_file(path)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        footer = read_footer(path, identity)
        local_file.check_columns(path, columns, footer.names)
        local_file.check_range(path, start, stop, footer.starts[-1])
        stretch = Stretch(path, identity, tuple(columns), batch_rows)
        yield from map(plain_batch, _cursors.read(stretch, footer, start, stop))

    def open_sink(
        self, files: Callable[[str], OutputFile], stem: str, schema: pa.Schema, layout: Layout
    ) -> ParquetSink:
        """Open ``STEM.parquet``."""
        return ParquetSink(files(f"{stem}.parquet"), schema, layout)


class ParquetSink:
    """Writes one Parquet file: PLAIN, zstd level 1, page checksums, row groups of equal bytes."""

    def __init__(self, file: OutputFile, schema: pa.Schema, layout: Layout) -> None:
        schema = schema.with_metadata({**(schema.metadata or {}), **layout.metadata})
        self._groups = RowGroups(schema, layout.row_group_bytes)
        self._writer = _open_writer(file, self._groups.schema, layout)

    def write(self, table: pa.Table) -> None:
        """Append rows; full row groups are written."""
        for group in self._groups.add(table):
            self._write_group(group)

    def close(self) -> None:
        """Write the last row group and the footer."""
        rest = self._groups.rest()
        if rest is not None:
            self._write_group(rest)
        self._writer.close()

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
    split = [_leaf(schema.field(name)) for name in layout.vector_columns]
    try:
        return pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=others,
            write_statistics=others + norms,
            use_byte_stream_split=split if layout.byte_stream_split else False,
            write_page_checksum=True,
            write_batch_size=WRITE_BATCH_VALUES,
        )
    except pa.ArrowNotImplementedError as error:
        names = "`, `".join(schema.names)
        message = (
            f"output: `{names}` cannot be stored in Parquet. Received: {error}. "
            "Leave it out of `input.passthrough`, or write `output.format: arrow`."
        )
        raise OutputError(message) from error


def check_storable(schema: pa.Schema) -> None:
    """Refuse a schema with a type that Parquet does not have.

    Raises:
        OutputError: It has one; the message names the column and its type.
    """
    for field in schema:
        one, nothing = pa.schema([field]), Layout(rows=0, vector_columns=())
        _open_writer(pa.BufferOutputStream(), one, nothing).close()


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else str(field.name)


def _check_trailer(path: str, size: int) -> None:
    head, tail = local_file.edges(path)
    if ENCRYPTED_MAGIC in (head[:4], tail[-4:]):
        message = (
            f"{path}: is an encrypted Parquet file. Expected a plain one. "
            f"Received: {ENCRYPTED_MAGIC!r} at its end. Decrypt it first."
        )
        raise InputError(message)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != MAGIC or size < len(MAGIC) + TRAILER_BYTES + length or not length:
        message = (
            f"{path}: the Parquet footer is missing or truncated. Expected a footer that ends "
            f"in {MAGIC!r}. Received: {size} bytes that end in {tail[-8:]!r}. "
            "Write or copy the file again."
        )
        raise InputError(message)


def _check_rows(path: str, rows: int, sizes: Sequence[int]) -> None:
    if rows != sum(sizes) or min(sizes, default=0) < 0:
        message = (
            f"{path}: its footer contradicts itself. Expected as many rows as its row groups "
            f"have: {sum(sizes)}. Received: {rows}. Write or copy the file again."
        )
        raise InputError(message)
