"""The tool's `compare`, whole, of stored predictions that are read in blocks.

Settings: ``input``, ``queries``, ``k``, ``norms``. The base is read three times, and never held.
"""

from __future__ import annotations

from batchnorm_tool import compare
from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Compare norms."""
    wanted = settings()
    with Stopwatch() as watch:
        found = compare(
            wanted["input"], norms=wanted["norms"], k=[wanted["k"]], sample=wanted["queries"]
        )
    watch.say(queries=found.to_dict()["queries"]["used"])


if __name__ == "__main__":
    main()
