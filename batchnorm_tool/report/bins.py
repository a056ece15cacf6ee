"""The bars of a norm histogram, made from the sparse histogram that statistics carry."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from batchnorm_tool.norms.histogram import Histogram, lower_edges

if TYPE_CHECKING:
    from batchnorm_tool.norms.stats import NormStats

_LAST_BUCKET = 2047 * 512
# Bars reach as far beyond the middle 99 % as that is wide: 7.7 standard deviations of a normal
# distribution. A lone outlier of another magnitude does not squeeze all else into one bar.
_MIDDLE = (0.005, 0.995)
# ... and at least an eighth, for norms that are nearly all the same.
_LEAST_REACH = 0.125
# From this ratio within the middle 99 % on, bars of equal width would leave the small norms in one.
LOG_FROM = 32.0
_PADDING = 4
_TINIEST = math.ulp(0.0)


@dataclass(frozen=True)
class NormBins:
    """Consecutive bars over the norms: bar ``i`` holds ``edges[i] <= norm < edges[i + 1]``.

    They are equally wide, to within 0.2 % on a logarithmic axis. The norms that no bar holds are
    counted as ``zero``, or else as ``below`` or ``above`` them all.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    kind: Literal["linear", "log"]
    below: int
    above: int
    zero: int


def bin_norms(stats: NormStats, most: int = 48) -> NormBins | None:
    """Gather the buckets of norm statistics into few bars with exact counts.

    There are ``most`` bars at most, which is 16 or more; none where no norm is above zero.
    """
    return bin_together({"": stats}, most).get("")


def bin_together(
    several: Mapping[str, NormStats], most: int = 64, log_from: float = LOG_FROM
) -> dict[str, NormBins]:
    """Gather the buckets of several norm statistics into the same bars, for drawing over another.

    The bars are equally wide on a logarithmic axis where the largest norm of all, outliers aside,
    is at least ``log_from`` times the smallest. A label without a norm above zero has none.
    """
    # Every edge of a bar is an edge of a bucket, so that no norm is split or guessed: bars of a
    # linear histogram are a power of two wide, at least as much as the widest bucket.
    filled = {label: _without_zeros(stats) for label, stats in several.items()}
    filled = {label: histogram for label, histogram in filled.items() if histogram}
    if not filled:
        return {}
    inner = [_middle(histogram) for histogram in filled.values()]
    wide = max(_edge(high) for _, high in inner) / log_from >= min(_edge(low) for low, _ in inner)
    kind: Literal["linear", "log"] = "log" if wide else "linear"
    windows = [_window(*window, kind) for window in zip(filled.values(), inner, strict=True)]
    first, last = min(low for low, _ in windows), max(high for _, high in windows)
    edges = _log_edges(first, last, most) if kind == "log" else _linear_edges(first, last, most)
    found = {}
    for label, histogram in filled.items():
        lowest = np.maximum(lower_edges(histogram.buckets), _TINIEST)
        counts = np.zeros(len(edges) + 1, np.int64)
        np.add.at(counts, np.searchsorted(edges, lowest, side="right"), histogram.counts)
        below, *inside, above = counts.tolist()
        found[label] = NormBins(edges, tuple(inside), kind, below, above, several[label].zero)
    return found


def _without_zeros(stats: NormStats) -> Histogram:
    buckets, counts = stats.histogram.buckets, stats.histogram.counts
    # Zeros share the first bucket with the smallest subnormal numbers.
    counts = counts - np.where(buckets == 0, stats.zero, 0)
    return Histogram(buckets[counts > 0], counts[counts > 0])


def _middle(histogram: Histogram) -> tuple[int, int]:
    totals = np.cumsum(histogram.counts)
    low, high = histogram.buckets[np.searchsorted(totals, np.multiply(_MIDDLE, totals[-1]))]
    return int(low), int(high)


def _window(histogram: Histogram, inner: tuple[int, int], kind: str) -> tuple[int, int]:
    low, high = inner
    if kind == "log":
        low, high = low - (high - low), high + (high - low)
    else:
        under, over = _edge(low), _edge(high + 1)
        reach = max(over - under, under * _LEAST_REACH)
        low, high = _bucket(under - reach), _bucket(over + reach)
    first, last = max(int(histogram.buckets[0]), low), min(int(histogram.buckets[-1]), high)
    if last - first < 2 * _PADDING:
        first, last = max(first - _PADDING, 0), min(last + _PADDING, _LAST_BUCKET - 1)
    return first, last


def _linear_edges(first: int, last: int, most: int) -> tuple[float, ...]:
    low, high = _edge(first), _edge(last + 1)
    widest = high - _edge(last)
    width = 2.0 ** math.ceil(math.log2(max((high - low) / (most - 1), widest)))
    indices = range(math.floor(low / width), math.ceil(high / width) + 1)
    return tuple(min(index * width, sys.float_info.max) for index in indices)


def _log_edges(first: int, last: int, most: int) -> tuple[float, ...]:
    low, high = (math.log2(max(_edge(bucket), _TINIEST)) for bucket in (first, last + 1))
    between = (low + (high - low) * index / most for index in range(1, most))
    inner = {_bucket(2.0**place) for place in between}
    edges = (_edge(bucket) for bucket in sorted({first, *inner, last + 1}))
    return tuple(max(edge, _TINIEST) for edge in edges)


def _edge(bucket: int) -> float:
    """Return the lowest norm of a bucket; for the one after the last, the greatest number."""
    return min(float(lower_edges(np.array([bucket]))[0]), sys.float_info.max)


def _bucket(norm: float) -> int:
    (bucket,) = Histogram.of(np.array([min(max(norm, 0.0), sys.float_info.max)]))
    return bucket
