"""A square of numbers between 0 and 1, the darker the larger, each printed in its cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm_tool.report.markup import Html, tag
from batchnorm_tool.report.plot import FONT, LETTER, ROW, Frame, pixels, text
from batchnorm_tool.report.scale import fixed
from batchnorm_tool.report.svg import Words, drawing

if TYPE_CHECKING:
    from collections.abc import Mapping

_GAP = 2
_HEIGHT = 34
_WIDEST = 96
_LEFT_GAP = 8
# Text keeps a contrast of 4.5 on every cell in both themes (WCAG 2.2, 1.4.3) up to this opacity.
_DARKEST = 0.6
_LIGHTEST = 0.05
_FOUR_SIGNS = 34


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


def heat_map(words: Words, grid: Grid, frame: Frame) -> Html:
    """Draw a square of cells, of which the diagonal is left plain: nothing is to be learnt there.

    Args:
        words: Title and description for screen readers.
        grid: What to draw.
        frame: The width to draw for; the height follows from the number of labels.

    Returns:
        One ``<svg>`` element.

    Example:
        >>> from batchnorm_tool.report.plot import NARROW
        >>> grid = Grid(["a", "b"], {("a", "a"): 1, ("b", "b"): 1, ("a", "b"): 0.31})
        >>> drawing = heat_map(Words("m", "Overlap", "One pair."), grid, NARROW)
        >>> drawing.count('class="cell"'), ">0.31<" in drawing
        (1, True)
    """
    cells = _cells(grid.labels, frame)
    height = cells.top + len(grid.labels) * _HEIGHT + _GAP
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
    staggered = longest + _GAP > width
    return _Cells(left, ROW * (2 if staggered else 1) + 4, width, staggered)


def _headings(cells: _Cells, labels: Sequence[str]) -> Iterator[Html]:
    for index, label in enumerate(labels):
        lift = ROW if cells.staggered and index % 2 else 0
        middle = cells.left + (index + 0.5) * cells.width
        last = cells.left + len(labels) * cells.width - len(label) * LETTER / 2
        yield text(label, min(middle, max(last, cells.left)), cells.top - 7 - lift, "middle")
        down = cells.top + (index + 0.5) * _HEIGHT + 4
        yield text(label, cells.left - _LEFT_GAP, down, "end")


def _cell(cells: _Cells, place: tuple[int, int], names: tuple[str, str], value: float) -> Html:
    row, column = place
    x, y = cells.left + column * cells.width, cells.top + row * _HEIGHT
    shown = fixed(value, 2)
    if cells.width < _FOUR_SIGNS:
        shown = shown.removeprefix("0")
    words = text(shown, x + cells.width / 2, y + _HEIGHT / 2 + 4, "middle", muted=row == column)
    if row == column:
        return words
    depth = _LIGHTEST + min(max(value, 0.0), 1.0) * (_DARKEST - _LIGHTEST)
    box = tag(
        "rect",
        class_="cell",
        x=pixels(x + _GAP / 2),
        y=pixels(y + _GAP / 2),
        width=pixels(cells.width - _GAP),
        height=pixels(_HEIGHT - _GAP),
        rx=3,
        fill="var(--mark, #4a86c5)",
        fill_opacity=f"{depth:.3f}",
    )
    said = tag("title", f"{names[0]} and {names[1]}: {fixed(value)}")
    return tag("g", said, box, words, font_size=FONT)
