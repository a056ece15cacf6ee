"""The page about a store's nights: what became of them, rows, norms, and the gate over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page
from batchnorm_tool.report.comparison_document import base_name, key_words, real
from batchnorm_tool.report.history_charts import (
    STYLE,
    Judged,
    fates_chart,
    gate_chart,
    norms_chart,
    rows_chart,
)
from batchnorm_tool.report.history_document import (
    broken_of,
    changed_rows,
    counted,
    fate_words,
    finding_name,
    findings_of,
    gate_words,
    kind_words,
    norm_words,
    rows_of,
    when,
)
from batchnorm_tool.report.history_summary import standing
from batchnorm_tool.report.markup import join, tag
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import number

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html

_KINDS = ("new", "changed", "vanished", "touched")
_SCOPES = {
    "input": "Tonight's input",
    "changed": "Vectors of the changed rows alone",
    "whole": "Vectors of all rows",
}
_MOST_NIGHTS_TOLD = 50


def history_page(document: Mapping[str, Any]) -> str:
    """Draw the nights of a store on one HTML page that works offline.

    Args:
        document: ``path``, ``live``, ``hold``, ``waiting``, ``kept`` and ``nights``, records of
            nights with the oldest first; nothing else is read.

    Returns:
        An HTML document without scripts that loads nothing, to be written as UTF-8. Names from
        the data are text in it, whatever they contain.
    """
    nights = document["nights"]
    sections = [_nights(document)]
    if nights:
        sections = [_fates(document), _rows(nights), _norms(nights), *_gates(nights), *sections]
    title = f"Nights of {base_name(document['path'])}"
    footer = "batchnorm_tool. This page loads nothing and runs no script."
    return page.document(title, _header(document), sections, footer, STYLE)


def _header(document: Mapping[str, Any]) -> Html:
    hold = document.get("hold")
    why = f"Nothing is published: on hold since {hold['since']} ({hold['reason']})." if hold else ""
    return join(
        tag("p", "The nights of an embedding store", class_="quiet"),
        tag("h1", page.name(base_name(document["path"]))),
        tag("p", page.code(document["path"])),
        page.figures(_figures(document)),
        page.note(why) if hold else None,
    )


def _figures(document: Mapping[str, Any]) -> Iterator[tuple[str, object, bool]]:
    nights = {night["version"]: night for night in document["nights"]}
    live, waiting = document["live"], document.get("waiting")
    yield "live version", "none" if live is None else str(live), live is None
    yield "live rows", counted(rows_of(nights.get(live, {}), "live")), False
    yield "waiting", "none" if waiting is None else str(waiting), waiting is not None
    yield "on hold", "yes" if document.get("hold") else "no", bool(document.get("hold"))
    yield "versions kept", counted(len(document["kept"])), False


def _fates(document: Mapping[str, Any]) -> Html:
    return page.section(
        "What became of every night",
        tag("p", f"{standing(document)}.", class_="quiet"),
        fates_chart(document),
    )


def _rows(nights: Sequence[Mapping[str, Any]]) -> Html:
    amounts = {kind: [rows_of(night, kind) for night in nights] for kind in _KINDS}
    amounts["changed"] = [changed_rows(night) for night in nights]
    charts = [rows_chart(f"rows-{kind}", kind, nights, amounts[kind]) for kind in _KINDS]
    return page.section(
        "Rows by kind",
        page.note(
            "Changed rows include those that were computed again with the same features. A first "
            "load or a new space may reach beyond the top of its chart."
        ),
        tag("div", *charts, class_="pair"),
    )


def _norms(nights: Sequence[Mapping[str, Any]]) -> Html:
    return page.section("Norms before normalization", norms_chart(nights))


def _gates(nights: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    every = _judged(nights)
    charts = []
    for scope, heading in _SCOPES.items():
        small = [
            gate_chart(f"gate-{scope}-{place}", limit.rpartition(".")[2], judged)
            for place, ((limit, its_scope), judged) in enumerate(every.items())
            if its_scope == scope
        ]
        if small:
            charts += [tag("h3", heading), tag("div", *small, class_="pair")]
    if charts:
        yield page.section(
            "What the gate measured",
            page.note(
                "Line: the value of each night. Dashes: the most that was allowed. A diamond marks "
                "a night beyond its limit; values beyond four times the limit are cut at the top."
            ),
            *charts,
            page.behind("The numbers behind these charts", _numbers(every)),
            *_broken(nights),
        )


def _judged(nights: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Judged]:
    """Every limit that was ever measured, but for the audit's, by name and scope."""
    found = [{(f["limit"], f["scope"]): f for f in findings_of(night)} for night in nights]
    names = dict.fromkeys(
        name
        for night in found
        for name, finding in night.items()
        if name[1] in _SCOPES and (finding["measured"] is not None or not finding["passed"])
    )
    versions = [night["version"] for night in nights]
    return {name: _values(versions, [night.get(name) for night in found]) for name in names}


