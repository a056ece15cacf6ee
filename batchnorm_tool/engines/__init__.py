"""Engines: ways to get part numbers to workers.

An engine is one method. It hands each part number to some worker's `Worker.process_part` and yields
the numbers that are done, in any order. The worker commits the part and its record; an engine
carries no data, so that a retry, a late worker or a lost driver harms nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from batchnorm_tool.job import Job
    from batchnorm_tool.pipeline import Worker


class Engine(Protocol):
    """Gets part numbers to workers."""

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


def open_engine(job: Job) -> Engine:
    """The engine that ``job.engine`` asks for."""
    from batchnorm_tool.engines.local import LocalEngine

    workers = job.engine.workers
    return LocalEngine(None if workers == "auto" else workers)
