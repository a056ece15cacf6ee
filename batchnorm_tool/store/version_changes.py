"""A version of the store as publish targets get it: all of its rows, or what changed since another.

A row is the same in two versions if it has the same key and was last written in the same version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.inputs.row_hash import IdLookup, key_ids
from batchnorm_tool.store.lance import open_dataset
from batchnorm_tool.store.rows import addressed, at_addresses, rows
from batchnorm_tool.store.state import VERSION, StoreSchema

if TYPE_CHECKING:
    from batchnorm_tool.gate.record import RefreshRecord


@dataclass(frozen=True)
class Changes:
    """What turns one version into another.

    Attributes:
        upserts: Number of rows to add or replace.
        deletes: Number of rows to remove.
    """

    upserts: int
    deletes: int
    _layout: StoreSchema = field(repr=False)
    _new: _Rows = field(repr=False)
    _gone: _Rows = field(repr=False)

    def upsert_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows to add or replace, with all columns; every call starts over."""
        return self._new.read(self._layout.schema)

    def delete_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the key columns of the rows to remove; every call starts over."""
        return self._gone.read(self._layout.key_schema)


@dataclass(frozen=True)
class Publication:
    """A version of the store, as targets get it; it can be read any number of times.

    Attributes:
        path: Of the dataset.
        layout: What its rows look like.
        versions: Lance's number of each kept version.
        version: The number of this version.
        records: The refresh's record of each kept version, this one included.
    """

    path: str
    layout: StoreSchema
    versions: Mapping[int, int]
    version: int
    records: Mapping[int, RefreshRecord] = field(repr=False)

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
        """Return what turns the version ``base`` into this one.

        Takes 40 bytes for each row of ``base`` while it is found out.
        """
        before, after = self.versions[base], self.versions[self.version]
        old = _Versioned.load(self._keyed(before), self.layout.keys)
        stays = np.zeros(len(old.addresses), bool)
        new = [np.empty(0, np.uint64)]
        for addresses, table in self._keyed(after):
            place = old.places.find(key_ids(table, self.layout.keys))
            known = place >= 0
            stays[place[known]] = True
            is_same = known.copy()
            # Not by comparing vectors: a row that was written again with equal values may have
            # another status.
            is_same[known] = old.versions[place[known]] == _versions(table)[known]
            new.append(addresses[~is_same])
        upserts, gone = np.concatenate(new), old.addresses[~stays]
        return Changes(
            len(upserts),
            len(gone),
            self.layout,
            _Rows(self.path, after, upserts),
            _Rows(self.path, before, gone),
        )

    def all_batches(self) -> Iterator[pa.RecordBatch]:
        """Stream all rows, with all columns; every call starts over."""
        schema = self.layout.schema
        for batch in rows(self.path, self.versions[self.version], schema.names):
            yield batch.cast(schema)

    def _keyed(self, lance_version: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Return keys and, last, the version in which each row was written."""
        return addressed(self.path, lance_version, self.layout.stored(*self.layout.keys, VERSION))


@dataclass(frozen=True)
class _Rows:
    """Rows at certain addresses of a version."""

    path: str
    lance_version: int
    addresses: np.ndarray

    def read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for table in at_addresses(self.path, self.lance_version, self.addresses, schema.names):
            yield from table.cast(schema).combine_chunks().to_batches()


@dataclass(frozen=True)
class _Versioned:
    """The rows of a version: where they lie, and in which version each was last written."""

    addresses: np.ndarray
    versions: np.ndarray
    places: IdLookup

    @classmethod
    def load(
        cls, keyed: Iterator[tuple[np.ndarray, pa.Table]], keys: tuple[str, ...]
    ) -> _Versioned:
        addresses, versions = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        ids = [np.empty((0, 2), np.uint64)]
        for found, table in keyed:
            addresses.append(found)
            versions.append(_versions(table))
            ids.append(key_ids(table, keys))
        places = IdLookup(np.concatenate(ids))
        return cls(np.concatenate(addresses), np.concatenate(versions), places)


def _versions(table: pa.Table) -> np.ndarray:
    return np.asarray(table.columns[-1].to_numpy())
