"""What this machine and installation are: cores, versions, and libraries that speak unasked."""

import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_CPU_INFO = Path("/proc/cpuinfo")
# malloc.h of glibc, and the largest block that its heaps of threads hold.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_BLOCK = -1, -3, 32 << 20
_KEPT_BYTES = 1 << 30
_SET_PARENT_DEATH_SIGNAL = 1  # linux/prctl.h
# Set where nothing but this tool runs: what is changed for a process is changed for all in it.
_ours = threading.Event()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return distributions' versions without importing any; ``None`` for one not installed."""
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

    # Sorted, and nothing else of the processor: its name and speed do not choose a kernel.
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


def map_in_order(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    threads: int | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Generator[_Result, None, None]:
    """Yield what a function makes of each item, in order; several threads work meanwhile.

    Items are taken in the caller's thread, two for each thread ahead: memory does not depend on
    their number. At the end, whatever ended it, ``stop`` is called, to let go what is under way.
    """
    count = threads or available_cores()
    pool = ThreadPoolExecutor(count, thread_name_prefix="in-order")
    under_way: deque[Future[_Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            # Two for each thread: one running, and one that is ready when it ends.
            if len(under_way) > 2 * count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def keep_freed_memory() -> None:
    """Let a process of ours use the memory again that it freed; nothing happens without glibc."""
    # The system clears each page that it hands out, and arrays of megabytes come and go with every
    # chunk. Of 1 M rows x 128, a model of one layer took 3.53 instead of 3.92 CPU seconds, one of
    # three 7.85 instead of 8.25, and both 3 % more memory; without Arrow's pool 3.71 and 8.08.
    if not _ours.is_set() or platform.libc_ver()[0] != "glibc":
        return
    import ctypes

    import pyarrow as pa

    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    pa.set_memory_pool(pa.system_memory_pool())


def leave_out_pandas() -> None:
    """Keep Arrow from importing pandas, a third of a second, in a process of ours.

    Not where code of the user's runs: until a table becomes a data frame, Arrow then takes a
    pandas Series for a list.
    """
    if not _ours.is_set() or "pandas" in sys.modules:
        return
    import pyarrow as pa

    # Arrow looks for it once, at the first value that comes from Python.
    sys.meta_path.insert(0, _WithoutPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_WithoutPandas)


class _WithoutPandas:
    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def end_with_parent() -> None:
    """Have the system kill this process once the one that started it ends, whatever ended it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def quiet_libraries() -> None:
    """Keep what libraries warn of and log off standard error, unless ``python -W`` asks for it."""
    # For a process of ours alone.
    _ours.set()
    # Without a handler Python itself would print what is logged, and
    # TensorFlow adds one of its own where there is none.
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None
