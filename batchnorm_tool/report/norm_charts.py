"""Charts and tables of norms: a histogram, several over one another, quantiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial

from batchnorm_tool.display import count, number, plural
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report import Html, charts, page
from batchnorm_tool.report.bins import LOG_FROM, NormBins, bin_norms, bin_together
from batchnorm_tool.report.svg import Axis, ChartText, SeriesStyle
from batchnorm_tool.report.text_run import SPREAD, left_out, outside, spread

_HEADROOM = 1.04
# Norms that are nearly all the same make one bar so high that it would flatten all others: the
# highest is cut where it is more than this many times the second.
_TALLEST = 3.0


def norm_chart(id_: str, label: str, stats: NormStats) -> Html:
    """Draw the histogram of a norm."""
    bins = bin_norms(stats)
    if bins is None:
        return page.note(f"No {label} norm is finite and positive.")
    axes = _axis(bins, f"{label} norm"), Axis("vectors", 0, max(bins.counts) * _HEADROOM, "whole")
    bars = [
        charts.Bar(low, high, amount, f"{number(low)} to {number(high)}: {count(amount)}")
        for (low, high), amount in zip(itertools.pairwise(bins.edges), bins.counts, strict=True)
    ]
    words = ChartText(id_, f"Histogram of {label} norms", _described(stats, f"{label} norm"))
    data = _bin_table(f"Vectors by {label} norm", {"vectors": bins}, empty=True)
    draw = partial(charts.bar_chart, axes=axes, bars=bars)
    return page.chart(words, draw, outside(stats, bins), data)


def _axis(bins: NormBins, measure: str) -> Axis:
    scale = " (log scale)" if bins.kind == "log" else ""
    return Axis(f"{measure}{scale}", bins.edges[0], bins.edges[-1], bins.kind)


def _described(stats: NormStats, noun: str) -> str:
    low, _, _, median, _, _, high = map(number, spread(stats))
    return f"{plural(stats.count, noun)} from {low} to {high}, median {median}."


def _bin_table(caption: str, bins: Mapping[str, NormBins], *, empty: bool) -> Html:
    edges = itertools.pairwise(next(iter(bins.values())).edges)
    counts = zip(*(its.counts for its in bins.values()), strict=True)
    rows = [
        [number(low, 6), number(high, 6), *map(count, amounts)]
        for (low, high), amounts in zip(edges, counts, strict=True)
        if empty or any(amounts)
    ]
    return page.table(caption, ["from", "to", *bins], rows, "")


def norm_overlay(
    title: str,
    norms: Mapping[str, NormStats],
    styles: Mapping[str, SeriesStyle],
    measure: str,
    log_from: float = LOG_FROM,
) -> Html:
    """Draw several norms' histograms over one another, in shares, so that counts may differ."""
    bins = bin_together(norms, log_from=log_from)
    if not bins:
        return page.note("No norm is finite and positive.")
    first = next(iter(bins.values()))
    shares = {
        label: [100 * amount / norms[label].count for amount in its.counts]
        for label, its in bins.items()
    }
    peaks = {label: max(values) for label, values in shares.items()}
    *_, second, highest = [math.inf, *sorted(peaks.values())]
    top = min(highest, _TALLEST * second) or 1.0
    axes = _axis(first, measure), Axis("vectors, %", 0, top * _HEADROOM)
    said = " ".join(f"{label}: {_described(stats, 'norm')}" for label, stats in norms.items())
    outlines = charts.Outlines(first.edges, shares, styles)
    draw = partial(charts.outline_chart, axes=axes, outlines=outlines)
    cut = [
        f"Cut at the top: the highest bar of {label} holds {peak:.1f} %."
        for label, peak in peaks.items()
        if peak > top
    ]
    notes = [*cut, *_outside(norms, bins)]
    data = _bin_table(title, bins, empty=False)
    return page.chart(ChartText("norms", title, said), draw, notes, data)


def _outside(norms: Mapping[str, NormStats], bins: Mapping[str, NormBins]) -> Iterator[str]:
    labels_by_text: dict[str, list[str]] = {}
    for label, stats in norms.items():
        if said := left_out(stats, bins.get(label)):
            labels_by_text.setdefault(said, []).append(label)
    for said, labels in labels_by_text.items():
        yield f"Not shown of {', '.join(labels)}: {said}."


def norm_table(norms: Mapping[str, NormStats], caption: str, heading: str = "norm") -> Html:
    """Show count, quantiles, mean and standard deviation of several norms."""
    rows = [
        [label, count(stats.count), *map(number, [*spread(stats), stats.mean, stats.std])]
        for label, stats in norms.items()
    ]
    return page.table(caption, [heading, "vectors", *SPREAD, "mean", "std"], rows)
