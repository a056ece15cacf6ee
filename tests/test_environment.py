"""Threads that keep an order; memory that is used again."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from batchnorm_tool.environment import map_in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(map_in_order(slow_first, range(20), 3)) == [item * item for item in range(20)]
    assert list(map_in_order(slow_first, [])) == []


def test_several_items_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=10)
    assert len(list(map_in_order(lambda _: both.wait(), range(2), 2))) == 2


def test_items_are_taken_two_for_each_thread_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    assert next(results := map_in_order(lambda item: item, items(), 2)) == 0
    assert len(taken) == 5
    assert next(results) == 1
    assert len(taken) == 6


def test_the_first_failure_in_the_order_of_the_items_is_raised() -> None:
    def fail(item: int) -> None:
        time.sleep(0.05 if item == 1 else 0)
        if item:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        list(map_in_order(fail, range(9), 4))


def test_what_is_under_way_is_stopped_when_the_caller_leaves() -> None:
    stop = threading.Event()
    begun: list[int] = []

    def work(item: int) -> bool:
        begun.append(item)
        return item == 0 or stop.wait(10)

    results = map_in_order(work, range(50), 2, stop.set)
    assert next(results)
    results.close()  # type: ignore[attr-defined]
    assert stop.is_set()
    count = len(begun)
    assert count < 10
    time.sleep(0.02)
    assert len(begun) == count


def test_nothing_begins_after_a_failure() -> None:
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(map_in_order(fail, range(50), 2))
    assert len(begun) < 10


_FAULTS = """
import resource, sys
import pyarrow as pa
from batchnorm_tool.environment import keep_freed_memory, quiet_libraries
if sys.argv[1] == "ours":
    quiet_libraries()
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (8 << 20) for _ in range(12)]
    del blocks
pool = pa.default_memory_pool().backend_name
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, pool)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")
def test_freed_memory_is_used_again_without_asking_the_system_in_a_process_of_ours_alone() -> None:
    said = {
        name: subprocess.check_output([sys.executable, "-c", _FAULTS, name], text=True).split()
        for name in ("ours", "a user's")
    }
    assert int(said["ours"][0]) < 100
    assert int(said["a user's"][0]) > 10_000
    assert said["ours"][1] == "system"
    assert said["a user's"][1] != "system"
