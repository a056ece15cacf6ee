"""What charts are drawn with, as inline SVG: axes with round ticks, shapes, series, legends.

Colours are CSS variables with a fallback (``--mark``, ``--line``) and ``currentColor``, so that
one drawing serves dark and light. Text keeps its size only where the drawing is not scaled: draw a
chart for `WIDE` and for `NARROW` and let the page choose.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
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
MARK = "var(--mark, #4a86c5)"
LINE = "var(--line, #1d4f86)"
_LIGHT = ("#3d464e", "#1b62b5", "#b4530a", "#0a7a5c", "#8b3fa8", "#8a6d00")
_DARK = ("#c9d0d6", "#7fb6f2", "#f2a35f", "#56c9a6", "#d3a1ec", "#d9c356")
_DASHES = (None, "7 3", "2 3", "9 3 2 3")
# Paths around the middle of a marker, all of about the same area. Five, so that colour, dashes and
# marker together repeat only after 60 series.
_MARKERS = (
    "m-4,0a4,4 0 1 0 8,0a4,4 0 1 0 -8,0z",
    "m-3.6,-3.6h7.2v7.2h-7.2z",
    "m0,-5l5,8.6h-10z",
    "m0,-5.2l5.2,5.2l-5.2,5.2l-5.2,-5.2z",
    "m0,5l5,-8.6h-10z",
)
_KEY = 26
_GAP = 16


def _variables(colours: tuple[str, ...], margin: str = "") -> str:
    each = [f"--series-{n}: {colour};" for n, colour in enumerate(colours)]
    return textwrap.indent(f":root {{ {' '.join(each[:4])}\n  {' '.join(each[4:])} }}", margin)


STYLE = f"""
{_variables(_LIGHT)}
@media (prefers-color-scheme: dark) {{
{_variables(_DARK, "  ")}
}}
@media print {{
{_variables(_LIGHT, "  ")}
}}
"""
"""The colours, for the style sheet of a page; the first one is neutral: it is what others are
compared with."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it measures, from ``low`` to ``high``; ``whole`` has its ticks on integers.

    A ``log`` axis needs ``low > 0``.
    """

    label: str
    low: float
    high: float
    kind: Literal["linear", "whole", "log"] = "linear"

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at the beginning and 1 at the end; others are clamped."""
        if self.kind == "log":
            low, high, here = map(math.log2, (self.low, self.high, max(value, self.low)))
        else:
            # Halves, because the difference of two finite numbers can overflow.
            low, high, here = self.low / 2, self.high / 2, value / 2
        if not high > low:
            return 0.5
        return min(max((here - low) / (high - low), 0.0), 1.0)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return round values within the range with their labels, lowest first."""
        if self.kind == "log":
            values = _log_ticks(self.low, self.high, most)
            if len(values) >= _FEWEST_TICKS:
                return [(value, short(value)) for value in values]
        step = _nice_step(self.low, self.high, most)
        if self.kind == "whole":
            step = max(step, 1.0)
        if self.high / 2 - self.low / 2 < step / 4:
            return []
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
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
    """The rectangle inside of the axes, in pixels; above it are rows of text for a legend."""

    x: Axis
    y: Axis
    frame: Frame
    legend_rows: int = 0

    @cached_property
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
        yield rule((plot.left, plot.right), (y, y), "0.45" if strong else "0.13")
        yield text(label, plot.left - _TICK_GAP, y + 4, "end")
    yield from _x_labels(plot)


def _x_labels(plot: Plot) -> Iterator[Html]:
    free_from = 0.0
    for value, label in plot.x.ticks(10 if plot.frame.width > 500 else 6):
        half = len(label) * LETTER / 2
        x = plot.across(value)
        middle = min(max(x, half), plot.frame.width - half)
        if middle - half < free_from:
            continue
        free_from = middle + half + _LABEL_GAP
        ends = {"x1": x, "x2": x, "y1": plot.bottom, "y2": plot.bottom + 4}
        placed = {name: pixels(place) for name, place in ends.items()}
        yield tag("line", **placed, stroke="currentColor", stroke_opacity="0.5")
        yield text(label, middle, plot.bottom + ROW - 1, "middle")


def rule(across: tuple[float, float], down: tuple[float, float], opacity: str = "0.5") -> Html:
    """Draw a straight line between two places on each axis, in pixels."""
    (x1, x2), (y1, y2) = across, down
    places = {"x1": pixels(x1), "x2": pixels(x2), "y1": pixels(y1), "y2": pixels(y2)}
    return tag("line", stroke="currentColor", stroke_opacity=opacity, **places)


def text(words: object, x: float, y: float, anchor: str, *, muted: bool = False) -> Html:
    """Write words that start, end or have their middle at a place."""
    depth = "0.72" if muted else None
    return tag("text", words, x=pixels(x), y=pixels(y), text_anchor=anchor, fill_opacity=depth)


def pixels(value: float) -> str:
    """Return a length with one decimal where it needs one."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class ChartText:
    """What a chart says to somebody who does not see it: what it shows, what is seen in it.

    Its ``id`` is unique in the page: letters, digits and hyphens.
    """

    id: str
    title: str
    description: str


