"""The histogram of a figure that every pair of rows has, such as a cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.markup import join
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import Axis, count

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame

_HEADROOM = 1.04
_QUANTILES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
_HEADINGS = ("min", "1 %", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "max")
# Cosines of a model's two nights may differ from one in the sixth digit, or the seventh.
_DIGITS = range(6, 17)


@dataclass(frozen=True)
class _Pairs:
    """What is shown: the name of the figure, its distribution, and how a value is printed."""

    measure: str
    figures: Mapping[str, Any]
    show: Callable[[float | None], str]


def pair_histogram(
    id_: str,
    measure: str,
    figures: Mapping[str, Any],
    show: Callable[[float | None, int], str],
) -> Html:
    """Draw how a figure is distributed over pairs of rows.

    Args:
        id_: Identifier, unique in the page.
        measure: What is measured, such as ``"cosine"``.
        figures: ``count``, ``mean``, ``min``, ``max``, ``quantiles`` by share, and ``histogram``,
            a list of lower edge, upper edge and count.
        show: Prints a value with so many digits, `scale.fixed` or `scale.number`.

    Returns:
        A figure with the numbers behind it, then the quantiles; a note where there are no pairs, or
        where all are alike.
    """
    histogram = figures.get("histogram") or []
    if not histogram or not figures.get("count"):
        return page.note("No pair of rows is finite in both.")
    digits = _digits(histogram, show)
    pairs = _Pairs(measure, figures, lambda value: show(value, digits))
    said = f"{count(figures['count'])} pairs, mean {pairs.show(figures['mean'])}"
    if len(histogram) == 1:
        return page.note(f"{said}: all are alike to six digits.")
    bars = [_bar(pairs, *bar) for bar in histogram]
    axes = (
        Axis(measure, bars[0].lower, bars[-1].upper),
        Axis("pairs", 0, max(bar.height for bar in bars) * _HEADROOM, "whole"),
    )
    words = svg.Words(id_, f"Histogram of the {measure}", _description(pairs))
    data = page.behind("The numbers behind this chart", _table(pairs, bars))
    drawn = page.chart(words, partial(_draw, axes=axes, bars=bars), data)
    return join(drawn, page.note(f"{said}."), _quantiles(pairs))


def _digits(histogram: Sequence[Sequence[float]], show: Callable[[float | None, int], str]) -> int:
    edges = [low for low, _, _ in histogram]
    different = (n for n in _DIGITS if len({show(edge, n) for edge in edges}) == len(edges))
    return next(different, _DIGITS[-1])


def _bar(pairs: _Pairs, lower: float, upper: float, amount: int) -> svg.Bar:
    words = f"{pairs.show(lower)} to {pairs.show(upper)}: {count(amount)}"
    return svg.Bar(lower, upper, amount, words)


def _draw(words: svg.Words, frame: Frame, axes: tuple[Axis, Axis], bars: Sequence[svg.Bar]) -> Html:
    return svg.bar_chart(words, axes, bars, frame)


def _description(pairs: _Pairs) -> str:
    figures = pairs.figures
    low, high = pairs.show(figures["min"]), pairs.show(figures["max"])
    median = pairs.show((figures.get("quantiles") or {}).get("0.5"))
    return f"{count(figures['count'])} pairs from {low} to {high}, median {median}."


def _table(pairs: _Pairs, bars: Sequence[svg.Bar]) -> Html:
    columns = [Column("from"), Column("to"), Column("pairs")]
    rows = [
        [pairs.show(bar.lower), pairs.show(bar.upper), count(int(bar.height))]
        for bar in bars
        if bar.height
    ]
    return page.table(f"Pairs by {pairs.measure}", columns, rows)


def _quantiles(pairs: _Pairs) -> Html:
    quantiles = pairs.figures.get("quantiles") or {}
    inner = (quantiles.get(name) for name in _QUANTILES)
    row = [pairs.show(value) for value in (pairs.figures["min"], *inner, pairs.figures["max"])]
    return page.table(f"Quantiles of the {pairs.measure}", [*map(Column, _HEADINGS)], [row])
