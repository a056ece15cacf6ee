"""Rows of a version of the dataset: all of them, those of some keys or hashes, those that changed.

A row's address is its place among the rows of a version, in the order in which they are stored.
Memory is bounded by batches, and 40 bytes for each row that is asked for by key or hash, or whose
change is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnorm_tool.chunk import fitting_rows, numbered
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Damaged
from batchnorm_tool.formats.arrow_columns import fixed_bytes
from batchnorm_tool.inputs.row_hash import as_ids, bytes_of, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.store.lance import open_dataset, reading
from batchnorm_tool.store.state import BATCH_ROWS, GOOD, VERSION, StoreSchema

if TYPE_CHECKING:
    from batchnorm_tool.gate.record import RefreshRecord

NOWHERE = np.uint64(np.iinfo(np.uint64).max)
"""The address of a row that is not there."""
_BATCH_BYTES = 16 * 2**20
# What a value of open length counts.
_OPEN_BYTES = 64
# Batches that Lance decodes ahead: by itself it takes as many as there are cores, or 16.
_READ_AHEAD = 2


def rows(
    path: str, lance_version: int | None, columns: Sequence[str], batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream rows as stored, ``batch_rows`` at a time or fewer; ``None`` is the newest version."""
    yield from scan(path, open_dataset(path, lance_version), columns, batch_rows)


def decoded(batches: Iterable[pa.RecordBatch], layout: StoreSchema) -> Iterator[pa.RecordBatch]:
    """Yield stored rows with vectors of floats; a batch is no larger for it."""
    if not layout.normalization.dtype:
        yield from batches
        return
    most, outputs = fitting_rows(4 * layout.width, _BATCH_BYTES, BATCH_ROWS), [layout.spec]
    for batch in batches:
        for start in range(0, batch.num_rows, most):
            yield output_schema.decoded(batch.slice(start, most), outputs)


