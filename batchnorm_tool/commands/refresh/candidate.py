"""A refresh made ready to be merged: rows to write, keys to remove, the next index.

All of it lies in the state of the store, so that a candidate that waits is published later without
computing anything again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason, numbered
from batchnorm_tool.commands.refresh.changes import result as changes
from batchnorm_tool.commands.refresh.changes.classify import RowDisposition
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.refresh.survey import Survey, begin_survey, blas
from batchnorm_tool.errors import Damaged
from batchnorm_tool.formats import format_named
from batchnorm_tool.gate.findings import SHOWN_ROWS, FaultyRow
from batchnorm_tool.gate.output_limits import keys_to_json
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.row_hash import as_ids, bytes_of, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup, repeats
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.pipeline.manifest import Totals, existing_record
from batchnorm_tool.pipeline.output_state import RECORDS
from batchnorm_tool.pipeline.part_output import QUARANTINE_DIRECTORY
from batchnorm_tool.pipeline.plan import PLAN_PATH
from batchnorm_tool.pipeline.repeats import REPEATS_PATH
from batchnorm_tool.storage import STATE, TEMPORARY, FileRecord, Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.index import (
    IS_QUARANTINED,
    IS_UNWANTED,
    KEY_ID,
    IndexWriter,
    base_to_share,
    found_in_index,
    keep_quarantined,
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
    sample_path,
)
from batchnorm_tool.store.transaction import addresses_to_delete

REUSED = f"{STAGING}/reused"
SCORED = f"{STAGING}/scored"
QUARANTINE = f"{STATE}/{QUARANTINE_DIRECTORY}"
VECTORS = f"{SCORED}/{STATE}/vectors"
CANDIDATE = f"{STAGING}/candidate.json"
KEPT = f"{STAGING}/kept.arrow"
REMOVED = f"{STAGING}/removed.arrow"
# What is not needed any more once the candidate is whole: of the scored rows, all but the vectors.
_SPENT = (
    *(changes.CHANGED, changes.TOUCHED, changes.BAD),
    *(f"{SCORED}/{path}" for path in (PLAN_PATH, RECORDS, REPEATS_PATH, TEMPORARY, QUARANTINE)),
)
_STAGED = (changes.DOCUMENT, changes.DISPOSITIONS, VECTORS, REUSED, KEPT, REMOVED)


@dataclass(frozen=True)
class Candidate(SealedRecord):
    """What a refresh came to, before anybody has judged it.

    Attributes:
        norms: Of all rows of the version that are in the dataset.
        bad: Rows that are bad now: of those that were looked at again, and of all.
        bad_rows: The first of them.
        keys: Different keys among all rows of the index.
        whole: Whether the dataset is rewritten, rather than merged into.
        files: What it is made of, but for the sample, which is made again.
    """

    version: int
    rows: RefreshRows
    norms: NormStats
    bad: tuple[int, int]
    bad_rows: tuple[FaultyRow, ...]
    keys: int
    whole: bool
    warnings: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()

    @classmethod
    def load(cls, storage: Storage) -> Candidate | None:
        """Return the candidate that is staged whole; ``None`` where there is none."""
        return cls.from_json(storage.get(CANDIDATE))


class Assembly:
    """A candidate that is put together while the model scores: each part once it is committed.

    A thread of its own writes the next index, and audits and samples what is written and what was
    live. The staged parts are the candidate: no vector is written again.
    """

    def __init__(self, staged: StagedRows, rows: RefreshRows) -> None:
        self._staged = staged
        self._rows = rows
        # Of rows of the live version: the keys of those that leave the dataset because the input
        # lacks them, and the feature hashes of good ones that do not stay, for their vectors may be
        # wanted again.
        self._removed: list[pa.Table] = []
        self._replaced: list[np.ndarray] = []
        self._survey = staged.survey(rows)
        self._index = staged.next_index(rows)
        self._written: list[FileRecord] = []
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "assembly")
        self._under_way = deque([self._thread.submit(self._begin)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.shutdown(cancel_futures=True)
        self._index.writer.discard()

    def take(self, number: int) -> None:
        """Take in a committed part, while others are worked on."""
        while self._under_way and self._under_way[0].done():
            # What failed is told now, not after hours of the model's work.
            self._under_way.popleft().result()
        part = self._staged.part(number)
        self._under_way.append(self._thread.submit(self._write, part, new=True))

    def finish(self, totals: Totals, warnings: Iterable[str]) -> tuple[Candidate, Survey]:
        """Add all other rows, and keep the candidate; then what is spent is removed."""
        for each in (*self._under_way, self._thread.submit(self._add_rest)):
            each.result()
        counts = totals.counts
        staged, state = self._staged, self._staged.state
        (index, distinct), statuses = self._index.commit(), self._index.statuses
        remembered, stale = _beginning(statuses, QUARANTINED), _beginning(statuses, STALE)
        keys = staged.plan.layout.key_schema
        state.write_rows(REMOVED, keys, [*self._removed, staged.unfit()])
        state.put_replaced(staged.version, self._replaced)
        if remembered:
            keep_quarantined(state, staged.version, keys)
        self._written += [index, *staged.part_files()]
        before, layout = staged.pointer.layout, staged.plan.layout
        candidate = Candidate(
            version=staged.version,
            rows=replace(
                self._rows,
                bad=self._rows.bad + totals.reasons[Reason.MODEL_FAILURE.label],
                predicted=counts.predicted or 0,
                reused=state.rows_in(REUSED) + (counts.reused or 0),
                stale=stale,
                quarantined=remembered,
                live=sum(statuses.values()) - remembered,
            ),
            norms=self._index.norms,
            bad=(staged.bad.num_rows, stale + remembered),
            bad_rows=_first_bad(staged),
            keys=distinct,
            whole=before is None or staged.plan.new_space or before.schema != layout.schema,
            warnings=(*totals.warnings, *warnings),
            files=staged.files(self._written),
        )
        state.storage.put(CANDIDATE, candidate.to_json())
        for path in _SPENT:
            state.storage.remove(path)
        return candidate, self._survey

    def _begin(self) -> None:
        """Write what stays of the live index."""
        # With the ids that are there: those of texts would take long to be made again.
        for table, dispositions in self._staged.indexed([*self._index.columns, KEY_ID]):
            if self._stopped.is_set():
                return
            self._note_outdated(table, dispositions)
            self._index.keep(table, dispositions == RowDisposition.SAME)
            if self._survey.live:
                self._survey.live.add(table)
        blas()  # found here, beside the model, and not while one core judges

    def _note_outdated(self, table: pa.Table, dispositions: np.ndarray) -> None:
        outdated = dispositions != RowDisposition.SAME
        if outdated.any():
            leaves = (dispositions == RowDisposition.DELETED) & ~is_quarantined(table[STATUS])
            keys = table.select(list(self._staged.plan.layout.keys))
            self._removed.append(keys.filter(pa.array(leaves)))
            good = outdated & is_good(table[STATUS])
            self._replaced.append(bytes_of(table[FEATURE_HASH])[good])

    def _add_rest(self) -> None:
        """Add rows with known vectors, those that keep theirs, and those that are remembered."""
        staged = self._staged
        self._write(staged.reused(), new=True)
        kept = staged.state.write_rows(KEPT, staged.plan.layout.schema, staged.kept())
        self._written.append(kept)
        self._write(staged.state.read_rows(KEPT), new=False)
        remembered = staged.quarantined
        empty = pa.nulls(remembered.num_rows, pa.float64())
        self._index.add(remembered.append_column(NORM, empty))

    def _write(self, tables: Iterable[pa.Table], *, new: bool) -> None:
        stored = self._staged.plan.layout.stored(*self._index.columns)
        for table in tables:
            if self._stopped.is_set():
                return
            self._survey.add(table, new=new)
            self._index.add(table.select(stored).rename_columns(self._index.columns))


class NextIndex:
    """The index of the next version as it is written, with what is counted on the way."""

    def __init__(self, writer: IndexWriter) -> None:
        self.norms = NormStats()
        self.statuses = Counter[str]()
        self.writer = writer
        self._staying: list[np.ndarray] = []
        self._added = [np.empty((0, 2), np.uint64)]
        self.columns = [name for name in self.writer.schema.names if name != KEY_ID]

    def keep(self, table: pa.Table, stays: np.ndarray) -> None:
        """Take over the next rows of the index before, ``bool[n]``; those that do not stay go."""
        self.writer.keep(table, stays)
        self._staying.append(as_ids(bytes_of(table[KEY_ID])).compress(stays, axis=0))
        self._count(table[NORM].to_numpy()[stays], table[STATUS].filter(pa.array(stays)))

    def add(self, table: pa.Table) -> None:
        """Append rows, with all of `columns`."""
        if table.num_rows:
            self._added.append(self.writer.add(table))
            self._count(table[NORM].to_numpy(), table[STATUS])

    def _count(self, norms: np.ndarray, statuses: pa.ChunkedArray) -> None:
        self.norms += NormStats.of(norms[~np.isnan(norms)])
        for each in statuses.value_counts().to_pylist():
            self.statuses[each["values"]] += each["counts"]

    def commit(self) -> tuple[FileRecord, int]:
        """Let the index appear; also returns how many different keys it has."""
        record = self.writer.commit()
        added = np.concatenate(self._added)
        # Those that stay were audited together when they were written.
        again = len(IdLookup(added).among(self._staying)) if self._staying else 0
        return record, sum(map(len, self._staying)) + len(added) - len(repeats(added)) - again


def _beginning(statuses: Counter[str], start: str) -> int:
    return sum(count for status, count in statuses.items() if status.startswith(start))


def _first_bad(staged: StagedRows) -> tuple[FaultyRow, ...]:
    rows = staged.bad.slice(0, SHOWN_ROWS)
    keys = keys_to_json(rows.select(list(staged.plan.layout.keys)))
    return tuple(map(FaultyRow, keys, rows[staged.reason].to_pylist()))


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

    def next_index(self, rows: RefreshRows) -> NextIndex:
        """Return the index of the version that is made, without a row."""
        storage, live = self.state.storage, self.pointer.live
        added = rows.for_the_model + rows.touched + rows.bad
        changes = added + int((~self.stays).sum())
        base = None if live is None else base_to_share(storage, index_path(live), changes)
        keys = self.plan.layout.key_schema
        return NextIndex(IndexWriter(storage, index_path(self.version), keys, base))

    @property
    def dispositions(self) -> np.ndarray:
        """The `RowDisposition` of each row of the live index, ``uint8[n]``."""
        path = self.state.storage.root / changes.DISPOSITIONS
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, EOFError, ValueError) as error:
            raise Damaged(
                f"`{path}` cannot be read: {error}. Remove its directory: the next "
                "`batchnorm-tool refresh` stages all of it again."
            ) from error

    @cached_property
    def stays(self) -> np.ndarray:
        """``bool[n]``: which rows of the live index stay as they are."""
        return self.dispositions == RowDisposition.SAME

    @cached_property
    def replaced(self) -> np.ndarray:
        """Where the rows lie in the dataset that the refresh replaces or removes, ``uint64[n]``."""
        keys = list(self.plan.layout.keys)
        folders = ((each, self.state.storage.names(each)) for each in (VECTORS, REUSED))
        files = (f"{folder}/{name}" for folder, names in folders for name in names)
        tables = self.state.read_rows(*files, KEPT, REMOVED)
        ids = (key_ids(table.select(keys), keys) for table in tables)
        every = np.concatenate([np.empty((0, 2), np.uint64), *ids])
        return addresses_to_delete(self.state.path, every, keys)

    def written(self) -> Iterator[pa.Table]:
        """Yield all rows that the refresh writes, as they are stored."""
        yield from self._new()
        yield from self.state.read_rows(KEPT)

    def _new(self) -> Iterator[pa.Table]:
        for number in range(self._parts):
            yield from self.part(number)
        yield from self.reused()

    def part_files(self) -> Iterator[FileRecord]:
        """Yield the checksums of the parts' vectors, which were taken when they were written."""
        place = Storage(self.state.storage.root / SCORED)
        for number in range(self._parts):
            for file in existing_record(place, number).files:
                yield replace(file, path=f"{SCORED}/{STATE}/{file.path}")

    def files(self, known: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
        """Return checksums of all that the candidate is made of; see `StoreDirectory.files_of`."""
        before = self.state.record(self.pointer.live)
        files = self.state.files_of(self.version, before, _STAGED, known)
        return tuple(file for file in files if file.path != sample_path(self.version))

    @property
    def _parts(self) -> int:
        return len(self.state.storage.names(VECTORS))

    def part(self, number: int) -> Iterator[pa.Table]:
        """Yield the rows of a committed part, whose vectors are the model's."""
        return map(self._good, self.state.read_rows(f"{VECTORS}/part-{number:06d}.arrow"))

    def reused(self) -> Iterator[pa.Table]:
        """Yield the rows whose vectors were known."""
        return map(self._good, self.state.read_directory(REUSED))

    def _good(self, table: pa.Table) -> pa.Table:
        statuses = pa.array([GOOD] * table.num_rows, pa.string())
        return self._ordered(table.append_column(STATUS, statuses))

    def surveyed(self, rows: RefreshRows) -> Survey:
        """Look at all rows of a candidate that was put together earlier."""
        survey = self.survey(rows)
        for table in self._new():
            survey.add(table, new=True)
        for table in self.state.read_rows(KEPT):
            survey.add(table, new=False)
        if survey.live:
            for table, _ in self.indexed([*self.plan.layout.keys, STATUS, NORM]):
                survey.live.add(table)
        return survey

    def survey(self, rows: RefreshRows) -> Survey:
        """Return an empty survey for what is written."""
        return begin_survey(self.state, self.pointer, self.plan, self.stays, rows)

    def prepare(self, sample: pa.Table, *, whole: bool) -> None:
        """Keep the new version's sample for the next refresh, and look up what the merge needs."""
        self.state.write_rows(sample_path(self.version), sample.schema, [sample])
        if not whole:
            self.replaced  # noqa: B018

    @cached_property
    def bad(self) -> pa.Table:
        """Rows that the new features or prediction make bad, and the column ``reason``."""
        schema = self.plan.layout.staged.append(pa.field(self.reason, pa.string()))
        tables = (*self.state.read_directory(changes.BAD), *self._quarantined_by_run())
        found = (table.select(schema.names).cast(schema) for table in tables)
        return pa.concat_tables([schema.empty_table(), *found])

    def _quarantined_by_run(self) -> Iterator[pa.Table]:
        directory, carried = f"{SCORED}/{QUARANTINE}", self.plan.layout.staged.names
        form = format_named("parquet")
        for name in self.state.storage.names(directory):
            path = str(self.state.storage.root / directory / name)
            inspected = form.inspect(path)
            names = [*carried, inspected.schema.names[-2]]  # reason, and then the prediction
            for batch in form.read(path, names, 0, inspected.rows, BATCH_ROWS):
                yield pa.Table.from_batches([batch]).rename_columns([*carried, self.reason])

    @cached_property
    def _marks(self) -> np.ndarray:
        """`JudgedAgain.marks` of the bad rows in the live version; new ones count as set aside."""
        marks = np.full(self.bad.num_rows, IS_QUARANTINED, np.uint8)
        # Reading the index takes long, and an ordinary refresh has no use for it.
        if self.bad.num_rows and self.pointer.live is not None:
            path, again = index_path(self.pointer.live), self.plan.judged_again
            places = IdLookup(key_ids(self.bad, self.plan.layout.keys))
            for at, table in found_in_index(self.state.storage, path, places, again.columns):
                marks[at] = again.marks(table)
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
        live = self.pointer.lance_version
        vectors = pa.concat_tables(at_addresses(self.state.path, live, at, columns))
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
