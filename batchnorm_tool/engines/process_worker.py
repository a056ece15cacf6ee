"""The other end of `processes`: a process that does the parts that it is asked for.

Each connection has a thread. What comes in is the number of a part; what goes out is

- a number: so many more rows of the part are done; first of all a 0: ready;
- a mapping: the part is done, and this is what its stages took;
- an error: the part failed, or the model could not be loaded.

While a part is under way nothing comes in but the end of the connection, which means: drop it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from batchnorm_tool.environment import end_with_parent, quiet_libraries
from batchnorm_tool.errors import explained
from batchnorm_tool.pipeline.worker import Worker, open_worker
from batchnorm_tool.storage import open_storage

if TYPE_CHECKING:
    from batchnorm_tool.models.backends import DeviceName

Answer = int | Mapping[str, tuple[float, float]] | BaseException


def serve(output: str, device: DeviceName, descriptors: Sequence[int]) -> None:
    """Do parts of the run in ``output`` until nobody asks any more; then this process ends."""
    _leave_signals_to_the_parent()
    quiet_libraries()
    connections = [Connection(descriptor) for descriptor in descriptors]
    try:
        worker = open_worker(open_storage(output), device)
    except BaseException as error:  # noqa: BLE001  (it is raised where the run was started)
        # Whoever has read it from one closes them all.
        with contextlib.suppress(OSError):
            for connection in connections:
                connection.send(_portable(error))
        _end()
    # One for each connection: a call of the model lets other Python threads run meanwhile.
    threads = [threading.Thread(target=_answer, args=(worker, each)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _end()


def _answer(worker: Worker, connection: Connection) -> None:
    """Do one part after the other, until the other end is closed or dead."""
    try:
        with connection:
            connection.send(0)
            while True:
                connection.send(_process(worker, connection.recv(), connection))
    except (EOFError, OSError):
        return


def _process(worker: Worker, number: int, connection: Connection) -> Answer:
    try:
        # A worker for this part alone has a clock for this part alone.
        own = Worker(worker.plan, worker.storage, worker.predictor, worker.shared)
        own.process_part(number, connection.send, connection.poll)
    except BaseException as error:  # noqa: BLE001  (it is raised where the run was started)
        return _portable(error)
    return own.timings.totals()


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives the way to another process, with the traceback as a note."""
    where = "".join(traceback.format_exception(error))
    error.add_note(f"In a worker process:\n{where}")
    try:
        # Both ways: an error of a foreign class may be written well and fail when it is read, which
        # would break the connection at the other end.
        pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    except Exception:  # noqa: BLE001  (whatever a foreign class does when it is copied)
        failure = explained(error)
        failure.add_note(where)
        return failure
    return error


def _leave_signals_to_the_parent() -> None:
    """Ignore signals, which schedulers send to all processes at once: the parent decides."""
    # Should it be killed itself, this process goes with it: nothing holds the lock any more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _end() -> None:
    """End at once: there is nothing to tidy up, and TensorFlow takes its time."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
