"""What a norm does to neighbours: which ones norms share, and how unevenly rows are neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.comparison_document import between, real, shown_k
from batchnorm_tool.report.heat_map import Grid, heat_map
from batchnorm_tool.report.markup import tag
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.row_chart import Row, row_chart
from batchnorm_tool.report.scale import count, fixed, percent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame


def overlap_section(document: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the section that shows how many neighbours each pair of norms shares.

    Args:
        document: The document of a comparison.

    Yields:
        The section; nothing where fewer than two norms were compared.
    """
    norms = document["compared"]
    if len(norms) < 2:
        return
    k = shown_k(document)
    overlap = {pair: _overlap(document, pair, k) for pair in itertools.product(norms, norms)}
    rbo = {pair: _rbo(document, pair) for pair in itertools.product(norms, norms)}
    p = document.get("rbo_p", 0.9)
    yield page.section(
        "Neighbours that norms share",
        page.note(
            f"overlap@{k} is the share of the {k} nearest neighbours that two norms have in "
            "common, on average over queries. Rank-biased overlap (Webber et al. 2010) compares "
            f"whole rankings; with p = {p} early ranks weigh most. 1 is the same, 0 is nothing in "
            "common."
        ),
        tag(
            "div",
            _map("overlap", f"overlap@{k}", norms, overlap),
            _map("rbo", "rank-biased overlap", norms, rbo),
            class_="trio",
        ),
        page.behind("The numbers behind these charts", _pair_table(document)),
    )


def hubness_section(document: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the section that shows how unevenly rows are among the neighbours of others.

    Args:
        document: The document of a comparison.

    Yields:
        The section; nothing where the document has no hubness.
    """
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
            "skewness means that few rows (hubs) are near to everything; rows that are nobody's "
            "neighbour are never found."
        ),
        tag(
            "div",
            _bars("skewness", "Skewness of the k-occurrence", skewness),
            _bars("antihubs", "Rows that are nobody's neighbour", antihubs),
            class_="trio",
        ),
        _hubness_table(found),
    )


def _overlap(document: Mapping[str, Any], pair: tuple[str, str], k: int) -> float:
    entry = between(document.get("overlap"), *pair) or {}
    return 1.0 if pair[0] == pair[1] else real(entry.get(str(k)))


def _rbo(document: Mapping[str, Any], pair: tuple[str, str]) -> float:
    return 1.0 if pair[0] == pair[1] else real(between(document.get("rbo"), *pair))


def _map(
    id_: str, name: str, norms: Sequence[str], values: Mapping[tuple[str, str], float]
) -> Html:
    known = {pair: value for pair, value in values.items() if math.isfinite(value)}
    said = " ".join(
        f"{one} and {other}: {fixed(values[one, other], 2)}."
        for one, other in itertools.combinations(norms, 2)
    )
    words = svg.Words(id_, f"{name} of each pair of norms", said)
    draw = partial(_draw_map, grid=Grid(norms, known))
    return tag("div", tag("h3", name), page.chart(words, draw))


def _draw_map(words: svg.Words, frame: Frame, grid: Grid) -> Html:
    return heat_map(words, grid, frame)


def _pair_table(document: Mapping[str, Any]) -> Html:
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


def _skew(hubness: Mapping[str, Any]) -> str:
    return fixed(hubness.get("skewness"), 2)


def _nobody(hubness: Mapping[str, Any]) -> str:
    return percent(hubness.get("antihubs"))


def _bars(id_: str, heading: str, rows: Sequence[Row]) -> Html:
    said = " ".join(f"{row.label}: {row.shown}." for row in rows)
    words = svg.Words(f"hubness-{id_}", f"{heading} by norm", said)
    return tag("div", tag("h3", heading), page.chart(words, partial(_draw_rows, rows=rows)))


def _draw_rows(words: svg.Words, frame: Frame, rows: Sequence[Row]) -> Html:
    return row_chart(words, rows, frame)


def _hubness_table(found: Mapping[str, Mapping[str, Any]]) -> Html:
    headings = ("k", "skewness", "nobody's neighbour", "most often a neighbour")
    columns = [Column("norm", numeric=False), *map(Column, headings)]
    rows = [
        [norm, count(its["k"]), _skew(its), _nobody(its), _times(its.get("largest"))]
        for norm, its in found.items()
    ]
    data = page.table("How often rows are neighbours", columns, rows)
    return page.behind("The numbers behind these charts", data)


def _times(largest: int | None) -> str:
    return "\N{EN DASH}" if largest is None else f"{count(largest)} times"
