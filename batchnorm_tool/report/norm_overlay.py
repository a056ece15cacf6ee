"""The distributions of several norms drawn over one another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.bins import NormBins, bin_together
from batchnorm_tool.report.outline_chart import Outlines, outline_chart
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import Axis, count, number
from batchnorm_tool.report.summary import spread

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame
    from batchnorm_tool.report.series import Look

_HEADROOM = 1.04
# Norms that are nearly all the same make one bar so high that it would flatten all others: the
# highest is cut where it is more than this many times the second.
_TALLEST = 3.0


@dataclass(frozen=True)
class Overlay:
    """What is drawn over one another.

    Attributes:
        norms: Norm statistics as the manifest has them, by label.
        looks: The look of each label.
        measure: What is measured, such as ``"norm"``.
        log_from: See `bin_together`.
    """

    norms: Mapping[str, Mapping[str, Any]]
    looks: Mapping[str, Look]
    measure: str
    log_from: float


def norm_overlay(id_: str, title: str, overlay: Overlay) -> Html:
    """Draw several norms' histograms over one another, in shares, so that counts may differ.

    Args:
        id_: Identifier, unique in the page.
        title: What the chart shows.
        overlay: What to draw.

    Returns:
        A figure with the numbers behind it, or a note where no norm is above zero.
    """
    bins = bin_together(overlay.norms, log_from=overlay.log_from)
    if not bins:
        return page.note("No norm is finite and above zero.")
    first = next(iter(bins.values()))
    shares = {label: _shares(overlay.norms[label], its) for label, its in bins.items()}
    top = _top(shares)
    scale = " (log scale)" if first.kind == "log" else ""
    axes = (
        Axis(f"{overlay.measure}{scale}", first.edges[0], first.edges[-1], first.kind),
        Axis("vectors, %", 0, top * _HEADROOM),
    )
    words = svg.Words(id_, title, " ".join(_descriptions(overlay.norms)))
    draw = partial(_draw, axes=axes, outlines=Outlines(first.edges, shares, overlay.looks))
    notes = [*_cut(shares, top), *_outside(overlay.norms, bins)]
    data = page.behind("The numbers behind this chart", _table(title, bins))
    return page.chart(words, draw, *map(page.note, notes), data)


def _draw(words: svg.Words, frame: Frame, axes: tuple[Axis, Axis], outlines: Outlines) -> Html:
    return outline_chart(words, axes, outlines, frame)


def _shares(stats: Mapping[str, Any], bins: NormBins) -> list[float]:
    return [100 * amount / stats["count"] for amount in bins.counts]


def _top(shares: Mapping[str, list[float]]) -> float:
    peaks = sorted(map(max, shares.values()))
    return peaks[-1] if len(peaks) == 1 else min(peaks[-1], _TALLEST * peaks[-2]) or 1.0


def _cut(shares: Mapping[str, list[float]], top: float) -> Iterator[str]:
    for label, values in shares.items():
        if max(values) > top:
            yield f"Cut at the top: the highest bar of {label} holds {max(values):.1f} %."


def _descriptions(norms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for label, stats in norms.items():
        low, _, _, median, _, _, high = map(number, spread(stats))
        yield f"{label}: {count(stats['count'])} norms from {low} to {high}, median {median}."


def _outside(norms: Mapping[str, Mapping[str, Any]], bins: Mapping[str, NormBins]) -> Iterator[str]:
    left_out: dict[str, list[str]] = {}
    for label, stats in norms.items():
        its = bins.get(label)
        kinds = {
            "zero": int(stats["zero"]),
            "not finite": int(stats.get("nonfinite", 0)),
            "below": its.below if its else 0,
            "above": its.above if its else 0,
        }
        said = ", ".join(f"{count(amount)} {kind}" for kind, amount in kinds.items() if amount)
        if said:
            left_out.setdefault(said, []).append(label)
    for said, labels in left_out.items():
        yield f"Not shown of {', '.join(labels)}: {said}."


def _table(title: str, bins: Mapping[str, NormBins]) -> Html:
    edges = next(iter(bins.values())).edges
    columns = [Column("from"), Column("to"), *map(Column, bins)]
    rows = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        amounts = [its.counts[index] for its in bins.values()]
        if any(amounts):
            rows.append([number(low, 6), number(high, 6), *map(count, amounts)])
    return page.table(title, columns, rows)
