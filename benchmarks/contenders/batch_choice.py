"""What ``batch_size: auto`` chooses, what that costs, and what a sweep says.

Settings: ``model``, ``width`` (features of a row), ``rows``, ``cores``, ``seconds`` (for each batch
size in each of three rounds). The sweep runs as a run does: a thread for each core, one compiled
step between them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import load_predictor
from batchnorm_tool.models.placement import choose_batch_size
from benchmarks.contenders.stopwatch import Stopwatch, settings

BATCH_SIZES = tuple(32 * 2**power for power in range(9))
_ROUNDS = 3
_SAMPLE_ROWS = 256  # what a run has read when it chooses


@dataclass
class Timed:
    """A predictor whose calls are timed.

    Attributes:
        predictor: The real one.
        calls: Seconds of every call, shared with those that `with_batch_size` makes.
    """

    predictor: Any
    calls: list[float] = field(default_factory=list)

    @property
    def batch_size(self) -> int | None:
        """The real one's."""
        size: int | None = self.predictor.batch_size
        return size

    @property
    def outputs(self) -> Any:
        """The real one's."""
        return self.predictor.outputs

    def with_batch_size(self, batch_size: int) -> Timed:
        """The real one with a batch size, timed into the same list."""
        return Timed(self.predictor.with_batch_size(batch_size), self.calls)

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict, and note how long it took."""
        started = time.perf_counter()
        result: dict[str, np.ndarray] = self.predictor.predict(features)
        self.calls.append(time.perf_counter() - started)
        return result


def main() -> None:
    """Choose, then sweep."""
    wanted = settings()
    predictor = load_predictor(Model(path=wanted["model"]), wanted["model"], Engine(devices="cpu"))
    (name,) = (one.name for one in predictor.inputs)
    random = np.random.default_rng(0)
    rows = random.standard_normal((BATCH_SIZES[-1], wanted["width"]), dtype=np.float32)
    timed: Any = Timed(predictor)
    with Stopwatch() as watch:
        chosen = choose_batch_size(timed, {name: rows[:_SAMPLE_ROWS]}, wanted["rows"])
    ready = {size: predictor.with_batch_size(size) for size in BATCH_SIZES}
    speeds: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for _ in range(_ROUNDS):
        for size, model in ready.items():
            speeds[size].append(speed(model, {name: rows[:size]}, wanted))
    watch.say(
        chosen=chosen,
        calls=len(timed.calls),
        calls_seconds=sum(timed.calls),
        rows_per_second={size: statistics.median(found) for size, found in speeds.items()},
    )


def speed(model: Any, batch: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> float:
    """Rows in a second of all threads together."""
    counts = [0] * wanted["cores"]
    model.predict(batch)

    def work(place: int, until: float) -> None:
        while time.perf_counter() < until:
            model.predict(batch)
            counts[place] += 1

    until = time.perf_counter() + wanted["seconds"]
    threads = [threading.Thread(target=work, args=(place, until)) for place in range(len(counts))]
    with Stopwatch() as watch:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return float(sum(counts) * model.batch_size / watch.seconds)


if __name__ == "__main__":
    main()
