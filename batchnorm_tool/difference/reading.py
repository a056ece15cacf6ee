"""Tonight's rows in chunks, with their keys checked and everything hashed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.difference.kinds import Hashes
from batchnorm_tool.difference.slices import chunk_rows
from batchnorm_tool.errors import InputError
from batchnorm_tool.row_hash import feature_hashes, key_ids, passthrough_hashes
from batchnorm_tool.sources import read_rows

if TYPE_CHECKING:
    from batchnorm_tool.difference.slices import Slice
    from batchnorm_tool.difference.tonight import Tonight
    from batchnorm_tool.sources import Table


@dataclass(frozen=True)
class Chunk:
    """A run of tonight's rows.

    Attributes:
        table: All columns that are read, ``n`` rows.
        arrays: What the model sees of them; arbitrary in rows to be deleted.
        faults: ``uint8[n]``, a `Reason` for each row; ``GOOD`` in rows to be deleted.
        hashes: What tells the rows from last night's.
    """

    table: pa.Table
    arrays: dict[str, np.ndarray]
    faults: np.ndarray
    hashes: Hashes


def read_chunks(tonight: Tonight, piece: Slice) -> Iterator[Chunk]:
    """The rows of a slice; where chunks begin depends on the files alone.

    Raises:
        InputError: A key is null, or the features do not fit the model.
        WorkFailed: A file cannot be read.
    """
    row = piece.first_row
    for table in read_tables(tonight, piece, tonight.columns):
        deleted = _deleted(tonight, table)
        _refuse_unfit(tonight, table, deleted, row)
        arrays, faults = _features(tonight, table, deleted)
        hashes = Hashes(
            row,
            key_ids(table, tonight.keys),
            feature_hashes(arrays, faults),
            passthrough_hashes(table, tonight.kept),
            deleted,
        )
        yield Chunk(table, arrays, faults, hashes)
        row += table.num_rows


def read_tables(tonight: Tonight, piece: Slice, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Some columns of a slice, the keys among them, in tables of about `chunk_rows` rows.

    Raises:
        InputError: A key is null or NaN, or a value has no place in the store's type.
        WorkFailed: A file cannot be read.
    """
    most, row = chunk_rows(tonight), piece.first_row
    for read in _gathered(_batches(tonight, piece, columns, most), most):
        table = read
        for name in tonight.carried.names:
            if name in columns:
                place = table.schema.get_field_index(name)
                held = _as_stored(tonight, table.column(name), name, row)
                table = table.set_column(place, tonight.carried.field(name), held)
        yield table
        row += table.num_rows


def locate(table: Table, row: int) -> tuple[str, int]:
    """The path of the file that holds a global row, and the row in that file."""
    for file in table.files:
        if row < file.rows:
            return file.path, row
        row -= file.rows
    msg = f"row {row} lies beyond the last file"
    raise IndexError(msg)


def key_in_words(keys: pa.Table, row: int) -> str:
    """The key of one row as messages show it.

    Example:
        >>> key_in_words(pa.table({"shop": ["a"], "item": [17]}), 0)
        "`shop` 'a', `item` 17"
    """
    return ", ".join(f"`{name}` {keys[name][row].as_py()!r}" for name in keys.column_names)


def _batches(
    tonight: Tonight, piece: Slice, columns: tuple[str, ...], most: int
) -> Iterator[pa.RecordBatch]:
    for part in piece.pieces:
        file = tonight.table.files[part.file]
        yield from read_rows(file, columns, part.start, part.stop, most)


def _gathered(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches as tables; small ones together, for each table has its cost."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += batch.num_rows
        if 2 * held >= rows:
            yield pa.Table.from_batches(waiting)
            waiting, held = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _as_stored(
    tonight: Tonight, column: pa.ChunkedArray, name: str, first_row: int
) -> pa.ChunkedArray:
    """Return a column as the store keeps it; of a key every value names a row.

    Raises:
        InputError: A key is null or NaN, or a value has no place in the store's type.
    """
    kind = tonight.carried.field(name).type
    try:
        held = column.cast(kind)
    except pa.ArrowInvalid as error:
        path, row = locate(tonight.table, first_row)
        msg = (
            f"{path}, at or after row {row}, column `{name}`: a value has no place in the store. "
            f"Expected values that {kind} holds. Received: {error}. Write the column as {kind}."
        )
        raise InputError(msg) from error
    if name not in tonight.keys:
        return held
    nothing = held.is_null(nan_is_null=pa.types.is_floating(kind)).to_numpy()
    if nothing.any():
        found = int(nothing.argmax())
        path, row = locate(tonight.table, first_row + found)
        said = "null" if held[found].as_py() is None else "NaN"
        msg = (
            f"{path}, row {row}, column `{name}`: the key is {said}. Expected a key in every "
            f"row. Received: {said}. Fill it in, or leave the row out of the input."
        )
        raise InputError(msg)
    if pa.types.is_floating(kind):  # -0.0 is 0.0, for databases too
        held = pa.chunked_array([pa.array(held.to_numpy() + 0, kind)])
    return held


def _refuse_unfit(
    tonight: Tonight, table: pa.Table, deleted: np.ndarray | None, first_row: int
) -> None:
    """Refuse what a publish target cannot take, before the model runs."""
    stays = np.arange(table.num_rows) if deleted is None else np.flatnonzero(~deleted)
    carried = table.select(tonight.carried.names)
    unfit = tonight.find_unfit(carried if deleted is None else carried.take(pa.array(stays)))
    if unfit is not None:
        path, row = locate(tonight.table, first_row + int(stays[unfit.row]))
        msg = (
            f"{path}, row {row}, column `{unfit.column}`: {unfit.reason} Mend the "
            "input, or leave the column out of `input.passthrough`."
        )
        raise InputError(msg)


def _deleted(tonight: Tonight, table: pa.Table) -> np.ndarray | None:
    """``bool[n]``: the rows to be deleted; ``None`` for nowhere."""
    if tonight.delete_column is None:
        return None
    deleted = np.asarray(table.column(tonight.delete_column).fill_null(False).to_numpy())  # noqa: FBT003
    return deleted if deleted.any() else None


def _features(
    tonight: Tonight, table: pa.Table, deleted: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays and faults of all rows; the features of rows to be deleted are not looked at."""
    if deleted is None:
        return tonight.reader.read(table)
    rest = ~deleted
    arrays, faults = tonight.reader.read(table.filter(pa.array(rest)).combine_chunks())
    spread = {name: _spread(array, rest) for name, array in arrays.items()}
    return spread, _spread(faults, rest)


def _spread(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """``values`` in the places that are true, zeros (``""`` for strings) in the others."""
    spread = np.full((len(places), *values.shape[1:]), "" if values.dtype == object else 0)
    spread = spread.astype(values.dtype)
    spread[places] = values
    return spread
