"""The command line in forked children, each of which dies or fails at one state-changing call.

Importing the package costs ten times what a small run does, so that a server imports it once and
forks a child for each request, before any thread of ours exists. In the child, every function of
`os` that changes a file system is wrapped with a counter, across all threads; the real function is
called unless the request says that this very call is where the process is killed, or fails.
`test_crash.py` compares the wrapped calls with what strace sees, so that none is missed.

A request is a line of JSON on standard input, the answer one on standard output.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

CHANGING = (
    *("open", "write", "pwrite", "fsync", "mkdir", "rmdir", "unlink", "rename", "replace", "link"),
)


@dataclass(frozen=True)
class Request:
    """One run of the command line.

    Attributes:
        arguments: What follows `batchnorm-tool`.
        kill_at: The call, from 1, at which the process is killed; 0 for none.
        torn: Whether a write at `kill_at` first writes half of its data.
        fail_at: The call, from 1, that fails; 0 for none.
        fail_until: The last call that fails.
        error: Number of the error with which it fails.
        only: The functions that are counted; all where it is empty.
        short_writes: Whether a write takes one byte at a time of what is short, half of the rest.
    """

    arguments: Sequence[str]
    kill_at: int = 0
    torn: bool = False
    fail_at: int = 0
    fail_until: int = 0
    error: int = 0
    only: Sequence[str] = field(default=())
    short_writes: bool = False


@dataclass(frozen=True)
class Answer:
    """How it ended: exit code (negative: the signal), calls counted, and all that was printed."""

    code: int
    calls: Sequence[str]
    output: str


class Server:
    """The process that forks; use it as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_points"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, *arguments: str, **more: Any) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(Request(arguments, **more))) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    import_all()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(answer(Request(**json.loads(line))))) + "\n")
        sys.stdout.flush()


def import_all() -> None:
    import pandas as pd  # noqa: F401  (pyarrow imports it on the way, which takes longer than the rest)

    import batchnorm_tool.cli.app
    import batchnorm_tool.commands.run.run
    import batchnorm_tool.report.text_run  # noqa: F401


def answer(request: Request) -> Answer:
    calls = Calls()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            become_run(request, calls, output.fileno())
        _, status = os.waitpid(child, 0)
        output.seek(0)
        text = output.read().decode()
    return Answer(os.waitstatus_to_exitcode(status), calls.names(), text)


class Calls:
    """A list of calls that outlives the process that made them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2**16)

    def add(self, number: int, name: str) -> None:
        self._memory[number] = 1 + CHANGING.index(name)

    def names(self) -> list[str]:
        codes = itertools.takewhile(bool, itertools.islice(self._memory, 1, None))
        return [CHANGING[code[0] - 1] for code in codes if code != b"\0"]


def become_run(request: Request, calls: Calls, output: int) -> NoReturn:
    """In the child: run the command line, and end the process."""
    from batchnorm_tool.cli import app
    from batchnorm_tool.storage import local

    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    counter = Counter(request, calls)
    for name in CHANGING:
        setattr(os, name, counter.wrapped(name, getattr(os, name)))
    local.exchange = counter.wrapped("rename", local.exchange)
    sys.argv = ["batchnorm-tool", *request.arguments]
    code = 1
    try:
        app.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Counter:
    """Counts the calls of all wrapped functions together, and acts at the chosen one."""

    def __init__(self, request: Request, calls: Calls) -> None:
        self._request, self._calls = request, calls
        self._numbers = itertools.count(1)

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if not self._counts(name, arguments):
                return real(*arguments, **more)
            number = next(self._numbers)
            self._calls.add(number, name)
            if number == self._request.kill_at:
                if self._request.torn:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if self._request.fail_at <= number <= self._request.fail_until:
                raise OSError(self._request.error, os.strerror(self._request.error))
            if self._request.short_writes and name == "write":
                return real(arguments[0], bytes(arguments[1])[: max(1, len(arguments[1]) // 2)])
            return real(*arguments, **more)

        return call

    def _counts(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if name == "open" and not arguments[1] & os.O_CREAT:
            return False
        return not self._request.only or name in self._request.only


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in walk(root)}


def walk(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


if __name__ == "__main__":
    serve()
