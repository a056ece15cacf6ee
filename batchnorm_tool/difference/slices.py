"""The cut of an input into slices: what one thread reads, hashes and spools at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.formats.contract import MEBIBYTE
from batchnorm_tool.formats.parquet_rows import READ_AHEAD_BYTES, group_sizes, open_parquet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchnorm_tool.difference.tonight import Tonight
    from batchnorm_tool.sources import InputFile, Table

_SLICE_BYTES = 64 * MEBIBYTE
_MOST_SLICE_ROWS = 2**18
_CHUNK_BYTES = 8 * MEBIBYTE
_MOST_CHUNK_ROWS = 2**15


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` (exclusive) of the input file with number ``file``."""

    file: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of the input that one thread works on.

    Attributes:
        number: Its place in the input, from 0.
        first_row: Global number of its first row, counted over all files.
        pieces: Where its rows lie, in order.
    """

    number: int
    first_row: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def stem(self) -> str:
        """The name of its files without a suffix, such as ``part-000007``."""
        return f"part-{self.number:06d}"


def chunk_rows(tonight: Tonight) -> int:
    """Rows in memory at a time."""
    return max(1, min(_MOST_CHUNK_ROWS, _CHUNK_BYTES // tonight.row_bytes))


def cut(tonight: Tonight) -> list[Slice]:
    """All slices of an input: the same for any number of threads."""
    most = max(1, min(_MOST_SLICE_ROWS, _SLICE_BYTES // tonight.row_bytes))
    shared = max(1, min(most, READ_AHEAD_BYTES // tonight.row_bytes))
    slices: list[Slice] = []
    waiting: list[Piece] = []
    first_row = rows = 0
    for piece in _pieces(tonight.table, most, shared):
        if waiting and rows + piece.rows > most:
            slices.append(Slice(len(slices), first_row, tuple(waiting)))
            waiting, first_row, rows = [], first_row + rows, 0
        waiting.append(piece)
        rows += piece.rows
    if waiting:
        slices.append(Slice(len(slices), first_row, tuple(waiting)))
    return slices


def _pieces(table: Table, most: int, shared: int) -> Iterator[Piece]:
    """Whole row groups of a Parquet file: they can be decoded at the same time.

    Small ones go together, for each reading looks at the whole footer. A larger group is cut so
    that each piece is decoded at one go, and the next thread goes on where the reader stopped. All
    else is cut anywhere.
    """
    for number, file in enumerate(table.files):
        first = row = 0
        for rows in _blocks(file):
            if row > first and row + rows - first > most:
                yield Piece(number, first, row)
                first = row
            row += rows
            if rows > most:
                yield from (
                    Piece(number, start, min(start + shared, row))
                    for start in range(first, row, shared)
                )
                first = row
        if row > first:
            yield Piece(number, first, row)


def _blocks(file: InputFile) -> Sequence[int]:
    if file.format != "parquet" or file.members:
        return [file.rows]
    with open_parquet(file.path) as opened:
        return group_sizes(opened.metadata)
