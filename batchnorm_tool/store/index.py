"""Keys and hashes of a store's live version, in a Parquet file and in memory.

A refresh with nothing to do needs nothing else of the store. Readers of the store need none of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.formats import MEBIBYTE
from batchnorm_tool.formats.arrow_columns import RowGroups, plain_schema
from batchnorm_tool.formats.parquet import group_sizes
from batchnorm_tool.inputs.row_hash import HASH_VERSION, as_ids, bytes_of, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    NORM,
    PASSTHROUGH_HASH,
    STATUS,
    StoreDirectory,
    by_word,
    index_path,
    is_quarantined,
    quarantined_path,
)

KEY_ID = ".key_id"
INDEX_FIELDS = (
    pa.field(KEY_ID, pa.binary(16)),
    pa.field(FEATURE_HASH, pa.binary(16)),
    pa.field(PASSTHROUGH_HASH, pa.binary(8)),
    pa.field(STATUS, pa.string()),
    pa.field(NORM, pa.float64()),
)
"""The columns of an index beside the keys."""
IS_QUARANTINED, IS_JUDGED_AGAIN, IS_UNWANTED = 1, 2, 4
"""The bits of a row's mark: `JudgedAgain.marks`."""
_HASHES = (KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH)
_VERSION_KEY = "batchnorm_tool.index"
_GROUP_BYTES = 16 * MEBIBYTE
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class JudgedAgain:
    """Which rows of a live version are judged again, although their features are as they were.

    Attributes:
        statuses: For the status of such rows, but for what the model said of them, why.
        zeros: Why rows with a vector of zeros are; ``None`` where they are welcome.
    """

    statuses: Mapping[str, str] = field(default_factory=dict)
    zeros: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an index that tell."""
        return (STATUS, NORM) if self.zeros else (STATUS,)

    @property
    def causes(self) -> tuple[str, ...]:
        """All there may be."""
        return (*dict.fromkeys(self.statuses.values()), *([self.zeros] if self.zeros else []))

    def marks(self, table: pa.Table) -> np.ndarray:
        """Return the marks of rows of an index, ``uint8[n]``.

        ``IS_QUARANTINED``: remembered as bad, and not in the dataset; ``IS_UNWANTED``: there with a
        vector of zeros, which cannot be kept.
        """
        marks = np.where(is_quarantined(table[STATUS]), np.uint8(IS_QUARANTINED), np.uint8(0))
        marks[self.by_cause(table) > 0] |= IS_JUDGED_AGAIN
        marks[self._is_zero(table)] |= IS_UNWANTED
        return marks

    def by_cause(self, table: pa.Table) -> np.ndarray:
        """Return for each row its place in `causes`, from 1 on; 0 if it is not judged again."""
        places = {status: self.causes.index(why) + 1 for status, why in self.statuses.items()}
        # A failure of the model has what it said behind it, in parentheses.
        found = by_word(table[STATUS], lambda word: places.get(word.partition(" (")[0], 0))
        found[(found == 0) & self._is_zero(table)] = len(self.causes)
        return found

    def _is_zero(self, table: pa.Table) -> np.ndarray:
        if self.zeros is None:
            return np.zeros(table.num_rows, bool)
        return np.asarray(table[NORM].to_numpy() == 0)


@dataclass(frozen=True)
class LiveIndex:
    """The rows of a live version by the ids of their keys; at most 45 bytes a row.

    By position: the hashes ``uint8[n, 16]`` and ``uint8[n, 8]``, and `JudgedAgain.marks`.
    """

    feature_hash: np.ndarray
    passthrough_hash: np.ndarray
    marks: np.ndarray
    places: IdLookup

    @classmethod
    def load(
        cls,
        storage: Storage,
        path: str,
        again: JudgedAgain | None = None,
        threads: int | None = None,
    ) -> LiveIndex:
        """Read an index into memory; default for ``threads``: one for each core."""
        again = again or JudgedAgain()
        rows = index_rows(storage, path)
        ids = np.empty((rows, 16), np.uint8)
        _fill(storage, path, {KEY_ID: ids}, again, threads)
        places = IdLookup(ids.view(np.uint64))
        # Before the hashes are read: both at once would be the peak.
        del ids
        features, passthrough = np.empty((rows, 16), np.uint8), np.empty((rows, 8), np.uint8)
        marks = np.empty(rows, np.uint8)
        columns = {FEATURE_HASH: features, PASSTHROUGH_HASH: passthrough, STATUS: marks}
        _fill(storage, path, columns, again, threads)
        return cls(features, passthrough, marks, places)

    def __len__(self) -> int:
        return len(self.places)

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of the index that has each key, ``int64[m]``; -1 for none."""
        return self.places.find(ids)


def _fill(
    storage: Storage,
    path: str,
    columns: dict[str, np.ndarray],
    again: JudgedAgain,
    threads: int | None,
) -> None:
    """Read columns of an index into arrays made for as many rows as its footer claims.

    In the place of the status come the marks of ``again``.
    """

    def fill(work: tuple[str, int, int]) -> None:
        name, group, row = work
        array, claimed = columns[name], starts[group + 1]
        names = again.columns if name == STATUS else (name,)
        for table in read_index(storage, path, names, groups=[group]):
            stop = row + table.num_rows
            if stop <= claimed:
                array[row:stop] = again.marks(table) if name == STATUS else bytes_of(table[name])
            row = stop
        if row != claimed:
            raise _damaged(path, f"a row group that does not end at row {claimed:,}, as claimed")

    with _opened(storage, path) as file:
        starts = (0, *itertools.accumulate(group_sizes(file.metadata)))
    if starts[-1] != len(next(iter(columns.values()))):
        raise _damaged(path, f"row groups of {starts[-1]:,} rows together")
    works = ((name, *group) for group in enumerate(starts[:-1]) for name in columns)
    for _ in map_in_order(fill, works, threads):
        pass


