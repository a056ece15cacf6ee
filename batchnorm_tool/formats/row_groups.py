"""Cut a stream of rows into groups of about equal bytes, however the rows arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from batchnorm_tool.formats.vectors import is_list, plain_schema

# What a value of unknown or nested variable length is taken for; only the group sizes depend on it.
ASSUMED_BYTES = 16


class RowGroups:
    """Collects tables and gives out groups whose borders depend on the rows alone.

    Args:
        schema: Of every table that comes; groups have its plain types, for the order of a
            dictionary depends on how the rows arrived.
        group_bytes: Uncompressed bytes after which a group is full.
    """

    def __init__(self, schema: pa.Schema, group_bytes: int) -> None:
        self.schema = plain_schema(schema)
        self._group_bytes = group_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield the groups that these rows complete, in the chunks in which they came."""
        table = table.cast(self.schema)
        ends = np.cumsum(row_bytes(table))
        done, base = 0, -self._bytes
        while done < len(ends) and ends[-1] - base >= self._group_bytes:
            stop = int(np.searchsorted(ends, base + self._group_bytes)) + 1
            self._waiting.append(table.slice(done, stop - done))
            yield self._group()
            done, base = stop, int(ends[stop - 1])
        if done < len(ends):
            self._waiting.append(table.slice(done))
        self._bytes = int(ends[-1]) - base if len(ends) else self._bytes

    def rest(self) -> pa.Table | None:
        """The last, smaller group, if there is one."""
        return self._group() if self._waiting else None

    def _group(self) -> pa.Table:
        group = pa.concat_tables(self._waiting)
        self._waiting = []
        return group


def row_bytes(table: pa.Table) -> np.ndarray:
    """Uncompressed bytes of each row, ``int64[n]``; at least 1."""
    sizes = np.ones(table.num_rows, dtype=np.int64)
    for column in table.columns:
        sizes += _column_bytes(column)
    return sizes


def _column_bytes(column: pa.ChunkedArray) -> int | np.ndarray:
    width = fixed_bytes(column.type)
    if width is not None:
        return width
    if _is_binary(column.type):
        return _lengths(column, "binary_length") + 4
    if is_list(column.type):
        item = fixed_bytes(column.type.value_type) or ASSUMED_BYTES
        return _lengths(column, "list_value_length") * item + 4
    return ASSUMED_BYTES


def _lengths(column: pa.ChunkedArray, function: str) -> np.ndarray:
    # Imported where rows are written: it takes a tenth of the time of a run with nothing to do.
    import pyarrow.compute as pc

    lengths = pc.call_function(function, [column])
    return np.asarray(lengths.fill_null(0).to_numpy(), dtype=np.int64)


def fixed_bytes(dtype: pa.DataType) -> int | None:
    """Return bytes of a value of fixed width; ``None`` where the rows decide."""
    if pa.types.is_fixed_size_list(dtype):
        item = fixed_bytes(dtype.value_type)
        return None if item is None else item * int(dtype.list_size)
    if pa.types.is_nested(dtype):
        return None
    try:
        return max(1, int(dtype.bit_width) // 8)
    except ValueError:
        return None


def _is_binary(dtype: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    return any(test(dtype) for test in tests) or pa.types.is_large_binary(dtype)


def regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` rows each, the last one shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for arrived in batches:
        batch = arrived
        while held + batch.num_rows >= rows:
            yield pa.Table.from_batches([*pending, batch.slice(0, rows - held)])
            batch = batch.slice(rows - held)
            pending, held = [], 0
        if batch.num_rows:
            pending.append(batch)
            held += batch.num_rows
    if pending:
        yield pa.Table.from_batches(pending)
