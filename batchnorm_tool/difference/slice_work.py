"""One slice of tonight's input: read, judged, spooled, counted."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason
from batchnorm_tool.difference.kinds import FOR_THE_MODEL, Kind
from batchnorm_tool.difference.reading import key_in_words, locate, read_chunks
from batchnorm_tool.difference.spool import Spool, SpoolSchemas
from batchnorm_tool.difference.statistics import InputStatistics, statistics_of
from batchnorm_tool.errors import Interrupted
from batchnorm_tool.input_warnings import collected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from batchnorm_tool.difference.kinds import Judge
    from batchnorm_tool.difference.reading import Chunk
    from batchnorm_tool.difference.slices import Slice
    from batchnorm_tool.difference.tonight import Tonight
    from batchnorm_tool.storage import Storage

SHOWN_ROWS = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Watch:
    """Who looks on.

    Attributes:
        advance: Told the number of rows of each finished chunk, from several threads.
        stopped: Asked between chunks whether to give up, from several threads.
    """

    advance: Callable[[int], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Give up if asked to.

        Raises:
            Interrupted: It is so.
        """
        if self.stopped():
            msg = "Stopped while tonight's input was compared; running it again starts that anew."
            raise Interrupted(msg)


@dataclass
class SliceResult:
    """What a slice came to; mergeable in the order of the input.

    Attributes:
        kinds: Rows of each `Kind`, ``int64[7]``.
        bad: Rows bad by their input that need work.
        bad_rows: The first few of them, in words.
        statistics: Of the slice.
        warnings: What the features gave reason to warn of.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.zeros(len(Kind), np.int64))
    bad: int = 0
    bad_rows: tuple[str, ...] = ()
    statistics: InputStatistics = field(default_factory=lambda: InputStatistics({}, {}))
    warnings: set[str] = field(default_factory=set)

    def merge(self, other: SliceResult) -> None:
        """Take in what comes after this."""
        self.kinds = self.kinds + other.kinds
        self.bad += other.bad
        self.bad_rows = (*self.bad_rows, *other.bad_rows)[:SHOWN_ROWS]
        self.statistics = self.statistics.merged(other.statistics)
        self.warnings |= other.warnings


class SliceWorker:
    """Works on slices; threads share one.

    Args:
        tonight: The input.
        storage: The state of the store.
        judge: Tells the rows' kinds.
    """

    def __init__(self, tonight: Tonight, storage: Storage, judge: Judge) -> None:
        self._tonight, self._storage, self._judge = tonight, storage, judge
        self._schemas = SpoolSchemas(tonight)

    def process(self, piece: Slice, watch: Watch) -> SliceResult:
        """Do one slice, and commit its files.

        Raises:
            InputError: A key is null, or the features do not fit the model.
            Interrupted: ``watch`` said so.
            WorkFailed: Reading or writing failed.
        """
        result = SliceResult()
        with (
            collected(result.warnings.add),
            Spool(self._storage, self._schemas, piece.stem) as spool,
        ):
            for chunk in read_chunks(self._tonight, piece):
                watch.check()
                result.merge(self._process(chunk, spool))
                watch.advance(len(chunk.faults))
            spool.commit()
        return result

    def _process(self, chunk: Chunk, spool: Spool) -> SliceResult:
        kinds = self._judge.kinds(chunk.hashes)
        wanted = np.isin(kinds, FOR_THE_MODEL)
        faulty = chunk.faults != Reason.GOOD
        bad = wanted & faulty
        if bad.any() and self._tonight.invalid == "quarantine":
            spool.add_bad(chunk, bad)
        if (wanted & ~faulty).any():
            spool.add_changed(chunk, wanted & ~faulty)
        if (kinds == Kind.TOUCHED).any():
            spool.add_touched(chunk, kinds == Kind.TOUCHED)
        return SliceResult(
            np.bincount(kinds, minlength=len(Kind)),
            int(np.count_nonzero(bad)),
            tuple(self._in_words(chunk, np.flatnonzero(bad)[:SHOWN_ROWS])),
            self._measured(chunk, faulty),
        )

    def _measured(self, chunk: Chunk, faulty: np.ndarray) -> InputStatistics:
        deleted = chunk.hashes.deleted
        valid = ~faulty if deleted is None else ~faulty & ~deleted
        columns = chunk.table.select(list(self._tonight.feature_columns))
        if deleted is not None:  # their features do not matter, and may be null
            columns = columns.filter(pa.array(~deleted))
        return statistics_of(columns, chunk.arrays, valid, chunk.hashes.first_row)

    def _in_words(self, chunk: Chunk, rows: np.ndarray) -> Iterator[str]:
        keys = chunk.table.select(list(self._tonight.keys))
        for row in rows.tolist():
            path, place = locate(self._tonight.table, chunk.hashes.first_row + row)
            reason = Reason(chunk.faults[row]).label
            yield f"{path}, row {place} ({key_in_words(keys, row)}): {reason}"


def in_order(
    slices: Iterable[Slice],
    process: Callable[[Slice, Watch], _Result],
    workers: int,
    watch: Watch,
) -> Iterator[_Result]:
    """What ``process`` gives for each slice, in order, a few slices at a time.

    The first failure in the order of the slices is raised, whichever thread was faster.
    """
    stop = threading.Event()
    watched = Watch(watch.advance, lambda: stop.is_set() or watch.stopped())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="slice")
    waiting: deque[Future[_Result]] = deque()
    try:
        for piece in slices:
            waiting.append(pool.submit(process, piece, watched))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
