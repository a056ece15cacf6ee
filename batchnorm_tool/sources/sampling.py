"""A look at an input before the work: its first rows, or whether all of them can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.formats import let_go
from batchnorm_tool.formats.parquet_rows import value_bytes
from batchnorm_tool.formats.row_groups import fixed_bytes
from batchnorm_tool.formats.vectors import is_list
from batchnorm_tool.sources.reading import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchnorm_tool.sources.input_file import Table

_CHECKED_ROWS = 16_384
_FEW_ROWS = 16


def head(table: Table, columns: Sequence[str], rows: int) -> pa.Table:
    """The first rows of ``table``, over as many of its files as that takes.

    Args:
        table: The input.
        columns: Names of the columns wanted.
        rows: How many rows, if there are so many.

    Raises:
        InputError: The files differ too much in one of the columns, or are damaged in these rows.
    """
    table.check(columns)
    schema = pa.schema([table.schema.field(name) for name in columns])
    try:
        return pa.Table.from_batches(_first(table, columns, rows), schema)
    except Damaged as error:
        raise InputError(error.message) from error
    finally:
        let_go()


def head_within(table: Table, rows: int, most_bytes: int) -> pa.Table:
    """Return the first rows of every column, as many as fit.

    Args:
        table: The input.
        rows: How many rows, if there are so many.
        most_bytes: About the size that the rows may have in memory.

    Returns:
        The rows, without columns whose type or metadata says that not even a few values fit.
    """
    sizes = {field.name: fixed_bytes(field.type) or 0 for field in table.schema}
    if table.files[0].format == "parquet" and not all(sizes.values()):
        sizes |= value_bytes(table.files[0].path)
    columns = [name for name in table.columns if _FEW_ROWS * sizes.get(name, 0) <= most_bytes]
    if not columns:
        return pa.table({})
    taken, wanted = 0, _FEW_ROWS
    while True:
        found = head(table, columns, min(wanted, rows))
        fitting = most_bytes * found.num_rows // max(1, found.nbytes)
        taken, wanted = found.num_rows, min(8 * wanted, fitting)
        if wanted <= taken or taken in (rows, table.rows):
            return found


def head_with_lists(table: Table, columns: Sequence[str], rows: int) -> pa.Table:
    """The first rows, and of each column of lists without a value in them the first that have one.

    The usual length of a column's lists cannot be told from nulls and empty lists.

    Args:
        table: The input.
        columns: Names of the columns wanted.
        rows: How many rows in each place, if there are so many.
    """
    found = [head(table, columns, rows)]
    open_lists = [name for name in columns if _is_open(table.schema.field(name).type)]
    missing = {name for name in open_lists if first_list(found[0][name]) is None}
    unread = _first(table, columns, table.rows) if missing else ()
    for batch in unread:
        window = pa.Table.from_batches([batch])
        for name in sorted(missing):
            row = first_list(window[name])
            if row is not None:
                found.append(window.slice(row, rows))
                missing.remove(name)
        if not missing:
            break
    return pa.concat_tables(found)


def first_list(column: pa.ChunkedArray) -> int | None:
    """Return the first row whose lists hold at least one value, or null, at every level."""
    # As in `formats.vectors`: a run with nothing to do need not import it.
    import pyarrow.compute as pc

    lists, rows = column, np.arange(len(column))
    while is_list(lists.type):
        rows = rows[pc.list_parent_indices(lists).to_numpy()]
        lists = pc.list_flatten(lists)
    return int(rows[0]) if len(rows) else None


def _is_open(dtype: pa.DataType) -> bool:
    """Tell whether the rows decide how long a list of some level is."""
    while pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return is_list(dtype)


def _first(table: Table, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    for file in table.files:
        stop = min(rows, file.rows)
        if stop:
            yield from read_rows(file, columns, 0, stop, min(stop, _CHECKED_ROWS))
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
        except Damaged as error:
            raise InputError(error.message) from error
