"""The input of a refresh: its columns, and its rows with their hashes, part by part in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import TEXT_BYTES, Field, fitting_rows, numbered
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, Interrupted
from batchnorm_tool.formats import MEBIBYTE
from batchnorm_tool.formats.files import check_columns
from batchnorm_tool.formats.parquet import READ_AHEAD_BYTES, group_sizes, open_parquet
from batchnorm_tool.inputs.files import InputFile, Table
from batchnorm_tool.inputs.reading import Part, Slice, locate, read_slices
from batchnorm_tool.inputs.row_hash import (
    BlockHash,
    feature_hashes,
    key_ids,
    passthrough_hashes,
    type_name,
)

if TYPE_CHECKING:
    from batchnorm_tool.features import FeatureReader
    from batchnorm_tool.store.state import Unfit

_Result = TypeVar("_Result")
_PART_BYTES = 64 * MEBIBYTE
_MOST_PART_ROWS = 2**18
_CHUNK_BYTES = 8 * MEBIBYTE
_MOST_CHUNK_ROWS = 2**15


@dataclass(frozen=True)
class Hashes:
    """What tells a run of the input's rows, from ``first_row`` on, from the live version's.

    Of `key_ids` ``uint64[n, 2]``, of `feature_hashes` ``uint8[n, 16]``, of `passthrough_hashes`
    ``uint8[n, 8]``; ``deleted``, ``bool[n]``, tells which to delete, ``None`` for nowhere.
    """

    first_row: int
    ids: np.ndarray
    features: np.ndarray
    passthrough: np.ndarray
    deleted: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class HashedChunk:
    """A run of the input's rows, all columns that are read, with their hashes.

    ``arrays`` are what the model sees, ``faults`` (``uint8[n]``) a `Reason` for each row: arbitrary
    and ``GOOD`` in rows to be deleted.
    """

    table: pa.Table
    arrays: dict[str, np.ndarray]
    faults: np.ndarray
    hashes: Hashes


@dataclass(frozen=True)
class RefreshSource:
    """The input: its table, and what the columns are for.

    Attributes:
        feature_columns: The stored columns that feed the model.
        inputs: The model's inputs, every size known.
        carried: Key and passed-through columns as the store keeps them.
        mode: ``"full"``: a row that is not there has vanished; ``"delta"``: it is as it was.
        delete_column: A column of booleans: where it is true, the row is to be deleted.
        invalid: What becomes of a row that the model cannot take: ``"fail"`` or ``"quarantine"``.
        find_unfit: Finds the first row of a table that a publish target cannot take.
    """

    table: Table
    reader: FeatureReader
    feature_columns: tuple[str, ...]
    inputs: tuple[Field, ...]
    keys: tuple[str, ...]
    carried: pa.Schema
    mode: str = "full"
    delete_column: str | None = None
    invalid: str = "fail"
    find_unfit: Callable[[pa.Table], Unfit | None] = lambda _: None

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Passed-through columns that are no keys."""
        return tuple(name for name in self.carried.names if name not in self.keys)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        delete = () if self.delete_column is None else (self.delete_column,)
        return tuple(dict.fromkeys([*self.keys, *self.kept, *self.feature_columns, *delete]))

    @property
    def feature_types(self) -> dict[str, str]:
        """The types of the stored columns that feed the model, whatever their encoding."""
        schema = self.table.schema
        return {name: type_name(schema.field(name).type) for name in self.feature_columns}

    @cached_property
    def row_bytes(self) -> int:
        """About how many bytes a row takes in memory."""
        features = sum(field.row_bytes for field in self.inputs)
        return max(1, features) + TEXT_BYTES * len(self.carried)

    def check(self) -> None:
        """Check that the columns are there."""
        self.table.check(self.columns)
        check_columns(self.table.files[0].path, self.columns, self.table.schema.names)
        delete = self.delete_column
        kind = pa.bool_() if delete is None else self.table.schema.field(delete).type
        if not pa.types.is_boolean(kind):
            raise InputError(
                f"{self.table.files[0].path}, column `{delete}`: `store.delete_column` names it. "
                f"Expected booleans. Received: {kind}. Write true for rows to be deleted."
            )

    def place(self, row: int) -> str:
        """Say where a row lies whose global number this is."""
        file, number = locate(self.table.files, row)
        return f"{file.path}, row {number}"

    @cached_property
    def parts(self) -> list[Part]:
        """All parts: the same for any number of threads."""
        most = fitting_rows(self.row_bytes, _PART_BYTES, _MOST_PART_ROWS)
        shared = fitting_rows(self.row_bytes, READ_AHEAD_BYTES, most)
        parts: list[Part] = []
        waiting: list[Slice] = []
        first_row = rows = 0
        for some in _slices(self.table, most, shared):
            if waiting and rows + some.rows > most:
                parts.append(Part(len(parts), first_row, tuple(waiting)))
                waiting, first_row, rows = [], first_row + rows, 0
            waiting.append(some)
            rows += some.rows
        if waiting:
            parts.append(Part(len(parts), first_row, tuple(waiting)))
        return parts

    @cached_property
    def chunk_rows(self) -> int:
        """How many rows are in memory at a time."""
        return fitting_rows(self.row_bytes, _CHUNK_BYTES, _MOST_CHUNK_ROWS)

    def process(
        self, work: Callable[[Part, Callbacks], _Result], threads: int, callbacks: Callbacks
    ) -> Iterator[_Result]:
        """Yield what ``work`` gives for each part, in order; see `map_in_order`."""
        stop = threading.Event()
        stoppable = Callbacks(callbacks.advance, lambda: stop.is_set() or callbacks.stopped())
        return map_in_order(lambda part: work(part, stoppable), self.parts, threads, stop.set)

    def chunks(self, part: Part) -> Iterator[HashedChunk]:
        """Yield the rows of a part; where chunks begin depends on the files alone."""
        for row, table in numbered(self.tables(part, self.columns), part.first_row):
            deleted = self._deleted(table)
            self._refuse_unfit(table, deleted, row)
            arrays, faults = self._features(table, deleted)
            hashes = Hashes(
                row,
                key_ids(table, self.keys),
                feature_hashes(arrays, faults),
                passthrough_hashes(table, self.kept),
                deleted,
            )
            yield HashedChunk(table, arrays, faults, hashes)

    def content(self, part: Part, callbacks: Callbacks) -> str:
        """Return the hash of all that is read of a part."""
        content = BlockHash()
        for table in self.tables(part, self.columns):
            callbacks.check()
            content.add_table(table)
            callbacks.advance(len(table))
        return content.to_text()

    def tables(self, part: Part, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Yield columns of a part, the keys among them, in tables of about `chunk_rows` rows."""
        most = self.chunk_rows
        batches = read_slices(self.table.files, part.slices, columns, most)
        for row, read in numbered(_gathered(batches, most), part.first_row):
            table = read
            for field in self.carried:
                if field.name in columns:
                    place = table.schema.get_field_index(field.name)
                    held = self._as_stored(table.column(place), field, row)
                    if held is not None:
                        table = table.set_column(place, field, held)
            yield table

    def _as_stored(
        self, column: pa.ChunkedArray, field: pa.Field, first_row: int
    ) -> pa.ChunkedArray | None:
        """Return a column as the store keeps it, ``None`` for as it is; a key names every row."""
        kind, is_key = field.type, field.name in self.keys
        # Most columns are: a cast and a look for nulls took a tenth of a millisecond a chunk.
        if column.type == kind and not (is_key and (column.null_count or _is_float(kind))):
            return None
        try:
            held = column.cast(kind)
        except pa.ArrowInvalid as error:
            file, row = locate(self.table.files, first_row)
            raise InputError(
                f"{file.path}, at or after row {row}, column `{field.name}`: a value does not fit "
                f"the store. Expected values that fit {kind}. Received: {error}. Write the column "
                f"as {kind}."
            ) from error
        if not is_key:
            return held
        nothing = held.is_null(nan_is_null=_is_float(kind)).to_numpy()
        if nothing.any():
            found = int(nothing.argmax())
            said = "null" if held[found].as_py() is None else "NaN"
            raise InputError(
                f"{self.place(first_row + found)}, column `{field.name}`: the key is {said}. "
                f"Expected a key in every row. Received: {said}. Fill it in, or remove the row "
                "from the input."
            )
        if _is_float(kind):  # -0.0 is 0.0, for databases too
            held = pa.chunked_array([pa.array(held.to_numpy() + 0, kind)])
        return held

    def _refuse_unfit(self, table: pa.Table, deleted: np.ndarray | None, first_row: int) -> None:
        """Refuse what a publish target cannot take, before the model runs."""
        stays = np.arange(table.num_rows) if deleted is None else np.flatnonzero(~deleted)
        carried = table.select(self.carried.names)
        unfit = self.find_unfit(carried if deleted is None else carried.take(pa.array(stays)))
        if unfit is not None:
            place = self.place(first_row + int(stays[unfit.row]))
            raise InputError(
                f"{place}, column `{unfit.column}`: {unfit.reason} Fix the input, or remove the "
                "column from `input.passthrough`."
            )

    def _deleted(self, table: pa.Table) -> np.ndarray | None:
        """Return ``bool[n]``: the rows to be deleted; ``None`` for nowhere."""
        if self.delete_column is None:
            return None
        deleted = np.asarray(table.column(self.delete_column).fill_null(False).to_numpy())  # noqa: FBT003
        return deleted if deleted.any() else None

    def _features(
        self, table: pa.Table, deleted: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return arrays and faults of all rows; features of rows to be deleted are not read."""
        if deleted is None:
            return self.reader.read(table)
        # A delete needs a key and nothing else: its features may be null, or of no use.
        rest = ~deleted
        arrays, faults = self.reader.read(table.filter(pa.array(rest)).combine_chunks())
        spread = {name: _spread(array, rest) for name, array in arrays.items()}
        return spread, _spread(faults, rest)


_is_float = pa.types.is_floating


def _gathered(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield batches as tables; small ones together, for each table has its cost."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += batch.num_rows
        # From half of what is wanted on: then no batch has to be cut, and none is copied.
        if 2 * held >= rows:
            yield pa.Table.from_batches(waiting)
            waiting, held = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _spread(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return ``values`` in the places that are true, zeros (``""`` for strings) in the others."""
    spread = np.full((len(places), *values.shape[1:]), "" if values.dtype == object else 0)
    spread = spread.astype(values.dtype)
    spread[places] = values
    return spread


def _slices(table: Table, most: int, shared: int) -> Iterator[Slice]:
    """Yield whole row groups of a Parquet file: they can be decoded at the same time."""
    # Small ones go together, for each reading looks at the whole footer. A larger group is cut so
    # that each slice is decoded at one go, and the next thread goes on where the reader stopped.
    # All else is cut anywhere.
    for number, file in enumerate(table.files):
        first = row = 0
        for rows in _blocks(file):
            if row > first and row + rows - first > most:
                yield Slice(number, first, row)
                first = row
            row += rows
            if rows > most:
                for start in range(first, row, shared):
                    yield Slice(number, start, min(start + shared, row))
                first = row
        if row > first:
            yield Slice(number, first, row)


def _blocks(file: InputFile) -> Sequence[int]:
    if file.format != "parquet" or file.members:
        return [file.rows]
    with open_parquet(file.path) as opened:
        return group_sizes(opened.metadata)


@dataclass(frozen=True)
class Callbacks:
    """What threads call after each chunk: ``advance`` with its rows, ``stopped`` to give up."""

    advance: Callable[[int], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Give up if asked to."""
        if self.stopped():
            raise Interrupted("Stopped while comparing the input; run again to restart that step.")
