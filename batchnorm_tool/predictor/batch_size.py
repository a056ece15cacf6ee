"""The choice of a batch size by measurement."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.predictor.placement import repeated

if TYPE_CHECKING:
    from batchnorm_tool.predictor import Predictor

SMALLEST, LARGEST = 32, 8192
_SECONDS = 2.0
_CALLS = 3
# One size is tried this long at least, where three calls take less: a call of half a millisecond
# varies by a third, the shortest of a hundred hardly. And this long at most.
_SIZE_SECONDS = (0.1, 0.5)
# Where a call is this short, its own cost dominates, and the next size can be four times as large.
_SHORT_CALL = 0.002
# Of sizes that differ by less than this, the largest that the caches hold: what the tool does for
# each call and chunk is not in the measurement. 1 M rows of 128 took 15.4 CPU seconds at 1,024 and
# 12.5 at 8,192; vectors of 4,096 lost half their rate at 8,192, which is 134 MB.
_EQUAL = 0.95
_CACHED_BYTES = 8 * 2**20
# Activations beside the arrays that go in and out: what wide layers and convolutions need.
_WORKING_FACTOR = 16


def choose_batch_size(predictor: Predictor, sample: Mapping[str, np.ndarray], rows: int) -> int:
    """Measure which batch size is fastest.

    Tries powers of two from 32 to 8192 rows, up to the next power of two from ``rows``, for about 2
    seconds or three calls of the model, whichever is longer (compiling not counted), and within a
    quarter of the free memory. The choice depends on the machine's mood: fix it once, and keep it.

    Args:
        predictor: Without a batch size.
        sample: At least one row of features; repeated to fill a batch.
        rows: Rows that there will be.

    Returns:
        The batch size; the predictor's own where it has one.
    """
    if predictor.batch_size is not None:
        return predictor.batch_size
    size, largest = _range(sample, rows)
    speeds: dict[int, float] = {}
    calls, spent = 0, 0.0
    while size <= largest and (calls < _CALLS or spent < _SECONDS):
        try:
            seconds = _seconds(predictor.with_batch_size(size), sample, size, _SECONDS - spent)
        except MemoryError:
            if not speeds:
                raise
            break
        calls, spent = calls + len(seconds), spent + sum(seconds)
        speeds[size] = size / min(seconds)
        step = 4 if min(seconds) < _SHORT_CALL else 2
        size = min(size * step, largest) if size < largest else largest + 1
    return _chosen(speeds, _row_bytes(predictor, sample)) if speeds else SMALLEST


def _chosen(speeds: Mapping[int, float], row_bytes: int) -> int:
    """The largest of the fastest sizes that the caches hold, or else the smallest of them.

    Example:
        >>> _chosen({32: 50.0, 64: 100.0, 128: 99.0, 256: 98.0}, row_bytes=65536)
        128
    """
    enough = _EQUAL * max(speeds.values())
    fastest = [size for size, speed in speeds.items() if speed >= enough]
    cached = [size for size in fastest if size * row_bytes <= _CACHED_BYTES]
    return max(cached, default=min(fastest))


def _row_bytes(predictor: Predictor, sample: Mapping[str, np.ndarray]) -> int:
    """Bytes of one row of features and predictions, these as float32."""
    given = sum(array[:1].nbytes for array in sample.values())
    return given + sum(4 * math.prod(size or 1 for size in out.shape) for out in predictor.outputs)


def _range(sample: Mapping[str, np.ndarray], rows: int) -> tuple[int, int]:
    """The smallest and the largest size to try, powers of two; none where there is nothing."""
    if not rows or not all(map(len, sample.values())):
        return 1, 0
    wanted = 1 << (rows - 1).bit_length()
    row_bytes = sum(array.nbytes // max(1, len(array)) for array in sample.values())
    fitting = _free_bytes() // 4 // max(1, row_bytes * _WORKING_FACTOR)
    in_memory = 1 << max(0, fitting.bit_length() - 1)
    return min(SMALLEST, wanted), min(LARGEST, wanted, max(SMALLEST, in_memory))


def _seconds(
    predictor: Predictor, sample: Mapping[str, np.ndarray], size: int, left: float
) -> list[float]:
    """Seconds of calls of ``size`` rows, at least one; the first also warms up."""
    batch = repeated(sample, size)
    seconds: list[float] = []
    least, most = (min(each, left) for each in _SIZE_SECONDS)
    while not seconds or sum(seconds) < (most if len(seconds) < _CALLS else least):
        start = time.perf_counter()
        predictor.predict(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
