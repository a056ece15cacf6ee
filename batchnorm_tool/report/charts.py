"""Charts of a few named places: intervals, rows, outlines, and cells of a heat map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchnorm_tool.display import fixed
from batchnorm_tool.report import Html, tag
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
from batchnorm_tool.report.svg import (
    ChartText,
    SeriesStyle,
    drawing,
    legend,
    legend_rows,
    line,
    marker,
    path,
)

# Series stand beside one another at a place; farther apart they would no longer belong to it.
_WIDEST_STEP = 16.0
_SHARE = 0.62
_CAP = 3
# A range narrower than this would blow up differences that nobody will notice.
_NARROWEST = 0.02
_ROOM = 0.08
_CELL_GAP = 2
_CELL_HEIGHT = 34
_WIDEST = 96
_LEFT_GAP = 8
# Text keeps a contrast of 4.5 on every cell in both themes (WCAG 2.2, 1.4.3) up to this opacity.
_DARKEST = 0.6
_LIGHTEST = 0.05
_FOUR_SIGNS = 34
_ROW_HEIGHT = 24
_BAR = 14
_ROW_GAP = 8
# Grounds that lie over one another add up: many of them share what one alone may have.
_FILL, _ALL_FILLS = 0.13, 0.5


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Places(Axis):
    """An axis of named places at equal distances; place ``i`` lies at ``i + 0.5``.

    Attributes:
        names: The name of each place.
    """

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, label: str, names: Iterable[object]) -> Places:
        """Make an axis that is just as long as its names are many.

        Example:
            >>> Places.of("k", [1, 10]).ticks(6)
            [(0.5, '1'), (1.5, '10')]
        """
        shown = tuple(map(str, names))
        return cls(label, 0, len(shown), "linear", shown)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return all places, however many are asked for; those that collide are left out later."""
        del most
        return [(index + 0.5, name) for index, name in enumerate(self.names)]


@dataclass(frozen=True)
class IntervalSeries:
    """What an interval chart draws.

    Attributes:
        values: For each label, one interval for each place.
        styles: The look of each label.
        joined: Whether places follow one another, so that a line through a series says something.
    """

    values: Mapping[str, Sequence[Interval]]
    styles: Mapping[str, SeriesStyle]
    joined: bool = True


def interval_axis(label: str, series: IntervalSeries) -> Axis:
    """Return an axis from 0 to 1 at most that shows all intervals well.

    Example:
        >>> axis = interval_axis("p", IntervalSeries({"l2": [Interval(0.5, 0.4, 0.6)]}, {}))
        >>> round(axis.low, 3), round(axis.high, 3)
        (0.384, 0.616)
    """
    known = [end for values in series.values.values() for value in values for end in _ends(value)]
    if not known:
        return Axis(label, 0, 1)
    low, high = min(known), max(known)
    lacking = max(_NARROWEST - (high - low), 0) / 2
    room = (high - low) * _ROOM + lacking
    return Axis(label, max(low - room, 0.0), min(high + room, 1.0))


def interval_chart(
    words: ChartText, frame: Frame, axes: tuple[Places, Axis], series: IntervalSeries
) -> Html:
    """Draw values as markers, their intervals as whiskers, and a line through each series.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> from batchnorm_tool.report.svg import series_styles
        >>> values = {"none": [Interval(0.7, 0.68, 0.72)], "l2": [Interval(0.9, 0.88, 0.92)]}
        >>> series = IntervalSeries(values, series_styles(values))
        >>> axes = Places.of("k", [10]), interval_axis("precision@k", series)
        >>> interval_chart(ChartText("a", "Quality", "Two."), NARROW, axes, series).count("whisker")
        2
    """
    # A series that stands alone needs no key: the title names it.
    several = len(series.values) > 1
    shown = {label: series.styles[label] for label in series.values if several}
    plot = Plot(axes[0], axes[1], frame, legend_rows(shown, frame))
    shapes = [
        piece
        for index, label in enumerate(series.values)
        for piece in _series(plot, series, label, _shift(plot, index, len(series.values)))
    ]
    pieces = (*scaffold(plot), *shapes, base_line(plot), legend(shown, frame, marked=True))
    return drawing(words, frame, pieces)


def _ends(interval: Interval) -> list[float]:
    ends = (interval.value, interval.low, interval.high)
    return [end for end in ends if math.isfinite(end)]


def _shift(plot: Plot, index: int, series: int) -> float:
    room = (plot.right - plot.left) / max(plot.x.high, 1)
    return (index - (series - 1) / 2) * min(_WIDEST_STEP, _SHARE * room / series)


def _series(plot: Plot, series: IntervalSeries, label: str, shift: float) -> Iterator[Html]:
    style = series.styles[label]
    places = [
        (plot.across(index + 0.5) + shift, interval)
        for index, interval in enumerate(series.values[label])
    ]
    through = "".join(_legs(plot, places))
    if series.joined and "L" in through:
        yield line(style, through, "line", stroke_width="1.5", stroke_opacity="0.6")
    names = plot.x.ticks(0)
    for (x, interval), (_, name) in zip(places, names, strict=True):
        if math.isfinite(interval.value):
            said = f"{label}, {plot.x.label} {name}"
            yield _point(plot, style, (x, interval), said)


