"""One command as a fresh process: how long it takes, how much it computes, how much it holds."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.places import ROOT
from benchmarks.process_family import MARK, Family, Watch

_LAST_CHARACTERS = 1_500
# Quiet, without a GPU unless one is asked for, and able to import this package from anywhere.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "-1"),
    "PYTHONPATH": str(ROOT),
}


class ContenderFailed(Exception):  # noqa: N818  (it is the contender's error)
    """A measured process ended with an error; the message is the end of what it said."""


@dataclass(frozen=True)
class Measurement:
    """What one process took.

    Attributes:
        seconds: Wall time from its start to its exit.
        cpu_seconds: User and system time of it and of all that it started. Exact for a single
            process; of a daemon's last moments nothing is known.
        peak_bytes: Largest proportional set size of all of them together, seen up to ten times
            a second; at least the next.
        peak_rss_bytes: Largest resident set size of the process itself, as the kernel keeps it: as
            often seen as the former, and at the end if the process tells it. (Not what wait4 tells:
            there a process begins with the size of the one that started it.)
        said: The JSON object in the last line of its standard output; empty if there is none.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    peak_rss_bytes: int
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def body_seconds(self) -> float:
        """Wall time of the work itself, as the process tells it: no imports, no model loading."""
        return float(self.said["body_seconds"])

    @property
    def body_cpu_seconds(self) -> float:
        """CPU time of the work itself, as the process tells it."""
        return float(self.said["body_cpu_seconds"])


def measure(command: Sequence[str | Path]) -> Measurement:
    """Run a command to its end, and kill what it leaves behind.

    Args:
        command: Program and arguments.

    Raises:
        ContenderFailed: It ended with another exit code than 0.
    """
    family = Family(secrets.token_hex(8))
    environment = {**os.environ, **_ENVIRONMENT, MARK: family.mark}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or our modules are compiled at each start
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)
        try:
            with Watch(family):
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            family.end()
        if process.returncode:
            end = _end_of(errors) or _end_of(output)
            msg = f"ended with exit code {process.returncode}: {end}"
            raise ContenderFailed(msg)
        said = _last_object(output)
    seen_bytes = family.peak_rss_bytes.get(process.pid, 0)
    peak_rss_bytes = max(seen_bytes, said.get("peak_rss_bytes", 0))
    return Measurement(
        seconds=seconds,
        # Its own sum counts its last moments and the children that it waited for, but no daemon.
        cpu_seconds=max(family.cpu_seconds, usage.ru_utime + usage.ru_stime),
        peak_bytes=max(family.peak_bytes, peak_rss_bytes),
        peak_rss_bytes=peak_rss_bytes,
        said=said,
    )


def _end_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()[-_LAST_CHARACTERS:]


def _last_object(file: IO[bytes]) -> Mapping[str, Any]:
    file.seek(0)
    lines = file.read().splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
