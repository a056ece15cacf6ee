"""How long each stage of the pipeline takes, summed over threads and processes."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The stages of a worker, in the order in which data travels.
STAGES = ("read", "predict", "normalize", "statistics", "write")


class StageTimings:
    """Sums of what each stage took; threads may share one, and processes may send theirs.

    Stages must not be nested: the inner one's time would count twice.

    Example:
        >>> clock = StageTimings()
        >>> with clock.stage("read"):
        ...     rows = list(range(3))
        >>> clock.add("write", 2.0, 0.5)
        >>> other = StageTimings()
        >>> other.merge({"write": (1.0, 0.25)})
        >>> other.merge(clock.totals())
        >>> other.totals()["write"]
        (3.0, 0.75)
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
