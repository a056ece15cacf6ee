"""Warnings of one thread are collected without a change to what others see."""

from __future__ import annotations

import threading
import warnings

import pytest

from batchnorm_tool.errors import InputWarning, capture_warnings, warn


def test_without_a_collector_python_warns() -> None:
    with pytest.warns(InputWarning, match="odd"):
        warn("odd")


def test_each_thread_collects_its_own_and_filters_stay() -> None:
    before = warnings.filters[:]
    barrier = threading.Barrier(2)
    texts: dict[str, list[str]] = {"a": [], "b": []}

    def work(name: str) -> None:
        with capture_warnings(texts[name].append):
            barrier.wait()
            warn(name)
            barrier.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {"a": ["a"], "b": ["b"]}
    assert warnings.filters == before