def _legs(plot: Plot, places: Sequence[tuple[float, Interval]]) -> Iterator[str]:
    pen = "M"
    for x, interval in places:
        if math.isfinite(interval.value):
            yield f"{pen}{pixels(x)},{pixels(plot.down(interval.value))}"
            pen = "L"
        else:
            pen = "M"


def _point(plot: Plot, style: SeriesStyle, place: tuple[float, Interval], said: str) -> Html:
    x, interval = place
    words = f"{said}: {interval.value:.4f}"
    whisker = None
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        words += f", 95 % interval {interval.low:.4f} to {interval.high:.4f}"
        whisker = _whisker(plot, style, x, interval)
    middle = marker(style, x, plot.down(interval.value))
    return tag("g", tag("title", words), whisker, middle, class_="point")


def _whisker(plot: Plot, style: SeriesStyle, x: float, interval: Interval) -> Html:
    low, high = plot.down(interval.low), plot.down(interval.high)
    cap = f"h{2 * _CAP}"
    place = (
        f"M{pixels(x - _CAP)},{pixels(low)}{cap}M{pixels(x)},{pixels(low)}V{pixels(high)}"
        f"M{pixels(x - _CAP)},{pixels(high)}{cap}"
    )
    return tag(
        "path", class_="whisker", d=place, fill="none", stroke=style.colour, stroke_width="1.5"
    )


@dataclass(frozen=True)
class Grid:
    """What a heat map draws.

    Attributes:
        labels: The name of each row, and of the column of the same number.
        values: A value from 0 to 1 for a pair of labels; a pair without one stays empty.
    """

    labels: Sequence[str]
    values: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class _Cells:
    """Where cells lie, in pixels."""

    left: float
    top: float
    width: float
    staggered: bool


def heat_map(words: ChartText, frame: Frame, grid: Grid) -> Html:
    """Draw a square of cells, of which the diagonal is left plain: nothing is to be learnt there.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> grid = Grid(["a", "b"], {("a", "a"): 1, ("b", "b"): 1, ("a", "b"): 0.31})
        >>> drawing = heat_map(ChartText("m", "Overlap", "One pair."), NARROW, grid)
        >>> drawing.count('class="cell"'), ">0.31<" in drawing
        (1, True)
    """
    cells = _cells(grid.labels, frame)
    height = cells.top + len(grid.labels) * _CELL_HEIGHT + _CELL_GAP
    pieces = [*_headings(cells, grid.labels)]
    for row, one in enumerate(grid.labels):
        for column, other in enumerate(grid.labels):
            if (value := grid.values.get((one, other))) is not None:
                pieces.append(_cell(cells, (row, column), (one, other), value))
    return drawing(words, Frame(frame.width, round(height)), pieces)


def _cells(labels: Sequence[str], frame: Frame) -> _Cells:
    longest = max(map(len, labels)) * LETTER
    left = longest + _LEFT_GAP
    width = min((frame.width - left) / len(labels), _WIDEST)
    # Names that are wider than their columns take turns on two lines.
    staggered = longest + _CELL_GAP > width
    return _Cells(left, ROW * (2 if staggered else 1) + 4, width, staggered)


def _headings(cells: _Cells, labels: Sequence[str]) -> Iterator[Html]:
    for index, label in enumerate(labels):
        lift = ROW if cells.staggered and index % 2 else 0
        middle = cells.left + (index + 0.5) * cells.width
        last = cells.left + len(labels) * cells.width - len(label) * LETTER / 2
        yield text(label, min(middle, max(last, cells.left)), cells.top - 7 - lift, "middle")
        down = cells.top + (index + 0.5) * _CELL_HEIGHT + 4
        yield text(label, cells.left - _LEFT_GAP, down, "end")


def _cell(cells: _Cells, place: tuple[int, int], names: tuple[str, str], value: float) -> Html:
    row, column = place
    x, y = cells.left + column * cells.width, cells.top + row * _CELL_HEIGHT
    shown = fixed(value, 2)
    if cells.width < _FOUR_SIGNS:
        shown = shown.removeprefix("0")
    words = text(
        shown, x + cells.width / 2, y + _CELL_HEIGHT / 2 + 4, "middle", muted=row == column
    )
    if row == column:
        return words
    depth = _LIGHTEST + min(max(value, 0.0), 1.0) * (_DARKEST - _LIGHTEST)
    box = tag(
        "rect",
        class_="cell",
        x=pixels(x + _CELL_GAP / 2),
        y=pixels(y + _CELL_GAP / 2),
        width=pixels(cells.width - _CELL_GAP),
        height=pixels(_CELL_HEIGHT - _CELL_GAP),
        rx=3,
        fill="var(--mark, #4a86c5)",
        fill_opacity=f"{depth:.3f}",
    )
    said = tag("title", f"{names[0]} and {names[1]}: {fixed(value)}")
    return tag("g", said, box, words, font_size=FONT)