def addressed(
    path: str, lance_version: int | None, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Stream narrow columns with the address of each row, which `at_addresses` takes."""
    for first, batch in numbered(rows(path, lance_version, columns)):
        places = np.arange(first, first + batch.num_rows, dtype=np.uint64)
        yield places, pa.Table.from_batches([batch])


def at_addresses(
    path: str, lance_version: int | None, addresses: np.ndarray, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Stream the rows at addresses ``uint64[n]``, in their order."""
    dataset = open_dataset(path, lance_version)
    most = _fitting_rows(dataset.schema, columns)
    for start in range(0, len(addresses), most):
        wanted = addresses[start : start + most]
        with reading(path):
            yield dataset.take(pa.array(wanted), columns=list(columns))


@dataclass(frozen=True)
class Addresses:
    """Where rows of certain ids lie: ``uint64[m]`` in the ids' order, `NOWHERE` for no row."""

    places: IdLookup
    addresses: np.ndarray

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the address of the row of each id, ``uint64[n]``; `NOWHERE` for none."""
        at = self.places.find(ids)
        if not len(self.addresses):
            return np.full(len(ids), NOWHERE)
        return np.where(at >= 0, self.addresses[at], NOWHERE)


def addresses_of_keys(
    path: str, lance_version: int | None, ids: np.ndarray, keys: Sequence[str]
) -> Addresses:
    """Find the rows that have certain keys."""
    tables = addressed(path, lance_version, keys)
    return _addresses(ids, ((addresses, key_ids(table, keys)) for addresses, table in tables))


def addresses_of_hashes(
    path: str, lance_version: int | None, ids: np.ndarray, columns: Sequence[str]
) -> Addresses:
    """Find a good row for each feature hash that the version has: its vector can be reused."""
    return _addresses(ids, _good_hashes(path, lance_version, columns))


def _addresses(ids: np.ndarray, rows_by_id: Iterator[tuple[np.ndarray, np.ndarray]]) -> Addresses:
    places, found = IdLookup(ids), np.full(len(ids), NOWHERE)
    for addresses, known in rows_by_id if len(ids) else ():
        at = places.find(known)
        # Of several rows with one hash any will do: the same features have the same vector.
        found[at[at >= 0]] = addresses[at >= 0]
    return Addresses(places, found)


def _good_hashes(
    path: str, lance_version: int | None, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for addresses, table in addressed(path, lance_version, columns):
        hashes, status = table.columns
        good = pc.equal(status, GOOD).to_numpy()
        yield addresses[good], as_ids(bytes_of(hashes))[good]


def take_by_key(
    path: str,
    lance_version: int | None,
    wanted: pa.Table,
    keys: Sequence[str],
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Stream the rows that have certain keys, in the order of these."""
    ids = key_ids(wanted, keys)
    found = addresses_of_keys(path, lance_version, ids, keys).find(ids)
    check_found(path, wanted.select(list(keys)), found)
    yield from at_addresses(path, lance_version, found, columns)


def check_found(path: str, wanted: pa.Table, addresses: np.ndarray) -> None:
    """Check that every row that the index knows is in the dataset."""
    missing = np.flatnonzero(addresses == NOWHERE)
    if not len(missing):
        return
    first = wanted.slice(int(missing[0]), 1).to_pylist()[0]
    key = ", ".join(f"`{name}` = {value!r}" for name, value in first.items())
    raise Damaged(
        f"The store `{path}` has no row with the key {key}, which is in its index. "
        f"Expected: {plural(len(wanted), 'row')}. Received: {len(wanted) - len(missing):,}. Run "
        "`batchnorm-tool verify` on the store."
    )


def scan(
    path: str, dataset: Any, columns: Sequence[str], batch_rows: int = BATCH_ROWS, **choices: Any
) -> Iterator[pa.RecordBatch]:
    """Stream rows of an open dataset."""
    with reading(path):
        scanner = dataset.scanner(
            columns=list(columns),
            batch_size=min(batch_rows, _fitting_rows(dataset.schema, columns)),
            batch_readahead=_READ_AHEAD,
            fragment_readahead=1,
            scan_in_order=True,
            **choices,
        )
        yield from (batch for batch in scanner.to_batches() if batch.num_rows)


def _fitting_rows(schema: pa.Schema, columns: Sequence[str]) -> int:
    """How many rows of these columns a batch may have; see `fixed_bytes`."""
    sizes = [fixed_bytes(schema.field(name).type, _OPEN_BYTES) or 1 for name in columns]
    return fitting_rows(sum(sizes), _BATCH_BYTES, BATCH_ROWS)


@dataclass(frozen=True)
class Changes:
    """What turns one version into another: rows to add or replace, and to remove."""

    upserts: int
    deletes: int
    _layout: StoreSchema = field(repr=False)
    _new: _Rows = field(repr=False)
    _gone: _Rows = field(repr=False)

    def upsert_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows to add or replace, with all columns; every call starts over."""
        schema = self._layout.schema
        for batch in decoded(self._new.read(schema.names), self._layout):
            yield batch.cast(schema)

    def delete_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the key columns of the rows to remove."""
        schema = self._layout.key_schema
        return (batch.cast(schema) for batch in self._gone.read(schema.names))


@dataclass(frozen=True)
class Publication:
    """A version of the store, as targets get it; it can be read any number of times.

    ``layout`` has vectors of floats, however they are stored; ``versions`` has Lance's number of
    each kept version, ``records`` the refresh's record of each; ``contract`` is the content of the
    version's contract, if it has one.
    """

    path: str
    layout: StoreSchema
    versions: Mapping[int, int]
    version: int
    records: Mapping[int, RefreshRecord] = field(repr=False)
    contract: bytes | None = field(default=None, repr=False)

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return int(open_dataset(self.path, self.versions[self.version]).count_rows())

    @property
    def record(self) -> RefreshRecord:
        """The record of the refresh."""
        return self.records[self.version]

    def can_start_from(self, base: int | None) -> bool:
        """Tell whether `changes` since ``base`` is known: kept, of the same space and layout."""
        if base is None or base not in self.versions or base not in self.records:
            return False
        if self.records[base].space != self.record.space:
            return False
        # With another column every row has changed, though each keeps the version that wrote it.
        schema = open_dataset(self.path, self.versions[base]).schema
        return bool(schema.equals(open_dataset(self.path, self.versions[self.version]).schema))

    def changes(self, base: int) -> Changes:
        """Return what turns version ``base`` into this one, by key and by what last wrote a row."""
        before, after = self.versions[base], self.versions[self.version]
        nothing = np.empty(0, np.uint64), np.empty((0, 2), np.uint64), np.empty(0, np.int64)
        old_addresses, ids, written = (
            np.concatenate(pieces) for pieces in zip(nothing, *self._written(before), strict=True)
        )
        places, stays, new = IdLookup(ids), np.zeros(len(ids), bool), [nothing[0]]
        del ids  # 16 bytes a row, which the lookup has copied
        for addresses, found, versions in self._written(after):
            place = places.find(found)
            known = place >= 0
            stays[place[known]] = True
            is_same = known.copy()
            # Not by comparing vectors: a row that was written again with equal values may have
            # another status.
            is_same[known] = written[place[known]] == versions[known]
            new.append(addresses[~is_same])
        upserts, gone = np.concatenate(new), old_addresses[~stays]
        read = _Rows(self.path, after, upserts), _Rows(self.path, before, gone)
        return Changes(len(upserts), len(gone), self.layout, *read)

    def all_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream all rows, with all columns; every call starts over."""
        schema = self.layout.schema
        stored = rows(self.path, self.versions[self.version], schema.names)
        for batch in decoded(stored, self.layout):
            yield batch.cast(schema)

    def _written(self, lance_version: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield addresses and ids of rows, and the version in which each was last written."""
        keys = self.layout.keys
        for places, table in addressed(
            self.path, lance_version, self.layout.stored(*keys, VERSION)
        ):
            yield places, key_ids(table, keys), table.columns[-1].to_numpy()


@dataclass(frozen=True)
class _Rows:
    """Rows at certain addresses of a version."""

    path: str
    lance_version: int
    addresses: np.ndarray

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for table in at_addresses(self.path, self.lance_version, self.addresses, columns):
            yield from table.combine_chunks().to_batches()
