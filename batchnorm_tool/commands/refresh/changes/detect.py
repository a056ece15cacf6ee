"""The pass over the input that finds the difference."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.refresh.changes.classify import (
    ChangeType,
    Classifier,
    LiveClassifier,
    MatchedRows,
    RowDisposition,
)
from batchnorm_tool.commands.refresh.changes.result import (
    DISPOSITIONS,
    DOCUMENT,
    ChangeCounts,
    ChangeSet,
)
from batchnorm_tool.commands.refresh.changes.source import RefreshSource, cut
from batchnorm_tool.commands.refresh.changes.spill import BucketJoin, refuse_duplicates
from batchnorm_tool.commands.refresh.changes.worker import (
    BAD,
    CHANGED,
    SHOWN_ROWS,
    TOUCHED,
    Callbacks,
    ChangeWorker,
    PartResult,
    StagingSchemas,
    process_in_order,
)
from batchnorm_tool.display import plural
from batchnorm_tool.environment import available_cores
from batchnorm_tool.errors import BadRows
from batchnorm_tool.formats import parquet
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.inputs.row_hash import IdLookup, bucket_directory
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.index import (
    LiveIndex,
    index_rows,
    is_quarantined,
    read_index,
    read_key_schema,
)
from batchnorm_tool.store.state import STATUS

# Of a live row: its hashes, its id and place, what becomes of it; 46 to 47 bytes.
_ROW_BYTES = 64


@dataclass(frozen=True)
class ChangeDetector:
    """What to compare with what, and how.

    Attributes:
        source: The input.
        storage: The state of the store, written under ``night/``.
        index_path: The index of the live version; ``None`` before the first.
        recompute: Rows with the same features are to be predicted again.
        memory_bytes: About how much memory the live version may take.
        workers: Threads.
    """

    source: RefreshSource
    storage: Storage
    index_path: str | None
    recompute: bool = False
    memory_bytes: int | None = None
    workers: int | None = None

    def run(self, callbacks: Callbacks) -> ChangeSet:
        """Find the difference; see `detect_changes`."""
        self._begin()
        keys = None if self.index_path is None else read_key_schema(self.storage, self.index_path)
        self.source.check(keys)
        with ExitStack() as stack:
            stack.callback(parquet.close_cached_files)
            classifier, matched, repeated = self._classifier(stack, callbacks)
            result = self._stage(classifier, callbacks)
            if repeated | matched.clear_new() | matched.is_repeated():
                refuse_duplicates(self.source, self._parts, self._memory)
            self._refuse_bad_rows(result)
            difference = self._difference(result, *self._write_dispositions(matched.dispositions))
        difference.save(self.storage)
        return difference

    def _begin(self) -> None:
        for path in (DOCUMENT, CHANGED, TOUCHED, BAD, DISPOSITIONS):
            self.storage.remove(path)

    @cached_property
    def _parts(self) -> list[Part]:
        return cut(self.source)

    @cached_property
    def _memory(self) -> int:
        return available_memory() // 4 if self.memory_bytes is None else self.memory_bytes

    @cached_property
    def _workers(self) -> int:
        return self.workers or available_cores()

    @cached_property
    def _index_rows(self) -> int:
        return 0 if self.index_path is None else index_rows(self.storage, self.index_path)

    def _classifier(
        self, stack: ExitStack, callbacks: Callbacks
    ) -> tuple[Classifier, MatchedRows, bool]:
        path, rows = self.index_path, self._index_rows
        if max(rows, self.source.table.rows) * _ROW_BYTES > self._memory:
            directory = stack.enter_context(bucket_directory("run it"))
            join = BucketJoin(self.source, self._parts, directory, self._memory, self.recompute)
            live = None if path is None else (self.storage, path, rows)
            return join.run(live, self._workers, callbacks)
        index = _empty_index() if path is None else LiveIndex.load(self.storage, path)
        matched = MatchedRows(np.full(rows, RowDisposition.UNMATCHED, np.uint8))
        return LiveClassifier(index, matched, recompute=self.recompute), matched, False

    def _stage(self, classifier: Classifier, callbacks: Callbacks) -> PartResult:
        worker = ChangeWorker(self.source, self.storage, classifier)
        result = PartResult()
        for found in process_in_order(self._parts, worker.process, self._workers, callbacks):
            result.merge(found)
        return result

    def _refuse_bad_rows(self, result: PartResult) -> None:
        if result.bad and self.source.invalid == "fail":
            shown = "; ".join(result.bad_rows)
            more = f" and {result.bad - SHOWN_ROWS:,} more" if result.bad > SHOWN_ROWS else ""
            raise BadRows(
                f"{plural(result.bad, 'row')} with features that the model cannot "
                f"take: {shown}{more}. Expected valid features in every row. Fix the input, or "
                "set `input.invalid: quarantine` to set such rows aside."
            )

    def _write_dispositions(self, dispositions: np.ndarray) -> tuple[int, int, int]:
        """Write ``fates.npy``; returns the rows in the dataset, vanished and forgotten."""
        # In a delta, a row that is not mentioned is as it was.
        absent = RowDisposition.DELETED if self.source.mode == "full" else RowDisposition.SAME
        live_rows = vanished = forgotten = 0
        with self.storage.create(DISPOSITIONS) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(dispositions),)}
            np.lib.format.write_array_header_1_0(file, header)
            for row, quarantined in numbered(self._quarantined()):
                block = np.array(dispositions[row : row + len(quarantined)])
                block[block == RowDisposition.UNMATCHED] = absent
                gone = block == RowDisposition.DELETED
                live_rows += int(np.count_nonzero(~quarantined))
                vanished += int(np.count_nonzero(gone & ~quarantined))
                forgotten += int(np.count_nonzero(gone & quarantined))
                file.write(block)
            file.commit()
        return live_rows, vanished, forgotten

    def _quarantined(self) -> Iterator[np.ndarray]:
        if self.index_path is not None:
            for table in read_index(self.storage, self.index_path, [STATUS]):
                yield is_quarantined(table.column(0).combine_chunks())

    def _difference(
        self, result: PartResult, live_rows: int, vanished: int, forgotten: int
    ) -> ChangeSet:
        kinds = {kind: int(result.kinds[kind]) for kind in ChangeType}
        counts = ChangeCounts(
            rows_in=int(result.kinds.sum()),
            new=kinds[ChangeType.NEW],
            changed=kinds[ChangeType.CHANGED],
            recomputed=kinds[ChangeType.RECOMPUTED],
            touched=kinds[ChangeType.TOUCHED],
            same=kinds[ChangeType.SAME],
            deleted=kinds[ChangeType.DELETED],
            unknown_deletes=kinds[ChangeType.UNKNOWN_DELETE],
            bad=result.bad,
            vanished=vanished,
            forgotten=forgotten,
        )
        schemas = StagingSchemas(self.source)
        return ChangeSet(
            counts,
            live_rows,
            schemas.features,
            schemas.reason,
            self.source.inputs,
            result.statistics.summary,
            tuple(sorted(result.warnings)),
        )


def _empty_index() -> LiveIndex:
    hashes = np.zeros((0, 16), np.uint8), np.zeros((0, 8), np.uint8)
    return LiveIndex(*hashes, np.zeros(0, bool), IdLookup(np.zeros((0, 2), np.uint64)))


def available_memory() -> int:
    """Return bytes that this machine could give to a program now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        return 2**32


