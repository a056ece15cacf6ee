"""The pass over the input that finds the difference: read, judge, count and write each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason, numbered
from batchnorm_tool.commands.refresh.changes import classify, result
from batchnorm_tool.commands.refresh.changes.causes import ChangeCause
from batchnorm_tool.commands.refresh.changes.classify import ChangeType, MatchedRows, RowDisposition
from batchnorm_tool.commands.refresh.changes.result import ChangeSet, StagingWriter
from batchnorm_tool.commands.refresh.changes.source import Callbacks, HashedChunk, RefreshSource
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.display import plural
from batchnorm_tool.environment import available_cores
from batchnorm_tool.errors import BadRows, capture_warnings
from batchnorm_tool.features.statistics import InputStatistics, InputSummary, statistics_of
from batchnorm_tool.formats.parquet import close_cached_files
from batchnorm_tool.gate.findings import SHOWN_ROWS
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.reading import Part, describe_key
from batchnorm_tool.inputs.row_hash import BlockHash
from batchnorm_tool.inputs.row_ids import IdLookup, bucket_directory
from batchnorm_tool.storage import Storage, checked_json
from batchnorm_tool.store.index import (
    IS_JUDGED_AGAIN,
    IS_QUARANTINED,
    JudgedAgain,
    LiveIndex,
    index_rows,
    read_index,
)
from batchnorm_tool.store.state import StoreDirectory, StoredRecord, index_path

# Of a live row: its hashes, its id and place, what becomes of it; 46 to 47 bytes.
_ROW_BYTES = 64


@dataclass
class PartResult:
    """What a part came to; mergeable in the order of the input.

    ``kinds`` counts the rows of each `ChangeType`, ``bad`` those that need work and are bad by
    their input; ``bad_rows`` tells the first few. ``content`` has the hash of each part's rows.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.zeros(len(ChangeType), np.int64))
    bad: int = 0
    bad_rows: tuple[str, ...] = ()
    statistics: InputStatistics = field(default_factory=lambda: InputStatistics({}, {}))
    warnings: set[str] = field(default_factory=set)
    content: tuple[str, ...] = ()

    def merge(self, other: PartResult) -> None:
        """Take in what comes after this."""
        self.kinds = self.kinds + other.kinds
        self.bad += other.bad
        self.bad_rows = (*self.bad_rows, *other.bad_rows)[:SHOWN_ROWS]
        self.statistics = self.statistics.merged(other.statistics)
        self.warnings |= other.warnings
        self.content += other.content

    def counted(self, gone: Mapping[str, int]) -> RefreshRows:
        """Return the counts, beside those of rows that no row of the input has."""
        rows = {kind.name.lower(): int(self.kinds[kind]) for kind in ChangeType}
        return RefreshRows(rows_in=sum(rows.values()), bad=self.bad, **rows, **gone)


@dataclass(frozen=True)
class ChangeWorker:
    """Works on parts; threads share one."""

    source: RefreshSource
    storage: Storage
    classifier: classify.Classifier

    def process(self, part: Part, callbacks: Callbacks) -> PartResult:
        """Do one part, and commit its files."""
        total, content = PartResult(), BlockHash()
        with (
            capture_warnings(total.warnings.add),
            StagingWriter(self.storage, result.StagingSchemas(self.source), part.stem) as writer,
        ):
            for chunk in self.source.chunks(part):
                callbacks.check()
                content.add_table(chunk.table)
                total.merge(self._process(chunk, writer))
                callbacks.advance(len(chunk.faults))
            writer.commit()
        total.content = (content.to_text(),)
        return total

    def _process(self, chunk: HashedChunk, writer: StagingWriter) -> PartResult:
        kinds = self.classifier(chunk.hashes)
        # A row that was bad before for the same reason is unchanged: it is not reported again.
        wanted = kinds <= ChangeType.RECOMPUTED
        faulty = chunk.faults != Reason.GOOD
        bad = wanted & faulty
        if self.source.invalid == "quarantine":
            writer.add(result.BAD, chunk, bad)
        writer.add(result.CHANGED, chunk, wanted & ~faulty)
        writer.add(result.TOUCHED, chunk, kinds == ChangeType.TOUCHED)
        return PartResult(
            np.bincount(kinds, minlength=len(ChangeType)),
            int(np.count_nonzero(bad)),
            tuple(self._describe_rows(chunk, np.flatnonzero(bad)[:SHOWN_ROWS])),
            self._measured(chunk),
        )

    def _measured(self, chunk: HashedChunk) -> InputStatistics:
        deleted, good = chunk.hashes.deleted, chunk.faults == Reason.GOOD
        valid = good if deleted is None else good & ~deleted
        columns = chunk.table.select(list(self.source.feature_columns))
        if deleted is not None:  # their features do not matter, and may be null
            columns = columns.filter(pa.array(~deleted))
        return statistics_of(columns, chunk.arrays, valid, chunk.hashes.first_row)

    def _describe_rows(self, chunk: HashedChunk, rows: np.ndarray) -> Iterator[str]:
        keys = chunk.table.select(list(self.source.keys))
        for row in rows.tolist():
            place = self.source.place(chunk.hashes.first_row + row)
            yield f"{place} ({describe_key(keys, row)}): {Reason(chunk.faults[row]).label}"


