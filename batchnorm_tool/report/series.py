"""How several series of one chart are told apart: by colour, dashes and markers together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from batchnorm_tool.report.markup import Html, join
from batchnorm_tool.report.plot import LETTER, ROW, Frame, text
from batchnorm_tool.report.svg import path

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
class Look:
    """The look of one series.

    Attributes:
        colour: A CSS colour that follows the theme.
        dashes: An SVG dash pattern; ``None`` for a line without gaps.
        marker: An SVG path around the place of a value.
    """

    colour: str
    dashes: str | None
    marker: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Give every label a look of its own.

    Args:
        labels: Labels in order; the first has the neutral colour.

    Returns:
        A look for each label, the same for the same place in the order.

    Example:
        >>> look = looks(["none", "l2"])["l2"]
        >>> look.colour, look.dashes
        ('var(--series-1, #1b62b5)', '7 3')
    """
    return {
        label: Look(f"var({name}, {plain})", dashes, marker)
        for label, (name, plain), dashes, marker in zip(
            dict.fromkeys(labels),
            itertools.cycle(_COLOURS),
            itertools.cycle(_DASHES),
            itertools.cycle(_MARKERS),
            strict=False,
        )
    }


def marker(look: Look, x: float, y: float) -> Html:
    """Draw a series' marker with its middle at a place."""
    # The rim keeps markers that touch apart, and apart from the line that they stand on.
    rim = {"stroke": "var(--paper, #fff)", "stroke_width": "1"}
    return path(f"M{x:.1f},{y:.1f}{look.marker}", "marker", fill=look.colour, **rim)


def line(look: Look, place: str, class_: str, **more: str) -> Html:
    """Draw a path in a series' colour and dashes."""
    dashes = {} if look.dashes is None else {"stroke_dasharray": look.dashes}
    return path(place, class_, stroke=look.colour, **dashes, **more)


def legend_rows(labels: Iterable[str], frame: Frame) -> int:
    """Return how many rows a legend takes, none without labels.

    Example:
        >>> legend_rows(["none", "l1"], Frame(350, 230)), legend_rows(["x" * 30] * 3, Frame(350, 1))
        (1, 3)
    """
    return 1 + max((row for _, _, row in _places(labels, frame)), default=-1)


def legend(shown: Mapping[str, Look], frame: Frame, *, marked: bool) -> Html:
    """Draw the key of each series above a chart, in as many rows as `legend_rows` says.

    Args:
        shown: The look of each label.
        frame: The size of the drawing.
        marked: Whether values have markers in this chart.

    Returns:
        Markup to be put into a drawing.
    """
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
