"""A refresh made ready to be merged: rows to write, keys to remove, the next index.

All of it lies in the state of the store, so that a candidate that waits is published later without
computing anything again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.refresh.changes import result as changes
from batchnorm_tool.commands.refresh.changes.classify import RowDisposition
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.formats import format_named
from batchnorm_tool.gate.findings import SHOWN_ROWS, FaultyRow
from batchnorm_tool.gate.output_limits import key_rows, key_to_json
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.row_hash import bytes_of, key_ids
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.readers.run import StoredRun, open_run
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.index import (
    INDEX_FIELDS,
    IS_QUARANTINED,
    IS_UNWANTED,
    KEY_ID,
    IndexWriter,
    LiveIndex,
    read_index,
)
from batchnorm_tool.store.rows import Addresses, addresses_of_keys, at_addresses, check_found
from batchnorm_tool.store.state import (
    BATCH_ROWS,
    FEATURE_HASH,
    GOOD,
    NORM,
    QUARANTINED,
    STAGING,
    STALE,
    STATUS,
    VERSION,
    StoreDirectory,
    StorePointer,
    index_path,
    is_good,
    is_quarantined,
)

REUSED = f"{STAGING}/reused"
SCORED = f"{STAGING}/scored"
CANDIDATE = f"{STAGING}/candidate.json"
PREDICTED = f"{STAGING}/predicted.arrow"
KEPT = f"{STAGING}/kept.arrow"
REMOVED = f"{STAGING}/removed.arrow"
# What is not needed any more once the candidate is whole.
_SPENT = (changes.CHANGED, REUSED, changes.TOUCHED, changes.BAD, SCORED)


@dataclass(frozen=True)
class Candidate(SealedRecord):
    """What a refresh came to, before anybody has judged it.

    Attributes:
        norms: Of all rows of the version that are in the dataset.
        bad: Rows that are bad now: of those that were looked at again, and of all.
        bad_rows: The first of them.
        whole: Whether the dataset is rewritten, rather than merged into.
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

    @classmethod
    def make(cls, staged: StagedRows, difference: ChangeSet, result: RunResult | None) -> Candidate:
        """Put together what the refresh writes; then what is spent is removed.

        ``result`` is what the model's run came to; ``None`` where it had nothing to do.
        """
        state, layout, version = staged.state, staged.plan.layout, staged.version
        reused = state.rows_in(REUSED)
        state.write_rows(PREDICTED, layout.schema, staged.predicted())
        state.write_rows(KEPT, layout.schema, staged.kept())
        removed = _RemovedRows(list(layout.keys))
        norms, statuses = _write_index(staged, removed)
        state.write_rows(REMOVED, layout.key_schema, [*removed.rows, staged.unfit()])
        state.put_replaced(version, removed.hashes)
        remembered, stale = _beginning(statuses, QUARANTINED), _beginning(statuses, STALE)
        rows = replace(
            difference.counts,
            predicted=result.record.rows.rows_in if result else 0,
            reused=reused,
            stale=stale,
            quarantined=remembered,
            live=sum(statuses.values()) - remembered,
        )
        before = staged.pointer.layout
        candidate = cls(
            version=version,
            rows=rows,
            norms=norms,
            bad=(staged.bad.num_rows, stale + remembered),
            bad_rows=_first_bad(staged),
            whole=before is None or staged.plan.new_space or before.schema != layout.schema,
            warnings=result.warnings if result else (),
        )
        state.storage.put(CANDIDATE, candidate.to_json())
        for directory in _SPENT:
            state.storage.remove(directory)
        return candidate


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
        outdated = dispositions != RowDisposition.SAME
        if not outdated.any():
            return
        leaves = (dispositions == RowDisposition.DELETED) & ~is_quarantined(table[STATUS])
        self.rows.append(table.select(self.keys).filter(pa.array(leaves)))
        self.hashes.append(bytes_of(table[FEATURE_HASH])[outdated & is_good(table[STATUS])])


