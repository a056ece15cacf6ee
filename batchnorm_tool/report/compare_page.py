"""The page about a comparison of norms: the verdict, and everything that it rests on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

from batchnorm_tool.comparison.norm_survey import SourceFacts
from batchnorm_tool.comparison.verdict import ComparisonDocument, GroupFigures, Numbers, headline_k
from batchnorm_tool.display import count, fixed, number, percent, plural, span
from batchnorm_tool.report import Html, charts, figures, join, page, svg, tag
from batchnorm_tool.report.figures import quality_cells
from batchnorm_tool.report.norm_charts import norm_overlay, norm_table
from batchnorm_tool.report.svg import ChartText, SeriesStyle

_METRICS = {"dot": "the dot product", "euclidean": "Euclidean distance", "cosine": "cosine"}
_GROUPS_STYLE = """
.interval { display: block; color: var(--quiet); font-size: .75rem; }
"""
_STYLE = svg.STYLE + page.VERDICT_STYLE + _GROUPS_STYLE
_SKEWNESS = "Skewness of the k-occurrence"
_ANTIHUBS = "Rows that are no query's neighbour"
# What a table of groups shows of a group and a norm.
_Cell: TypeAlias = Callable[["GroupFigures", str], object]
# A column of thousands of values makes thousands of groups, in dozens of tables; the document of
# the comparison has them all.
_MOST_ROWS = 100
_OPTION_HEADINGS = ("with options", "without", "difference", "95 % interval", "p (Holm)")
# Different norms of a row differ by a factor of up to its width: on a linear axis the smaller ones
# would stand in one bar.
_LOG_FROM = 2.0
_POPULARITY = (
    " Popularity is how often a row is relevant: where a norm correlates with it, dividing by the "
    "norm removes popularity from the score."
)
_WITHOUT_RELEVANCE = (
    "There is no ground truth for neighbours. With `--label COLUMN`, or `--queries` and "
    "`--relevance FILE`, this section shows which norm finds relevant rows."
)


def comparison_page(document: ComparisonDocument) -> str:
    """Describe a comparison of norms on one HTML page that works offline."""
    name = figures.base_name(document["source"]["path"])
    # One look for a norm in all charts, also for norms that were measured but not compared.
    styles = svg.series_styles([*document["compared"], *figures.measured_norms(document)])
    sections = [
        *page.warnings(document["warnings"]),
        _quality_section(document, styles),
        *_overlap_section(document),
        _hubness_section(document),
        _norms_section(document, styles),
        *_groups_section(document),
    ]
    return page.document(
        f"Norms for {name}", _header(document), sections, document["version"], _STYLE
    )


def _header(document: ComparisonDocument) -> Html:
    *norms, last = document["compared"]
    said = f"{', '.join(norms)} and {last}" if norms else last
    metric = _METRICS.get(document["metric"], document["metric"])
    return page.header(
        f"Norms compared under {metric}: {said}",
        page.name(figures.base_name(document["source"]["path"])),
        page.verdict(document["verdict"]),
        page.figures(_figures(document)),
        page.facts(_facts(document)),
    )


def _figures(document: ComparisonDocument) -> Iterator[tuple[str, object, bool]]:
    source, queries = document["source"], document["queries"]
    yield "rows", count(source["rows"]), False
    yield "dimensions", count(source["width"]), False
    yield "queries", count(queries["used"] or 0), False
    if document["relevance"]:
        yield "judged queries", count(queries["judged"] or 0), False
    lost = {"rows without a vector": source["missing"], "not finite": source["nonfinite"]}
    for label, rows in lost.items():
        if rows:
            yield label, count(rows), True
    yield "zero vectors", count(source["zero"]), False


def _facts(document: ComparisonDocument) -> Iterator[tuple[str, object]]:
    source = document["source"]
    yield "vectors", _origin(source)
    if document["queries_from"]:
        yield "queries", _origin(document["queries_from"])
    yield "relevant", page.prose(_relevant(document["relevance"]))
    queries = document["queries"]
    said = f"{plural(queries['used'] or 0, 'query', 'queries')}, seed {document['seed']}"
    lost = queries.get("nonfinite")
    yield "sample", f"{said}; {count(lost)} not finite were ignored" if lost else said
    yield "metric", page.code(document["metric"])
    yield "k", ", ".join(map(count, document["k"]))
    known = source["provenance"] or {}
    if known.get("model"):
        yield "model", page.code(known["model"])
    if known.get("space"):
        yield "space", page.identity(known["space"])
    yield "took", f"{number(document['seconds'], 3)} s"


def _origin(facts: SourceFacts) -> Html:
    kind = ", a finished run" if facts["kind"] == "run" else ""
    column = facts["column"]
    named = join(", column ", page.code(figures.describe_key(column))) if column else None
    return join(page.code(facts["path"]), kind, named)


def _relevant(relevance: Mapping[str, object] | None) -> str:
    """Say who is relevant to whom, and how many rows of the file are not among the vectors."""
    if not relevance:
        return "not given"
    if relevance["kind"] == "labels":
        classes = plural(cast("int", relevance["classes"]), "class", "classes")
        return f"rows of the same `{relevance['column']}` ({classes})"
    kind = "clicks" if relevance.get("clicks") else "judgements"
    said = [f"{relevance['pairs']:,} {kind} in `{relevance['path']}`"]
    unknown = [key for key in ("unknown_queries", "unknown_items") if relevance.get(key)]
    return ", ".join([*said, *(f"{relevance[key]:,} {key.replace('_', ' ')}" for key in unknown)])


def _quality_section(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Html:
    decisive = document["headline"]
    if decisive is None:
        return page.section("Retrieval quality", page.quiet(page.prose(_WITHOUT_RELEVANCE)))
    first, *others = _charts(document, styles)
    name, chosen = figures.metric_name(decisive), document["verdict"].get("norm")
    rows = [
        [
            tag("strong", norm) if norm == chosen else norm,
            *figures.quality_cells(document, norm, decisive),
        ]
        for norm in document["compared"]
    ]
    costs = figures.option_cells(document)
    return page.section(
        "Retrieval quality",
        page.quiet(_queries(document)),
        page.table(f"{name} of each norm", ["norm", *_headings(document, name)], rows),
        page.table(f"Cost of options, {name}", _OPTION_HEADINGS, costs, "ll") if costs else None,
        first,
        tag("div", *(tag("div", other) for other in others), class_="trio") if others else None,
    )


def _charts(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Iterator[Html]:
    found, draw = figures.families(document), partial(_quality_chart, document, styles)
    if max(map(len, found.values())) > 1:
        for family, metrics in found.items():
            places = charts.Places.of("k", map(figures.k_of, metrics))
            yield draw(f"{figures.metric_name(family)}@k", places, metrics)
        return
    # One k makes one point of each metric: all of them fit into one chart.
    every = list(itertools.chain(*found.values()))
    places = charts.Places.of("metric", map(figures.metric_name, found))
    yield draw(f"Metrics at k = {figures.k_of(every[0])}", places, every)


def _queries(document: ComparisonDocument) -> str:
    queries = document["queries"]
    said = f"Means over {plural(queries['judged'] or 0, 'judged query', 'judged queries')}"
    if lacking := queries.get("without_relevant"):
        said += f"; {count(lacking)} of them have no relevant row and count as 0"
    return f"{said}. Intervals hold the true mean in 95 % of samples (bootstrap over queries)."


def _headings(document: ComparisonDocument, value: str) -> list[str]:
    against = (document["tests"] or {}).get("against")
    tests = [f"difference from {against}", "95 % interval", "p", "p (Holm)"] if against else []
    return [value, "95 % interval", *tests]


def _quality_chart(
    document: ComparisonDocument,
    styles: Mapping[str, SeriesStyle],
    name: str,
    places: charts.Places,
    metrics: Sequence[str],
) -> Html:
    """Draw a chart of a metric at each of its places."""
    values = {
        norm: [figures.quality(document, norm, metric) for metric in metrics]
        for norm in document["compared"]
    }
    series = charts.IntervalSeries(values, styles, joined=places.label == "k")
    axes = places, charts.interval_axis("mean with 95 % interval", series)
    seen = []
    for index, metric in enumerate(metrics):
        each = ", ".join(f"{norm} {fixed(its[index].value)}" for norm, its in values.items())
        seen.append(f"{figures.metric_name(metric)}: {each}.")
    id_ = f"quality-{metrics[0].replace('@', '-')}"
    words = ChartText(id_, f"{name} by norm", " ".join(seen))
    draw = partial(charts.interval_chart, axes=axes, series=series)
    rows = [
        [norm, figures.metric_name(metric), *quality_cells(document, norm, metric)]
        for norm in document["compared"]
        for metric in metrics
    ]
    headings = ["norm", "metric", *_headings(document, "mean")]
    data = page.table(f"{name} by norm", headings, rows, "ll")
    return join(tag("h3", name), page.chart(words, draw, numbers=data))


def _overlap_section(document: ComparisonDocument) -> Iterator[Html]:
    """Yield the section that shows how many neighbours two norms share, where there are two."""
    norms = document["compared"]
    if len(norms) < 2:
        return
    k, pairs = headline_k(document["k"]), list(itertools.product(norms, norms))
    overlap = {pair: figures.overlap(document, *pair, k) for pair in pairs}
    rbo = {(one, other): figures.real(document["rbo"][one][other]) for one, other in pairs}
    yield page.section(
        "Neighbours shared by norms",
        page.note(
            f"overlap@{k} is the share of the {k} nearest neighbours that two norms have in "
            "common, averaged over queries. Rank-biased overlap (Webber et al. 2010) compares "
            f"whole rankings; with p = {document['rbo_p']} top ranks weigh most. 1 means identical "
            "rankings, 0 nothing in common."
        ),
        tag(
            "div",
            _map("overlap", f"overlap@{k}", norms, overlap),
            _map("rbo", "rank-biased overlap", norms, rbo),
            class_="trio",
        ),
        page.behind("The numbers behind these charts", _pair_table(document)),
    )


def _map(
    id_: str, name: str, norms: Sequence[str], values: Mapping[tuple[str, str], float]
) -> Html:
    said = " ".join(
        f"{one} and {other}: {fixed(values[one, other], 2)}."
        for one, other in itertools.combinations(norms, 2)
    )
    words = ChartText(id_, f"{name} of each pair of norms", said)
    draw = partial(charts.heat_map, labels=norms, values=values)
    return tag("div", tag("h3", name), page.chart(words, draw))


def _pair_table(document: ComparisonDocument) -> Html:
    ks = document["k"]
    headings = ["norms", *(f"overlap@{k}" for k in ks), "rank-biased overlap"]
    rows = [
        [
            f"{one} and {other}",
            *(fixed(figures.overlap(document, one, other, k)) for k in ks),
            fixed(document["rbo"][one][other]),
        ]
        for one, other in itertools.combinations(document["compared"], 2)
    ]
    return page.table("Agreement of each pair of norms", headings, rows)


def _hubness_section(document: ComparisonDocument) -> Html:
    """Show how unevenly rows are neighbours."""
    found = {norm: document["hubness"][norm] for norm in document["compared"]}
    k = headline_k(document["k"])
    rows = [
        [norm, count(k), _skewness(its), _antihubs(its), plural(int(its["largest"] or 0), "time")]
        for norm, its in found.items()
    ]
    headings = ("norm", "k", "skewness", "no query's neighbour", "most often a neighbour")
    table = page.table("How often rows are neighbours", headings, rows)
    return page.section(
        "Hubness",
        page.note(
            f"How often each row is among the {k} nearest neighbours of a query. A large positive "
            "skewness means that a few rows (hubs) are neighbours of many; rows that are no "
            "query's neighbour are never found."
        ),
        tag(
            "div",
            _bars("skewness", _SKEWNESS, found, _skewness),
            _bars("antihubs", _ANTIHUBS, found, _antihubs),
            class_="trio",
        ),
        page.behind("The numbers behind these charts", table),
    )


def _skewness(hubness: Numbers) -> str:
    return fixed(hubness["skewness"], 2)


def _antihubs(hubness: Numbers) -> str:
    return percent(hubness["antihubs"])


def _bars(
    name: str, heading: str, found: Mapping[str, Numbers], show: Callable[[Numbers], str]
) -> Html:
    rows = [charts.Row(norm, figures.real(its[name]), show(its)) for norm, its in found.items()]
    said = " ".join(f"{row.label}: {row.shown}." for row in rows)
    words = ChartText(f"hubness-{name}", f"{heading} by norm", said)
    return tag("div", tag("h3", heading), page.chart(words, partial(charts.row_chart, rows=rows)))


def _norms_section(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Html:
    """Show how the norms of the raw predictions are distributed."""
    norms = figures.measured_norms(document)
    return page.section(
        "Norms of the raw predictions",
        norm_overlay("Distribution of each norm", norms, styles, "norm", _LOG_FROM),
        norm_table(norms, "Norms before normalization"),
        tag("h3", "Do norms agree about rows?"),
        _agreement(document, norms),
        page.note(
            f"Rank correlations are Spearman's, of {plural(document['ranked_rows'], 'row')}.",
            _POPULARITY if document["popularity"] else None,
        ),
    )


def _agreement(document: ComparisonDocument, norms: Collection[str]) -> Html:
    correlation, popularity = document["rank_correlation"], document["popularity"]
    with_popularity = ["with popularity"] if popularity else []
    headings = ["norm", *(f"with {label}" for label in norms), *with_popularity]
    rows = [
        [
            label,
            *(fixed(correlation[label][other]) for other in norms),
            *([fixed(popularity[label])] if popularity else []),
            percent(document["unit_share"].get(label)),
        ]
        for label in norms
    ]
    caption = "Rank correlation of each norm with others"
    return page.table(caption, [*headings, "rows of unit length"], rows)


def _groups_section(document: ComparisonDocument) -> Iterator[Html]:
    """Yield the section that breaks a comparison down, where one was asked for."""
    by = document["by"]
    if not by:
        return
    first, *others = _group_tables(document, by["groups"])
    kind = "deciles of " if by["kind"] == "deciles" else ""
    yield page.section(
        join(f"By {kind}", page.code(by["column"])),
        first,
        page.behind(plural(len(others), "more table"), join(*others)),
    )


def _group_tables(document: ComparisonDocument, groups: Sequence[GroupFigures]) -> Iterator[Html]:
    """Yield a table for each figure, those of the headline first."""
    norms, decisive, usual = document["compared"], document["headline"], headline_k(document["k"])
    metrics = itertools.chain(*figures.families(document).values())
    for metric in sorted(metrics, key=lambda metric: metric != decisive):
        caption = f"{figures.metric_name(metric)}, with 95 % intervals"
        yield _group_table(caption, norms, groups, partial(_quality_cell, metric=metric))
    first, *others = norms
    for k in sorted(document["k"], key=lambda k: k != usual) if others else ():
        share = partial(_overlap_cell, first=first, k=k)
        yield _group_table(f"overlap@{k} with {first}", others, groups, share)
    if others:
        caption = f"Rank-biased overlap with {first}"
        yield _group_table(
            caption, others, groups, lambda its, norm: fixed(its["rbo"][first][norm])
        )
    yield _group_table(_SKEWNESS, norms, groups, lambda its, norm: _skewness(its["hubness"][norm]))
    yield _group_table(_ANTIHUBS, norms, groups, lambda its, norm: _antihubs(its["hubness"][norm]))


def _group_table(
    caption: str, norms: Sequence[str], groups: Sequence[GroupFigures], cell: _Cell
) -> Html:
    rows = [
        [page.name(group["group"]), count(group["queries"]), *(cell(group, norm) for norm in norms)]
        for group in groups
    ]
    return page.table(caption, ["group", "queries", *norms], rows, shown=_MOST_ROWS)


def _quality_cell(group: GroupFigures, norm: str, metric: str) -> Html:
    its = figures.quality(group, norm, metric)
    known = math.isfinite(its.low + its.high)
    ends = tag("span", span(its.low, its.high), class_="interval") if known else None
    return join(fixed(its.value), ends)


def _overlap_cell(group: GroupFigures, norm: str, first: str, k: int) -> str:
    return fixed(figures.overlap(group, first, norm, k))
