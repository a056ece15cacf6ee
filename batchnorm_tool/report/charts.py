"""Our own charts: bars, bands along steps, intervals at places, outlines, heat maps, rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchnorm_tool.display import fixed
from batchnorm_tool.report import Html, svg, tag
from batchnorm_tool.report.svg import Axis, ChartText, Frame, Plot, SeriesStyle, pixels, text

_OPACITIES = ("0.22", "0.42", "0.42")
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


def framed(
    words: ChartText, plot: Plot, marks: Iterable[Html], legend: Iterable[Html] = ()
) -> Html:
    """Draw a chart: axes, the marks between them, and a legend above."""
    x_axis = svg.rule((plot.left, plot.right), (plot.bottom, plot.bottom))
    pieces = [*svg.scaffold(plot), *marks, x_axis, *legend]
    return svg.drawing(words, plot.frame, pieces)


@dataclass(frozen=True)
class Bar:
    """One bar from ``lower`` to ``upper`` on the x axis, and what hovering over it says."""

    lower: float
    upper: float
    height: float
    words: str


def bar_chart(words: ChartText, frame: Frame, axes: tuple[Axis, Axis], bars: Sequence[Bar]) -> Html:
    """Draw bars that stand on zero, or hang from it."""
    plot = Plot(*axes, frame)
    return framed(words, plot, (_bar(plot, bar) for bar in bars if bar.height))


def _bar(plot: Plot, bar: Bar) -> Html:
    left, right = plot.across(bar.lower), plot.across(bar.upper)
    gap = 1.0 if right - left > 4 else 0.0
    zero, end = plot.down(0.0), plot.down(bar.height)
    # One vector among a million still shows as a line.
    top, bottom = (min(end, zero - 1), zero) if bar.height > 0 else (zero, max(end, zero + 1))
    width = max(right - left - gap, 0.5)
    return svg.box((left + gap / 2, top, width, bottom - top), "bar", bar.words)


@dataclass(frozen=True)
class Steps:
    """What a band chart draws: values of ``n`` steps between ``n + 1`` edges; NaN for none.

    The ``bands``, three at most, have lower and upper ends, the widest first; the ``lines`` are
    drawn over them.
    """

    edges: Sequence[float]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    lines: Mapping[str, Sequence[float]]

    @classmethod
    def of_quantiles(cls, edges: Sequence[float], by_name: Mapping[str, Sequence[float]]) -> Steps:
        """Show the median, the middle half and the middle 90 %, by ``q05`` to ``q95``."""
        bands = {
            "5\N{EN DASH}95 %": (by_name["q05"], by_name["q95"]),
            "25\N{EN DASH}75 %": (by_name["q25"], by_name["q75"]),
        }
        return cls(edges, bands, {"median": by_name["q50"]})


def band_chart(words: ChartText, frame: Frame, axes: tuple[Axis, Axis], steps: Steps) -> Html:
    """Draw lines and bands that hold one value for each step along the x axis."""
    plot = Plot(*axes, frame, legend_rows=1)
    depths = dict(zip(steps.bands, _OPACITIES, strict=False))
    bands = (
        svg.path(_band(plot, steps.edges, band), "band", fill=svg.MARK, fill_opacity=depths[label])
        for label, band in steps.bands.items()
    )
    lines = (step_line(plot, steps.edges, values) for values in steps.lines.values())
    return framed(words, plot, [*bands, *lines], _keys(steps, depths))


def step_line(plot: Plot, edges: Sequence[float], values: Sequence[float]) -> Html:
    """Draw values that each reach over one step, with gaps where there are none."""
    return svg.path(step_path(plot, edges, values), "line", stroke=svg.LINE, stroke_width="1.75")


def step_path(plot: Plot, edges: Sequence[float], values: Sequence[float]) -> str:
    """Return the path of values that each reach over one step."""
    return "".join(
        f"M{pixels(plot.across(edges[run[0]]))},{_run_path(plot, edges, values, run)}"
        for run in _runs(values)
    )


def _runs(values: Sequence[float]) -> Iterator[list[int]]:
    """Find the places of values that follow one another without a gap."""
    places = itertools.groupby(range(len(values)), key=lambda place: math.isnan(values[place]))
    return (list(run) for is_gap, run in places if not is_gap)


def _run_path(
    plot: Plot, edges: Sequence[float], values: Sequence[float], run: Iterable[int]
) -> str:
    return "V".join(
        f"{pixels(plot.down(values[place]))}H{pixels(plot.across(edges[place + 1]))}"
        for place in run
    )


def _band(plot: Plot, edges: Sequence[float], band: tuple[Sequence[float], Sequence[float]]) -> str:
    (lower, upper), pieces = band, []
    for run in _runs(lower):
        start, there = pixels(plot.across(edges[run[0]])), _run_path(plot, edges, upper, run)
        back = (
            f"V{pixels(plot.down(lower[place]))}H{pixels(plot.across(edges[place]))}"
            for place in reversed(run)
        )
        pieces.append(f"M{start},{there}{''.join(back)}Z")
    return "".join(pieces)


def _keys(steps: Steps, depths: Mapping[str, str]) -> Iterator[Html]:
    x, y = 0.0, svg.ROW + 2
    for label in (*steps.bands, *steps.lines):
        if label in depths:
            yield svg.box((x, y, 14, 12), opacity=depths[label])
        else:
            place = f"M{pixels(x)},{y + 6}h14"
            yield svg.path(place, "key", stroke=svg.LINE, stroke_width="1.75")
        yield text(label, x + 19, y + 10, "start")
        x += 19 + len(label) * svg.LETTER + 12


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Places(Axis):
    """An axis of named places at equal distances; place ``i`` lies at ``i + 0.5``."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, label: str, names: Iterable[object]) -> Places:
        """Make an axis that is just as long as its names are many."""
        shown = tuple(map(str, names))
        return cls(label, 0, len(shown), "linear", shown)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return all places, however many are asked for; those that collide are left out later."""
        del most
        return [(index + 0.5, name) for index, name in enumerate(self.names)]


@dataclass(frozen=True)
class IntervalSeries:
    """What an interval chart draws: for each label, one interval for each place, and its look.

    A line joins the values of a series where places follow one another, so that it says something.
    """

    values: Mapping[str, Sequence[Interval]]
    styles: Mapping[str, SeriesStyle]
    joined: bool = True


def interval_axis(label: str, series: IntervalSeries) -> Axis:
    """Return an axis from 0 to 1 at most that shows all intervals well."""
    every = itertools.chain(*series.values.values())
    ends = [end for its in every for end in (its.value, its.low, its.high) if math.isfinite(end)]
    if not ends:
        return Axis(label, 0, 1)
    low, high = min(ends), max(ends)
    lacking = max(_NARROWEST - (high - low), 0) / 2
    room = (high - low) * _ROOM + lacking
    return Axis(label, max(low - room, 0.0), min(high + room, 1.0))


def interval_chart(
    words: ChartText, frame: Frame, axes: tuple[Places, Axis], series: IntervalSeries
) -> Html:
    """Draw values as markers, their intervals as whiskers, and a line through each series."""
    # A series that stands alone needs no key: the title names it.
    several = len(series.values) > 1
    shown = {label: series.styles[label] for label in series.values if several}
    plot = Plot(*axes, frame, svg.legend_rows(shown, frame))
    room = (plot.right - plot.left) / max(plot.x.high, 1)
    number = len(series.values)
    step = min(_WIDEST_STEP, _SHARE * room / max(number, 1))
    marks = (
        mark
        for index, label in enumerate(series.values)
        for mark in _series(plot, series, label, (index - (number - 1) / 2) * step)
    )
    return framed(words, plot, marks, svg.legend(shown, frame, marked=True))


def _series(plot: Plot, series: IntervalSeries, label: str, shift: float) -> Iterator[Html]:
    style = series.styles[label]
    places = [
        (plot.across(index + 0.5) + shift, interval)
        for index, interval in enumerate(series.values[label])
    ]
    through = "".join(_legs(plot, places))
    if series.joined and "L" in through:
        yield svg.line(style, through, "line", stroke_width="1.5", stroke_opacity="0.6")
    for place, (_, name) in zip(places, plot.x.ticks(0), strict=True):
        if math.isfinite(place[1].value):
            yield _point(plot, style, place, f"{label}, {plot.x.label} {name}")


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
        low, high = pixels(plot.down(interval.low)), pixels(plot.down(interval.high))
        left, cap = pixels(x - _CAP), f"h{2 * _CAP}"
        lines = f"M{left},{low}{cap}M{pixels(x)},{low}V{high}M{left},{high}{cap}"
        whisker = svg.path(lines, "whisker", stroke=style.colour, stroke_width="1.5")
    middle = svg.marker(style, x, plot.down(interval.value))
    return tag("g", tag("title", words), whisker, middle, class_="point")


@dataclass(frozen=True)
class _Cells:
    """Where cells lie, in pixels."""

    left: float
    top: float
    width: float
    lines: int


def heat_map(
    words: ChartText, frame: Frame, labels: Sequence[str], values: Mapping[tuple[str, str], float]
) -> Html:
    """Draw a square of cells, a value from 0 to 1 in each; those of NaN are empty.

    The diagonal is left plain: it says nothing.
    """
    cells = _cells(labels, frame)
    height = cells.top + len(labels) * _CELL_HEIGHT + _CELL_GAP
    pieces = [*_headings(cells, labels)]
    for (row, one), (column, other) in itertools.product(enumerate(labels), repeat=2):
        if math.isfinite(value := values.get((one, other), math.nan)):
            pieces.append(_cell(cells, (row, column), (one, other), value))
    return svg.drawing(words, Frame(frame.width, round(height)), pieces)


def _cells(labels: Sequence[str], frame: Frame) -> _Cells:
    longest = max(map(len, labels)) * svg.LETTER
    left = longest + _LEFT_GAP
    width = min((frame.width - left) / len(labels), _WIDEST)
    # Names that are wider than their columns take turns on lines; the last one is moved left.
    lines = max(1, math.ceil((1.5 * longest + _CELL_GAP) / width - 0.5))
    return _Cells(left, svg.ROW * lines + 4, width, lines)


def _headings(cells: _Cells, labels: Sequence[str]) -> Iterator[Html]:
    for index, label in enumerate(labels):
        lift = svg.ROW * (index % cells.lines)
        middle = cells.left + (index + 0.5) * cells.width
        last = cells.left + len(labels) * cells.width - len(label) * svg.LETTER / 2
        yield text(label, min(middle, max(last, cells.left)), cells.top - 7 - lift, "middle")
        down = cells.top + (index + 0.5) * _CELL_HEIGHT + 4
        yield text(label, cells.left - _LEFT_GAP, down, "end")


def _cell(cells: _Cells, place: tuple[int, int], names: tuple[str, str], value: float) -> Html:
    row, column = place
    x, y = cells.left + column * cells.width, cells.top + row * _CELL_HEIGHT
    shown = fixed(value, 2)
    if cells.width < _FOUR_SIGNS:
        shown = shown.removeprefix("0")
    middle = x + cells.width / 2, y + _CELL_HEIGHT / 2 + 4
    words = text(shown, *middle, "middle", muted=row == column)
    if row == column:
        return words
    depth = _LIGHTEST + min(max(value, 0.0), 1.0) * (_DARKEST - _LIGHTEST)
    size = cells.width - _CELL_GAP, _CELL_HEIGHT - _CELL_GAP
    box = svg.box(
        (x + _CELL_GAP / 2, y + _CELL_GAP / 2, *size), "cell", radius=3, opacity=f"{depth:.3f}"
    )
    said = tag("title", f"{names[0]} and {names[1]}: {fixed(value)}")
    return tag("g", said, box, words, font_size=svg.FONT)


@dataclass(frozen=True)
class Row:
    """One bar: its name, its length, and the value as it is printed; NaN draws no bar."""

    label: str
    value: float
    shown: str


def row_chart(words: ChartText, frame: Frame, rows: Sequence[Row]) -> Html:
    """Draw a bar to the right for what is above zero, to the left for what is below."""
    left = max(len(row.label) for row in rows) * svg.LETTER + _ROW_GAP
    right = frame.width - max(len(row.shown) for row in rows) * svg.LETTER - _ROW_GAP
    finite = [row.value for row in rows if math.isfinite(row.value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    scale = (right - left) / ((high - low) or 1.0)
    zero, bottom = left - low * scale, len(rows) * _ROW_HEIGHT
    lengths = (row.value * scale if math.isfinite(row.value) else 0.0 for row in rows)
    bars = [
        piece
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True))
        for piece in _row(row, index * _ROW_HEIGHT, zero, length)
    ]
    pieces = [*bars, svg.rule((zero, zero), (0, bottom))]
    return svg.drawing(words, Frame(frame.width, bottom), pieces)


def _row(row: Row, top: float, zero: float, length: float) -> Iterator[Html]:
    base = top + _ROW_HEIGHT / 2 + 4
    left, right = zero + min(length, 0.0), zero + max(length, 0.0)
    yield text(row.label, min(left, zero) - _ROW_GAP, base, "end")
    if length:
        place = left, top + (_ROW_HEIGHT - _BAR) / 2, max(right - left, 1.0), _BAR
        yield svg.box(place, "bar", f"{row.label}: {row.shown}", radius=2)
    yield text(row.shown, right + 6, base, "start")


@dataclass(frozen=True)
class Outlines:
    """What an outline chart draws: for each label, ``n`` heights between ``n + 1`` x values."""

    edges: Sequence[float]
    heights: Mapping[str, Sequence[float]]
    styles: Mapping[str, SeriesStyle]


def outline_chart(
    words: ChartText, frame: Frame, axes: tuple[Axis, Axis], outlines: Outlines
) -> Html:
    """Draw each histogram as an outline over a light ground."""
    plot = Plot(*axes, frame, svg.legend_rows(outlines.heights, frame))
    shown = {label: outlines.styles[label] for label in outlines.heights}
    places = {
        label: _outline(plot, outlines.edges, heights)
        for label, heights in outlines.heights.items()
        if any(heights)
    }
    depth = f"{min(_FILL, _ALL_FILLS / max(len(places), 1)):.3f}"
    grounds = [
        svg.path(place + "Z", "ground", fill=shown[label].colour, fill_opacity=depth)
        for label, place in places.items()
    ]
    lines = [
        tag("g", tag("title", label), svg.line(shown[label], place, "outline", stroke_width="1.75"))
        for label, place in places.items()
    ]
    return framed(words, plot, grounds + lines, svg.legend(shown, frame, marked=False))


def _outline(plot: Plot, edges: Sequence[float], heights: Sequence[float]) -> str:
    filled = [index for index, height in enumerate(heights) if height > 0]
    run, bottom = range(filled[0], filled[-1] + 1), pixels(plot.bottom)
    start = pixels(plot.across(edges[filled[0]]))
    return f"M{start},{bottom}V{_run_path(plot, edges, heights, run)}V{bottom}"
