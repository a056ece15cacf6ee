"""A command that dies, or whose disk fails, at one chosen step of its work.

Every call by which a night changes something is a step: the functions of `os`, the calls of Lance
that write, the statements for PostgreSQL. Lance's own calls are a step before and a step after.

In this process death is an exception that no code of ours catches, and that every later step meets
again, so that nothing is changed on its way out. `kill_in_child` kills a real process instead.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.dataset import Tags
from lance.fragment import LanceFragment

from batchnorm_tool.publish.pgvector_tables import Statements
from batchnorm_tool.storage import local

CHANGING = ("open", "write", "mkdir", "rmdir", "unlink", "rename", "replace", "fsync")
OF_LANCE: Sequence[tuple[Any, str]] = (
    (lance.LanceDataset, "commit"),
    (lance.LanceDataset, "cleanup_old_versions"),
    (lance.fragment, "write_fragments"),
    (LanceFragment, "delete_rows"),
    (Tags, "create"),
    (Tags, "update"),
    (Tags, "delete"),
)
_FORKING = multiprocessing.get_context("forkserver")


class Killed(BaseException):
    """The end of the process."""


@dataclass
class Steps:
    """The steps of one command, and what happens at one of them.

    Attributes:
        kill_at: The step, from 1, at which the process ends; 0 for none.
        fail_at: The step that fails; 0 for none.
        error: Number of the error with which it fails.
        really: Whether the process itself is killed.
        names: What was called, in order: the function, and on what.
    """

    kill_at: int = 0
    fail_at: int = 0
    error: int = 0
    really: bool = False
    names: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reach(self, name: str) -> None:
        with self._lock:
            self.names.append(name)
            number = len(self.names)
        if self.kill_at and number >= self.kill_at:
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed
        if number == self.fail_at:
            raise OSError(self.error, os.strerror(self.error))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count the steps of the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._of_system(name, getattr(os, name)))
            exchange = local.exchange
            patch.setattr(local, "exchange", self._of_system("rename", exchange))
            for place, name in OF_LANCE:
                call = self._of_library(name, getattr(place, name))
                static = name == "commit"
                patch.setattr(place, name, staticmethod(call) if static else call)
            patch.setattr(Statements, "run", self._of_library("sql", Statements.run))
            with _unlocking(patch):
                yield

    def _of_system(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                where = arguments[1] if name in {"rename", "replace"} else arguments[0]
                self.reach(f"{name} {_place(where)}")
            # No test cuts the power.
            return None if name == "fsync" else real(*arguments, **more)

        return call

    def _of_library(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self.reach(f"before {name}")
            answer = real(*arguments, **more)
            self.reach(f"after {name}")
            return answer

        return call


@contextmanager
def _unlocking(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let all locks go in the end, as the end of a process does."""
    locked, lock = set(), fcntl.flock

    def noting(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        locked.add(descriptor)

    patch.setattr(fcntl, "flock", noting)
    try:
        yield
    finally:
        for descriptor in locked:
            with suppress(OSError):  # closed, as it should be
                lock(descriptor, fcntl.LOCK_UN)


def _place(argument: Any) -> str:
    """Which file, roughly: the end of its path, without the numbers that differ each time."""
    if isinstance(argument, int):
        argument = Path(f"/proc/self/fd/{argument}").readlink()
    path = re.sub(r"[0-9a-f]{16,}", "#", os.fspath(argument))
    return "/".join(re.sub(r"\d+", "#", path).split("/")[-3:])


def kinds(names: Sequence[str]) -> dict[str, int]:
    """The first step of each kind that is worth a kill.

    Left out are writes and syncs, directories, and what a run does below ``scored``, which the
    tests of runs kill at every call.
    """
    found: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not re.match(r"(write|fsync|mkdir|open) |rmdir (?!.*/night$)|after sql|.*scored", name):
            found.setdefault(name, number)
    return found


def dies(command: Callable[[], object], at: int) -> bool:
    """Run a command that is killed at a step; whether it came so far."""
    steps = Steps(kill_at=at)
    try:
        with steps.taken():
            command()
    except Killed:
        return True
    return False


def counted(command: Callable[[], object]) -> list[str]:
    """Run a command to its end; the names of its steps."""
    steps = Steps()
    with steps.taken():
        command()
    return steps.names


def kill_in_child(command: Callable[..., object], arguments: tuple[Any, ...], at: int) -> int:
    """Run a command in a process of its own that is killed at a step; its exit code."""
    _FORKING.set_forkserver_preload(
        [__name__, "batchnorm_tool.commands.refresh.decisions", "tests.commands.refresh.month"]
    )
    process = _FORKING.Process(target=_work, args=(command, arguments, at))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _work(command: Callable[..., object], arguments: tuple[Any, ...], at: int) -> None:
    with Steps(kill_at=at, really=True).taken():
        command(*arguments)


def names_below(root: Path) -> list[str]:
    """Every file and directory below a directory."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
