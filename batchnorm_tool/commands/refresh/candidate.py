"""A refresh made ready to be merged: rows to write, keys to remove, the next index.

All of it lies in the state of the store, so that a candidate that waits is published later without
computing anything again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.refresh.changes.classify import RowDisposition
from batchnorm_tool.commands.refresh.changes.result import DISPOSITIONS, ChangeSet
from batchnorm_tool.commands.refresh.changes.worker import BAD, CHANGED, TOUCHED
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.refresh.record import counted
from batchnorm_tool.commands.refresh.scoring import REUSED, SCORED
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.formats import format_named
from batchnorm_tool.gate.findings import FaultyRow
from batchnorm_tool.gate.output_limits import key_to_json
from batchnorm_tool.gate.record import RefreshRows
from batchnorm_tool.inputs.row_hash import bytes_of, key_ids
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.readers.run import open_run
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.index import INDEX_FIELDS, KEY_ID, IndexWriter, LiveIndex, read_index
from batchnorm_tool.store.rows import (
    BATCH_ROWS,
    Addresses,
    addresses_of_keys,
    at_addresses,
    check_found,
    read_directory,
    read_rows,
    write_rows,
)
from batchnorm_tool.store.state import (
    BOOKKEEPING,
    FEATURE_HASH,
    GOOD,
    NORM,
    PASSTHROUGH_HASH,
    QUARANTINED,
    STAGING,
    STALE,
    STATUS,
    VERSION,
    StoreDirectory,
    StorePointer,
    index_path,
    replaced_path,
)

CANDIDATE = f"{STAGING}/candidate.json"
PREDICTED = f"{STAGING}/predicted.arrow"
KEPT = f"{STAGING}/kept.arrow"
REMOVED = f"{STAGING}/removed.arrow"
_NAMED_ROWS = 5
# What is not needed any more once the candidate is whole.
_SPENT = (CHANGED, REUSED, TOUCHED, BAD, SCORED)


@dataclass(frozen=True)
class Candidate(SealedRecord):
    """What a refresh came to, before anybody has judged it.

    Attributes:
        version: The number that it will have.
        rows: Rows by what became of them, as a refresh's record has them.
        norms: Of all rows of the version that are in the dataset.
        bad: Rows that are bad now: of those that were looked at again, and of all.
        bad_rows: The first of them.
        whole: Whether the dataset is rewritten, rather than merged into.
        warnings: What the model's run warned of.
    """

    version: int
    rows: RefreshRows
    norms: NormStats
    bad: tuple[int, int]
    bad_rows: tuple[FaultyRow, ...]
    whole: bool
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, storage: Storage) -> Candidate | None:
        """Return the candidate that is staged whole; ``None`` where there is none."""
        return cls.from_json(storage.get(CANDIDATE))


def make_candidate(
    staged: StagedRows, difference: ChangeSet, result: RunResult | None, reused: int
) -> Candidate:
    """Put together what the refresh writes; then what is spent is removed.

    Args:
        staged: The staged rows.
        difference: What differs from the live version.
        result: What the model's run came to; ``None`` where it had nothing to do.
        reused: Rows whose vectors an older version had.
    """
    storage, schema = staged.state.storage, staged.schema
    write_rows(storage, PREDICTED, schema, staged.predicted())
    write_rows(storage, KEPT, schema, _kept(staged))
    removed = _RemovedRows(list(staged.plan.layout.keys))
    norms, statuses = _write_index(staged, removed)
    write_rows(storage, REMOVED, staged.plan.layout.key_schema, [*removed.rows, staged.unfit()])
    put_array(storage, replaced_path(staged.version), removed.good_hashes())
    remembered, stale = _beginning(statuses, QUARANTINED), _beginning(statuses, STALE)
    rows = replace(
        counted(difference),
        predicted=result.record.rows.rows_in if result else 0,
        reused=reused,
        stale=stale,
        quarantined=remembered,
        live=sum(statuses.values()) - remembered,
    )
    before = staged.pointer.layout
    candidate = Candidate(
        version=staged.version,
        rows=rows,
        norms=norms,
        bad=(staged.bad.num_rows, stale + remembered),
        bad_rows=_first_bad(staged),
        whole=before is None or staged.plan.new_space or before.schema != schema,
        warnings=result.warnings if result else (),
    )
    storage.put(CANDIDATE, candidate.to_json())
    for directory in _SPENT:
        storage.remove(directory)
    return candidate


def _kept(staged: StagedRows) -> Iterator[pa.Table]:
    yield from staged.touched()
    yield from staged.stale()


@dataclass
class _RemovedRows:
    """Rows of the live version that the next one replaces or removes.

    Attributes:
        keys: Names of the key columns.
        rows: The keys of those that leave the dataset because they are gone from the input.
        hashes: Feature hashes of all of them that are good: their vectors may be wanted again.
    """

    keys: list[str]
    rows: list[pa.Table] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)

    def add(self, table: pa.Table, dispositions: np.ndarray) -> None:
        """Take in rows of the live index, and the disposition of each."""
        if (dispositions == RowDisposition.SAME).all():
            return
        stored = rows_with_status(table[STATUS], lambda status: not status.startswith(QUARANTINED))
        self.rows.append(
            table.select(self.keys).filter(
                pa.array((dispositions == RowDisposition.DELETED) & stored)
            )
        )
        good = rows_with_status(table[STATUS], lambda status: status == GOOD)
        found = bytes_of(table[FEATURE_HASH])
        self.hashes.append(found[(dispositions != RowDisposition.SAME) & good])

    def good_hashes(self) -> np.ndarray:
        """Return ``uint8[n, 16]``."""
        return np.concatenate([np.empty((0, 16), np.uint8), *self.hashes])


def read_dispositions(staged: StagedRows) -> np.ndarray:
    """Return the `RowDisposition` of each row of the live index, ``uint8[n]``."""
    path = staged.state.storage.root / DISPOSITIONS
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def indexed(staged: StagedRows, columns: list[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield the index of the live version, table by table, with each row's `RowDisposition`."""
    if staged.pointer.live is None:
        return
    dispositions = read_dispositions(staged)
    tables = read_index(staged.state.storage, index_path(staged.pointer.live), columns)
    for first, table in numbered(tables):
        yield table, dispositions[first : first + table.num_rows]


