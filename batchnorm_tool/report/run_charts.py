"""Charts of a run: norms before and after, quantiles along its parts, and its dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnorm_tool.display import count, number, plural
from batchnorm_tool.norms.stats import MIDDLE_COLUMNS, MIDDLE_QUANTILES, NormStats, quantile_label
from batchnorm_tool.report import Html, page, svg
from batchnorm_tool.report.axes import Axis
from batchnorm_tool.report.bins import NormBins, bin_together
from batchnorm_tool.report.charts import Outlines, outline_chart
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.svg import SeriesStyle
from batchnorm_tool.report.text_run import SPREAD, left_out, spread

if TYPE_CHECKING:
    from batchnorm_tool.norms.stats import DimensionStats

Values = NDArray[np.float64]
# More steps than this are thinner than two pixels of a wide chart.
_MOST_PART_STEPS = 360
# From this ratio on, the lower of two norms could not be told from zero on a linear axis.
_LOG_FROM = 50.0
_HEADROOM = 1.04
# Norms that are nearly all the same make one bar so high that it would flatten all others: the
# highest is cut where it is more than this many times the second.
_TALLEST = 3.0
# A wide chart has about as many pixels; more dimensions than this share a step.
_MOST_DIMENSION_STEPS = 512
# The y axis reaches this many times the range of all mean ± std; one runaway value in one
# dimension would otherwise flatten the others into a line.
_REACH = 8.0


@dataclass(frozen=True)
class _Steps:
    """Norm quantiles of consecutive chunks, several of them gathered into a step where need be.

    Attributes:
        edges: First row of each step, and the end of the last.
        vectors: Finite vectors in each step.
        quantiles: By name, one value for each step; NaN where it has no finite vector.
        gathered: Chunks in a step, at most.
        chunks: Chunks in all.
    """

    edges: Values
    vectors: NDArray[np.int64]
    quantiles: dict[str, Values]
    gathered: int
    chunks: int


def part_chart(id_: str, chunks: pa.Table, output: str, norm: str) -> Html:
    """Draw median, middle half and middle 90 % of a norm along the rows of a run."""
    steps = _gather(chunks, output, norm)
    if steps is None:
        return page.note("No chunk has a finite vector.")
    words = svg.ChartText(
        id_,
        f"Quantiles of the {norm} norm along the run",
        f"{plural(steps.chunks, 'chunk')}; the median lies "
        f"between {number(float(np.nanmin(steps.quantiles['q50'])))} "
        f"and {number(float(np.nanmax(steps.quantiles['q50'])))}.",
    )
    draw = partial(svg.band_chart, axes=_axes(steps, norm), steps=_part_series(steps))
    data = page.behind("The numbers behind this chart", _part_table(steps, norm))
    return page.chart(words, draw, *_remark(steps), data)


def _gather(chunks: pa.Table, output: str, norm: str) -> _Steps | None:
    wanted = pc.and_(pc.equal(chunks["output"], output), pc.equal(chunks["norm"], norm))
    rows = chunks.filter(wanted).sort_by([("first_row", "ascending"), ("part", "ascending")])
    quantiles = {name: _floats(rows, name) for name in MIDDLE_COLUMNS}
    if rows.num_rows == 0 or np.isnan(quantiles["q50"]).all():
        return None
    group = -(-rows.num_rows // _MOST_PART_STEPS)
    starts = np.arange(0, rows.num_rows, group)
    first, length = (_floats(rows, name) for name in ("first_row", "rows"))
    finite = np.where(np.isnan(quantiles["q50"]), 0.0, _floats(rows, "vectors"))
    finite -= np.where(finite > 0, _floats(rows, "nonfinite"), 0.0)
    return _Steps(
        edges=np.append(first[starts], first[-1] + length[-1]),
        vectors=np.add.reduceat(finite, starts).astype(np.int64),
        quantiles={
            name: _gathered(name, values, finite, starts) for name, values in quantiles.items()
        },
        gathered=group,
        chunks=rows.num_rows,
    )


def _gathered(name: str, values: Values, weights: Values, starts: NDArray[np.int64]) -> Values:
    # The outer band keeps every chunk's extremes, so that one odd chunk among many is not
    # averaged away; the inner quantiles are means over the vectors.
    if name == "q05":
        return np.fmin.reduceat(values, starts)
    if name == "q95":
        return np.fmax.reduceat(values, starts)
    totals = np.add.reduceat(weights, starts)
    shares = weights / np.repeat(totals, np.diff([*starts, len(values)])).clip(min=1)
    means = np.add.reduceat(np.where(weights > 0, values, 0.0) * shares, starts)
    return np.where(totals > 0, means, np.nan)


def _floats(rows: pa.Table, column: str) -> Values:
    values = rows[column].combine_chunks().cast(pa.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).copy()


def _axes(steps: _Steps, norm: str) -> tuple[Axis, Axis]:
    low = float(np.nanmin(steps.quantiles["q05"]))
    high = float(np.nanmax(steps.quantiles["q95"]))
    across = Axis("row", float(steps.edges[0]), float(steps.edges[-1]), "whole")
    if low > 0 and high / low >= _LOG_FROM:
        return across, Axis(f"{norm} norm (log scale)", low / 1.2, high, "log")
    room = (high / 2 - low / 2) / 5 or abs(high) / 20 or 1.0
    return across, Axis(f"{norm} norm", max(low - room, 0.0), high + room)


def _part_series(steps: _Steps) -> svg.Steps:
    quantiles: dict[str, Sequence[float]] = {
        name: values.tolist() for name, values in steps.quantiles.items()
    }
    return svg.Steps(
        steps.edges.tolist(),
        [
            svg.Band("5\N{EN DASH}95 %", quantiles["q05"], quantiles["q95"]),
            svg.Band("25\N{EN DASH}75 %", quantiles["q25"], quantiles["q75"]),
        ],
        [svg.Line("median", quantiles["q50"])],
    )


def _remark(steps: _Steps) -> list[Html]:
    if steps.gathered == 1:
        return []
    return [
        page.note(
            f"Each step groups {steps.gathered} chunks: median and middle half are their means, "
            "the outer band spans all of their 5\N{EN DASH}95 % ranges."
        )
    ]


def _part_table(steps: _Steps, norm: str) -> Html:
    headings = ("first row", "vectors", *map(quantile_label, MIDDLE_QUANTILES))
    rows: list[Sequence[Any]] = [
        [
            count(int(steps.edges[index])),
            count(int(steps.vectors[index])),
            *(number(float(steps.quantiles[name][index])) for name in MIDDLE_COLUMNS),
        ]
        for index in range(len(steps.vectors))
    ]
    return page.table(f"Quantiles of the {norm} norm", [Column(name) for name in headings], rows)


@dataclass(frozen=True)
class Overlay:
    """What is drawn over one another.

    Attributes:
        norms: Norm statistics by label.
        styles: The look of each label.
        measure: What is measured, such as ``"norm"``.
        log_from: See `bin_together`.
    """

    norms: Mapping[str, NormStats]
    styles: Mapping[str, SeriesStyle]
    measure: str
    log_from: float


def norm_overlay(id_: str, title: str, overlay: Overlay) -> Html:
    """Draw several norms' histograms over one another, in shares, so that counts may differ."""
    bins = bin_together(overlay.norms, log_from=overlay.log_from)
    if not bins:
        return page.note("No norm is finite and positive.")
    first = next(iter(bins.values()))
    shares = {
        label: [100 * amount / overlay.norms[label].count for amount in its.counts]
        for label, its in bins.items()
    }
    top = _top(shares)
    scale = " (log scale)" if first.kind == "log" else ""
    axes = (
        Axis(f"{overlay.measure}{scale}", first.edges[0], first.edges[-1], first.kind),
        Axis("vectors, %", 0, top * _HEADROOM),
    )
    words = svg.ChartText(id_, title, " ".join(_descriptions(overlay.norms)))
    draw = partial(outline_chart, axes=axes, outlines=Outlines(first.edges, shares, overlay.styles))
    notes = [*_cut(shares, top), *_outside(overlay.norms, bins)]
    data = page.behind("The numbers behind this chart", _overlay_table(title, bins))
    return page.chart(words, draw, *map(page.note, notes), data)


