"""What this machine and installation are: cores, versions, and libraries that speak unasked."""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return installed versions of the distributions ``names``, without importing any of them.

    Returns:
        A version for each name; ``None`` for one that is not installed.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    # Every command imports this module, and few ask for versions.
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """Digest the instruction set, by which numeric libraries choose their kernels."""
    import hashlib

    flags = _cpu_flags()
    digest = hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"


def _cpu_flags() -> set[str]:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:  # not Linux
        return {platform.processor()}
    flags = (line for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").partition(":")[2].split())


def available_cores() -> int:
    """Return cores that this process may use; never part of what a result depends on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quiet_libraries() -> None:
    """Keep what libraries warn of and log off standard error, unless ``python -W`` asks for it.

    For a process of ours alone. Without a handler Python itself would print what is logged, and
    TensorFlow adds one of its own where there is none.
    """
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None
