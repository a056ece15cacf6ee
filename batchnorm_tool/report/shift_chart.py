"""The chart of how far the mean of each dimension moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from batchnorm_tool.report import page, svg
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.scale import Axis, count, signed

if TYPE_CHECKING:
    from batchnorm_tool.report.markup import Html
    from batchnorm_tool.report.plot import Frame

# A wide chart has about as many pixels; more dimensions than this share a bar.
_MOST_BARS = 512
# A narrower range than this would fill the chart with shifts that nobody will notice.
_NARROWEST = 0.1
_ROOM = 0.05


def shift_chart(id_: str, shift: Sequence[float | None]) -> Html:
    """Draw the shift of each dimension in standard deviations, as bars from zero.

    Args:
        id_: Identifier, unique in the page.
        shift: A number for each dimension; ``None`` where A never changes and B differs.

    Returns:
        A figure with the numbers behind it, or a note where there is nothing to draw.
    """
    values = [math.nan if value is None else float(value) for value in shift]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return page.note("No dimension has a shift.")
    axes = Axis("dimension", 0, len(values), "whole"), _y_axis(known)
    words = svg.Words(
        id_,
        "Shift of each dimension",
        f"{count(len(values))} dimensions; shifts from {signed(min(known))} to "
        f"{signed(max(known))} standard deviations of A.",
    )
    draw = partial(_draw, axes=axes, bars=list(_bars(values)))
    data = page.behind("The numbers behind this chart", _table(values))
    return page.chart(words, draw, *map(page.note, _remarks(values)), data)


def _draw(words: svg.Words, frame: Frame, axes: tuple[Axis, Axis], bars: Sequence[svg.Bar]) -> Html:
    return svg.bar_chart(words, axes, bars, frame)


def _y_axis(known: Sequence[float]) -> Axis:
    low, high = min(0.0, *known), max(0.0, *known)
    room = max(_NARROWEST - (high - low), 0.0) / 2 + _ROOM * (high - low)
    label = "shift of the mean, standard deviations of A"
    return Axis(label, low - room if low < 0 or not high else 0.0, high + room)


def _group(values: Sequence[float]) -> int:
    return -(-len(values) // _MOST_BARS)


def _bars(values: Sequence[float]) -> Iterator[svg.Bar]:
    group = _group(values)
    for start in range(0, len(values), group):
        piece = [value for value in values[start : start + group] if math.isfinite(value)]
        end = min(start + group, len(values))
        # A group reaches to both of its extremes, so that no dimension is averaged away.
        for extreme in sorted({min(piece, default=0.0), max(piece, default=0.0)}):
            yield svg.Bar(start, end, extreme, f"{_label(start, end - 1)}: {signed(extreme)}")


def _label(first: int, last: int) -> str:
    return f"dimension {first}" if first == last else f"dimensions {first} to {last}"


def _remarks(values: Sequence[float]) -> Iterator[str]:
    group = _group(values)
    if group > 1:
        yield f"Each bar gathers {group} dimensions and reaches to their extremes."
    lacking = sum(map(math.isnan, values))
    if lacking:
        yield (
            f"{count(lacking)} dimensions never change in A and differ in B: their shift has no "
            "unit and is left out."
        )


def _table(values: Sequence[float]) -> Html:
    columns = [Column("dimension"), Column("shift, standard deviations of A")]
    rows = [[count(index), signed(value)] for index, value in enumerate(values)]
    return page.table("Shift of each dimension", columns, rows)