def rows_with_status(status: pa.ChunkedArray, holds: Callable[[str], bool]) -> np.ndarray:
    """Return ``bool[n]``: where something holds of the status of an index's rows."""
    column = status.combine_chunks()
    words = np.array([*map(holds, column.dictionary.to_pylist()), False])
    return words[column.indices.to_numpy()]


def _write_index(staged: StagedRows, removed: _RemovedRows) -> tuple[NormStats, Counter[str]]:
    """Write the index that the version will have; returns its norms, and rows by status."""
    norms, statuses = NormStats(), Counter[str]()
    keys = staged.plan.layout.key_schema
    with IndexWriter(staged.state.storage, index_path(staged.version), keys) as writer:
        for table in _next_index(staged, keys.names, removed):
            writer.add(table)
            values = table[NORM].to_numpy()
            norms += NormStats.of(values[~np.isnan(values)])
            for each in table[STATUS].value_counts().to_pylist():
                statuses[each["values"]] += each["counts"]
        writer.commit()
    return norms, statuses


def _next_index(staged: StagedRows, keys: list[str], removed: _RemovedRows) -> Iterator[pa.Table]:
    """Yield the rows of the next index: those that stay, those written, those remembered."""
    columns = [*keys, *(field.name for field in INDEX_FIELDS if field.name != KEY_ID)]
    for table, dispositions in indexed(staged, columns):
        removed.add(table, dispositions)
        rest = (
            table
            if (dispositions == RowDisposition.SAME).all()
            else table.filter(pa.array(dispositions == RowDisposition.SAME))
        )
        if rest.num_rows:
            yield rest
    stored = staged.plan.layout.stored(*columns)
    for path in (PREDICTED, KEPT):
        for table in read_rows(staged.state.storage, path):
            yield table.select(stored).rename_columns(columns)
    remembered = staged.quarantined
    empty = pa.nulls(remembered.num_rows, pa.float64())
    if remembered.num_rows:
        yield remembered.append_column(NORM, empty).select(columns)