@dataclass(frozen=True)
class Row:
    """One bar: its name, its length, and the value as it is printed; NaN draws no bar."""

    label: str
    value: float
    shown: str


@dataclass(frozen=True)
class _BarScale:
    """Where bars lie, in pixels: zero, and how much of the width a value of one takes."""

    zero: float
    scale: float


def row_chart(words: ChartText, frame: Frame, rows: Sequence[Row]) -> Html:
    """Draw a bar to the right for what is above zero, to the left for what is below.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> rows = [Row("none", 5.0, "5.0"), Row("l2", 0.5, "0.5")]
        >>> row_chart(ChartText("h", "Hubness", "Two."), NARROW, rows).count('"bar"')
        2
    """
    lanes = _lanes(rows, frame)
    pieces = [
        piece for index, row in enumerate(rows) for piece in _row(lanes, row, index * _ROW_HEIGHT)
    ]
    bottom = len(rows) * _ROW_HEIGHT
    place = {"x1": lanes.zero, "x2": lanes.zero, "y1": 0.0, "y2": float(bottom)}
    shown = {name: pixels(value) for name, value in place.items()}
    pieces.append(tag("line", stroke="currentColor", stroke_opacity="0.5", **shown))
    return drawing(words, Frame(frame.width, bottom), pieces)


def _lanes(rows: Sequence[Row], frame: Frame) -> _BarScale:
    left = max(len(row.label) for row in rows) * LETTER + _ROW_GAP
    right = frame.width - max(len(row.shown) for row in rows) * LETTER - _ROW_GAP
    finite = [row.value for row in rows if math.isfinite(row.value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    scale = (right - left) / ((high - low) or 1.0)
    return _BarScale(left - low * scale, scale)


def _row(lanes: _BarScale, row: Row, top: float) -> Iterator[Html]:
    base = top + _ROW_HEIGHT / 2 + 4
    length = row.value * lanes.scale if math.isfinite(row.value) else 0.0
    left, right = lanes.zero + min(length, 0.0), lanes.zero + max(length, 0.0)
    yield text(row.label, min(left, lanes.zero) - _ROW_GAP, base, "end")
    if length:
        yield tag(
            "rect",
            tag("title", f"{row.label}: {row.shown}"),
            class_="bar",
            x=pixels(left),
            y=pixels(top + (_ROW_HEIGHT - _BAR) / 2),
            width=pixels(max(right - left, 1.0)),
            height=_BAR,
            rx=2,
            fill="var(--mark, #4a86c5)",
        )
    yield text(row.shown, right + 6, base, "start")


@dataclass(frozen=True)
class Outlines:
    """What an outline chart draws.

    Attributes:
        edges: ``n + 1`` ascending x values.
        heights: For each label, ``n`` heights.
        styles: The look of each label.
    """

    edges: Sequence[float]
    heights: Mapping[str, Sequence[float]]
    styles: Mapping[str, SeriesStyle]


def outline_chart(
    words: ChartText, frame: Frame, axes: tuple[Axis, Axis], outlines: Outlines
) -> Html:
    """Draw each histogram as an outline over a light ground.

    Example:
        >>> from batchnorm_tool.report.axes import NARROW
        >>> from batchnorm_tool.report.axes import Axis
        >>> from batchnorm_tool.report.svg import series_styles
        >>> heights = {"l1": [0, 1, 2], "l2": [2, 1, 0]}
        >>> axes = Axis("norm", 1, 4), Axis("vectors, %", 0, 2)
        >>> outlines = Outlines([1, 2, 3, 4], heights, series_styles(heights))
        >>> outline_chart(ChartText("n", "Norm", "Two."), NARROW, axes, outlines).count('"outline"')
        2
    """
    plot = Plot(axes[0], axes[1], frame, legend_rows(outlines.heights, frame))
    shown = {label: outlines.styles[label] for label in outlines.heights}
    places = {
        label: _outline(plot, outlines, label) for label in shown if any(outlines.heights[label])
    }
    depth = f"{min(_FILL, _ALL_FILLS / max(len(places), 1)):.3f}"
    grounds = [
        path(place + "Z", "ground", fill=shown[label].colour, fill_opacity=depth)
        for label, place in places.items()
    ]
    lines = [
        tag("g", tag("title", label), line(shown[label], place, "outline", stroke_width="1.75"))
        for label, place in places.items()
    ]
    pieces = (*scaffold(plot), *grounds, *lines, base_line(plot))
    return drawing(words, frame, (*pieces, legend(shown, frame, marked=False)))


def _outline(plot: Plot, outlines: Outlines, label: str) -> str:
    heights = outlines.heights[label]
    filled = [index for index, height in enumerate(heights) if height > 0]
    first, last = filled[0], filled[-1]
    steps = (
        f"V{pixels(plot.down(heights[index]))}H{pixels(plot.across(outlines.edges[index + 1]))}"
        for index in range(first, last + 1)
    )
    start = f"M{pixels(plot.across(outlines.edges[first]))},{pixels(plot.bottom)}"
    return f"{start}{''.join(steps)}V{pixels(plot.bottom)}"
