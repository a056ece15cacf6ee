from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.engines import open_engine
from batchnorm_tool.engines.local import LocalEngine
from batchnorm_tool.environment import available_cores
from batchnorm_tool.errors import (
    InputError,
    Interrupted,
    JobError,
    ModelError,
    OutputError,
    Refused,
    WorkFailed,
)
from batchnorm_tool.job import Job


@dataclass
class Work:
    """A worker whose parts take a few steps each, at one of which a part may fail."""

    failing: dict[int, BaseException] = field(default_factory=dict)
    steps: int = 3
    seconds: float = 0.0
    begun: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    at_once: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def process_part(
        self, number: int, advance: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        with self.lock:
            self.begun.append(number)
            self.at_once["now"] += 1
            self.at_once["most"] = max(self.at_once["most"], self.at_once["now"])
        try:
            for step in range(self.steps):
                if stopped():
                    raise Interrupted("Stopped between two chunks.")
                time.sleep(self.seconds)
                if step == 1 and number in self.failing:
                    raise self.failing[number]
                advance(10)
        finally:
            with self.lock:
                self.at_once["now"] -= 1
        self.finished.append(number)


def ran(work: Work, numbers: range | list[int], workers: int = 3) -> list[int]:
    return list(LocalEngine(workers).run(work, numbers, lambda rows: None))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("numbers", [range(0), range(1), range(50), [3, 99, 7]], ids=str)
def test_every_part_is_done_once(numbers: range | list[int], workers: int) -> None:
    work = Work()
    assert sorted(ran(work, numbers, workers)) == sorted(numbers)
    assert sorted(work.finished) == sorted(numbers)
    assert work.at_once["most"] <= workers


def test_workers_work_at_the_same_time() -> None:
    work = Work(seconds=0.01)
    ran(work, range(12), workers=3)
    assert work.at_once["most"] == 3


def test_one_worker_keeps_the_order() -> None:
    work = Work()
    assert ran(work, [5, 2, 9], workers=1) == [5, 2, 9]
    assert work.begun == [5, 2, 9]


def test_rows_are_told_as_they_are_done() -> None:
    told: list[int] = []
    list(LocalEngine(2).run(Work(), range(4), told.append))  # type: ignore[arg-type]
    assert told == [10] * 12


@pytest.mark.parametrize("repeat", range(5))
def test_the_cause_is_raised_and_not_what_followed_from_it(repeat: int) -> None:
    """The parts that stop because of it report an interrupt, some of them before it is seen."""
    work = Work({2: WorkFailed("disk full")}, steps=50, seconds=0.001)
    with pytest.raises(WorkFailed, match="disk full"):
        ran(work, range(40), workers=4)


def test_no_part_is_begun_after_a_failure() -> None:
    work = Work({0: WorkFailed("disk full")}, steps=2)
    with pytest.raises(WorkFailed):
        ran(work, range(100), workers=1)
    assert work.begun == [0]


def test_parts_that_were_done_before_a_failure_are_done() -> None:
    work = Work({5: WorkFailed("disk full")})
    done: list[int] = []
    with pytest.raises(WorkFailed):
        done.extend(LocalEngine(1).run(work, range(9), lambda rows: None))  # type: ignore[arg-type]
    assert work.finished == [0, 1, 2, 3, 4]
    assert done == [0, 1, 2, 3, 4]


def test_memory_that_runs_out_is_explained() -> None:
    with pytest.raises(WorkFailed, match=r"Part 1 ran out of memory. Lower `model.batch_size`"):
        ran(Work({1: MemoryError()}), range(3))


@pytest.mark.parametrize("kind", [InputError, JobError, ModelError, OutputError])
def test_a_refusal_in_the_middle_stays_one(kind: type[Refused]) -> None:
    """Exit code 2: a scheduler would repeat anything else for ever."""
    work = Work({1: kind("in.parquet: file not found.")})
    with pytest.raises(kind, match=r"in.parquet.*in part 1.*same command again"):
        ran(work, range(3))


def test_an_unforeseen_error_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        ran(Work({1: ZeroDivisionError()}), range(3))


def test_whoever_leaves_early_stops_the_rest() -> None:
    work = Work(steps=100, seconds=0.001)
    results = LocalEngine(2).run(work, range(1000), lambda rows: None)  # type: ignore[arg-type]
    next(results)
    results.close()
    assert work.at_once["now"] == 0
    begun = len(work.begun)
    assert begun < 10
    time.sleep(0.05)
    assert len(work.begun) == begun, "the threads are gone"


@pytest.mark.parametrize(("workers", "expected"), [("auto", available_cores()), (3, 3)])
def test_the_job_says_how_many(tmp_path: Path, workers: str | int, expected: int) -> None:
    np.save(tmp_path / "in.npy", np.ones((3, 2), np.float32))
    data = {"input": {"path": "in.npy"}, "output": {"path": "out"}, "engine": {"workers": workers}}
    with open_engine(Preparation(Job.from_dict(data, tmp_path)).plan(), parts=9) as engine:
        assert isinstance(engine, LocalEngine)
        assert engine.workers == expected
    assert available_cores() >= 1
