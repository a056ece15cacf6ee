"""The page about a comparison of norms: the verdict, and everything that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import groups_section, page, series, verdict_panel
from batchnorm_tool.report.comparison_document import (
    base_name,
    key_words,
    measured_norms,
    relevance_words,
    unknown_words,
)
from batchnorm_tool.report.markup import join, tag
from batchnorm_tool.report.neighbours_section import hubness_section, overlap_section
from batchnorm_tool.report.norms_section import norms_section
from batchnorm_tool.report.quality_section import quality_section
from batchnorm_tool.report.scale import count, number

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html

_METRICS = {"dot": "the dot product", "euclidean": "Euclidean distance", "cosine": "cosine"}
_STYLE = series.STYLE + verdict_panel.STYLE + groups_section.STYLE


def comparison_page(document: Mapping[str, Any]) -> str:
    """Describe a comparison of norms on one HTML page that works offline.

    Args:
        document: What `Comparison.to_dict` gives; nothing else is read.

    Returns:
        An HTML document without scripts that loads nothing, to be written as UTF-8. Names from
        the data are text in it, whatever they contain.
    """
    title = f"Norms for {base_name(document['source']['path'])}"
    # One look for a norm in all charts, also for norms that were measured but not compared.
    looks = series.looks([*document["compared"], *measured_norms(document)])
    sections = [
        *page.warnings(document.get("warnings") or []),
        quality_section(document, looks),
        *overlap_section(document),
        *hubness_section(document),
        norms_section(document, looks),
        *groups_section.groups_section(document),
    ]
    footer = f"batchnorm_tool {document['version']}. This page loads nothing and runs no script."
    return page.document(title, _header(document), sections, footer, _STYLE)


def _header(document: Mapping[str, Any]) -> Html:
    *norms, last = document["compared"]
    said = f"{', '.join(norms)} and {last}" if norms else last
    metric = _METRICS.get(document["metric"], document["metric"])
    return join(
        tag("p", f"Norms compared under {metric}: {said}", class_="quiet"),
        tag("h1", page.name(base_name(document["source"]["path"]))),
        verdict_panel.verdict_panel(document["verdict"]),
        page.figures(_figures(document)),
        page.facts(_facts(document)),
    )


def _figures(document: Mapping[str, Any]) -> Iterator[tuple[str, object, bool]]:
    source, queries = document["source"], document["queries"]
    yield "rows", count(source["rows"]), False
    yield "dimensions", count(source["width"]), False
    yield "queries", count(queries["used"]), False
    if document.get("relevance"):
        yield "judged queries", count(queries["judged"]), False
    for name, label in (("missing", "rows without vector"), ("nonfinite", "not finite")):
        if source.get(name):
            yield label, count(source[name]), True
    yield "zero vectors", count(source.get("zero") or 0), False


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    source = document["source"]
    yield "vectors", _origin(source)
    if document.get("queries_from"):
        yield "queries", _origin(document["queries_from"])
    relevance = relevance_words(document)
    yield "relevant", page.prose(", ".join([relevance or "not given", *unknown_words(document)]))
    yield "sample", _sample(document)
    yield "metric", page.code(document["metric"])
    yield "k", ", ".join(map(count, document["k"]))
    yield from _provenance(source.get("provenance") or {})
    yield "took", f"{number(document['seconds'], 3)} s"


def _origin(facts: Mapping[str, Any]) -> Html:
    kind = ", a finished run" if facts.get("kind") == "run" else ""
    column = facts.get("column")
    named = join(", column ", page.code(key_words(column))) if column else None
    return join(page.code(facts["path"]), kind, named)


def _sample(document: Mapping[str, Any]) -> str:
    queries = document["queries"]
    lost = queries.get("nonfinite")
    said = f"{count(queries['used'])} queries, seed {document['seed']}"
    return f"{said}; {count(lost)} not finite were left out" if lost else said


def _provenance(known: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    if known.get("model"):
        yield "model", page.code(known["model"])
    if known.get("space"):
        yield "space", page.identity(str(known["space"]))
