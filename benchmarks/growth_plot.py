"""How cost grows, as one SVG file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from batchnorm_tool.display import short
from batchnorm_tool.report import Html, tag
from batchnorm_tool.report.svg import FONT, Axis, Frame, Plot, pixels, rule, scaffold, text

Points = Sequence[tuple[float, float]]

_PANEL = Frame(720, 250)
_GAP = 24
_MARGIN = 12
# Both themes bring a background of their own: a page in the other theme cannot make it unreadable.
_STYLE = """
svg { color: #1f2328; background: #ffffff; --mark: #1f6feb; }
@media (prefers-color-scheme: dark) {
  svg { color: #e6edf3; background: #0d1117; --mark: #58a6ff; }
}
"""
_MARK = "var(--mark)"


def growth_plot(rows: Points, widths: Points) -> Html:
    """Draw seconds against rows, and predicted values a second against the width of a vector.

    Args:
        rows: Rows and seconds, ascending, at least two.
        widths: Widths and values a second, ascending, at least two.

    Returns:
        One ``<svg>`` element with title and description.
    """
    millions = [(count / 1e6, took) for count, took in rows]
    rates = [(width, rate / 1e6) for width, rate in widths]
    width, height = _PANEL.width + 2 * _MARGIN, 2 * _PANEL.height + _GAP + 2 * _MARGIN
    return tag(
        "svg",
        tag("title", "How the time of a run grows with rows and with the width of vectors"),
        tag("desc", _description(millions, rates)),
        tag("style", Html(_STYLE)),
        _panel(_MARGIN, [*_rows_panel(millions)]),
        _panel(_MARGIN + _PANEL.height + _GAP, [*_width_panel(rates)]),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        font_size=FONT,
        font_family="system-ui, sans-serif",
        fill="currentColor",
    )


def _description(millions: Points, rates: Points) -> str:
    seconds = ", ".join(f"{short(count)} million rows {took:.3g} s" for count, took in millions)
    speeds = ", ".join(f"width {short(width)} {rate:.3g}" for width, rate in rates)
    return f"Seconds against rows: {seconds}. Million values a second: {speeds}."


def _panel(top: float, pieces: Sequence[Html]) -> Html:
    return tag("g", *pieces, transform=f"translate({_MARGIN} {pixels(top)})")


def _rows_panel(points: Points) -> Iterator[Html]:
    counts, took = zip(*points, strict=True)
    x = Axis("million rows", min(counts), max(counts), "log")
    plot = Plot(x, _decades("seconds of work", took), _PANEL, legend_rows=1)
    yield from scaffold(plot)
    middle = math.exp(sum(math.log(s / c) for c, s in points) / len(points))
    ends = [(count, count * middle) for count in (counts[0], counts[-1])]
    yield _line(plot, ends, stroke_dasharray="5 4", stroke="currentColor", stroke_opacity="0.6")
    yield from _marked(plot, points)
    yield text("dashed: in proportion to the rows", plot.left + 8, plot.top - 8, "start")
    yield rule((plot.left, plot.right), (plot.bottom, plot.bottom))


def _width_panel(points: Points) -> Iterator[Html]:
    widths, rates = zip(*points, strict=True)
    x = Axis("numbers in a vector", min(widths), max(widths), "log")
    y = Axis("million predicted values a second", 0, 1.1 * max(rates))
    plot = Plot(x, y, _PANEL, legend_rows=0)
    yield from scaffold(plot)
    yield from _marked(plot, points)
    yield rule((plot.left, plot.right), (plot.bottom, plot.bottom))


def _decades(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis over whole decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis(label, 10.0**low, 10.0 ** max(high, low + 1), "log")


def _marked(plot: Plot, points: Points) -> Iterator[Html]:
    yield _line(plot, points, stroke=_MARK, stroke_width="1.75")
    for x, y in points:
        words = f"{short(x)} {plot.x.label}: {y:.3g} {plot.y.label}"
        place = {"cx": pixels(plot.across(x)), "cy": pixels(plot.down(y))}
        yield tag("circle", tag("title", words), r="3.5", fill=_MARK, **place)


def _line(plot: Plot, points: Points, **look: str) -> Html:
    places = (f"{pixels(plot.across(x))},{pixels(plot.down(y))}" for x, y in points)
    return tag("polyline", points=" ".join(places), fill="none", **look)
