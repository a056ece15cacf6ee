"""The tool: one job through the public API.

Settings: ``job``, as in a job file; ``limit``, only so many rows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from batchnorm_tool import Job, RunResult, run
from batchnorm_tool.commands.progress import SilentProgress
from batchnorm_tool.environment import quiet_libraries
from benchmarks.contenders.stopwatch import cpu_seconds, peak_rss_bytes, settings


class BeginningOfWork(SilentProgress):
    """A progress that only notes the CPU time that was spent before the work began."""

    cpu_seconds = 0.0

    @contextlib.contextmanager
    def work(self, rows: int, done: int) -> Iterator[None]:  # noqa: ARG002
        """The work begins."""
        self.cpu_seconds = cpu_seconds()
        yield


def main() -> None:
    """Run the job and say what it took."""
    quiet_libraries()  # as the command line, whose process it may change
    wanted = settings()
    beginning = BeginningOfWork()
    result = run(Job.from_dict(wanted["job"]), limit=wanted.get("limit"), progress=beginning)
    said = {
        "body_seconds": result.seconds,
        "body_cpu_seconds": cpu_seconds() - beginning.cpu_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "rows": result.rows["out"],
        "stages": stages(result),
        **choices(result),
    }
    print(json.dumps(said))


def stages(result: RunResult) -> dict[str, float]:
    """Seconds of all workers together in each stage; CPU seconds, but of prediction."""
    return dict(result.profile.stages) if result.profile else {}


def choices(result: RunResult) -> dict[str, Any]:
    """What ``auto`` chose."""
    names = ("batch_size", "chunk_rows", "part_rows")
    return {name: result.manifest["resolved"][name] for name in names}


if __name__ == "__main__":
    main()
