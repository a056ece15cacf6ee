"""The chart of norm quantiles along the parts and chunks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import Axis, count, number

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame

Values = NDArray[np.float64]
_QUANTILES = ("q05", "q25", "q50", "q75", "q95")
# More steps than this are thinner than two pixels of a wide chart.
_MOST_STEPS = 360
# From this ratio on, the lower of two norms could not be told from zero on a linear axis.
_LOG_FROM = 50.0


@dataclass(frozen=True)
class _Steps:
    """Norm quantiles of consecutive chunks, several of them gathered into a step where need be.

    Attributes:
        edges: First row of each step, and the end of the last.
        vectors: Finite vectors in each step.
        quantiles: By name, one value for each step; NaN where it has no finite vector.
        gathered: Chunks in a step, at most.
        chunks: Chunks in all.
    """

    edges: Values
    vectors: NDArray[np.int64]
    quantiles: dict[str, Values]
    gathered: int
    chunks: int


def part_chart(id_: str, chunks: pa.Table, output: str, norm: str) -> Html:
    """Draw median, middle half and middle 90 % of a norm along the rows of a run.

    Args:
        id_: Identifier, unique in the page.
        chunks: The table of chunk statistics.
        output: The model output to show.
        norm: Label of the norm to show.

    Returns:
        A figure with the numbers behind it, or a note where there is nothing to draw.
    """
    steps = _gather(chunks, output, norm)
    if steps is None:
        return page.note("No chunk holds a finite vector.")
    words = svg.Words(
        id_,
        f"Quantiles of the {norm} norm along the run",
        f"{count(steps.chunks)} chunks; the median lies between "
        f"{number(float(np.nanmin(steps.quantiles['q50'])))} and "
        f"{number(float(np.nanmax(steps.quantiles['q50'])))}.",
    )
    draw = partial(_draw, axes=_axes(steps, norm), steps=_series(steps))
    data = page.behind("The numbers behind this chart", _table(steps, norm))
    return page.chart(words, draw, *_remark(steps), data)


def _draw(words: svg.Words, frame: Frame, axes: tuple[Axis, Axis], steps: svg.Steps) -> Html:
    return svg.band_chart(words, axes, steps, frame)


def _gather(chunks: pa.Table, output: str, norm: str) -> _Steps | None:
    wanted = pc.and_(pc.equal(chunks["output"], output), pc.equal(chunks["norm"], norm))
    rows = chunks.filter(wanted).sort_by([("first_row", "ascending"), ("part", "ascending")])
    quantiles = {name: _floats(rows, name) for name in _QUANTILES}
    if rows.num_rows == 0 or np.isnan(quantiles["q50"]).all():
        return None
    group = -(-rows.num_rows // _MOST_STEPS)
    starts = np.arange(0, rows.num_rows, group)
    first, length = (_floats(rows, name) for name in ("first_row", "rows"))
    finite = np.where(np.isnan(quantiles["q50"]), 0.0, _floats(rows, "vectors"))
    finite -= np.where(finite > 0, _floats(rows, "nonfinite"), 0.0)
    return _Steps(
        edges=np.append(first[starts], first[-1] + length[-1]),
        vectors=np.add.reduceat(finite, starts).astype(np.int64),
        quantiles={
            name: _gathered(name, values, finite, starts) for name, values in quantiles.items()
        },
        gathered=group,
        chunks=rows.num_rows,
    )


def _gathered(name: str, values: Values, weights: Values, starts: NDArray[np.int64]) -> Values:
    # The outer band keeps every chunk's extremes, so that one odd chunk among many is not
    # averaged away; the inner quantiles are means over the vectors.
    if name == "q05":
        return np.fmin.reduceat(values, starts)
    if name == "q95":
        return np.fmax.reduceat(values, starts)
    totals = np.add.reduceat(weights, starts)
    shares = weights / np.repeat(totals, np.diff([*starts, len(values)])).clip(min=1)
    means = np.add.reduceat(np.where(weights > 0, values, 0.0) * shares, starts)
    return np.where(totals > 0, means, np.nan)


def _floats(rows: pa.Table, column: str) -> Values:
    values = rows[column].combine_chunks().cast(pa.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).copy()


def _axes(steps: _Steps, norm: str) -> tuple[Axis, Axis]:
    low = float(np.nanmin(steps.quantiles["q05"]))
    high = float(np.nanmax(steps.quantiles["q95"]))
    across = Axis("row", float(steps.edges[0]), float(steps.edges[-1]), "whole")
    if low > 0 and high / low >= _LOG_FROM:
        return across, Axis(f"{norm} norm (log scale)", low / 1.2, high, "log")
    room = (high / 2 - low / 2) / 5 or abs(high) / 20 or 1.0
    return across, Axis(f"{norm} norm", max(low - room, 0.0), high + room)


def _series(steps: _Steps) -> svg.Steps:
    quantiles: dict[str, Sequence[float]] = {
        name: values.tolist() for name, values in steps.quantiles.items()
    }
    return svg.Steps(
        steps.edges.tolist(),
        [
            svg.Band("5\N{EN DASH}95 %", quantiles["q05"], quantiles["q95"]),
            svg.Band("25\N{EN DASH}75 %", quantiles["q25"], quantiles["q75"]),
        ],
        [svg.Line("median", quantiles["q50"])],
    )


def _remark(steps: _Steps) -> list[Html]:
    if steps.gathered == 1:
        return []
    return [
        page.note(
            f"Each step gathers {steps.gathered} chunks: median and middle half are their means, "
            "the outer band reaches over all of their 5\N{EN DASH}95 % ranges."
        )
    ]


def _table(steps: _Steps, norm: str) -> Html:
    headings = ("first row", "vectors", "5 %", "25 %", "median", "75 %", "95 %")
    rows: list[Sequence[Any]] = [
        [
            count(int(steps.edges[index])),
            count(int(steps.vectors[index])),
            *(number(float(steps.quantiles[name][index])) for name in _QUANTILES),
        ]
        for index in range(len(steps.vectors))
    ]
    return page.table(f"Quantiles of the {norm} norm", [Column(name) for name in headings], rows)