def _top(shares: Mapping[str, list[float]]) -> float:
    peaks = sorted(map(max, shares.values()))
    return peaks[-1] if len(peaks) == 1 else min(peaks[-1], _TALLEST * peaks[-2]) or 1.0


def _cut(shares: Mapping[str, list[float]], top: float) -> Iterator[str]:
    for label, values in shares.items():
        if max(values) > top:
            yield f"Cut at the top: the highest bar of {label} holds {max(values):.1f} %."


def _descriptions(norms: Mapping[str, NormStats]) -> Iterator[str]:
    for label, stats in norms.items():
        low, _, _, median, _, _, high = map(number, spread(stats))
        yield f"{label}: {plural(stats.count, 'norm')} from {low} to {high}, median {median}."


def _outside(norms: Mapping[str, NormStats], bins: Mapping[str, NormBins]) -> Iterator[str]:
    labels_by_text: dict[str, list[str]] = {}
    for label, stats in norms.items():
        said = left_out(stats, bins.get(label))
        if said:
            labels_by_text.setdefault(said, []).append(label)
    for said, labels in labels_by_text.items():
        yield f"Not shown of {', '.join(labels)}: {said}."


def _overlay_table(title: str, bins: Mapping[str, NormBins]) -> Html:
    edges = next(iter(bins.values())).edges
    columns = [Column("from"), Column("to"), *map(Column, bins)]
    rows = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        amounts = [its.counts[index] for its in bins.values()]
        if any(amounts):
            rows.append([number(low, 6), number(high, 6), *map(count, amounts)])
    return page.table(title, columns, rows)


