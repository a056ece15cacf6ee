"""A look at an input before the work: its first rows, or whether all of them can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import InputError, WorkFailed
from batchnorm_tool.formats import let_go
from batchnorm_tool.sources.reading import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchnorm_tool.sources.input_file import Table

_CHECKED_ROWS = 16_384


def head(table: Table, columns: Sequence[str], rows: int) -> pa.Table:
    """The first rows of ``table``, over as many of its files as that takes.

    Args:
        table: The input.
        columns: Names of the columns wanted.
        rows: How many rows, if there are so many.
    """
    table.check(columns)
    schema = pa.schema([table.schema.field(name) for name in columns])
    try:
        return pa.Table.from_batches(_first(table, columns, rows), schema)
    finally:
        let_go()


def _first(table: Table, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    for file in table.files:
        stop = min(rows, file.rows)
        if stop:
            yield from read_rows(file, columns, 0, stop, stop)
        rows -= stop
        if not rows:
            return


def check_all_rows(table: Table) -> None:
    """Read every row of every column once, and keep none.

    Raises:
        InputError: A file is damaged somewhere inside.
    """
    for file in table.files:
        try:
            for _ in read_rows(file, table.columns, 0, file.rows, _CHECKED_ROWS):
                pass
        except WorkFailed as error:
            raise InputError(error.message) from error
