"""Where the benchmark keeps its things, and which Python runs which contender."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Gigabytes at full size: the variable puts them on another disk.
WORK = Path(os.environ.get("BENCHMARKS_WORK", ROOT / "benchmarks" / "work")).absolute()
RESULTS = ROOT / "benchmarks" / "results"
# Ray, Spark and faiss have an environment of their own: the tool's stays free of them.
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
OURS_PYTHON = Path(sys.executable)
PROGRAM = OURS_PYTHON.parent / "batchnorm-tool"