def index_schema(keys: pa.Schema) -> pa.Schema:
    """Return the schema of an index."""
    plain = [field.remove_metadata() for field in plain_schema(keys)]
    return pa.schema([*plain, *INDEX_FIELDS])


class IndexWriter:
    """A writer of an index in a stream; it appears whole when it is committed."""

    def __init__(self, storage: Storage, path: str, keys: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.schema = index_schema(keys)
        self._keys = keys.names
        self._groups = RowGroups(self.schema, _GROUP_BYTES)
        self._file = storage.create(path)
        self._writer = pq.ParquetWriter(
            self._file,
            self.schema.with_metadata({_VERSION_KEY: HASH_VERSION}),
            # Hashes do not compress.
            compression={n: "none" if n in _HASHES else "zstd" for n in self.schema.names},
            use_dictionary=[STATUS],
            write_statistics=False,
            write_page_checksum=True,
        )

    def add(self, table: pa.Table) -> np.ndarray:
        """Append rows: the key columns, and those of `INDEX_FIELDS` in any order.

        ``key_id`` is made where it is not there. A quarantined row has no norm. Returns the ids,
        ``uint64[n, 2]``.
        """
        if KEY_ID in table.column_names:
            ids = as_ids(bytes_of(table[KEY_ID]))
        else:
            ids = key_ids(table, self._keys)
        binary = fixed_binary(ids.view(np.uint8).reshape(-1, 16))
        columns = [binary if name == KEY_ID else table.column(name) for name in self.schema.names]
        for group in self._groups.add(pa.table(columns, names=self.schema.names)):
            self._write(group)
        return ids

    def commit(self) -> FileRecord:
        """Let the index appear under its name, whole and synced."""
        rest = self._groups.rest()
        if rest is not None:
            self._write(rest)
        self._writer.close()
        return self._file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Throw away what was not committed."""
        self._file.discard()

    def _write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=group.num_rows)


def read_index(
    storage: Storage,
    path: str,
    columns: Sequence[str],
    batch_rows: int = _BATCH_ROWS,
    groups: list[int] | None = None,
) -> Iterator[pa.Table]:
    """Stream some columns of an index, in tables of at least one row; ``status`` is encoded.

    Default for ``groups``: all row groups.
    """
    names = list(columns)
    with _opened(storage, path) as file:
        _check_version(path, file.schema_arrow.metadata)
        _check_types(path, file.schema_arrow)
        for batch in file.iter_batches(batch_rows, groups, names, use_threads=False):
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).select(names)


def keep_quarantined(state: StoreDirectory, version: int) -> None:
    """Keep the quarantined rows of a version's index for as long as the version itself."""
    path = index_path(version)
    with _opened(state.storage, path) as file:
        schema = file.schema_arrow.remove_metadata()
    tables = read_index(state.storage, path, schema.names)
    aside = (table.filter(pa.array(is_quarantined(table[STATUS]))) for table in tables)
    state.write_rows(quarantined_path(version), schema, aside)


def found_in_index(
    storage: Storage, path: str, places: IdLookup, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Stream columns of the rows whose keys are in a list, and their places there, ``int64[n]``."""
    for table in read_index(storage, path, [*columns, KEY_ID]):
        at = places.find(as_ids(bytes_of(table[KEY_ID])))
        if (at >= 0).any():
            yield at[at >= 0], table.filter(pa.array(at >= 0))


def index_rows(storage: Storage, path: str) -> int:
    """Return the number of rows of an index."""
    with _opened(storage, path) as file:
        rows = int(file.metadata.num_rows)
    if rows < 0:
        raise _damaged(path, f"{rows:,} rows")
    return rows


@contextlib.contextmanager
def _opened(storage: Storage, path: str) -> Iterator[Any]:
    """Open the index as a `pyarrow.parquet.ParquetFile`; map its errors to ours."""
    import pyarrow.parquet as pq

    if storage.size(path) is None:
        raise Damaged(
            f"The index `{path}` of the store is missing. Restore it from a backup of the store's "
            "state, or start a new store with another `store.path`."
        )
    with storage.open(path) as binary:
        try:
            yield pq.ParquetFile(
                binary,
                read_dictionary=[STATUS],
                pre_buffer=False,
                buffer_size=MEBIBYTE,
                page_checksum_verification=True,
            )
        # A footer with a flipped bit may name other columns, or in no text at all.
        except (OSError, LookupError, ValueError, pa.ArrowException) as error:
            raise _damaged(path, " ".join(str(error).split())) from error


def _damaged(path: str, received: str) -> Damaged:
    return Damaged(
        f"The index `{path}` of the store is damaged. Expected a whole Parquet file. "
        f"Received: {received}. Check the store with `batchnorm-tool verify`."
    )


def _check_version(path: str, metadata: dict[bytes, bytes] | None) -> None:
    found = (metadata or {}).get(_VERSION_KEY.encode(), b"unknown").decode()
    if found != HASH_VERSION:
        raise OutputError(
            f"The index `{path}` of the store was written with other hashes. "
            f"Expected: {HASH_VERSION}. Received: {found}. Use the version of batchnorm-tool that "
            "wrote it."
        )


def _check_types(path: str, schema: pa.Schema) -> None:
    for each in INDEX_FIELDS:
        if each.name != STATUS and schema.field(each.name).type != each.type:
            raise _damaged(path, f"the column `{each.name}` of type {schema.field(each.name).type}")


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """Return the rows of ``uint8[n, w]`` as a column of binary values of fixed width."""
    count, width = rows.shape
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, data])