def _write_index(staged: StagedRows, removed: _RemovedRows) -> tuple[NormStats, Counter[str]]:
    """Write the index that the version will have; returns its norms, and rows by status."""
    norms, statuses = NormStats(), Counter[str]()
    keys = staged.plan.layout.key_schema
    with IndexWriter(staged.state.storage, index_path(staged.version), keys) as writer:
        for table in _next_index(staged, removed):
            writer.add(table)
            values = table[NORM].to_numpy()
            norms += NormStats.of(values[~np.isnan(values)])
            for each in table[STATUS].value_counts().to_pylist():
                statuses[each["values"]] += each["counts"]
        writer.commit()
    return norms, statuses


def _next_index(staged: StagedRows, removed: _RemovedRows) -> Iterator[pa.Table]:
    """Yield the rows of the next index: those that stay, those written, those remembered."""
    columns = [*removed.keys, *(each.name for each in INDEX_FIELDS if each.name != KEY_ID)]
    for table, dispositions in staged.indexed(columns):
        removed.add(table, dispositions)
        stays = dispositions == RowDisposition.SAME
        rest = table if stays.all() else table.filter(pa.array(stays))
        if rest.num_rows:
            yield rest
    stored = staged.plan.layout.stored(*columns)
    for table in staged.state.read_rows(PREDICTED, KEPT):
        yield table.select(stored).rename_columns(columns)
    remembered = staged.quarantined
    empty = pa.nulls(remembered.num_rows, pa.float64())
    if remembered.num_rows:
        yield remembered.append_column(NORM, empty).select(columns)


def _beginning(statuses: Counter[str], start: str) -> int:
    return sum(count for status, count in statuses.items() if status.startswith(start))


def _first_bad(staged: StagedRows) -> tuple[FaultyRow, ...]:
    rows = staged.bad.slice(0, SHOWN_ROWS)
    keys = key_rows(rows.select(list(staged.plan.layout.keys)))
    reasons = rows[staged.reason].to_pylist()
    return tuple(
        FaultyRow(key_to_json(key), reason) for key, reason in zip(keys, reasons, strict=True)
    )