def detect_changes(  # noqa: PLR0913  (what to compare, and how to go about it)
    source: RefreshSource,
    index_path: str | None,
    storage: Storage,
    *,
    recompute: bool = False,
    memory_bytes: int | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> ChangeSet:
    """Find what is different, and stage the rows that need work.

    Written under ``night/``, the same bytes whatever ``workers`` and ``memory_bytes`` are: in
    ``changed``, ``touched`` and ``bad`` an Arrow file for each part that has such rows (no
    directory where there are none), in the order of the input; ``fates.npy``, a `RowDisposition`
    for each row of the index; and, last, ``difference.json``, without which nothing else counts.

    Args:
        source: The input.
        index_path: The index of the live version in ``storage``; ``None`` before the first.
        storage: The state of the store.
        recompute: Send rows with the same features to the model too, as in a new space.
        memory_bytes: About how much memory the live version may take; beyond it, its rows and
            the new are compared in buckets, in temporary files. Default: a quarter of what the
            machine has available.
        workers: Threads; default: one for each core.
        advance: Called with the number of rows of each finished chunk, from several threads.
        stopped: Asked between chunks whether to give up, from several threads.

    Returns:
        What was found, as `ChangeSet.load` reads it back.
    """
    detector = ChangeDetector(source, storage, index_path, recompute, memory_bytes, workers)
    return detector.run(Callbacks(advance, stopped))
