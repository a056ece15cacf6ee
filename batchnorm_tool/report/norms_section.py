"""The norms of the raw predictions: their distributions, and how far norms agree about rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page
from batchnorm_tool.report.comparison_document import between, measured_norms
from batchnorm_tool.report.markup import tag
from batchnorm_tool.report.norm_overlay import Overlay, norm_overlay
from batchnorm_tool.report.norm_table import norm_table
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import count, fixed, percent

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.series import Look

# Different norms of a row differ by a factor of up to its width: on a linear axis the smaller ones
# would stand in one bar.
_LOG_FROM = 2.0


def norms_section(document: Mapping[str, Any], looks: Mapping[str, Look]) -> Html:
    """Show how the norms of the raw predictions are distributed.

    Args:
        document: The document of a comparison.
        looks: The look of each norm.

    Returns:
        A section with one chart of all norms, their quantiles, and how they agree.
    """
    norms = measured_norms(document)
    if not norms:
        return page.section("Norms of the raw predictions", tag("p", "No rows, hence no norms."))
    overlay = Overlay(norms, looks, "norm", _LOG_FROM)
    return page.section(
        "Norms of the raw predictions",
        norm_overlay("norms", "Distribution of each norm", overlay),
        norm_table(norms, "Norms before normalization"),
        *_agreement(document, norms),
    )


def _agreement(document: Mapping[str, Any], norms: Mapping[str, Any]) -> Iterator[Html]:
    correlation, popularity = document.get("rank_correlation"), document.get("popularity")
    columns = [Column("norm", numeric=False)]
    columns += [Column(f"with {label}") for label in norms]
    if popularity:
        columns.append(Column("with popularity"))
    columns.append(Column("rows at unit length"))
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


def _correlation(correlation: Mapping[str, Any] | None, one: str, other: str) -> float | None:
    found = between(correlation, one, other)
    return 1.0 if one == other else found


def _explanation(document: Mapping[str, Any]) -> str:
    ranked = document.get("ranked_rows")
    words = "Rank correlations are Spearman's"
    words += f", of {count(ranked)} rows." if ranked else "."
    if document.get("popularity"):
        words += (
            " Popularity is how often a row is relevant: where a norm goes with it, dividing by "
            "the norm takes popularity out of the score."
        )
    return words
