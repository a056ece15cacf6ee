"""Our own charts as inline SVG: bars, and lines with bands.

Colours are CSS variables with a fallback (``--mark``, ``--line``) and ``currentColor``, so that
one drawing serves dark and light. Text keeps its size only where the drawing is not scaled: draw a
chart for `axes.WIDE` and for `axes.NARROW` and let the page choose.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchnorm_tool.report import Html, join, tag
from batchnorm_tool.report.axes import (
    FONT,
    LETTER,
    ROW,
    Axis,
    Frame,
    Plot,
    base_line,
    pixels,
    scaffold,
    text,
)

_MARK = "var(--mark, #4a86c5)"
_LINE = "var(--line, #1d4f86)"
_OPACITIES = ("0.22", "0.42", "0.42")
STYLE = """
:root { --series-0: #3d464e; --series-1: #1b62b5; --series-2: #b4530a; --series-3: #0a7a5c;
  --series-4: #8b3fa8; --series-5: #8a6d00; }
@media (prefers-color-scheme: dark) {
  :root { --series-0: #c9d0d6; --series-1: #7fb6f2; --series-2: #f2a35f; --series-3: #56c9a6;
    --series-4: #d3a1ec; --series-5: #d9c356; }
}
@media print {
  :root { --series-0: #3d464e; --series-1: #1b62b5; --series-2: #b4530a; --series-3: #0a7a5c;
    --series-4: #8b3fa8; --series-5: #8a6d00; }
}
"""
"""The colours, for the style sheet of a page; the first one is neutral: it is what others are
compared with."""
_COLOURS = (
    ("--series-0", "#3d464e"),
    ("--series-1", "#1b62b5"),
    ("--series-2", "#b4530a"),
    ("--series-3", "#0a7a5c"),
    ("--series-4", "#8b3fa8"),
    ("--series-5", "#8a6d00"),
)
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


@dataclass(frozen=True)
class ChartText:
    """What a chart says to somebody who does not see it.

    Attributes:
        id: Unique in the page; letters, digits and hyphens.
        title: What the chart shows.
        description: What is to be seen in it, in a sentence or two.
    """

    id: str
    title: str
    description: str


@dataclass(frozen=True)
class Bar:
    """One bar from ``lower`` to ``upper`` on the x axis, and what hovering over it says."""

    lower: float
    upper: float
    height: float
    words: str


@dataclass(frozen=True)
class Line:
    """One value for each step; NaN where there is none."""

    label: str
    values: Sequence[float]


@dataclass(frozen=True)
class Band:
    """A range for each step; NaN where there is none."""

    label: str
    lower: Sequence[float]
    upper: Sequence[float]


@dataclass(frozen=True)
class Steps:
    """What a band chart draws.

    Attributes:
        edges: ``n + 1`` ascending x values; step ``i`` reaches from edge ``i`` to ``i + 1``.
        bands: Ranges of ``n`` values, the widest first, three at most.
        lines: Lines of ``n`` values, drawn over the bands.
    """

    edges: Sequence[float]
    bands: Sequence[Band]
    lines: Sequence[Line]


def bar_chart(words: ChartText, frame: Frame, axes: tuple[Axis, Axis], bars: Sequence[Bar]) -> Html:
    """Draw bars that stand on zero.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> from batchnorm_tool.report.axes import Axis
        >>> axes = Axis("norm", 0, 2), Axis("vectors", 0, 5)
        >>> bars = [Bar(0, 1, 5, "5 vectors"), Bar(1, 2, 2, "2 vectors")]
        >>> drawing = bar_chart(ChartText("a", "Norms", "Two bars."), NARROW, axes, bars)
        >>> drawing.count('class="bar"')
        2
    """
    plot = Plot(axes[0], axes[1], frame, legend_rows=0)
    shapes = [_bar(plot, bar) for bar in bars if bar.height]
    return drawing(words, plot.frame, (*scaffold(plot), *shapes, base_line(plot)))


def band_chart(words: ChartText, frame: Frame, axes: tuple[Axis, Axis], steps: Steps) -> Html:
    """Draw lines and bands that hold one value for each step along the x axis.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> from batchnorm_tool.report.axes import Axis
        >>> axes = Axis("row", 0, 2), Axis("norm", 0, 5)
        >>> steps = Steps([0, 1, 2], [Band("range", [1, 1], [3, 4])], [Line("median", [2, 3])])
        >>> drawing = band_chart(ChartText("b", "Norms", "Rising."), NARROW, axes, steps)
        >>> drawing.count('class="band"'), drawing.count('class="line"')
        (1, 1)
    """
    plot = Plot(axes[0], axes[1], frame, legend_rows=1)
    bands = [
        path(_outline(plot, steps.edges, band), "band", fill=_MARK, fill_opacity=opacity)
        for band, opacity in zip(steps.bands, _OPACITIES, strict=False)
    ]
    lines = [
        path(_stairs(plot, steps.edges, line.values), "line", stroke=_LINE, stroke_width="1.75")
        for line in steps.lines
    ]
    pieces = (*scaffold(plot), *bands, *lines, base_line(plot), _legend(steps))
    return drawing(words, plot.frame, pieces)


def drawing(words: ChartText, frame: Frame, pieces: Sequence[Html]) -> Html:
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


def _bar(plot: Plot, bar: Bar) -> Html:
    left, right = plot.across(bar.lower), plot.across(bar.upper)
    gap = 1.0 if right - left > 4 else 0.0
    zero, end = plot.down(0.0), plot.down(bar.height)
    # One vector among a million still shows as a line.
    top, bottom = (min(end, zero - 1), zero) if bar.height > 0 else (zero, max(end, zero + 1))
    return tag(
        "rect",
        tag("title", bar.words),
        class_="bar",
        x=pixels(left + gap / 2),
        y=pixels(top),
        width=pixels(max(right - left - gap, 0.5)),
        height=pixels(bottom - top),
        fill=_MARK,
    )


def _runs(values: Sequence[float]) -> Iterator[range]:
    start = None
    for index, value in enumerate(values):
        if math.isnan(value):
            if start is not None:
                yield range(start, index)
            start = None
        elif start is None:
            start = index
    if start is not None:
        yield range(start, len(values))


def _stairs(plot: Plot, edges: Sequence[float], values: Sequence[float]) -> str:
    return "".join(
        f"M{pixels(plot.across(edges[run.start]))}," + _steps(plot, edges, values, run)
        for run in _runs(values)
    )


def _outline(plot: Plot, edges: Sequence[float], band: Band) -> str:
    pieces = []
    for run in _runs(band.lower):
        there = _steps(plot, edges, band.upper, run)
        back = [
            f"V{pixels(plot.down(band.lower[index]))}H{pixels(plot.across(edges[index]))}"
            for index in reversed(run)
        ]
        pieces.append(f"M{pixels(plot.across(edges[run.start]))},{there}{''.join(back)}Z")
    return "".join(pieces)


def _steps(plot: Plot, edges: Sequence[float], values: Sequence[float], run: range) -> str:
    places = [
        f"{pixels(plot.down(values[index]))}H{pixels(plot.across(edges[index + 1]))}"
        for index in run
    ]
    return "V".join(places)


def _legend(steps: Steps) -> Html:
    pieces, x = [], 0.0
    y = ROW + 2
    for band, opacity in zip(steps.bands, _OPACITIES, strict=False):
        pieces.append(
            tag("rect", x=pixels(x), y=y, width=14, height=12, fill=_MARK, fill_opacity=opacity)
        )
        pieces.append(text(band.label, x + 19, y + 10, "start"))
        x += 19 + len(band.label) * LETTER + 12
    for line in steps.lines:
        place = f"M{pixels(x)},{y + 6}h14"
        pieces.append(path(place, "key", stroke=_LINE, stroke_width="1.75"))
        pieces.append(text(line.label, x + 19, y + 10, "start"))
        x += 19 + len(line.label) * LETTER + 12
    return join(*pieces)


def path(place: str, class_: str, **style: str) -> Html:
    """Return a path that is not filled unless ``style``, its attributes, says so."""
    return tag("path", class_=class_, d=place, **{"fill": "none", **style})


@dataclass(frozen=True)
class SeriesStyle:
    """The look of one series.

    Attributes:
        colour: A CSS colour that follows the theme.
        dashes: An SVG dash pattern; ``None`` for a line without gaps.
        marker: An SVG path around the place of a value.
    """

    colour: str
    dashes: str | None
    marker: str


def series_styles(labels: Iterable[str]) -> dict[str, SeriesStyle]:
    """Give every label a look of its own, the first one the neutral colour.

    Example:
        >>> look = series_styles(["none", "l2"])["l2"]
        >>> look.colour, look.dashes
        ('var(--series-1, #1b62b5)', '7 3')
    """
    return {
        label: SeriesStyle(f"var({name}, {plain})", dashes, marker)
        for label, (name, plain), dashes, marker in zip(
            dict.fromkeys(labels),
            itertools.cycle(_COLOURS),
            itertools.cycle(_DASHES),
            itertools.cycle(_MARKERS),
            strict=False,
        )
    }


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
    """Return how many rows a legend takes, none without labels.

    Example:
        >>> legend_rows(["none", "l1"], Frame(350, 230)), legend_rows(["x" * 30] * 3, Frame(350, 1))
        (1, 3)
    """
    return 1 + max((row for _, _, row in _places(labels, frame)), default=-1)


def legend(shown: Mapping[str, SeriesStyle], frame: Frame, *, marked: bool) -> Html:
    """Draw the key of each series above a chart, in as many rows as `legend_rows` says."""
    pieces = []
    for label, x, row in _places(shown, frame):
        y = ROW * (1 + row) + 8
        pieces.append(line(shown[label], f"M{x:.1f},{y}h{_KEY - 6}", "key", stroke_width="1.75"))
        if marked:
            pieces.append(marker(shown[label], x + (_KEY - 6) / 2, y))
        pieces.append(text(label, x + _KEY, y + 4, "start"))
    return join(*pieces)


def _places(labels: Iterable[str], frame: Frame) -> Iterator[tuple[str, float, int]]:
    x, row = 0.0, 0
    for label in labels:
        width = _KEY + len(label) * LETTER
        if x and x + width > frame.width:
            x, row = 0.0, row + 1
        yield label, x, row
        x += width + _GAP
