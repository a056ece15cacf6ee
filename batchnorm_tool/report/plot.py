"""The frame of a chart: its size, where values lie in it, its axes with their labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.report.markup import Html, tag

if TYPE_CHECKING:
    from batchnorm_tool.report.scale import Axis

FONT = 12
# Widest digit of the usual system fonts at 12 px, rounded down: labels are mostly digits and dots.
LETTER = 7.2
ROW = 18
_TICK_GAP = 6
_RIGHT = 12
_LABEL_GAP = 6


@dataclass(frozen=True)
class Frame:
    """The size of a drawing in CSS pixels."""

    width: int
    height: int


WIDE = Frame(800, 270)
NARROW = Frame(350, 230)


@dataclass(frozen=True)
class Plot:
    """The rectangle inside of the axes, in pixels.

    Attributes:
        x: The x axis.
        y: The y axis.
        frame: The size of the drawing.
        legend_rows: Rows of text to leave free between the y axis' label and the rectangle.
    """

    x: Axis
    y: Axis
    frame: Frame
    legend_rows: int

    @property
    def left(self) -> float:
        """Where the y axis stands, right of its labels."""
        longest = max((len(label) for _, label in self.y_ticks), default=1)
        return math.ceil(longest * LETTER) + _TICK_GAP + 2

    @property
    def right(self) -> float:
        """Where the x axis ends."""
        return self.frame.width - _RIGHT

    @property
    def top(self) -> float:
        """Where the y axis ends."""
        return ROW * (1 + self.legend_rows) + 8

    @property
    def bottom(self) -> float:
        """Where the x axis lies."""
        return self.frame.height - 2 * ROW - 4

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Values and labels of the x axis."""
        return self.x.ticks(10 if self.frame.width > 500 else 6)

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Values and labels of the y axis."""
        return self.y.ticks(5)

    def across(self, value: float) -> float:
        """Return the place of a value on the x axis."""
        return self.left + self.x.at(value) * (self.right - self.left)

    def down(self, value: float) -> float:
        """Return the place of a value on the y axis."""
        return self.bottom - self.y.at(value) * (self.bottom - self.top)


def scaffold(plot: Plot) -> Iterator[Html]:
    """Draw what stands behind the data: labels, ticks and grid."""
    yield text(plot.y.label, 0, FONT, "start", muted=True)
    yield text(plot.x.label, plot.right, plot.frame.height - 4, "end", muted=True)
    for value, label in plot.y_ticks:
        y = plot.down(value)
        # Zero is worth a stronger line only where values lie on both sides of it.
        strong = value == 0 and plot.y.low < 0
        yield _rule(plot.left, y, plot.right, "0.45" if strong else "0.13")
        yield text(label, plot.left - _TICK_GAP, y + 4, "end")
    yield from _x_labels(plot)


def _x_labels(plot: Plot) -> Iterator[Html]:
    free_from = 0.0
    for value, label in plot.x_ticks:
        half = len(label) * LETTER / 2
        x = plot.across(value)
        middle = min(max(x, half), plot.frame.width - half)
        if middle - half < free_from:
            continue
        free_from = middle + half + _LABEL_GAP
        yield tag(
            "line",
            x1=pixels(x),
            x2=pixels(x),
            y1=pixels(plot.bottom),
            y2=pixels(plot.bottom + 4),
            stroke="currentColor",
            stroke_opacity="0.5",
        )
        yield text(label, middle, plot.bottom + ROW - 1, "middle")


def _rule(left: float, y: float, right: float, opacity: str) -> Html:
    places = {"x1": left, "x2": right, "y1": y, "y2": y}
    shown = {name: pixels(place) for name, place in places.items()}
    return tag("line", stroke="currentColor", stroke_opacity=opacity, **shown)


def base_line(plot: Plot) -> Html:
    """Draw the x axis."""
    return _rule(plot.left, plot.bottom, plot.right, "0.5")


def text(words: object, x: float, y: float, anchor: str, *, muted: bool = False) -> Html:
    """Write words that start, end or have their middle at a place."""
    return tag(
        "text",
        words,
        x=pixels(x),
        y=pixels(y),
        text_anchor=anchor,
        fill_opacity="0.72" if muted else None,
    )


def pixels(value: float) -> str:
    """Return a length with one decimal where it needs one."""
    return f"{value:.1f}".removesuffix(".0")