@dataclass(frozen=True)
class ChangeDetector:
    """Finds what is different from the live version, and stages the rows that need work.

    Written under ``night/``, the same bytes whatever ``workers`` and ``memory_bytes`` are: in
    ``changed``, ``touched`` and ``bad`` an Arrow file for each part that has such rows (no
    directory where there are none), in the order of the input; and ``fates.npy``, a
    `RowDisposition` for each row of the index. Where the input is the very one that the live
    version was made of, nothing is written, and no row is hashed by itself.

    Attributes:
        index_path: The index of the live version in ``storage``; ``None`` before the first.
        recompute: Send rows with the same features to the model too, as in a new space.
        memory_bytes: About how much memory the live version may take; beyond it, rows are compared
            in buckets, in temporary files. Default: a quarter of what the machine has available.
        workers: Threads; default: one for each core.
        again: Which rows with the same features are sent to the model without ``recompute``.
        live: The record of the live version, where its features may be compared.
        scope: `RefreshPlan.content_scope`.
    """

    source: RefreshSource
    index_path: str | None
    storage: Storage
    recompute: bool = False
    memory_bytes: int | None = None
    workers: int | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    again: JudgedAgain = field(default_factory=JudgedAgain)
    live: StoredRecord | None = None
    scope: str | None = None

    @classmethod
    def of(
        cls, plan: RefreshPlan, live: int | None, state: StoreDirectory, **more: Any
    ) -> ChangeDetector:
        """Return the detector of a plan, beside the live version."""
        return cls(
            plan.source,
            None if live is None else index_path(live),
            recompute=plan.recompute,
            again=plan.judged_again,
            live=None if plan.new_space else state.record(live),
            scope=plan.content_scope,
            **{"storage": state.storage, **more},
        )

    def run(self) -> ChangeSet:
        """Return what was found; whoever wants it to last saves it."""
        sets = result.CHANGED, result.TOUCHED, result.BAD
        for path in (result.DOCUMENT, *sets, result.DISPOSITIONS):
            self.storage.remove(path)
        self.source.check()
        with ExitStack() as stack:
            stack.callback(close_cached_files)
            return self._nothing() or self._found(stack)

    def _nothing(self) -> ChangeSet | None:
        """Return that nothing changed, where the input is what the live version was made of."""
        live, count = self.live, self.source.table.rows
        before = live.input.content if live and not self.recompute else None
        if live is None or before is None or before[0] != self.scope:
            return None
        marks, counts = np.arange(256), np.zeros(256, np.int64)
        for table in self._live_rows():
            counts += np.bincount(self.again.marks(table), minlength=256)
        if counts.sum() != count or counts[marks & IS_JUDGED_AGAIN > 0].any():
            return None
        parts = self.source.process(self.source.content, self._workers, self.callbacks)
        if self._content(parts) != before:  # files that look the same, and are not
            self.callbacks.advance(-count)
            return None
        kept = int(counts[marks & IS_QUARANTINED == 0].sum())
        rows = RefreshRows(rows_in=count, same=count, live=kept)
        return self._changes(rows, live.input.statistics, content=before)

    def _found(self, stack: ExitStack) -> ChangeSet:
        classifier, matched = self._classifier(stack)
        worker = ChangeWorker(self.source, self.storage, classifier)
        total = PartResult()
        for part in self.source.process(worker.process, self._workers, self.callbacks):
            total.merge(part)
        if matched.is_repeated():
            classify.refuse_duplicates(self.source, self._memory)
        self._refuse_bad_rows(total)
        found = self._changes(
            total.counted(self._write_dispositions(matched)),
            total.statistics.summary,
            warnings=tuple(sorted(total.warnings)),
            judged_again=self._judged_again(matched.dispositions),
            content=None if total.warnings else self._content(total.content),
        )
        if self.live is None or self.index_path is None:
            return found
        cause = ChangeCause(self.storage, self.index_path, self.source.keys, self.live)
        return replace(found, cause=cause.describe(found))

    def _content(self, parts: Iterable[str]) -> tuple[str, str] | None:
        return None if self.scope is None else (self.scope, checked_json.sha256([*parts]))

    def _changes(self, counts: RefreshRows, statistics: InputSummary, **more: Any) -> ChangeSet:
        source, schemas = self.source, result.StagingSchemas(self.source)
        names = schemas.features, schemas.reason
        return ChangeSet(
            counts, *names, source.inputs, statistics, types=source.feature_types, **more
        )

    @cached_property
    def _memory(self) -> int:
        return available_memory() // 4 if self.memory_bytes is None else self.memory_bytes

    @cached_property
    def _workers(self) -> int:
        return self.workers or available_cores()

    def _classifier(self, stack: ExitStack) -> tuple[classify.Classifier, MatchedRows]:
        """Return what tells rows, and the live rows that they claim."""
        live = None if self.index_path is None else (self.storage, self.index_path)
        rows = 0 if live is None else index_rows(*live)
        if max(rows, self.source.table.rows) * _ROW_BYTES > self._memory:
            directory = stack.enter_context(bucket_directory("run it"))
            options = (self._memory, self.recompute, self.again)
            join = classify.BucketJoin(self.source, directory, *options)
            return join.run(live, self._workers, self.callbacks)
        hashes = np.zeros((0, 16), np.uint8), np.zeros((0, 8), np.uint8), np.zeros(0, bool)
        index = LiveIndex(*hashes, IdLookup(np.zeros((0, 2), np.uint64)))
        index = index if live is None else LiveIndex.load(*live, self.again, self._workers)
        matched = MatchedRows(np.full(rows, RowDisposition.UNMATCHED, np.uint8), index.marks)
        return classify.classifier_in_memory(index, matched, recompute=self.recompute), matched

    def _refuse_bad_rows(self, total: PartResult) -> None:
        if total.bad and self.source.invalid == "fail":
            shown = "; ".join(total.bad_rows)
            more = f" and {total.bad - SHOWN_ROWS:,} more" if total.bad > SHOWN_ROWS else ""
            raise BadRows(
                f"{plural(total.bad, 'row')} with features that the model cannot "
                f"take: {shown}{more}. Expected valid features in every row. Fix the input, or "
                "set `input.invalid: quarantine` to set such rows aside."
            )

    def _judged_again(self, rows: np.ndarray) -> tuple[str, ...]:
        """Return why rows with the features that they had are judged again, where not all are."""
        if self.recompute or not (rows == RowDisposition.RECOMPUTED).any():
            return ()
        causes = np.zeros(256, np.int64)
        for row, table in numbered(self._live_rows()):
            again = rows[row : row + len(table)] == RowDisposition.RECOMPUTED
            causes += np.bincount(self.again.by_cause(table)[again], minlength=256)
        return tuple(why for n, why in enumerate(self.again.causes, 1) if causes[n])

    def _write_dispositions(self, matched: MatchedRows) -> Mapping[str, int]:
        """Write ``fates.npy``, and return counts of live rows."""
        # In a delta, a row that is not mentioned is as it was.
        absent = RowDisposition.DELETED if self.source.mode == "full" else RowDisposition.SAME
        counts, rows = Counter(live=0, vanished=0, forgotten=0), matched.dispositions
        with self.storage.create(result.DISPOSITIONS) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows),)}
            np.lib.format.write_array_header_1_0(file, header)
            for row in range(0, len(rows), 2**18):  # in blocks, for they may lie in a file
                block = np.array(rows[row : row + 2**18])
                block[block == RowDisposition.UNMATCHED] = absent
                block[block == RowDisposition.RECOMPUTED] = RowDisposition.REPLACED
                gone = block == RowDisposition.DELETED
                quarantined = matched.marks[row : row + 2**18] & IS_QUARANTINED > 0
                counts["live"] += int(np.count_nonzero(~quarantined))
                counts["vanished"] += int(np.count_nonzero(gone & ~quarantined))
                counts["forgotten"] += int(np.count_nonzero(gone & quarantined))
                file.write(block)
            file.commit()
        return counts

    def _live_rows(self) -> Iterable[pa.Table]:
        """Stream what tells of the rows of the live version whether they are judged again."""
        if self.index_path is None:
            return ()
        return read_index(self.storage, self.index_path, self.again.columns)


def available_memory() -> int:
    """Return bytes that this machine could give to a program now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return 2**32
