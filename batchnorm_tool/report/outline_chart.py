"""Several histograms drawn over one another as outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.report.markup import Html, tag
from batchnorm_tool.report.plot import Frame, Plot, base_line, pixels, scaffold
from batchnorm_tool.report.series import Look, legend, legend_rows, line
from batchnorm_tool.report.svg import Words, drawing, path

if TYPE_CHECKING:
    from batchnorm_tool.report.scale import Axis

# Grounds that lie over one another add up: many of them share what one alone may have.
_FILL, _ALL_FILLS = 0.13, 0.5


@dataclass(frozen=True)
class Outlines:
    """What an outline chart draws.

    Attributes:
        edges: ``n + 1`` ascending x values.
        heights: For each label, ``n`` heights.
        looks: The look of each label.
    """

    edges: Sequence[float]
    heights: Mapping[str, Sequence[float]]
    looks: Mapping[str, Look]


def outline_chart(words: Words, axes: tuple[Axis, Axis], outlines: Outlines, frame: Frame) -> Html:
    """Draw each histogram as an outline over a light ground.

    Args:
        words: Title and description for screen readers.
        axes: The x and the y axis. Heights above the y axis are cut at its end.
        outlines: What to draw.
        frame: The size to draw for.

    Returns:
        One ``<svg>`` element.

    Example:
        >>> from batchnorm_tool.report.plot import NARROW
        >>> from batchnorm_tool.report.scale import Axis
        >>> from batchnorm_tool.report.series import looks
        >>> heights = {"l1": [0, 1, 2], "l2": [2, 1, 0]}
        >>> axes = Axis("norm", 1, 4), Axis("vectors, %", 0, 2)
        >>> outlines = Outlines([1, 2, 3, 4], heights, looks(heights))
        >>> outline_chart(Words("n", "Norms", "Two."), axes, outlines, NARROW).count('"outline"')
        2
    """
    plot = Plot(axes[0], axes[1], frame, legend_rows(outlines.heights, frame))
    shown = {label: outlines.looks[label] for label in outlines.heights}
    places = {label: _outline(plot, outlines, label) for label in shown if _any(outlines, label)}
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


def _any(outlines: Outlines, label: str) -> bool:
    return any(outlines.heights[label])


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
