"""Engines: ways to get part numbers to workers.

An engine is one method. It hands each part number to some worker's `Worker.process_part` and yields
the numbers that are done, in any order. The worker commits the part and its record; an engine
carries no data, so that a retry, a late worker or a lost driver harms nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from batchnorm_tool.models.backends.tensorflow import DeviceName
    from batchnorm_tool.pipeline.plan import Plan
    from batchnorm_tool.pipeline.worker import Worker


class RunningEngine(Protocol):
    """A way to get part numbers to workers."""

    @property
    def workers(self) -> int:
        """How many parts are worked on at once."""

    def run(
        self, worker: Worker, numbers: Sequence[int], advance: Callable[[int], None]
    ) -> Generator[int, None, None]:
        """Process the parts with these ``numbers``.

        Args:
            worker: Does a part; an engine of other processes makes its like there, from the plan.
            numbers: Numbers of the parts, each once.
            advance: Told the number of rows as they are done, where the engine can see them.

        Yields:
            The number of each part that is done, in any order.

        Raises:
            BatchnormToolError: The first failure of a part; no other part is begun after it.
        """


@contextlib.contextmanager
def open_engine(plan: Plan, parts: int) -> Iterator[RunningEngine]:
    """Start the engine that the job's ``engine`` asks for, with all that it needs running.

    Args:
        plan: What to do; it lies in the output.
        parts: How many parts there are to do.
    """
    from batchnorm_tool.engines.local import LocalEngine
    from batchnorm_tool.engines.processes import open_processes
    from batchnorm_tool.environment import available_cores

    job = plan.job
    workers = available_cores() if job.engine.workers == "auto" else job.engine.workers
    devices = _devices(plan)[:parts] if parts > 1 else []
    if len(devices) > 1:
        with open_processes(devices, workers, job.output.path) as engine:
            yield engine
    else:
        yield LocalEngine(workers)


def _devices(plan: Plan) -> list[DeviceName]:
    """Return a device for each process; a run that was planned on the CPU needs no GPU."""
    from batchnorm_tool.models.backends.tensorflow import every_device

    engine = plan.job.engine
    if plan.resolved.device == "cpu" and engine.device != "cpu":
        return ["cpu"]
    return every_device(engine.devices)
