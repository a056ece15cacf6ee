"""A comparison broken down by the groups of a column: a table for each metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from batchnorm_tool.report import page
from batchnorm_tool.report.comparison_document import (
    between,
    families,
    headline,
    metric_name,
    quality,
    real,
    shown_k,
)
from batchnorm_tool.report.markup import join, tag
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import count, fixed, percent

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html

Group: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = Callable[[Group, str], object]

# A column of thousands of values makes thousands of groups, in dozens of tables; the document of
# the comparison has them all.
_MOST_ROWS = 100

STYLE = """
.interval { display: block; color: var(--quiet); font-size: .75rem; }
"""
"""The rules for tables with intervals, for the style sheet of a page."""


def groups_section(document: Mapping[str, Any]) -> Iterator[Html]:
    """Yield the section that breaks a comparison down, where one was asked for.

    Args:
        document: The document of a comparison.

    Yields:
        The section, with the headline's table open and all other tables folded.
    """
    by = document.get("by")
    if not by or not by["groups"]:
        return
    first, *others = _tables(document, by["groups"])
    kind = "deciles of " if by["kind"] == "deciles" else ""
    yield page.section(
        join(f"By {kind}", page.code(by["column"])),
        first,
        page.behind(f"{len(others)} more tables", join(*others)) if others else None,
    )


def _tables(document: Mapping[str, Any], groups: Sequence[Group]) -> Iterator[Html]:
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
        yield _table("Rows that are nobody's neighbour", norms, groups, _antihubs)


def _metrics(document: Mapping[str, Any]) -> list[str]:
    if not document.get("quality"):
        return []
    every = [metric for metrics in families(document).values() for metric in metrics]
    return sorted(every, key=lambda metric: metric != headline(document))


def _ks(document: Mapping[str, Any]) -> list[int]:
    if not _any(document["by"]["groups"], "overlap"):
        return []
    return sorted(document["k"], key=lambda k: k != shown_k(document))


def _any(groups: Sequence[Group], name: str) -> bool:
    return any(group.get(name) for group in groups)


def _table(caption: str, norms: Sequence[str], groups: Sequence[Group], cell: Cell) -> Html:
    columns = [Column("group", numeric=False), Column("queries"), *map(Column, norms)]
    rows = [
        [
            page.name(group["group"]),
            count(group["queries"]),
            *(cell(group, norm) for norm in norms),
        ]
        for group in groups
    ]
    return page.table(caption, columns, rows, shown=_MOST_ROWS)


def _quality_cell(metric: str) -> Cell:
    def cell(group: Group, norm: str) -> Html:
        its = quality(group, norm, metric)
        if not math.isfinite(its.low + its.high):
            return join(fixed(its.value))
        ends = f"{fixed(its.low)}\N{EN DASH}{fixed(its.high)}"
        return join(fixed(its.value), tag("span", ends, class_="interval"))

    return cell


def _overlap_cell(first: str, k: int) -> Cell:
    def cell(group: Group, norm: str) -> str:
        found = between(group.get("overlap"), first, norm) or {}
        return fixed(found.get(str(k)))

    return cell


def _rbo_cell(first: str) -> Cell:
    def cell(group: Group, norm: str) -> str:
        return fixed(between(group.get("rbo"), first, norm))

    return cell


def _skewness(group: Group, norm: str) -> str:
    return fixed(_hubness(group, norm, "skewness"), 2)


def _antihubs(group: Group, norm: str) -> str:
    return percent(_hubness(group, norm, "antihubs"))


def _hubness(group: Group, norm: str, name: str) -> float:
    return real(((group.get("hubness") or {}).get(norm) or {}).get(name))
