"""How a contender is told what to do, and how it tells what that took."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Self


class Stopwatch:
    """Wall and CPU seconds of a block, over all threads of this process."""

    def __enter__(self) -> Self:
        self._started, self._cpu_started = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = cpu_seconds() - self._cpu_started

    def say(self, **more: object) -> None:
        """Print what the block took, the process' memory, and what else there is to say."""
        taken = {
            "body_seconds": self.seconds,
            "body_cpu_seconds": self.cpu_seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        print(json.dumps({**taken, **more}))


def settings() -> dict[str, Any]:
    """What the command line says: one JSON object."""
    values: dict[str, Any] = json.loads(sys.argv[1])
    return values


def cpu_seconds() -> float:
    """User and system time of this process so far, all threads."""
    return time.process_time()


def peak_rss_bytes() -> int:
    """Largest resident set size of this process so far, as the kernel keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024
