"""A chart of values with their intervals: one series for each norm over a few named places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.report.markup import Html, tag
from batchnorm_tool.report.plot import Frame, Plot, base_line, pixels, scaffold
from batchnorm_tool.report.scale import Axis
from batchnorm_tool.report.series import Look, legend, legend_rows, line, marker
from batchnorm_tool.report.svg import Words, drawing

if TYPE_CHECKING:
    from collections.abc import Iterable

# Series stand beside one another at a place; farther apart they would no longer belong to it.
_WIDEST_STEP = 16.0
_SHARE = 0.62
_CAP = 3
# A range narrower than this would blow up differences that nobody will notice.
_NARROWEST = 0.02
_ROOM = 0.08


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
        looks: The look of each label.
        joined: Whether places follow one another, so that a line through a series says something.
    """

    values: Mapping[str, Sequence[Interval]]
    looks: Mapping[str, Look]
    joined: bool = True


def interval_axis(label: str, series: IntervalSeries) -> Axis:
    """Return an axis from 0 to 1 at most that shows all intervals well.

    Args:
        label: What the values are.
        series: The values, each within 0 and 1.

    Returns:
        The axis; it need not begin at zero, for nothing is drawn that stands on it.

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
    words: Words, axes: tuple[Places, Axis], series: IntervalSeries, frame: Frame
) -> Html:
    """Draw values as markers, their intervals as whiskers, and a line through each series.

    Args:
        words: Title and description for screen readers.
        axes: The named places, and the axis of the values.
        series: What to draw.
        frame: The size to draw for.

    Returns:
        One ``<svg>`` element.

    Example:
        >>> from batchnorm_tool.report.plot import NARROW
        >>> from batchnorm_tool.report.series import looks
        >>> values = {"none": [Interval(0.7, 0.68, 0.72)], "l2": [Interval(0.9, 0.88, 0.92)]}
        >>> series = IntervalSeries(values, looks(values))
        >>> axes = Places.of("k", [10]), interval_axis("precision@k", series)
        >>> interval_chart(Words("a", "Quality", "Two."), axes, series, NARROW).count("whisker")
        2
    """
    # A series that stands alone needs no key: the title names it.
    several = len(series.values) > 1
    shown = {label: series.looks[label] for label in series.values if several}
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
    look = series.looks[label]
    places = [
        (plot.across(index + 0.5) + shift, interval)
        for index, interval in enumerate(series.values[label])
    ]
    through = "".join(_legs(plot, places))
    if series.joined and "L" in through:
        yield line(look, through, "line", stroke_width="1.5", stroke_opacity="0.6")
    names = plot.x.ticks(0)
    for (x, interval), (_, name) in zip(places, names, strict=True):
        if math.isfinite(interval.value):
            said = f"{label}, {plot.x.label} {name}"
            yield _point(plot, look, (x, interval), said)


def _legs(plot: Plot, places: Sequence[tuple[float, Interval]]) -> Iterator[str]:
    pen = "M"
    for x, interval in places:
        if math.isfinite(interval.value):
            yield f"{pen}{pixels(x)},{pixels(plot.down(interval.value))}"
            pen = "L"
        else:
            pen = "M"


def _point(plot: Plot, look: Look, place: tuple[float, Interval], said: str) -> Html:
    x, interval = place
    words = f"{said}: {interval.value:.4f}"
    whisker = None
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        words += f", 95 % interval {interval.low:.4f} to {interval.high:.4f}"
        whisker = _whisker(plot, look, x, interval)
    middle = marker(look, x, plot.down(interval.value))
    return tag("g", tag("title", words), whisker, middle, class_="point")


def _whisker(plot: Plot, look: Look, x: float, interval: Interval) -> Html:
    low, high = plot.down(interval.low), plot.down(interval.high)
    cap = f"h{2 * _CAP}"
    place = (
        f"M{pixels(x - _CAP)},{pixels(low)}{cap}M{pixels(x)},{pixels(low)}V{pixels(high)}"
        f"M{pixels(x - _CAP)},{pixels(high)}{cap}"
    )
    return tag(
        "path", class_="whisker", d=place, fill="none", stroke=look.colour, stroke_width="1.5"
    )
