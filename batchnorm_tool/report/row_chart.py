"""Horizontal bars, one for each name, with the value printed behind the bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.report.markup import Html, tag
from batchnorm_tool.report.plot import LETTER, Frame, pixels, text
from batchnorm_tool.report.svg import Words, drawing

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEIGHT = 24
_BAR = 14
_GAP = 8


@dataclass(frozen=True)
class Row:
    """One bar: its name, its length, and the value as it is printed; NaN draws no bar."""

    label: str
    value: float
    shown: str


@dataclass(frozen=True)
class _Lanes:
    """Where bars lie, in pixels: zero, and how much of the width a value of one takes."""

    zero: float
    scale: float


def row_chart(words: Words, rows: Sequence[Row], frame: Frame) -> Html:
    """Draw a bar to the right for what is above zero, to the left for what is below.

    Args:
        words: Title and description for screen readers.
        rows: What to draw, top to bottom.
        frame: The width to draw for; the height follows from the number of rows.

    Returns:
        One ``<svg>`` element.

    Example:
        >>> from batchnorm_tool.report.plot import NARROW
        >>> rows = [Row("none", 5.0, "5.0"), Row("l2", 0.5, "0.5")]
        >>> row_chart(Words("h", "Hubness", "Two."), rows, NARROW).count('"bar"')
        2
    """
    lanes = _lanes(rows, frame)
    pieces = [
        piece for index, row in enumerate(rows) for piece in _row(lanes, row, index * _HEIGHT)
    ]
    bottom = len(rows) * _HEIGHT
    place = {"x1": lanes.zero, "x2": lanes.zero, "y1": 0.0, "y2": float(bottom)}
    shown = {name: pixels(value) for name, value in place.items()}
    pieces.append(tag("line", stroke="currentColor", stroke_opacity="0.5", **shown))
    return drawing(words, Frame(frame.width, bottom), pieces)


def _lanes(rows: Sequence[Row], frame: Frame) -> _Lanes:
    left = max(len(row.label) for row in rows) * LETTER + _GAP
    right = frame.width - max(len(row.shown) for row in rows) * LETTER - _GAP
    finite = [row.value for row in rows if math.isfinite(row.value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    scale = (right - left) / ((high - low) or 1.0)
    return _Lanes(left - low * scale, scale)


def _row(lanes: _Lanes, row: Row, top: float) -> Iterator[Html]:
    base = top + _HEIGHT / 2 + 4
    length = row.value * lanes.scale if math.isfinite(row.value) else 0.0
    left, right = lanes.zero + min(length, 0.0), lanes.zero + max(length, 0.0)
    yield text(row.label, min(left, lanes.zero) - _GAP, base, "end")
    if length:
        yield tag(
            "rect",
            tag("title", f"{row.label}: {row.shown}"),
            class_="bar",
            x=pixels(left),
            y=pixels(top + (_HEIGHT - _BAR) / 2),
            width=pixels(max(right - left, 1.0)),
            height=_BAR,
            rx=2,
            fill="var(--mark, #4a86c5)",
        )
    yield text(row.shown, right + 6, base, "start")
