"""Retrieval quality by norm and k: the table that decides, and a chart of each metric."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.comparison_document import (
    families,
    headline,
    k_of,
    metric_name,
    quality,
    real,
    tested,
)
from batchnorm_tool.report.interval_chart import (
    Interval,
    IntervalSeries,
    Places,
    interval_axis,
    interval_chart,
)
from batchnorm_tool.report.markup import join, tag
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import count, fixed, probability, signed

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame
    from batchnorm_tool.report.scale import Axis
    from batchnorm_tool.report.series import Look

_UNJUDGED = (
    "Nothing says which neighbours are right. With `--label COLUMN`, or `--queries` and "
    "`--relevance FILE`, this section shows which norm finds them."
)


def quality_section(document: Mapping[str, Any], looks: Mapping[str, Look]) -> Html:
    """Show how well each norm retrieves what is relevant.

    Args:
        document: The document of a comparison.
        looks: The look of each norm.

    Returns:
        A section with the headline's table and a chart for each family of metrics.
    """
    found = families(document)
    decisive = headline(document)
    if decisive is None or not found:
        return page.section("Retrieval quality", tag("p", page.prose(_UNJUDGED), class_="quiet"))
    first, *others = _charts(document, looks)
    return page.section(
        "Retrieval quality",
        tag("p", _queries(document), class_="quiet"),
        _decisive_table(document, decisive),
        first,
        tag("div", *(tag("div", other) for other in others), class_="trio") if others else None,
    )


def _charts(document: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Html]:
    found = families(document)
    if not _judged(document, found):
        yield page.note("No query is judged: there is nothing to draw.")
        return
    if max(map(len, found.values())) > 1:
        for family, metrics in found.items():
            name = f"{metric_name(family)}@k"
            shown = _Shown(name, Places.of("k", map(k_of, metrics)), metrics)
            yield _chart(document, looks, shown)
        return
    # One k makes one point of each metric: all of them fit into one chart.
    every = [metric for metrics in found.values() for metric in metrics]
    places = Places.of("metric", (metric_name(family) for family in found))
    yield _chart(document, looks, _Shown(f"Metrics at k = {k_of(every[0])}", places, every))


def _queries(document: Mapping[str, Any]) -> str:
    queries = document["queries"]
    said = f"Means over {count(queries['judged'])} judged queries"
    lacking = queries.get("without_relevant")
    if lacking:
        said += f"; {count(lacking)} of them have nothing relevant and count as 0"
    return f"{said}. Intervals hold the true mean in 95 % of samples (bootstrap over queries)."


def _decisive_table(document: Mapping[str, Any], metric: str) -> Html:
    against = (document.get("tests") or {}).get("against")
    columns = [Column("norm", numeric=False), *_columns(metric_name(metric), against)]
    rows = [_decisive_row(document, norm, metric) for norm in document["compared"]]
    caption = f"{metric_name(metric)} of each norm"
    return page.table(caption, columns, [row[: len(columns)] for row in rows])


def _decisive_row(document: Mapping[str, Any], norm: str, metric: str) -> list[object]:
    chosen = document["verdict"].get("norm") == norm
    label = tag("strong", norm) if chosen else norm
    return [label, *_cells(document, norm, metric)]


def _cells(document: Mapping[str, Any], norm: str, metric: str) -> list[str]:
    its, test = quality(document, norm, metric), tested(document, norm, metric)
    cells = [fixed(its.value), _span(its.low, its.high)]
    if not test:
        return [*cells, "", "", "", ""]
    low, high = real(test.get("low")), real(test.get("high"))
    cells += [signed(real(test.get("difference"))), _signed_span(low, high)]
    return [*cells, *(probability(test.get(name)) for name in ("p", "p_holm"))]


def _span(low: float, high: float) -> str:
    dash = "\N{EN DASH}"
    return f"{fixed(low)}{dash}{fixed(high)}" if math.isfinite(low + high) else dash


def _signed_span(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low + high) else "\N{EN DASH}"


def _judged(document: Mapping[str, Any], found: Mapping[str, Sequence[str]]) -> bool:
    every = itertools.product(document["compared"], itertools.chain(*found.values()))
    return any(math.isfinite(quality(document, norm, metric).value) for norm, metric in every)


@dataclass(frozen=True)
class _Shown:
    """A chart to be drawn: its heading, and the metric at each of its places."""

    name: str
    places: Places
    metrics: Sequence[str]


def _chart(document: Mapping[str, Any], looks: Mapping[str, Look], shown: _Shown) -> Html:
    values = {
        norm: [quality(document, norm, metric) for metric in shown.metrics]
        for norm in document["compared"]
    }
    series = IntervalSeries(values, looks, joined=shown.places.label == "k")
    heading = tag("h3", shown.name)
    axes = shown.places, interval_axis("mean with 95 % interval", series)
    id_ = f"quality-{shown.metrics[0].replace('@', '-')}"
    said = " ".join(_seen(shown.metrics, values))
    words = svg.Words(id_, f"{shown.name} by norm", said)
    draw = partial(_draw, axes=axes, series=series)
    data = page.behind("The numbers behind this chart", _table(document, shown))
    return join(heading, page.chart(words, draw, data))


def _draw(
    words: svg.Words, frame: Frame, axes: tuple[Places, Axis], series: IntervalSeries
) -> Html:
    return interval_chart(words, axes, series, frame)


def _seen(metrics: Sequence[str], values: Mapping[str, Sequence[Interval]]) -> Iterator[str]:
    for index, metric in enumerate(metrics):
        each = ", ".join(f"{norm} {fixed(its[index].value)}" for norm, its in values.items())
        yield f"{metric_name(metric)}: {each}."


def _table(document: Mapping[str, Any], shown: _Shown) -> Html:
    against = (document.get("tests") or {}).get("against")
    columns = [Column("norm", numeric=False), Column("metric", numeric=False)]
    columns += _columns("mean", against)
    rows = [
        [norm, metric_name(metric), *_cells(document, norm, metric)][: len(columns)]
        for norm in document["compared"]
        for metric in shown.metrics
    ]
    return page.table(f"{shown.name} by norm", columns, rows)


def _columns(value: str, against: str | None) -> list[Column]:
    columns = [Column(value), Column("95 % interval")]
    if against:
        columns += [Column(f"difference from {against}"), Column("95 % interval")]
        columns += [Column("p"), Column("p (Holm)")]
    return columns
