"""A process with all that it starts, daemons included: their CPU time and their memory.

A daemon leaves the process tree and its session, but not its environment: every process that was
started with the mark in its environment belongs to the family. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

MARK = "BENCHMARK_FAMILY"
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME = 11, 12  # places after the name in /proc/PID/stat: proc_pid_stat(5)
_SECONDS_BETWEEN = 0.1
_SECONDS_TO_DIE = 5.0
# A look takes 2 ms for a process of 800 MB, and longer for many: it shall take at most 2 % of a
# core from those that are measured.
_LEAST_REST = 50


@dataclass
class Family:
    """What was seen of the processes that bear a mark.

    Attributes:
        mark: The value of the variable `MARK` in their environment.
        peak_bytes: The largest sum of their proportional set sizes (PSS): a page that several of
            them share counts once.
        peak_rss_bytes: The largest resident set size that each of them had, by its number.
    """

    mark: str
    peak_bytes: int = 0
    peak_rss_bytes: dict[int, int] = field(default_factory=dict)
    _members: set[int] = field(default_factory=set)
    _strangers: set[int] = field(default_factory=set)
    _cpu_seconds: dict[int, float] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """Sum of each process' user and system time when it was last seen."""
        return sum(self._cpu_seconds.values())

    @property
    def living(self) -> list[int]:
        """The processes that lived when `look` was last called."""
        return sorted(self._members)

    def look(self) -> None:
        """See who is there, how long each has computed, and how much memory all of them have."""
        there = {int(name) for name in os.listdir(_PROC) if name.isdigit()}
        self._members &= there
        self._strangers &= there  # a number may come back as another process
        for pid in there - self._members - self._strangers:
            self._meet(pid)
        total = 0
        for pid in self._members:
            # It may have ended meanwhile: then what was seen last stands.
            with contextlib.suppress(OSError):
                self._cpu_seconds[pid] = _cpu_seconds(pid)
                peak = _kibibytes(pid, "status", "VmHWM:") * 1024
                self.peak_rss_bytes[pid] = max(peak, self.peak_rss_bytes.get(pid, 0))
                total += _kibibytes(pid, "smaps_rollup", "Pss:") * 1024
        self.peak_bytes = max(self.peak_bytes, total)

    def _meet(self, pid: int) -> None:
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except PermissionError:
            self._strangers.add(pid)
            return
        except OSError:
            return
        if f"{MARK}={self.mark}".encode() in environment.split(b"\0"):
            self._members.add(pid)
        elif environment:  # empty while it is being started, and after its end
            self._strangers.add(pid)

    def end(self) -> None:
        """Kill whoever is left, by number, and see them gone: the next one wants their memory."""
        self.look()
        until = time.monotonic() + _SECONDS_TO_DIE
        while left := [pid for pid in self.living if _is_alive(pid)]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                break
            time.sleep(_SECONDS_BETWEEN / 10)


class Watch:
    """Looks at a family ten times a second (a large one, less often) until it is told to stop."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rest = _SECONDS_BETWEEN
        while not self._stop.wait(rest):
            started = time.perf_counter()
            self._family.look()
            rest = max(_SECONDS_BETWEEN, _LEAST_REST * (time.perf_counter() - started))


def _is_alive(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has collected yet has."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def _cpu_seconds(pid: int) -> float:
    # The name may hold spaces and parentheses: the fields are counted from the last one on.
    text = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(text[_UTIME]) + int(text[_STIME])) / _TICKS


def _kibibytes(pid: int, file: str, name: str) -> int:
    """A figure in a file of a process; 0 once it has ended and waits to be collected."""
    for line in (_PROC / str(pid) / file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
