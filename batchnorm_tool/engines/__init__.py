"""Engines: ways to get part numbers to workers.

An engine is one method. It hands each part number to some worker's `Worker.process_part` and yields
the numbers that are done, in any order. The worker commits the part and its record; an engine
carries no data, so that a retry, a late worker or a lost driver harms nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from batchnorm_tool.registry import ENGINES, load

if TYPE_CHECKING:
    from batchnorm_tool import job
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
            advance: Called with the number of rows as they are done, where the engine can see them.

        Yields:
            The number of each part that is done, in any order.

        Raises:
            BatchnormToolError: The first failure of a part; no other part is begun after it.
        """


class NamedEngine(Protocol):
    """What a name in `batchnorm_tool.registry.ENGINES` stands for."""

    @property
    def section(self) -> type[job.Engine]:
        """The class of its section of the job."""

    def open(self, plan: Plan, parts: int) -> AbstractContextManager[RunningEngine]:
        """Return an engine, for a `with` statement that ends all that it started.

        Args:
            plan: What to do; it lies in the output.
            parts: How many parts there are to do.

        Raises:
            BatchnormToolError: Another process cannot load the model, or died.
        """


def open_engine(plan: Plan, parts: int) -> AbstractContextManager[RunningEngine]:
    """Return the engine that the job's ``engine`` asks for; see `NamedEngine.open`."""
    engine: NamedEngine = load(ENGINES, plan.job.engine.kind)
    return engine.open(plan, parts)
