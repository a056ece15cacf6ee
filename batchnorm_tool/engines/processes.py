"""Several processes on this machine, one for each device, for the engine `local`.

This process works on the first device itself, with the model that planning has loaded; for each
other device it starts one more process, whose other end is `process_worker`. Every thread of such a
process has a connection of its own, and a thread here that asks it for one part after the other.
So to the local engine it looks like one more worker, and one queue of parts serves all: whoever is
free takes the next.

The processes are begun as programs, by no fork and not by `multiprocessing`: TensorFlow survives no
fork, and to start `multiprocessing` would import the user's main module again, which a
notebook has none of, and which a script has to guard.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Self

from batchnorm_tool.engines.local import LocalEngine, PartWorker
from batchnorm_tool.errors import Interrupted, WorkFailed
from batchnorm_tool.models import cache

if TYPE_CHECKING:
    from batchnorm_tool.engines.process_worker import Answer
    from batchnorm_tool.models.backends import DeviceName
    from batchnorm_tool.pipeline.timing import StageTimings
    from batchnorm_tool.pipeline.worker import Worker

# The parent's path, so that whatever it can import (a transform, a model's class) is found.
_PROGRAM = (
    "import json, sys; path, *rest = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from batchnorm_tool.engines.process_worker import serve; serve(*rest)"
)
_STOP_POLL_SECONDS = 0.2
# For a process to drop its parts and remove their unfinished files; then it is killed.
_GRACE_SECONDS = 3.0


@contextlib.contextmanager
def open_processes(
    devices: Sequence[DeviceName], workers: int, output: str
) -> Iterator[ProcessEngine]:
    """Start a process for each device but the first, and wait until their models are loaded.

    Together they have ``workers`` threads, at least one each; ``output`` has the run's plan in it.
    """
    # The parent works too: its model is loaded since planning, and one more copy would cost memory.
    own, *shares = shared(workers, len(devices))
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(_Child(device, share, output))
            for device, share in zip(devices[1:], shares, strict=True)
        ]
        # Before any of them is waited for: they wind up side by side.
        for child in children:
            stack.callback(child.close_connections)
        for child in children:
            child.wait_until_ready()
        yield ProcessEngine(own, children)


def shared(workers: int, processes: int) -> list[int]:
    """Return the workers of each process, as even as can be and at least one."""
    return [
        max(1, workers // processes + (number < workers % processes)) for number in range(processes)
    ]


class ProcessEngine:
    """Threads of this process and of others; made by `open_processes`."""

    def __init__(self, own: int, children: Sequence[_Child]) -> None:
        self._own, self._children = own, children

    @property
    def workers(self) -> int:
        """How many parts are worked on at once, in all processes together."""
        return self._own + sum(child.threads for child in self._children)

    def run(
        self, worker: Worker, numbers: Sequence[int], advance: Callable[[int], None]
    ) -> Generator[int, None, None]:
        """Process the parts; see `RunningEngine.run`."""
        here: list[PartWorker] = [worker] * self._own
        there = [child.workers(worker.timings) for child in self._children]
        # One of each process in turn, so that few parts are spread over all of them.
        turns = itertools.zip_longest(here, *there)
        workers = [each for turn in turns for each in turn if each is not None]
        return LocalEngine(len(workers)).run(_FreeWorkers(workers), numbers, advance)


class _FreeWorkers:
    """Workers, each of which does one part at a time, as one that does many."""

    def __init__(self, workers: Sequence[PartWorker]) -> None:
        self._free: queue.SimpleQueue[PartWorker] = queue.SimpleQueue()
        for worker in workers:
            self._free.put(worker)

    def process_part(
        self, number: int, advance: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        worker = self._free.get()
        try:
            worker.process_part(number, advance, stopped)
        finally:
            self._free.put(worker)


@dataclass(frozen=True)
class _RemoteWorker:
    """A thread of another process."""

    child: _Child
    connection: Connection
    timings: StageTimings

    def process_part(
        self, number: int, advance: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        """Have one part done, see `Worker.process_part`; its times are added to the timings."""
        with self.child.expected_to_live():
            self.connection.send(number)
        while isinstance(answer := self._answer(stopped), int):
            advance(answer)
        if isinstance(answer, BaseException):
            raise answer
        self.timings.merge(answer)

    def _answer(self, stopped: Callable[[], bool]) -> Answer:
        with self.child.expected_to_live():
            return _received(self.connection, stopped)


class _Child:
    """Another process, started at once; use it as a context manager."""

    def __init__(self, device: DeviceName, workers: int, output: str) -> None:
        self._name = f"process on {'the CPU' if device == 'cpu' else f'GPU {device}'}"
        pairs = [Pipe() for _ in range(workers)]
        self._connections = [ours for ours, _ in pairs]
        descriptors = [theirs.fileno() for _, theirs in pairs]
        arguments = json.dumps([[*map(str, sys.path)], output, device, descriptors])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is the command's answer, and no place for chatter
                pass_fds=descriptors,
                env=cache.inherited(),
                process_group=0,  # what a terminal sends on Ctrl-C is for the parent
            )
        finally:
            for _, theirs in pairs:
                theirs.close()  # or the end of the process would go unnoticed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close_connections()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # in the middle of a long call of the model, or still loading it
        finally:
            # Harmless where it has ended; otherwise nothing would end it, and it would keep the
            # device.
            self._process.kill()
            self._process.wait()

    @property
    def threads(self) -> int:
        """How many parts it works on at once."""
        return len(self._connections)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def close_connections(self) -> None:
        """Let it know that it is not needed any more: it drops its parts and ends."""
        for connection in self._connections:
            connection.close()

    def workers(self, timings: StageTimings) -> list[_RemoteWorker]:
        """Return its threads as workers."""
        return [_RemoteWorker(self, connection, timings) for connection in self._connections]

    def wait_until_ready(self) -> None:
        """Wait until its model is loaded."""
        for connection in self._connections:
            with self.expected_to_live():
                answer = _received(connection)
            if isinstance(answer, BaseException):
                raise answer

    @contextlib.contextmanager
    def expected_to_live(self) -> Iterator[None]:
        """Say what became of the process where a connection to it breaks off."""
        try:
            yield
        except (EOFError, OSError) as error:  # `recv` has no class for a message cut short
            raise self._death() from error

    def _death(self) -> WorkFailed:
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            how = "no longer responds"
        else:
            how = f"ended with exit code {code}"
            if code < 0:
                how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
            if code == -signal.SIGKILL:
                how += ", which the system does when memory runs out (then lower `engine.workers`)"
        return WorkFailed(
            f"The {self._name} (number {self.pid}) {how}. Finished parts are kept: run the same "
            "command again to resume."
        )


def _received(connection: Connection, stopped: Callable[[], bool] = lambda: False) -> Answer:
    """Return what comes next."""
    while not connection.poll(_STOP_POLL_SECONDS):
        if stopped():
            raise Interrupted("Stopped during a part; run the same command again to resume.")
    answer: Answer = connection.recv()
    return answer
