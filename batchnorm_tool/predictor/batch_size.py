"""The choice of a batch size by measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.predictor import Predictor

SMALLEST, LARGEST = 32, 8192
_SECONDS = 2.0
_CALLS = 3
# One size is tried this long at least, where three calls take less: a call of half a millisecond
# varies by a third, the shortest of a hundred hardly. And this long at most.
_SIZE_SECONDS = (0.1, 0.5)
_GAIN = 1.05  # a larger batch has to be this much faster, or costs memory for nothing
# Activations beside the arrays that go in and out: what wide layers and convolutions need.
_WORKING_FACTOR = 16


def choose_batch_size(predictor: Predictor, sample: Mapping[str, np.ndarray], rows: int) -> int:
    """Measure which batch size is fastest.

    Tries 32, 64, … 8192 rows, up to the next power of two from ``rows``, for about 2 seconds or
    three calls of the model, whichever is longer (compiling not counted), and within a quarter of
    the free memory. The choice depends on the machine's mood: fix it once, and keep it.

    Args:
        predictor: Without a batch size.
        sample: At least one row of features; repeated to fill a batch.
        rows: Rows that there will be.

    Returns:
        The batch size; the predictor's own where it has one.
    """
    if predictor.batch_size is not None:
        return predictor.batch_size
    best, best_speed, calls, spent = SMALLEST, 0.0, 0, 0.0
    for size in _candidates(sample, rows):
        if calls >= _CALLS and spent >= _SECONDS:
            break
        try:
            seconds = _seconds(predictor.with_batch_size(size), sample, size)
        except MemoryError:
            if not best_speed:
                raise
            break
        calls, spent = calls + len(seconds), spent + sum(seconds)
        speed = size / min(seconds)
        if speed > best_speed * _GAIN:
            best, best_speed = size, speed
    return best


def _candidates(sample: Mapping[str, np.ndarray], rows: int) -> Iterator[int]:
    if not rows or not all(map(len, sample.values())):
        return
    wanted = 1 << (rows - 1).bit_length()
    row_bytes = sum(array.nbytes // max(1, len(array)) for array in sample.values())
    fitting = _free_bytes() // 4 // max(1, row_bytes * _WORKING_FACTOR)
    largest = min(LARGEST, wanted, max(SMALLEST, fitting))
    size = min(SMALLEST, wanted)
    while size <= largest:
        yield size
        size *= 2


def _seconds(predictor: Predictor, sample: Mapping[str, np.ndarray], size: int) -> list[float]:
    """Seconds of calls of ``size`` rows; the first also warms up."""
    batch = {name: _repeated(array, size) for name, array in sample.items()}
    seconds: list[float] = []
    least, most = _SIZE_SECONDS
    while sum(seconds) < (most if len(seconds) < _CALLS else least):
        start = time.perf_counter()
        predictor.predict(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def _repeated(array: np.ndarray, rows: int) -> np.ndarray:
    repeats = -(-rows // len(array))
    return np.concatenate([array] * repeats)[:rows]


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