def drawing(words: ChartText, frame: Frame, pieces: Iterable[Html]) -> Html:
    """Put the pieces of a chart into one element that says what it shows."""
    return tag(
        "svg",
        tag("title", words.title, id=f"{words.id}-title"),
        tag("desc", words.description, id=f"{words.id}-desc"),
        *pieces,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {frame.width} {frame.height}",
        role="img",
        aria_labelledby=f"{words.id}-title",
        aria_describedby=f"{words.id}-desc",
        font_size=FONT,
        font_family="inherit",
        fill="currentColor",
    )


def path(place: str, class_: str, **style: str) -> Html:
    """Return a path that is not filled unless ``style``, its attributes, says so."""
    return tag("path", class_=class_, d=place, **{"fill": "none", **style})


def box(
    place: tuple[float, float, float, float],
    class_: str | None = None,
    said: str | None = None,
    *,
    radius: int | None = None,
    opacity: str | None = None,
) -> Html:
    """Draw a rectangle, given by left, top, width and height; pointing at it shows what it says."""
    x, y, width, height = map(pixels, place)
    title = None if said is None else tag("title", said)
    at = {"class_": class_, "x": x, "y": y, "width": width, "height": height, "rx": radius}
    return tag("rect", title, **at, fill=MARK, fill_opacity=opacity)


@dataclass(frozen=True)
class SeriesStyle:
    """The look of one series: a CSS colour that follows the theme, and two SVG path attributes.

    The line of a series has no gaps where ``dashes`` is ``None``.
    """

    colour: str
    dashes: str | None
    marker: str


def series_styles(labels: Iterable[str]) -> dict[str, SeriesStyle]:
    """Give every label a look of its own, the first one the neutral colour."""
    found = {}
    for place, label in enumerate(dict.fromkeys(labels)):
        colour = place % len(_LIGHT)
        variable = f"var(--series-{colour}, {_LIGHT[colour]})"
        dashes, marker = _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)]
        found[label] = SeriesStyle(variable, dashes, marker)
    return found


def marker(style: SeriesStyle, x: float, y: float) -> Html:
    """Draw a series' marker with its middle at a place."""
    # The rim keeps markers that touch apart, and apart from the line that they stand on.
    rim = {"stroke": "var(--paper, #fff)", "stroke_width": "1"}
    return path(f"M{x:.1f},{y:.1f}{style.marker}", "marker", fill=style.colour, **rim)


def line(style: SeriesStyle, place: str, class_: str, **more: str) -> Html:
    """Draw a path in a series' colour and dashes."""
    dashes = {} if style.dashes is None else {"stroke_dasharray": style.dashes}
    return path(place, class_, stroke=style.colour, **dashes, **more)


def legend_rows(labels: Iterable[str], frame: Frame) -> int:
    """Return how many rows a legend takes, none without labels."""
    return 1 + max((row for _, _, row in _places(labels, frame)), default=-1)


def legend(shown: Mapping[str, SeriesStyle], frame: Frame, *, marked: bool) -> Iterator[Html]:
    """Draw the key of each series above a chart, in as many rows as `legend_rows` says."""
    for label, x, row in _places(shown, frame):
        y = ROW * (1 + row) + 8
        yield line(shown[label], f"M{x:.1f},{y}h{_KEY - 6}", "key", stroke_width="1.75")
        if marked:
            yield marker(shown[label], x + (_KEY - 6) / 2, y)
        yield text(label, x + _KEY, y + 4, "start")


def _places(labels: Iterable[str], frame: Frame) -> Iterator[tuple[str, float, int]]:
    x, row = 0.0, 0
    for label in labels:
        width = _KEY + len(label) * LETTER
        if x and x + width > frame.width:
            x, row = 0.0, row + 1
        yield label, x, row
        x += width + _GAP
