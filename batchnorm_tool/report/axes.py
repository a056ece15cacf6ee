"""The frame of a chart, and its axes with round ticks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from batchnorm_tool.display import PLAIN_FROM, PLAIN_TO, short, typeset
from batchnorm_tool.report import Html, tag

FONT = 12
# Widest digit of the usual system fonts at 12 px, rounded down: labels are mostly digits and dots.
LETTER = 7.2
ROW = 18
_TICK_GAP = 6
_RIGHT = 12
_LABEL_GAP = 6
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS_FROM = 10_000
# Fewer round ticks of the 1-2-5 series than this do not show how an axis runs.
_FEWEST_TICKS = 3
_SMALLEST_STEP = 1e-300


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: a range, its name, and how values lie on it.

    Attributes:
        label: What it measures, with its unit.
        low: Value at its beginning.
        high: Value at its end, above ``low``.
        kind: ``"linear"``; ``"whole"``, linear with ticks on integers; or ``"log"``, which
            needs ``low > 0``.
    """

    label: str
    low: float
    high: float
    kind: Literal["linear", "whole", "log"] = "linear"

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at the beginning and 1 at the end; others are clamped.

        Example:
            >>> Axis("norm", 1.0, 4.0, "log").at(2.0)
            0.5
        """
        if self.kind == "log":
            low, high, here = map(math.log2, (self.low, self.high, max(value, self.low)))
        else:
            # Halves, because the difference of two finite numbers can overflow.
            low, high, here = self.low / 2, self.high / 2, value / 2
        if not high > low:
            return 0.5
        return min(max((here - low) / (high - low), 0.0), 1.0)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return round values within the range with their labels, lowest first.

        Example:
            >>> Axis("rows", 0, 1797, "whole").ticks(4)
            [(0.0, '0'), (500.0, '500'), (1000.0, '1,000'), (1500.0, '1,500')]
        """
        if self.kind == "log":
            values = _log_ticks(self.low, self.high, most)
            if len(values) >= _FEWEST_TICKS:
                return [(value, short(value)) for value in values]
        step = _nice_step(self.low, self.high, most)
        if self.kind == "whole":
            step = max(step, 1.0)
        values = _multiples(self.low, self.high, step)
        return [(value, _tick_label(value, step, self)) for value in values]


def _nice_step(low: float, high: float, most: int) -> float:
    raw = (high / 2 - low / 2) / (most / 2)
    if raw < _SMALLEST_STEP:
        return _SMALLEST_STEP
    magnitude = 10.0 ** math.floor(math.log10(raw))
    # The tolerance keeps 0.1 + 0.2 from asking for the next larger step.
    return next(
        (nice * magnitude for nice in (1, 2, 5) if nice * magnitude >= raw * (1 - 1e-9)),
        10 * magnitude,
    )


def _multiples(low: float, high: float, step: float) -> list[float]:
    if high / 2 - low / 2 < step / 4:
        return []
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [(decades, (1, 2, 5)), (decades, (1,))]
    stride = math.ceil(len(decades) / most)
    choices.append((range(decades.start, decades.stop, stride), (1,)))
    for exponents, factors in choices:
        values = [float(f"{factor}e{power}") for power in exponents for factor in factors]
        inside = [value for value in values if low <= value <= high and math.isfinite(value)]
        if len(inside) <= most:
            break
    thirds = [float(f"{factor}e{power}") for power in decades for factor in (1, 3)]
    thirds = [value for value in thirds if low <= value <= high]
    return thirds if len(inside) < _FEWEST_TICKS <= len(thirds) <= most else inside


def _tick_label(value: float, step: float, axis: Axis) -> str:
    largest = max(abs(axis.low), abs(axis.high))
    if axis.kind == "whole":
        if largest < _UNITS_FROM:
            return typeset(f"{value:,.0f}")
        unit, suffix = next(pair for pair in _UNITS if largest >= pair[0])
        return typeset(f"{value / unit:g}{suffix if value else ''}")
    if value == 0:
        return "0"
    if PLAIN_FROM <= largest < PLAIN_TO:
        return typeset(f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}")
    digits = math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9)
    return typeset(f"{value:.{max(digits, 0)}e}")


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
