"""Sections of the compare page: retrieval quality by norm and k, and neighbours in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.display import count, fixed, percent, plural, probability, signed, span
from batchnorm_tool.report import Html, join, page, svg, tag
from batchnorm_tool.report.charts import (
    Grid,
    Interval,
    IntervalSeries,
    Places,
    Row,
    heat_map,
    interval_axis,
    interval_chart,
    row_chart,
)
from batchnorm_tool.report.figures import (
    between,
    families,
    headline,
    k_of,
    metric_name,
    quality,
    real,
    shown_k,
    tested,
)
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.svg import SeriesStyle

if TYPE_CHECKING:
    from batchnorm_tool.comparison.verdict import ComparisonDocument, Numbers

_WITHOUT_RELEVANCE = (
    "There is no ground truth for neighbours. With `--label COLUMN`, or `--queries` and "
    "`--relevance FILE`, this section shows which norm finds relevant rows."
)


def quality_section(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Html:
    """Show how well each norm retrieves what is relevant."""
    found = families(document)
    decisive = headline(document)
    if decisive is None or not found:
        return page.section("Retrieval quality", page.quiet(page.prose(_WITHOUT_RELEVANCE)))
    first, *others = _charts(document, styles)
    return page.section(
        "Retrieval quality",
        page.quiet(_queries(document)),
        _decisive_table(document, decisive),
        first,
        tag("div", *(tag("div", other) for other in others), class_="trio") if others else None,
    )


def _charts(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Iterator[Html]:
    found = families(document)
    if not _relevance(document, found):
        yield page.note("No query is judged: there is nothing to draw.")
        return
    if max(map(len, found.values())) > 1:
        for family, metrics in found.items():
            name = f"{metric_name(family)}@k"
            shown = _QualityChart(name, Places.of("k", map(k_of, metrics)), metrics)
            yield _chart(document, styles, shown)
        return
    # One k makes one point of each metric: all of them fit into one chart.
    every = [metric for metrics in found.values() for metric in metrics]
    places = Places.of("metric", (metric_name(family) for family in found))
    yield _chart(document, styles, _QualityChart(f"Metrics at k = {k_of(every[0])}", places, every))


def _queries(document: ComparisonDocument) -> str:
    queries = document["queries"]
    said = f"Means over {plural(queries['judged'] or 0, 'judged query', 'judged queries')}"
    lacking = queries.get("without_relevant")
    if lacking:
        said += f"; {count(lacking)} of them have no relevant row and count as 0"
    return f"{said}. Intervals hold the true mean in 95 % of samples (bootstrap over queries)."


def _decisive_table(document: ComparisonDocument, metric: str) -> Html:
    against = (document.get("tests") or {}).get("against")
    columns = [Column("norm", numeric=False), *_columns(metric_name(metric), against)]
    rows = [_decisive_row(document, norm, metric) for norm in document["compared"]]
    caption = f"{metric_name(metric)} of each norm"
    return page.table(caption, columns, [row[: len(columns)] for row in rows])


def _decisive_row(document: ComparisonDocument, norm: str, metric: str) -> list[object]:
    chosen = document["verdict"].get("norm") == norm
    label = tag("strong", norm) if chosen else norm
    return [label, *_cells(document, norm, metric)]


def _cells(document: ComparisonDocument, norm: str, metric: str) -> list[str]:
    its, test = quality(document, norm, metric), tested(document, norm, metric)
    cells = [fixed(its.value), span(its.low, its.high)]
    if not test:
        return [*cells, "", "", "", ""]
    low, high = real(test.get("low")), real(test.get("high"))
    cells += [signed(real(test.get("difference"))), _signed_span(low, high)]
    return [*cells, *(probability(test.get(name)) for name in ("p", "p_holm"))]


def _signed_span(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}" if math.isfinite(low + high) else "\N{EN DASH}"


def _relevance(document: ComparisonDocument, found: Mapping[str, Sequence[str]]) -> bool:
    every = itertools.product(document["compared"], itertools.chain(*found.values()))
    return any(math.isfinite(quality(document, norm, metric).value) for norm, metric in every)


@dataclass(frozen=True)
class _QualityChart:
    """A chart to be drawn: its heading, and the metric at each of its places."""

    name: str
    places: Places
    metrics: Sequence[str]


def _chart(
    document: ComparisonDocument, styles: Mapping[str, SeriesStyle], shown: _QualityChart
) -> Html:
    values = {
        norm: [quality(document, norm, metric) for metric in shown.metrics]
        for norm in document["compared"]
    }
    series = IntervalSeries(values, styles, joined=shown.places.label == "k")
    heading = tag("h3", shown.name)
    axes = shown.places, interval_axis("mean with 95 % interval", series)
    id_ = f"quality-{shown.metrics[0].replace('@', '-')}"
    said = " ".join(_seen(shown.metrics, values))
    words = svg.ChartText(id_, f"{shown.name} by norm", said)
    draw = partial(interval_chart, axes=axes, series=series)
    data = page.behind("The numbers behind this chart", _table(document, shown))
    return join(heading, page.chart(words, draw, data))


def _seen(metrics: Sequence[str], values: Mapping[str, Sequence[Interval]]) -> Iterator[str]:
    for index, metric in enumerate(metrics):
        each = ", ".join(f"{norm} {fixed(its[index].value)}" for norm, its in values.items())
        yield f"{metric_name(metric)}: {each}."


def _table(document: ComparisonDocument, shown: _QualityChart) -> Html:
    against = (document.get("tests") or {}).get("against")
    columns = [Column("norm", numeric=False), Column("metric", numeric=False)]
    columns += _columns("mean", against)
    rows = [
        [norm, metric_name(metric), *_cells(document, norm, metric)][: len(columns)]
        for norm in document["compared"]
        for metric in shown.metrics
    ]
    return page.table(f"{shown.name} by norm", columns, rows)


def _columns(value: str, against: object) -> list[Column]:
    columns = [Column(value), Column("95 % interval")]
    if against:
        columns += [Column(f"difference from {against}"), Column("95 % interval")]
        columns += [Column("p"), Column("p (Holm)")]
    return columns


def overlap_section(document: ComparisonDocument) -> Iterator[Html]:
    """Yield the section that shows how many neighbours two norms share, where there are two."""
    norms = document["compared"]
    if len(norms) < 2:
        return
    k = shown_k(document)
    overlap = {pair: _overlap(document, pair, k) for pair in itertools.product(norms, norms)}
    rbo = {pair: _rbo(document, pair) for pair in itertools.product(norms, norms)}
    p = document.get("rbo_p", 0.9)
    yield page.section(
        "Neighbours shared by norms",
        page.note(
            f"overlap@{k} is the share of the {k} nearest neighbours that two norms have in "
            "common, averaged over queries. Rank-biased overlap (Webber et al. 2010) compares "
            f"whole rankings; with p = {p} top ranks weigh most. 1 means identical rankings, 0 "
            "nothing in common."
        ),
        tag(
            "div",
            _map("overlap", f"overlap@{k}", norms, overlap),
            _map("rbo", "rank-biased overlap", norms, rbo),
            class_="trio",
        ),
        page.behind("The numbers behind these charts", _pair_table(document)),
    )


def hubness_section(document: ComparisonDocument) -> Iterator[Html]:
    """Yield the section that shows how unevenly rows are neighbours, where that was measured."""
    hubness = document.get("hubness") or {}
    found = {norm: hubness[norm] for norm in document["compared"] if hubness.get(norm)}
    if not found:
        return
    k = next(iter(found.values()))["k"]
    skewness = [Row(norm, real(its.get("skewness")), _skew(its)) for norm, its in found.items()]
    antihubs = [Row(norm, real(its.get("antihubs")), _nobody(its)) for norm, its in found.items()]
    yield page.section(
        "Hubness",
        page.note(
            f"How often each row is among the {k} nearest neighbours of a query. A large positive "
            "skewness means that a few rows (hubs) are neighbours of many; rows that are no "
            "query's neighbour are never found."
        ),
        tag(
            "div",
            _bars("skewness", "Skewness of the k-occurrence", skewness),
            _bars("antihubs", "Rows that are no query's neighbour", antihubs),
            class_="trio",
        ),
        _hubness_table(found),
    )


def _overlap(document: ComparisonDocument, pair: tuple[str, str], k: int) -> float:
    entry = between(document.get("overlap"), *pair) or {}
    return 1.0 if pair[0] == pair[1] else real(entry.get(str(k)))


def _rbo(document: ComparisonDocument, pair: tuple[str, str]) -> float:
    return 1.0 if pair[0] == pair[1] else real(between(document.get("rbo"), *pair))


def _map(
    id_: str, name: str, norms: Sequence[str], values: Mapping[tuple[str, str], float]
) -> Html:
    known = {pair: value for pair, value in values.items() if math.isfinite(value)}
    said = " ".join(
        f"{one} and {other}: {fixed(values[one, other], 2)}."
        for one, other in itertools.combinations(norms, 2)
    )
    words = svg.ChartText(id_, f"{name} of each pair of norms", said)
    draw = partial(heat_map, grid=Grid(norms, known))
    return tag("div", tag("h3", name), page.chart(words, draw))


def _pair_table(document: ComparisonDocument) -> Html:
    ks = document["k"]
    columns = [Column("norms", numeric=False), *(Column(f"overlap@{k}") for k in ks)]
    columns.append(Column("rank-biased overlap"))
    rows = [
        [
            f"{pair[0]} and {pair[1]}",
            *(fixed(_overlap(document, pair, k)) for k in ks),
            fixed(_rbo(document, pair)),
        ]
        for pair in itertools.combinations(document["compared"], 2)
    ]
    return page.table("Agreement of each pair of norms", columns, rows)


def _skew(hubness: Numbers) -> str:
    return fixed(hubness.get("skewness"), 2)


def _nobody(hubness: Numbers) -> str:
    return percent(hubness.get("antihubs"))


def _bars(id_: str, heading: str, rows: Sequence[Row]) -> Html:
    said = " ".join(f"{row.label}: {row.shown}." for row in rows)
    words = svg.ChartText(f"hubness-{id_}", f"{heading} by norm", said)
    return tag("div", tag("h3", heading), page.chart(words, partial(row_chart, rows=rows)))


def _hubness_table(found: Mapping[str, Any]) -> Html:
    headings = ("k", "skewness", "no query's neighbour", "most often a neighbour")
    columns = [Column("norm", numeric=False), *map(Column, headings)]
    rows = [
        [norm, count(its["k"]), _skew(its), _nobody(its), _times(its.get("largest"))]
        for norm, its in found.items()
    ]
    data = page.table("How often rows are neighbours", columns, rows)
    return page.behind("The numbers behind these charts", data)


def _times(largest: int | None) -> str:
    return "\N{EN DASH}" if largest is None else plural(largest, "time")
