from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree as ET  # our own markup, not a stranger's

import pytest

from batchnorm_tool.display import number
from batchnorm_tool.report import Html, escape, tag
from batchnorm_tool.report.charts import Bar, Places, Steps, band_chart, bar_chart
from batchnorm_tool.report.svg import NARROW, WIDE, Axis, ChartText, Frame

Make = Callable[..., Any]

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ChartText("chart", "Norms of <b>", 'From "1" to 4 & back.')
FRAMES = pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])


def drawn(markup: str) -> ET.Element:
    return ET.fromstring(markup)  # noqa: S314


def bars(frame: Frame) -> ET.Element:
    axes = Axis("norm", 0.0, 4.0), Axis("vectors", 0, 10, "whole")
    return drawn(bar_chart(WORDS, frame, axes, [Bar(0, 2, 10, "ten"), Bar(2, 4, 5, "five")]))


def bands(
    frame: Frame,
    *,
    low: Sequence[float] = (1.0, 1.0, 1.0),
    high: Sequence[float] = (2.0, 3.0, 4.0),
    middle: Sequence[float] = (1.5, 2.0, 2.5),
) -> ET.Element:
    axes = Axis("row", 0, 3, "whole"), Axis("norm", 0.0, 4.0)
    steps = Steps([0, 1, 2, 3], {"range": (low, high)}, {"median": middle})
    return drawn(band_chart(WORDS, frame, axes, steps))


@FRAMES
@pytest.mark.parametrize("draw", [bars, bands])
def test_a_chart_says_what_it_shows_to_who_does_not_see_it(draw: Make, frame: Frame) -> None:
    svg = draw(frame)
    by_id = {element.get("id"): element.text for element in svg.iter() if element.get("id")}
    assert svg.get("role") == "img"
    assert by_id[svg.get("aria-labelledby")] == WORDS.title
    assert by_id[svg.get("aria-describedby")] == WORDS.description


@FRAMES
def test_bars_are_as_high_as_their_values(frame: Frame) -> None:
    heights = [float(bar.get("height")) for bar in bars(frame).iter(f"{SVG}rect")]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert [bar.find(f"{SVG}title").text for bar in bars(frame).iter(f"{SVG}rect")] == [
        "ten",
        "five",
    ]


@FRAMES
@pytest.mark.parametrize("draw", [bars, bands])
def test_labels_stay_inside_and_apart(draw: Make, frame: Frame) -> None:
    svg = draw(frame)
    ticks = [t for t in svg.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    places = [float(tick.get("x")) for tick in ticks]
    assert len(places) >= 3
    assert all(0 < place < frame.width for place in places)
    assert all(b - a > 20 for a, b in itertools.pairwise(places))


def test_labels_that_would_touch_are_left_out() -> None:
    axes = Axis("norm", 1234567.0, 1234567.01), Axis("vectors", 0, 1)
    svg = drawn(bar_chart(WORDS, NARROW, axes, []))
    ticks = [t for t in svg.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    spans = [(float(t.get("x", "")), len(t.text or "") * 7) for t in ticks]
    assert len(spans) >= 2
    assert all(b - a >= (m + n) / 2 for (a, m), (b, n) in itertools.pairwise(spans))


def test_colours_follow_the_page() -> None:
    markup = ET.tostring(bars(WIDE), encoding="unicode")
    assert 'fill="currentColor"' in markup
    assert "var(--mark" in markup


def test_bands_lie_below_lines_and_each_has_a_key() -> None:
    classes = [piece.get("class") for piece in bands(NARROW).iter() if piece.get("class")]
    assert classes == ["band", "line", "key"]
    assert {"range", "median"} <= {text.text for text in bands(NARROW).iter(f"{SVG}text")}


def test_a_missing_value_is_a_gap_and_no_zero() -> None:
    nan = math.nan
    svg = bands(WIDE, low=(1.0, nan, 1.0), high=(2.0, nan, 4.0), middle=(1.5, nan, 2.5))
    by_class = {path.get("class"): path.get("d") for path in svg.iter(f"{SVG}path")}
    assert by_class["line"].count("M") == 2
    assert by_class["band"].count("Z") == 2
    assert "nan" not in by_class["line"] + by_class["band"]


def test_a_hostile_label_is_text() -> None:
    axes = Axis("<script>", 0, 1), Axis("y", 0, 1)
    markup = bar_chart(WORDS, WIDE, axes, [Bar(0, 1, 1, "</title><script>")])
    assert "<script>" not in markup
    assert "<script>" in [element.text for element in drawn(markup).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        pytest.param(Axis("x", 0, 1), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"], id="unit"),
        pytest.param(Axis("x", -3, 3), ["\u22122", "0", "2"], id="negative"),
        pytest.param(Axis("x", 0, 3, "whole"), ["0", "1", "2", "3"], id="small counts"),
        pytest.param(Axis("x", 0, 1797, "whole"), ["0", "500", "1,000", "1,500"], id="thousands"),
        pytest.param(Places.of("k", [1, 10]), ["1", "10"], id="places"),
        pytest.param(
            Axis("x", 0, 2.4e6, "whole"), ["0", "0.5M", "1M", "1.5M", "2M"], id="millions"
        ),
        pytest.param(Axis("x", 0.5, 200, "log"), ["1", "10", "100"], id="logarithmic"),
        pytest.param(
            Axis("x", 2.0, 3.0, "log"),
            ["2.0", "2.2", "2.4", "2.6", "2.8", "3.0"],
            id="within an octave",
        ),
        pytest.param(
            Axis("x", 0, 4e-30),
            ["0", "1e\u221230", "2e\u221230", "3e\u221230", "4e\u221230"],
            id="tiny",
        ),
        pytest.param(
            Axis("x", -1.7e308, 1.7e308), ["\u22121e308", "0", "1e308"], id="the whole of float64"
        ),
        pytest.param(Axis("x", 0, 5e-324), [], id="too small for a tick"),
    ],
)
def test_ticks_are_round(axis: Axis, labels: list[str]) -> None:
    assert [label for _, label in axis.ticks(5)] == labels


def test_values_lie_on_an_axis_by_its_scale() -> None:
    assert Axis("x", 1.0, 4.0).at(2.5) == 0.5
    assert Axis("x", 1.0, 4.0, "log").at(2.0) == 0.5
    assert Places.of("k", [1, 10]).ticks(6) == [(0.5, "1"), (1.5, "10")]


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_an_axis_clamps_and_never_overflows(kind: Any) -> None:
    axis = Axis("x", 5e-324, sys.float_info.max, kind)
    assert axis.at(5e-324) == 0
    assert axis.at(0.0) == 0
    assert axis.at(sys.float_info.max) == 1
    assert Axis("x", 1, 1, kind).at(1) == 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.9996, "10.00"),
        (0.99999, "1.000"),
        (0.001, "0.001000"),
        (999999.6, "1,000,000"),
        (None, "\u2013"),
        (-2.5, "\u22122.500"),
    ],
)
def test_numbers_keep_their_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_escaping_is_the_default_and_happens_once() -> None:
    assert tag("td", "<&>", Html("<b>x</b>")) == "<td>&lt;&amp;&gt;<b>x</b></td>"
    assert escape(escape("<")) == "&lt;"


def test_attributes_are_escaped_even_when_they_are_markup() -> None:
    assert tag("td", title=Html('"><script>')) == '<td title="&quot;&gt;&lt;script&gt;"></td>'


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\n", "\x85", "\u202e", "\u2028", "\ud800"])
def test_invisible_characters_are_made_visible(character: str) -> None:
    assert escape(f"a{character}b") == "a\ufffdb"
