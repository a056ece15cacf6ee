"""The bars of a norm histogram, made from the sparse histogram that statistics carry."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from batchnorm_tool.norms.stats import NormStats

# Statistics count norms by ``float64.view(uint64) >> 43``: 512 buckets to the octave.
_SHIFT = 43
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
    pairs = {label: _without_zeros(stats) for label, stats in several.items()}
    pairs = {label: buckets for label, buckets in pairs.items() if buckets}
    if not pairs:
        return {}
    inner = [_middle(buckets) for buckets in pairs.values()]
    wide = max(_edge(high) for _, high in inner) / log_from >= min(_edge(low) for low, _ in inner)
    kind: Literal["linear", "log"] = "log" if wide else "linear"
    windows = [_window(*window, kind) for window in zip(pairs.values(), inner, strict=True)]
    first, last = min(low for low, _ in windows), max(high for _, high in windows)
    edges = _log_edges(first, last, most) if kind == "log" else _linear_edges(first, last, most)
    found = {}
    for label, buckets in pairs.items():
        counts = [0] * (len(edges) + 1)
        for bucket, amount in buckets:
            counts[bisect_right(edges, max(_edge(bucket), _TINIEST))] += amount
        below, *inside, above = counts
        found[label] = NormBins(edges, tuple(inside), kind, below, above, several[label].zero)
    return found


def _without_zeros(stats: NormStats) -> list[tuple[int, int]]:
    zero, pairs = stats.zero, stats.histogram.items()
    # Zeros share the first bucket with the smallest subnormal numbers.
    kept = ((bucket, amount - zero if bucket == 0 else amount) for bucket, amount in pairs)
    return [(bucket, amount) for bucket, amount in kept if amount > 0]


def _middle(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    totals = list(itertools.accumulate(amount for _, amount in pairs))
    low, high = (pairs[bisect_left(totals, q * totals[-1])][0] for q in _MIDDLE)
    return low, high


def _window(pairs: Sequence[tuple[int, int]], inner: tuple[int, int], kind: str) -> tuple[int, int]:
    low, high = inner
    if kind == "log":
        low, high = low - (high - low), high + (high - low)
    else:
        under, over = _edge(low), _edge(high + 1)
        reach = max(over - under, under * _LEAST_REACH)
        low, high = _bucket(under - reach), _bucket(over + reach)
    first, last = max(pairs[0][0], low), min(pairs[-1][0], high)
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
    if bucket >= _LAST_BUCKET:
        return sys.float_info.max
    (edge,) = struct.unpack("<d", struct.pack("<Q", bucket << _SHIFT))
    return float(edge)


def _bucket(norm: float) -> int:
    if norm <= 0:
        return 0
    (bits,) = struct.unpack("<Q", struct.pack("<d", min(norm, sys.float_info.max)))
    return int(bits) >> _SHIFT
