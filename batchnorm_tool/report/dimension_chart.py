"""The chart of how each dimension of the raw predictions spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import Axis, count, number

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame

Values = NDArray[np.float64]
# A wide chart has about as many pixels; more dimensions than this share a step.
_MOST_STEPS = 512
# The y axis reaches this many times the range of all mean ± std; one runaway value in one
# dimension would otherwise flatten the others into a line.
_REACH = 8.0


@dataclass(frozen=True)
class _Spread:
    """Mean, mean ± std and extremes of consecutive groups of dimensions."""

    edges: Values
    mean: Values
    under: Values
    over: Values
    low: Values
    high: Values
    constant: int


def dimension_chart(id_: str, statistics: Mapping[str, Any]) -> Html:
    """Draw mean, mean ± standard deviation and extremes of each dimension.

    Args:
        id_: Identifier, unique in the page.
        statistics: Dimension statistics as the manifest has them: ``count`` and, for each
            dimension, ``mean``, ``m2``, ``min`` and ``max``.

    Returns:
        A figure with the numbers behind it, or a note where there is nothing to draw.
    """
    if not statistics["count"] or not len(statistics["mean"]):
        return page.note("No prediction is finite.")
    spread = _spread(statistics)
    dimensions = len(statistics["mean"])
    words = svg.Words(
        id_,
        "Spread of each dimension",
        f"{count(dimensions)} dimensions; means from {number(float(spread.mean.min()))} to "
        f"{number(float(spread.mean.max()))}, values from {number(float(spread.low.min()))} to "
        f"{number(float(spread.high.max()))}.",
    )
    across, up = Axis("dimension", 0, dimensions, "whole"), _y_axis(spread)
    draw = partial(_draw, axes=(across, up), steps=_series(spread))
    notes = map(page.note, _remarks(spread, dimensions, up))
    data = page.behind("The numbers behind this chart", _table(spread))
    return page.chart(words, draw, *notes, data)


def _draw(words: svg.Words, frame: Frame, axes: tuple[Axis, Axis], steps: svg.Steps) -> Html:
    return svg.band_chart(words, axes, steps, frame)


def _spread(statistics: Mapping[str, Any]) -> _Spread:
    mean, m2, low, high = (
        np.asarray(statistics[name], dtype=np.float64) for name in ("mean", "m2", "min", "max")
    )
    std = np.sqrt(m2 / statistics["count"])
    # Squares beyond float64 are null in the manifest: there the extremes stand in.
    under, over = (
        np.where(np.isfinite(edge), edge, extreme)
        for edge, extreme in ((mean - std, low), (mean + std, high))
    )
    starts = np.arange(0, len(mean), -(-len(mean) // _MOST_STEPS))
    lengths = np.diff([*starts, len(mean)])
    return _Spread(
        edges=np.append(starts, len(mean)).astype(np.float64),
        mean=np.add.reduceat(mean, starts) / lengths,
        under=np.minimum.reduceat(under, starts),
        over=np.maximum.reduceat(over, starts),
        low=np.minimum.reduceat(low, starts),
        high=np.maximum.reduceat(high, starts),
        constant=int((low == high).sum()),
    )


def _y_axis(spread: _Spread) -> Axis:
    under, over = float(spread.under.min()), float(spread.over.max())
    reach = _REACH * (over / 2 - under / 2) or abs(over) / 10 or 1.0
    low = max(float(spread.low.min()), under - reach)
    high = min(float(spread.high.max()), over + reach)
    if not low < high:
        low, high = low - reach, high + reach
    return Axis("prediction", low, high)


def _series(spread: _Spread) -> svg.Steps:
    return svg.Steps(
        spread.edges.tolist(),
        [
            svg.Band("min to max", spread.low.tolist(), spread.high.tolist()),
            svg.Band("mean ± std", spread.under.tolist(), spread.over.tolist()),
        ],
        [svg.Line("mean", spread.mean.tolist())],
    )


def _remarks(spread: _Spread, dimensions: int, up: Axis) -> list[str]:
    remarks = []
    group = -(-dimensions // _MOST_STEPS)
    if group > 1:
        remarks.append(
            f"Each step gathers {group} dimensions: the mean of their means, and the widest reach "
            "of each band."
        )
    if spread.low.min() < up.low or spread.high.max() > up.high:
        remarks.append(
            f"Cut at the edges: values reach from {number(float(spread.low.min()))} to "
            f"{number(float(spread.high.max()))}."
        )
    if spread.constant:
        remarks.append(f"{count(spread.constant)} of {count(dimensions)} never change.")
    return remarks


def _table(spread: _Spread) -> Html:
    headings = ("dimension", "min", "mean \N{MINUS SIGN} std", "mean", "mean + std", "max")
    columns = (spread.low, spread.under, spread.mean, spread.over, spread.high)
    rows: list[Sequence[str]] = [
        [_label(spread, index), *(number(float(column[index])) for column in columns)]
        for index in range(len(spread.mean))
    ]
    return page.table("Spread of each dimension", [Column(name) for name in headings], rows)


def _label(spread: _Spread, index: int) -> str:
    first, last = int(spread.edges[index]), int(spread.edges[index + 1]) - 1
    return count(first) if first == last else f"{count(first)}\N{EN DASH}{count(last)}"