def norm_table(norms: Mapping[str, NormStats], caption: str, heading: str = "norm") -> Html:
    """Show count, quantiles, mean and standard deviation of several norms."""
    columns = [Column(heading, numeric=False)]
    columns += map(Column, ("vectors", *SPREAD, "mean", "std"))
    rows = [
        [label, count(stats.count), *map(number, [*spread(stats), stats.mean, stats.std])]
        for label, stats in norms.items()
    ]
    return page.table(caption, columns, rows)


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


def dimension_chart(id_: str, statistics: DimensionStats) -> Html:
    """Draw mean, mean ± standard deviation and extremes of each dimension."""
    if not statistics.count or not len(statistics.mean):
        return page.note("No prediction is finite.")
    spread = _spread(statistics)
    dimensions = len(statistics.mean)
    words = svg.ChartText(
        id_,
        "Spread of each dimension",
        f"{plural(dimensions, 'dimension')}; means from {number(float(spread.mean.min()))} "
        f"to {number(float(spread.mean.max()))}, values from {number(float(spread.low.min()))} "
        f"to {number(float(spread.high.max()))}.",
    )
    across, up = Axis("dimension", 0, dimensions, "whole"), _y_axis(spread)
    draw = partial(svg.band_chart, axes=(across, up), steps=_dimension_series(spread))
    notes = map(page.note, _remarks(spread, dimensions, up))
    data = page.behind("The numbers behind this chart", _dimension_table(spread))
    return page.chart(words, draw, *notes, data)


def _spread(statistics: DimensionStats) -> _Spread:
    mean, low, high = statistics.mean, statistics.min, statistics.max
    std = np.sqrt(statistics.variance)
    # Where squares are beyond float64, the extremes stand in.
    under, over = (
        np.where(np.isfinite(edge), edge, extreme)
        for edge, extreme in ((mean - std, low), (mean + std, high))
    )
    starts = np.arange(0, len(mean), -(-len(mean) // _MOST_DIMENSION_STEPS))
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


def _dimension_series(spread: _Spread) -> svg.Steps:
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
    group = -(-dimensions // _MOST_DIMENSION_STEPS)
    if group > 1:
        remarks.append(
            f"Each step groups {group} dimensions: the mean of their means, and the widest range "
            "of each band."
        )
    if spread.low.min() < up.low or spread.high.max() > up.high:
        remarks.append(
            f"Cut at the edges: values range from {number(float(spread.low.min()))} "
            f"to {number(float(spread.high.max()))}."
        )
    if spread.constant:
        remarks.append(f"{count(spread.constant)} of {count(dimensions)} never change.")
    return remarks


def _dimension_table(spread: _Spread) -> Html:
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