def _values(versions: Sequence[int], findings: Sequence[Mapping[str, Any] | None]) -> Judged:
    return Judged(
        versions,
        [math.nan if f is None else real(f["measured"]) for f in findings],
        [math.nan if f is None else real(f["allowed"]) for f in findings],
        [f is None or f["passed"] for f in findings],
    )


def _numbers(every: Mapping[tuple[str, str], Judged]) -> Html:
    names = [finding_name({"limit": limit, "scope": scope}) for limit, scope in every]
    versions = next(iter(every.values())).versions
    measured = zip(*(judged.measured for judged in every.values()), strict=True)
    rows = [
        [str(version), *map(number, values)]
        for version, values in zip(versions, measured, strict=True)
    ]
    columns = [Column("version"), *map(Column, names)]
    return page.table("What the gate measured, the newest first", columns, rows[::-1])


def _broken(nights: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    told = [(night, finding) for night in nights for finding in broken_of(night)]
    if not told:
        return
    columns = [Column("version"), Column("limit", numeric=False), Column("measured")]
    columns += [Column("allowed"), Column("finding", numeric=False)]
    columns += [Column("worst rows", numeric=False)]
    rows = [
        [
            str(night["version"]),
            finding_name(finding),
            number(finding["measured"]),
            number(finding["allowed"]),
            finding["what"],
            _worst(finding),
        ]
        for night, finding in reversed(told)
    ]
    yield page.table("Broken limits, the newest first", columns, rows, shown=_MOST_NIGHTS_TOLD)


def _worst(finding: Mapping[str, Any]) -> Html:
    rows = finding.get("rows") or []
    pieces = [
        join(", " if place else "", page.code(key_words(list(row["key"].values()))))
        for place, row in enumerate(rows)
    ]
    return join(*pieces)


def _nights(document: Mapping[str, Any]) -> Html:
    columns = [Column("version")]
    columns += [Column(name, numeric=False) for name in ("when (UTC)", "state", "kind")]
    columns += [Column(name) for name in ("live rows", "new", "changed", "vanished")]
    columns += [Column("norm median [5\N{EN DASH}95 %]", numeric=False)]
    columns += [Column("gate", numeric=False), Column("model", numeric=False)]
    rows = [_night(night, document) for night in reversed(document["nights"])]
    if not rows:
        return page.section("Nights", page.note("No night has reached the gate yet."))
    return page.section("Nights", page.table("Every night, the newest first", columns, rows))


def _night(night: Mapping[str, Any], document: Mapping[str, Any]) -> list[object]:
    model = night.get("model")
    return [
        str(night["version"]),
        when(night),
        fate_words(night, document),
        kind_words(night),
        *(counted(rows_of(night, name)) for name in ("live", "new")),
        counted(changed_rows(night)),
        counted(rows_of(night, "vanished")),
        norm_words(night),
        gate_words(night),
        page.code(base_name(model["path"])) if model else "\N{EN DASH}",
    ]
