"""The local engine: threads that share one loaded model, each taking whole parts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

from batchnorm_tool import job
from batchnorm_tool.engines import RunningEngine
from batchnorm_tool.environment import available_cores
from batchnorm_tool.errors import BatchnormToolError, Refused, WorkFailed

if TYPE_CHECKING:
    from batchnorm_tool.models.backends import DeviceName
    from batchnorm_tool.pipeline.plan import Plan


class PartWorker(Protocol):
    """What the threads need of a `Worker`."""

    def process_part(
        self, number: int, advance: Callable[[int], None], stopped: Callable[[], bool], /
    ) -> object:
        """Do one part; see `Worker.process_part`."""


class LocalEngine:
    """Threads of this process, each of which works on one part at a time."""

    section = job.Engine

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @classmethod
    @contextlib.contextmanager
    def open(cls, plan: Plan, parts: int) -> Iterator[RunningEngine]:
        """Start a process for each device but the first; see `NamedEngine.open`."""
        engine = plan.job.engine
        workers = available_cores() if engine.workers == "auto" else engine.workers
        devices = _devices(plan)[:parts] if parts > 1 else []
        if len(devices) > 1:
            from batchnorm_tool.engines.processes import open_processes

            with open_processes(devices, workers, plan.job.output.path) as processes:
                yield processes
        else:
            yield cls(workers)

    def run(
        self, worker: PartWorker, numbers: Sequence[int], advance: Callable[[int], None]
    ) -> Generator[int, None, None]:
        """Process the parts; see `RunningEngine.run`."""
        shared = _SharedWork(worker, advance)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="part")
        try:
            yield from _results(pool, shared, numbers, 2 * self.workers)
        finally:
            # An error, an interrupt or a caller who left: whatever is under way is dropped at its
            # next chunk, and nothing else begins.
            shared.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _devices(plan: Plan) -> list[DeviceName]:
    """A device for each process; a run that was planned on the CPU needs no GPU."""
    from batchnorm_tool.models.backends import every_device

    engine = plan.job.engine
    if plan.resolved.device == "cpu" and engine.device != "cpu":
        return ["cpu"]
    return every_device(engine.devices)


def _results(
    pool: ThreadPoolExecutor, shared: _SharedWork, numbers: Sequence[int], ahead: int
) -> Iterator[int]:
    """Yield the numbers as they are done, at most ``ahead`` and one more under way or queued."""
    remaining = iter(numbers)
    running: dict[Future[bool], int] = {}
    while True:
        for number in remaining:
            running[pool.submit(shared.process, number)] = number
            # A short queue: all numbers at once would be as many futures as there are parts, and
            # each would have to be cancelled at an error.
            if len(running) > ahead:
                break
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        # In the order in which they were begun: a set has none.
        begun = [future for future in running if future in finished]
        done = [running.pop(future) for future in begun if future.result()]
        # What is done counts, whatever has failed at the same moment.
        yield from done
        shared.check()


class _SharedWork:
    """What the threads share: the worker, and the first failure, which stops them all.

    The parts that stop because of it fail as well, so that a future cannot tell the cause.
    """

    def __init__(self, worker: PartWorker, advance: Callable[[int], None]) -> None:
        self._worker, self._advance = worker, advance
        self.stop = threading.Event()
        self._failures: list[BaseException] = []

    def process(self, number: int) -> bool:
        """Do a part; tell whether it is done."""
        if self.stop.is_set():
            return False
        try:
            self._worker.process_part(number, self._advance, self.stop.is_set)
        except BaseException as error:  # noqa: BLE001  (`check` raises it in the caller's thread)
            self._failures.append(_explained(error, number))
            self.stop.set()
            return False
        return True

    def check(self) -> None:
        """Raise the first failure, if there is one."""
        if self._failures:
            raise self._failures[0]


def _explained(error: BaseException, number: int) -> BaseException:
    """Return what an error in the middle of the work means to whoever started it."""
    failure: BatchnormToolError
    if isinstance(error, MemoryError):
        failure = WorkFailed(
            f"Part {number} ran out of memory. Lower `model.batch_size` or `engine.workers`, and "
            "run again: finished parts are kept."
        )
    elif isinstance(error, Refused):
        # Running it again would find the same, so that it stays a refusal.
        failure = type(error)(
            f"{error.message} This occurred in part {number}; finished parts are kept. Fix it and "
            "run the same command again."
        )
    else:
        return error
    failure.__cause__ = error
    return failure
