"""The page about a comparison of norms: the verdict, and everything that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from batchnorm_tool.display import count, fixed, number, percent, plural, span
from batchnorm_tool.report import Html, join, page, svg, tag
from batchnorm_tool.report.compare_sections import hubness_section, overlap_section, quality_section
from batchnorm_tool.report.figures import (
    base_name,
    between,
    describe_key,
    describe_relevance,
    describe_unknown,
    families,
    headline,
    measured_norms,
    metric_name,
    quality,
    real,
    shown_k,
)
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.run_charts import Overlay, norm_overlay, norm_table
from batchnorm_tool.report.svg import SeriesStyle

if TYPE_CHECKING:
    from batchnorm_tool.comparison.norm_survey import SourceFacts
    from batchnorm_tool.comparison.verdict import (
        ComparisonDocument,
        GroupFigures,
        Numbers,
        VerdictEntry,
    )

_METRICS = {"dot": "the dot product", "euclidean": "Euclidean distance", "cosine": "cosine"}
VERDICT_STYLE = """
.verdict { margin: 1.5rem 0 0; padding: 1.25rem 1.5rem 1.25rem; background: var(--panel);
  border-left: 4px solid var(--mark); border-radius: 0 .5rem .5rem 0; }
.verdict h2 { font-size: .875rem; font-weight: 600; color: var(--quiet); margin: 0 0 .25rem; }
.verdict .words { font-size: 1.25rem; line-height: 1.4; font-weight: 600; margin: 0;
  text-wrap: pretty; }
.verdict dl { margin-top: 1rem; display: grid; gap: .5rem; }
.verdict dl div { display: grid; grid-template-columns: 4.5rem 1fr; gap: .75rem;
  align-items: baseline; }
