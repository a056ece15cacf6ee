"""The table of several norms' quantiles below one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchnorm_tool.report import page
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import count, number
from batchnorm_tool.report.summary import spread

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html

_QUANTILES = ("min", "5 %", "25 %", "median", "75 %", "95 %", "max")


def norm_table(norms: Mapping[str, Mapping[str, Any]], caption: str, heading: str = "norm") -> Html:
    """Show count, quantiles, mean and standard deviation of several norms.

    Args:
        norms: Norm statistics as the manifest has them, by label such as ``"l2"``.
        caption: What the table holds.
        heading: What the labels are.

    Returns:
        A table with one row for each label.
    """
    columns = [Column(heading, numeric=False)]
    columns += map(Column, ("vectors", *_QUANTILES, "mean", "std"))
    rows = [
        [label, count(stats["count"]), *map(number, [*spread(stats), stats["mean"], stats["std"]])]
        for label, stats in norms.items()
    ]
    return page.table(caption, columns, rows)
