"""File formats: what each of them does, and which one a name or a file's content stands for.

Each is a module here, and a line in `batchnorm_tool.registry.FORMATS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import files
from batchnorm_tool.registry import FORMATS, load
from batchnorm_tool.storage import OutputFile

MEBIBYTE = 1 << 20
DATA_DIRECTORY = "vectors"
# Creates a file of a result, from its path below the output.
CreateFile = Callable[[str], OutputFile]


@dataclass(frozen=True)
class Inspected:
    """What the header or footer of one file says; no row was read.

    Attributes:
        schema: Column names and types. Multi-dimensional columns are flat lists of fixed size,
            with their true shape as JSON in the field's metadata under ``shape``.
        rows: Number of rows.
        fingerprint: SHA-256 (hex) of the footer or header, by which a replaced file is noticed.
        bytes: Size of the file.
        details: What else is worth showing, such as the number of row groups.
    """

    schema: pa.Schema
    rows: int
    fingerprint: str
    bytes: int
    details: dict[str, object]


@dataclass(frozen=True)
class Layout:
    """How a sink lays its rows out.

    Attributes:
        rows: Rows expected, at most; a hint, fewer or more are no error.
        vector_columns: Names of the unit vectors' columns.
        norm_columns: Names of the norms' columns, in the same order.
        row_group_bytes: Uncompressed size of a row group or record batch.
        byte_stream_split: Parquet only: 10 % smaller vectors, which Spark before 4.3 cannot read.
        compression: ``zstd:LEVEL``, ``lz4`` or ``none``; ``None`` for the format's own.
        metadata: Provenance for the footer.
    """

    rows: int
    vector_columns: tuple[str, ...]
    norm_columns: tuple[str, ...] = ()
    row_group_bytes: int = 16 * MEBIBYTE
    byte_stream_split: bool = False
    compression: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def codec_of(compression: str) -> tuple[str, int | None]:
    """Return the name and the level of a compression as a job has it."""
    name, _, level = compression.partition(":")
    return name, int(level) if level else None


class Sink(Protocol):
    """A writer of one part's rows, in order; its bytes do not depend on their grouping."""

    def write(self, table: pa.Table) -> None:
        """Append rows that have the schema that the sink was opened with."""

    def close(self) -> None:
        """Write what is held back and the footer; the files stay open and uncommitted."""


class Format(ABC):
    """One file format: recognise, inspect, read, write.

    Attributes:
        is_table: Whether a file holds named columns, which may have nulls; otherwise one array.
    """

    is_table: ClassVar[bool] = True

    @abstractmethod
    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Tell whether a file with these first and last 16 bytes is of this format."""

    @abstractmethod
    def fingerprint(self, path: str) -> tuple[int, str]:
        """Return size in bytes, and SHA-256 of footer or header: the identity of the content."""

    @abstractmethod
    def inspect(self, path: str) -> Inspected:
        """Read the header or footer.

        Raises:
            InputError: If the file is missing, damaged or of a kind that is not read.
        """

    @abstractmethod
    def read(
        self, path: str, columns: Sequence[str], start: int, stop: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows ``start`` to ``stop`` in order, in batches of at most ``batch_rows``.

        Raises:
            InputError: If a column is not there.
            Damaged: If the file is damaged in these rows; the message names file and row.
            WorkFailed: If the system failed, or the file has no such rows any more.
        """

    @abstractmethod
    def open_sink(self, create: CreateFile, stem: str, schema: pa.Schema, layout: Layout) -> Sink:
        """Open the files of one part; ``stem`` is such as ``vectors/part-000000``.

        What they are called ends in the name of their format.
        """

    def check_storable(self, schema: pa.Schema) -> None:  # noqa: B027  (most have every type)
        """Refuse key and passed-through columns of a type that the format does not have.

        Raises:
            OutputError: There is one; the message names it.
        """

    def directories(
        self, names: Sequence[str], vectors: Sequence[str], norms: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        """Return which columns the files in each directory of a result hold.

        Args:
            names: All columns.
            vectors: Those of unit vectors.
            norms: Those of norms, in the same order.

        Raises:
            OutputError: A column's name cannot be that of a directory, or is taken.
        """
        del vectors, norms
        return {DATA_DIRECTORY: tuple(names)}


def format_named(name: str, dtype: str | None = None) -> Format:
    """Return the format of that name; of NPY, ``dtype`` says how ``|V2`` is meant."""
    if name not in FORMATS:
        hint = near_matches(name, FORMATS)
        raise InputError(
            f"`input.format`: expected one of {sorted(FORMATS)}. Received: {name!r}{hint}."
        )
    form: Format = load(FORMATS, name)(dtype) if name == "npy" else load(FORMATS, name)()
    return form


def recognise(path: str, expected: str | None = None) -> str:
    """Name a file's format by its first and last bytes, whatever its name ends in."""
    head, tail = files.edges(path)
    found = next((name for name in FORMATS if format_named(name).recognises(head, tail)), None)
    if found is None:
        raise files.unrecognised(path, head, tail)
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: is not in the format given by `input.format`. Expected: {expected}. "
            f"Received: {found}. Remove `input.format`, or correct it."
        )
    return found
