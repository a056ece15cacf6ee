"""A distribution in a few numbers: extremes, quantiles, and bars of equal width."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.stats import QUANTILES

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s

BARS = 40

# Closer together than an axis could tell apart.
_ALIKE = 1e-6


def describe(values: Float64s, most: float = math.inf) -> dict[str, Any]:
    """Describe numbers as plain data.

    Args:
        values: float64[n]; what is not finite is left out.
        most: What no number can exceed, such as 1 for cosines: no bar reaches further.

    Returns:
        ``count`` (of the finite ones), ``mean``, ``min`` and ``max`` (``None`` where there is
        none), ``quantiles`` (of `stats.QUANTILES`, each the number of rank ``ceil(q * count)``),
        and ``histogram``: low edge, high edge and count of each of 40 bars, all but the last
        without their high edge; where all numbers agree to six digits, one bar around them.

    Example:
        >>> found = describe(np.array([1.0, 2.0, 4.0, np.nan]))
        >>> found["count"], found["min"], found["quantiles"]["0.5"], found["histogram"][0]
        (3, 1.0, 2.0, [1.0, 1.075, 1])
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        nothing = dict.fromkeys(map(str, QUANTILES))
        ends = {"mean": None, "min": None, "max": None}
        return {"count": 0, **ends, "quantiles": nothing, "histogram": []}
    ranks = np.maximum(np.ceil(np.array(QUANTILES) * len(finite)).astype(int), 1) - 1
    return {
        "count": len(finite),
        "mean": _mean(finite),
        "min": float(finite[0]),
        "max": float(finite[-1]),
        "quantiles": dict(zip(map(str, QUANTILES), finite[ranks].tolist(), strict=True)),
        "histogram": _bars(finite, most),
    }


def _mean(ascending: Float64s) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.mean(ascending)
        if not np.isfinite(mean):  # the sum is beyond float64, the mean is not
            mean = np.sum(ascending / len(ascending))
    return float(np.clip(mean, ascending[0], ascending[-1]))


def _bars(ascending: Float64s, most: float) -> list[list[float]]:
    low, high = float(ascending[0]), float(ascending[-1])
    size = max(abs(low), abs(high))
    if not high / 2 - low / 2 > _ALIKE * size / 2:
        half = size / 2 or 0.5
        return [[low - half, min(high + half, most), len(ascending)]]
    places = np.linspace(0.0, 1.0, BARS + 1)
    edges = low * (1 - places) + high * places  # their difference may be beyond float64
    below = np.searchsorted(ascending, edges)
    below[-1] = len(ascending)
    bars = zip(edges[:-1].tolist(), edges[1:].tolist(), np.diff(below).tolist(), strict=True)
    return [list(bar) for bar in bars]