def put_array(storage: Storage, path: str, array: np.ndarray) -> None:
    """Write an array as a ``.npy`` file, which appears whole and synced."""
    with storage.create(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.commit()


def _beginning(statuses: Counter[str], start: str) -> int:
    return sum(count for status, count in statuses.items() if status.startswith(start))


def _first_bad(staged: StagedRows) -> tuple[FaultyRow, ...]:
    rows = staged.bad.slice(0, _NAMED_ROWS)
    keys = rows.select(list(staged.plan.layout.keys)).to_pylist()
    reasons = rows[staged.reason].to_pylist()
    return tuple(
        FaultyRow(key_to_json(key), reason) for key, reason in zip(keys, reasons, strict=True)
    )


@dataclass(frozen=True)
class StagedRows:
    """The staged rows of one refresh.

    Attributes:
        state: The store.
        pointer: What stands in it.
        plan: What the refresh is asked to do.
        version: The number that the refresh will have.
        reason: The column that says why a row is bad.
    """

    state: StoreDirectory
    pointer: StorePointer
    plan: RefreshPlan
    version: int
    reason: str

    @property
    def schema(self) -> pa.Schema:
        """Of every row of the dataset."""
        return self.plan.layout.schema

    @cached_property
    def live(self) -> LiveIndex | None:
        """The live version by key; ``None`` before the first one."""
        if self.pointer.live is None:
            return None
        return LiveIndex.load(self.state.storage, index_path(self.pointer.live))

    def predicted(self) -> Iterator[pa.Table]:
        """Yield rows whose vectors are new, from the model or from an older version."""
        for table in (*self._scored(), *read_directory(self.state.storage, REUSED)):
            yield self._complete(table, GOOD)

    def _scored(self) -> Iterator[pa.Table]:
        if not self._was_scored:
            return
        run = open_run(str(self.state.storage.root / SCORED))
        for batch in run.read(run.schema.names, BATCH_ROWS):
            yield pa.Table.from_batches([batch])

    @property
    def _was_scored(self) -> bool:
        return bool(self.state.storage.names(SCORED))

    def touched(self) -> Iterator[pa.Table]:
        """Yield rows with other passed-through values, and the vectors that they have."""
        for table in read_directory(self.state.storage, TOUCHED):
            yield self._with_live_vectors(table, STATUS)

    @cached_property
    def bad(self) -> pa.Table:
        """Rows that the new features or prediction make bad, and the column ``reason``."""
        kept = [*self._carried, self.reason]
        found = [table.select(kept) for table in read_directory(self.state.storage, BAD)]
        hashes = (field for field in BOOKKEEPING if field.name in self._carried)
        reason = pa.field(self.reason, pa.string())
        schema = pa.schema([*self.plan.layout.carried, *hashes, reason])
        found += [table.select(kept) for table in self._quarantined_by_run()]
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in found)])

    def _quarantined_by_run(self) -> Iterator[pa.Table]:
        if not self._was_scored:
            return
        run, form = open_run(str(self.state.storage.root / SCORED)), format_named("parquet")
        for part in run.parts:
            file = run.quarantine_of(part)
            if file is None:
                continue
            path = str(Path(run.path) / file.path)
            inspected = form.inspect(path)
            names = [*self._carried, inspected.schema.names[-2]]  # reason, and then the prediction
            for batch in form.read(path, names, 0, inspected.rows, BATCH_ROWS):
                yield pa.Table.from_batches([batch]).rename_columns([*self._carried, self.reason])

    @property
    def _carried(self) -> list[str]:
        layout = self.plan.layout
        return [*layout.keys, *layout.passthrough, FEATURE_HASH, PASSTHROUGH_HASH]

    @cached_property
    def _is_in_dataset(self) -> np.ndarray:
        """``bool[n]``: which of the bad rows have a row in the live version."""
        # Reading the index takes long, and an ordinary refresh has no use for it.
        if not self.bad.num_rows or self.live is None:
            return np.zeros(self.bad.num_rows, bool)
        at = self.live.lookup(key_ids(self.bad, self.plan.layout.keys))
        known = at >= 0
        known[known] = ~self.live.quarantined[at[known]]
        return known

    @cached_property
    def _stays(self) -> np.ndarray:
        """``bool[n]``: which of the bad rows keep their last good vector."""
        keeps = self.plan.store.bad_rows == "keep" and not self.plan.new_space
        return self._is_in_dataset & keeps

    def stale(self) -> Iterator[pa.Table]:
        """Yield bad rows with the last good vector that they have."""
        rows = self.bad.filter(pa.array(self._stays))
        for start in range(0, rows.num_rows, BATCH_ROWS):
            table = self._with_live_vectors(rows.slice(start, BATCH_ROWS))
            reasons = pa.array(
                [STALE + reason for reason in table[self.reason].to_pylist()], pa.string()
            )
            yield self._ordered(table.append_column(STATUS, reasons))

    @cached_property
    def quarantined(self) -> pa.Table:
        """Bad rows that have no vector: remembered, and not in the dataset; with ``status``."""
        rows = self.bad.filter(pa.array(~self._stays))
        reasons = [QUARANTINED + reason for reason in rows[self.reason].to_pylist()]
        return rows.append_column(STATUS, pa.array(reasons, pa.string()))

    def unfit(self) -> pa.Table:
        """Return the keys of bad rows that leave the dataset."""
        leaves = self._is_in_dataset & ~self._stays
        return self.bad.select(list(self.plan.layout.keys)).filter(pa.array(leaves))

    def _with_live_vectors(self, table: pa.Table, *more: str) -> pa.Table:
        """Return the rows that are in the live version, with their vectors and norms there."""
        layout = self.plan.layout
        before = self.pointer.layout or layout
        columns = [before.vector, *before.stored(NORM, *more)]
        keys = table.select(list(layout.keys))
        at = self._live_addresses.find(key_ids(keys, layout.keys))
        check_found(self.state.path, keys, at)
        found = at_addresses(self.state.path, self.pointer.lance_version, at, columns)
        vectors = pa.concat_tables(found)
        for name, stored in zip((layout.vector, layout.norm, *more), columns, strict=True):
            kind = self.schema.field(*layout.stored(name)).type
            table = table.append_column(name, vectors[stored].cast(kind))
        return self._ordered(table) if more else table

    @cached_property
    def _live_addresses(self) -> Addresses:
        """Where the rows lie in the live version whose vectors stay."""
        keys = list(self.plan.layout.keys)
        tables = [
            *read_directory(self.state.storage, TOUCHED),
            self.bad.filter(pa.array(self._stays)),
        ]
        ids = [key_ids(table.select(keys), keys) for table in tables]
        version = self.pointer.lance_version
        return addresses_of_keys(self.state.path, version, np.concatenate(ids), keys)

    def _complete(self, table: pa.Table, status: str) -> pa.Table:
        """Turn keys, hashes, vectors and passed-through columns into rows of the dataset."""
        statuses = pa.array([status] * table.num_rows, pa.string())
        return self._ordered(table.append_column(STATUS, statuses))

    def _ordered(self, table: pa.Table) -> pa.Table:
        versions = pa.array(np.full(table.num_rows, self.version))
        table = table.append_column(VERSION, versions)
        named = table.rename_columns(self.plan.layout.stored(*table.column_names))
        return named.select(self.schema.names).cast(self.schema)