.verdict ul { margin-top: .75rem; padding-left: 1.1rem; color: var(--quiet); font-size: .875rem; }
@media (max-width: 40rem) {
  .verdict { padding: 1rem; }
  .verdict .words { font-size: 1.125rem; }
  .verdict dl div { grid-template-columns: 1fr; gap: 0; }
}
@media print { .verdict { break-inside: avoid; } }
"""
"""The rules for the panel, for the style sheet of a page."""
Cell: TypeAlias = Callable[["GroupFigures", str], object]
# A column of thousands of values makes thousands of groups, in dozens of tables; the document of
# the comparison has them all.
_MOST_ROWS = 100
GROUPS_STYLE = """
.interval { display: block; color: var(--quiet); font-size: .75rem; }
"""
"""The rules for tables with intervals, for the style sheet of a page."""
# Different norms of a row differ by a factor of up to its width: on a linear axis the smaller ones
# would stand in one bar.
_LOG_FROM = 2.0


def verdict_panel(verdict: VerdictEntry) -> Html:
    """Show the verdict in words, with its reason, its cost and its notes where it has them."""
    grounds = [
        tag("div", tag("dt", heading), tag("dd", page.prose(said)))
        for heading, said in (("Why", verdict.get("reason")), ("Cost", verdict.get("cost")))
        if said
    ]
    return tag(
        "div",
        tag("h2", "Verdict"),
        tag("p", page.prose(str(verdict["words"])), class_="words"),
        tag("dl", *grounds) if grounds else None,
        *_notes(verdict),
        class_="verdict",
    )


def _notes(verdict: VerdictEntry) -> Iterator[Html]:
    notes = verdict.get("notes") or []
    if notes:
        yield tag("ul", *(tag("li", page.prose(str(note))) for note in notes))


def groups_section(document: ComparisonDocument) -> Iterator[Html]:
    """Yield the section that breaks a comparison down, where one was asked for."""
    by = document.get("by")
    if not by or not by["groups"]:
        return
    first, *others = _tables(document, by["groups"])
    kind = "deciles of " if by["kind"] == "deciles" else ""
    yield page.section(
        join(f"By {kind}", page.code(by["column"])),
        first,
        page.behind(plural(len(others), "more table"), join(*others)) if others else None,
    )


def _tables(document: ComparisonDocument, groups: Sequence[GroupFigures]) -> Iterator[Html]:
    norms: Sequence[str] = document["compared"]
    for metric in _metrics(document):
        caption = f"{metric_name(metric)}, with 95 % intervals"
        yield _table(caption, norms, groups, _quality_cell(metric))
    first, *others = norms
    for k in _ks(document) if others else []:
        caption = f"overlap@{k} with {first}"
        yield _table(caption, others, groups, _overlap_cell(first, k))
    if others and _any(groups, "rbo"):
        yield _table(f"Rank-biased overlap with {first}", others, groups, _rbo_cell(first))
    if _any(groups, "hubness"):
        yield _table("Skewness of the k-occurrence", norms, groups, _skewness)
        yield _table("Rows that are no query's neighbour", norms, groups, _antihubs)


def _metrics(document: ComparisonDocument) -> list[str]:
    if not document.get("quality"):
        return []
    every = [metric for metrics in families(document).values() for metric in metrics]
    return sorted(every, key=lambda metric: metric != headline(document))


def _ks(document: ComparisonDocument) -> list[int]:
    if document["by"] is None or not _any(document["by"]["groups"], "overlap"):
        return []
    return sorted(document["k"], key=lambda k: k != shown_k(document))


def _any(groups: Sequence[GroupFigures], name: str) -> bool:
    return any(group.get(name) for group in groups)


def _table(caption: str, norms: Sequence[str], groups: Sequence[GroupFigures], cell: Cell) -> Html:
    columns = [Column("group", numeric=False), Column("queries"), *map(Column, norms)]
    rows = [
        [page.name(group["group"]), count(group["queries"]), *(cell(group, norm) for norm in norms)]
        for group in groups
    ]
    return page.table(caption, columns, rows, shown=_MOST_ROWS)


def _quality_cell(metric: str) -> Cell:
    def cell(group: GroupFigures, norm: str) -> Html:
        its = quality(group, norm, metric)
        known = math.isfinite(its.low + its.high)
        ends = tag("span", span(its.low, its.high), class_="interval") if known else None
        return join(fixed(its.value), ends)

    return cell


def _overlap_cell(first: str, k: int) -> Cell:
    def cell(group: GroupFigures, norm: str) -> str:
        found = between(group.get("overlap"), first, norm) or {}
        return fixed(found.get(str(k)))

    return cell


def _rbo_cell(first: str) -> Cell:
    def cell(group: GroupFigures, norm: str) -> str:
        return fixed(between(group.get("rbo"), first, norm))

    return cell


def _skewness(group: GroupFigures, norm: str) -> str:
    return fixed(_hubness(group, norm, "skewness"), 2)


def _antihubs(group: GroupFigures, norm: str) -> str:
    return percent(_hubness(group, norm, "antihubs"))


def _hubness(group: GroupFigures, norm: str, name: str) -> float:
    return real(((group.get("hubness") or {}).get(norm) or {}).get(name))


_STYLE = svg.STYLE + VERDICT_STYLE + GROUPS_STYLE


def comparison_page(document: ComparisonDocument) -> str:
    """Describe a comparison of norms on one HTML page that works offline."""
    title = f"Norms for {base_name(document['source']['path'])}"
    # One look for a norm in all charts, also for norms that were measured but not compared.
    styles = svg.series_styles([*document["compared"], *measured_norms(document)])
    sections = [
        *page.warnings(document.get("warnings") or []),
        quality_section(document, styles),
        *overlap_section(document),
        *hubness_section(document),
        norms_section(document, styles),
        *groups_section(document),
    ]
    return page.document(title, _header(document), sections, document["version"], _STYLE)


def _header(document: ComparisonDocument) -> Html:
    *norms, last = document["compared"]
    said = f"{', '.join(norms)} and {last}" if norms else last
    metric = _METRICS.get(document["metric"], document["metric"])
    return page.header(
        f"Norms compared under {metric}: {said}",
        page.name(base_name(document["source"]["path"])),
        verdict_panel(document["verdict"]),
        page.figures(_figures(document)),
        page.facts(_facts(document)),
    )


def _figures(document: ComparisonDocument) -> Iterator[tuple[str, object, bool]]:
    source, queries = document["source"], document["queries"]
    yield "rows", count(source["rows"]), False
    yield "dimensions", count(source["width"]), False
    yield "queries", count(queries["used"] or 0), False
    if document.get("relevance"):
        yield "judged queries", count(queries["judged"] or 0), False
    lost = {"rows without a vector": source.get("missing"), "not finite": source.get("nonfinite")}
    for label, rows in lost.items():
        if rows:
            yield label, count(rows), True
    yield "zero vectors", count(source.get("zero") or 0), False


def _facts(document: ComparisonDocument) -> Iterator[tuple[str, object]]:
    source = document["source"]
    yield "vectors", _origin(source)
    queries = document.get("queries_from")
    if queries:
        yield "queries", _origin(queries)
    relevance = describe_relevance(document)
    yield "relevant", page.prose(", ".join([relevance or "not given", *describe_unknown(document)]))
    yield "sample", _sample(document)
    yield "metric", page.code(document["metric"])
    yield "k", ", ".join(map(count, document["k"]))
    yield from _provenance(source.get("provenance") or {})
    yield "took", f"{number(document['seconds'], 3)} s"


def _origin(facts: SourceFacts) -> Html:
    kind = ", a finished run" if facts.get("kind") == "run" else ""
    column = facts.get("column")
    named = join(", column ", page.code(describe_key(column))) if column else None
    return join(page.code(facts["path"]), kind, named)


def _sample(document: ComparisonDocument) -> str:
    queries = document["queries"]
    lost = queries.get("nonfinite")
    said = f"{plural(queries['used'] or 0, 'query', 'queries')}, seed {document['seed']}"
    return f"{said}; {count(lost)} not finite were ignored" if lost else said


def _provenance(known: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    if known.get("model"):
        yield "model", page.code(known["model"])
    if known.get("space"):
        yield "space", page.identity(str(known["space"]))


def norms_section(document: ComparisonDocument, styles: Mapping[str, SeriesStyle]) -> Html:
    """Show how the norms of the raw predictions are distributed."""
    norms = measured_norms(document)
    if not norms:
        return page.section(
            "Norms of the raw predictions", tag("p", "No rows, so there are no norms.")
        )
    overlay = Overlay(norms, styles, "norm", _LOG_FROM)
    return page.section(
        "Norms of the raw predictions",
        norm_overlay("norms", "Distribution of each norm", overlay),
        norm_table(norms, "Norms before normalization"),
        *_agreement(document, norms),
    )


def _agreement(document: ComparisonDocument, norms: Collection[str]) -> Iterator[Html]:
    correlation, popularity = document.get("rank_correlation"), document.get("popularity")
    columns = [Column("norm", numeric=False)]
    columns += [Column(f"with {label}") for label in norms]
    if popularity:
        columns.append(Column("with popularity"))
    columns.append(Column("rows of unit length"))
    rows = [
        [
            label,
            *(fixed(_correlation(correlation, label, other)) for other in norms),
            *([fixed(popularity.get(label))] if popularity else []),
            percent((document.get("unit_share") or {}).get(label)),
        ]
        for label in norms
    ]
    yield tag("h3", "Do norms agree about rows?")
    yield page.table("Rank correlation of each norm with others", columns, rows)
    yield page.note(_explanation(document))


def _correlation(correlation: Mapping[str, Numbers] | None, one: str, other: str) -> float | None:
    found = between(correlation, one, other)
    return 1.0 if one == other else found


def _explanation(document: ComparisonDocument) -> str:
    ranked = document.get("ranked_rows")
    words = "Rank correlations are Spearman's"
    words += f", of {plural(ranked, 'row')}." if ranked else "."
    if document.get("popularity"):
        words += (
            " Popularity is how often a row is relevant: where a norm correlates with it, "
            "dividing by the norm removes popularity from the score."
        )
    return words
