"""Where the measurements were made: the machine, and the versions of all that was measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks.places import PEERS_PYTHON

_OURS = ("batchnorm-tool", "tensorflow", "keras", "numpy", "pyarrow", "pandas")
_PEERS = ("ray", "pyspark", "faiss-cpu", "tensorflow", "keras", "numpy", "pyarrow", "pandas")
_ASK = """
import json, sys
from importlib.metadata import distributions
there = {one.name: one.version for one in distributions()}
print(json.dumps({name: there[name] for name in sys.argv[1:] if name in there}))
"""


def cores() -> int:
    """Cores that this process, and whatever it starts, may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, str]:
    """CPU, cores, memory and kernel, in words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": _cpu_name(),
        "cores": str(cores()),
        "memory": f"{memory / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, dict[str, str]]:
    """Versions of Python and libraries, in the tool's environment and in the others'."""
    ours = {name: metadata.version(name) for name in _OURS}
    found = {"the tool and the scripts": {"python": platform.python_version(), **ours}}
    if PEERS_PYTHON.exists():
        done = subprocess.run(
            [PEERS_PYTHON, "-c", _ASK, *_PEERS], capture_output=True, text=True, check=True
        )
        found["Ray Data, Spark and faiss"] = json.loads(done.stdout)
    return found


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