@dataclass(frozen=True)
class StagedRows:
    """The staged rows of one refresh; its column ``reason`` says why a row is bad."""

    state: StoreDirectory
    pointer: StorePointer
    plan: RefreshPlan
    version: int
    reason: str

    def indexed(self, columns: list[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the index of the live version in tables, with each row's `RowDisposition`."""
        if self.pointer.live is None:
            return
        dispositions = self.dispositions
        path = index_path(self.pointer.live)
        for first, table in numbered(read_index(self.state.storage, path, columns)):
            yield table, dispositions[first : first + table.num_rows]

    @property
    def dispositions(self) -> np.ndarray:
        """The `RowDisposition` of each row of the live index, ``uint8[n]``."""
        path = self.state.storage.root / changes.DISPOSITIONS
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def predicted(self) -> Iterator[pa.Table]:
        """Yield rows whose vectors are new, from the model or from an older version."""
        for table in (*self._scored(), *self.state.read_directory(REUSED)):
            statuses = pa.array([GOOD] * table.num_rows, pa.string())
            yield self._ordered(table.append_column(STATUS, statuses))

    def _scored(self) -> Iterator[pa.Table]:
        run = self._run
        for batch in run.read(run.schema.names, BATCH_ROWS) if run else ():
            yield pa.Table.from_batches([batch])

    @property
    def _run(self) -> StoredRun | None:
        """The model's run; ``None`` where it had nothing to do."""
        is_there = self.state.storage.names(SCORED)
        return open_run(str(self.state.storage.root / SCORED)) if is_there else None

    @cached_property
    def bad(self) -> pa.Table:
        """Rows that the new features or prediction make bad, and the column ``reason``."""
        schema = self.plan.layout.staged.append(pa.field(self.reason, pa.string()))
        tables = (*self.state.read_directory(changes.BAD), *self._quarantined_by_run())
        found = (table.select(schema.names).cast(schema) for table in tables)
        return pa.concat_tables([schema.empty_table(), *found])

    def _quarantined_by_run(self) -> Iterator[pa.Table]:
        run = self._run
        if run is None:
            return
        form, carried = format_named("parquet"), self.plan.layout.staged.names
        for part in run.parts:
            file = run.quarantine_of(part)
            if file is None:
                continue
            path = str(Path(run.path) / file.path)
            inspected = form.inspect(path)
            names = [*carried, inspected.schema.names[-2]]  # reason, and then the prediction
            for batch in form.read(path, names, 0, inspected.rows, BATCH_ROWS):
                yield pa.Table.from_batches([batch]).rename_columns([*carried, self.reason])

    @cached_property
    def _marks(self) -> np.ndarray:
        """The marks of the bad rows in the live version, ``uint8[n]``; new ones count as set aside.

        See `JudgedAgain.marks`.
        """
        marks = np.full(self.bad.num_rows, IS_QUARANTINED, np.uint8)
        # Reading the index takes long, and an ordinary refresh has no use for it.
        if self.bad.num_rows and self.pointer.live is not None:
            path = index_path(self.pointer.live)
            live = LiveIndex.load(self.state.storage, path, self.plan.judged_again)
            at = live.lookup(key_ids(self.bad, self.plan.layout.keys))
            marks[at >= 0] = live.marks[at[at >= 0]]
        return marks

    @cached_property
    def _stays(self) -> np.ndarray:
        """``bool[n]``: which of the bad rows keep their last good vector."""
        keeps = self.plan.store.bad_rows == "keep" and not self.plan.new_space
        return (self._marks & (IS_QUARANTINED | IS_UNWANTED) == 0) & keeps

    def kept(self) -> Iterator[pa.Table]:
        """Yield touched rows and stale ones, with the last good vectors that they have."""
        for table in self.state.read_directory(changes.TOUCHED):
            yield self._with_live_vectors(table, STATUS)
        rows = self.bad.filter(pa.array(self._stays))
        for start in range(0, rows.num_rows, BATCH_ROWS):
            table = self._with_live_vectors(rows.slice(start, BATCH_ROWS))
            reasons = [STALE + reason for reason in table[self.reason].to_pylist()]
            yield self._ordered(table.append_column(STATUS, pa.array(reasons, pa.string())))

    @cached_property
    def quarantined(self) -> pa.Table:
        """Bad rows that have no vector: remembered, and not in the dataset; with ``status``."""
        rows = self.bad.filter(pa.array(~self._stays))
        reasons = [QUARANTINED + reason for reason in rows[self.reason].to_pylist()]
        return rows.append_column(STATUS, pa.array(reasons, pa.string()))

    def unfit(self) -> pa.Table:
        """Return the keys of bad rows that leave the dataset."""
        leaves = (self._marks & IS_QUARANTINED == 0) & ~self._stays
        return self.bad.select(list(self.plan.layout.keys)).filter(pa.array(leaves))

    def _with_live_vectors(self, table: pa.Table, *more: str) -> pa.Table:
        """Return the rows that are in the live version, with their vectors and norms there."""
        layout = self.plan.layout
        before = self.pointer.layout or layout
        columns = [before.vector, *before.stored(NORM, *more)]
        keys = table.select(list(layout.keys))
        at = self._live_addresses.find(key_ids(keys, layout.keys))
        check_found(self.state.path, keys, at)
        version = self.pointer.lance_version
        found = at_addresses(self.state.path, version, at, columns)
        vectors = pa.concat_tables(found)
        for name, stored in zip((layout.vector, layout.norm, *more), columns, strict=True):
            kind = layout.schema.field(*layout.stored(name)).type
            table = table.append_column(name, vectors[stored].cast(kind))
        return self._ordered(table) if more else table

    @cached_property
    def _live_addresses(self) -> Addresses:
        """Where the rows lie in the live version whose vectors stay."""
        keys = list(self.plan.layout.keys)
        tables = [
            *self.state.read_directory(changes.TOUCHED),
            self.bad.filter(pa.array(self._stays)),
        ]
        ids = [key_ids(table.select(keys), keys) for table in tables]
        version = self.pointer.lance_version
        return addresses_of_keys(self.state.path, version, np.concatenate(ids), keys)

    def _ordered(self, table: pa.Table) -> pa.Table:
        """Turn keys, hashes, status, vectors and passed-through columns into rows to be stored."""
        versions = pa.array(np.full(table.num_rows, self.version))
        table = table.append_column(VERSION, versions)
        named = table.rename_columns(self.plan.layout.stored(*table.column_names))
        schema = self.plan.layout.schema
        return named.select(schema.names).cast(schema)
