"""How long each stage of the pipeline takes, summed over threads and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WAIT = "wait"
_BOTTLENECKS = {
    "read": "Reading is the bottleneck: fewer columns, lists of fixed size or a faster disk help.",
    "predict": (
        "Prediction is the bottleneck: a smaller model, another `model.batch_size` or a GPU helps."
    ),
    "normalize": "Normalization is the bottleneck: the vectors are long for the model's work.",
    "statistics": "Statistics are the bottleneck: the vectors are long for the model's work.",
    "write": (
        "Writing is the bottleneck: a faster disk, `output.dtype: float16` or fewer passed-through "
        "columns help."
    ),
    WAIT: (
        "Waiting is the bottleneck: for the disk, a free core, or the last part. Larger "
        "`output.part_rows`, more `engine.workers` or a faster disk help."
    ),
}
# The stages of a worker, in the order in which data travels.
STAGES = ("read", "predict", "normalize", "statistics", "write")


class StageTimings:
    """Sums of what each stage took; threads may share one, and processes may send theirs.

    Stages must not be nested: the inner one's time would count twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(STAGES, (0.0, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the block takes to a stage, also where it fails."""
        seconds, cpu_seconds = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - seconds, time.thread_time() - cpu_seconds)

    def add(self, stage: str, seconds: float, cpu_seconds: float) -> None:
        """Add to what a stage took."""
        with self._lock:
            before = self._totals[stage]
            self._totals[stage] = (before[0] + seconds, before[1] + cpu_seconds)

    def totals(self) -> dict[str, tuple[float, float]]:
        """Return what every stage took so far: by its name, seconds and CPU seconds."""
        with self._lock:
            return dict(self._totals)

    def merge(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """Add the `totals` of another clock, such as that of a worker in another process."""
        for stage, (seconds, cpu_seconds) in totals.items():
            self.add(stage, seconds, cpu_seconds)


@dataclass(frozen=True)
class Profile:
    """Where the time of a run went.

    Attributes:
        seconds: Wall time of the work, without imports, planning and loading the model.
        workers: Parts that were worked on at once.
        stages: Seconds of all workers together by stage, in the order in which data travels; last
            ``wait``. Of a prediction it is wall time, since the model computes in threads of its
            own; of the others it is CPU time, and what they waited besides is in ``wait``.
    """

    seconds: float
    workers: int
    stages: Mapping[str, float]

    @classmethod
    def of(cls, seconds: float, workers: int, totals: Mapping[str, tuple[float, float]]) -> Profile:
        """Make a profile of the wall time of the work and the ``totals`` of a `StageTimings`."""
        stages = {
            stage: totals[stage][0] if stage == "predict" else totals[stage][1] for stage in STAGES
        }
        wait = max(0.0, seconds * workers - sum(stages.values()))
        return cls(seconds, workers, {**stages, WAIT: wait})

    @property
    def shares(self) -> Mapping[str, float]:
        """Each stage's share of the workers' time, from 0 to 1."""
        whole = sum(self.stages.values()) or 1.0
        return {stage: seconds / whole for stage, seconds in self.stages.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that took the most time, in a sentence that says what helps."""
        return _BOTTLENECKS[max(self.stages, key=lambda stage: self.stages[stage])]

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data."""
        return {**vars(self), "shares": self.shares, "bottleneck": self.bottleneck}
