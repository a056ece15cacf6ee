from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET  # our own markup, not a stranger's

import numpy as np
import pytest

from batchnorm_tool.report.bins import bin_together
from batchnorm_tool.report.charts import (
    Bar,
    Interval,
    IntervalSeries,
    Outlines,
    Places,
    Row,
    bar_chart,
    heat_map,
    interval_axis,
    interval_chart,
    outline_chart,
    row_chart,
)
from batchnorm_tool.report.svg import (
    NARROW,
    WIDE,
    Axis,
    ChartText,
    Frame,
    Plot,
    legend_rows,
    series_styles,
)

Make = Callable[..., Any]

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ChartText("chart", "Title", "Description.")
FRAMES = pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
NAN = math.nan
VALUES = {
    "none": [Interval(0.7, 0.68, 0.73), Interval(NAN, NAN, NAN), Interval(0.6, 0.5, 0.65)],
    "l2": [Interval(0.9, 0.88, 0.91), Interval(0.85, NAN, NAN), Interval(0.8, 0.75, 0.85)],
}


def drawn(markup: str) -> ET.Element:
    return ET.fromstring(markup)  # noqa: S314


def classed(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if element.get("class") == name]


def intervals(frame: Frame, *, joined: bool = True) -> tuple[ET.Element, Plot]:
    series = IntervalSeries(VALUES, series_styles(VALUES), joined)
    axes = Places.of("k", [1, 10, 100]), interval_axis("value", series)
    svg = drawn(interval_chart(WORDS, frame, axes, series))
    return svg, Plot(axes[0], axes[1], frame, 1)


@FRAMES
def test_whiskers_reach_from_the_low_to_the_high_end(frame: Frame) -> None:
    svg, plot = intervals(frame)
    whiskers = classed(svg, "whisker")
    assert len(whiskers) == 4
    down, up = re.findall(r"M[-\d.]+,([\d.]+)V([\d.]+)", whiskers[0].get("d", ""))[0]
    assert float(down) == pytest.approx(plot.down(0.68), abs=0.1)
    assert float(up) == pytest.approx(plot.down(0.73), abs=0.1)


@FRAMES
def test_series_stand_beside_one_another_and_inside(frame: Frame) -> None:
    svg, plot = intervals(frame)
    places = [
        tuple(map(float, re.findall(r"^M([\d.]+),([\d.]+)m", path.get("d", ""))[0]))
        for path in classed(svg, "marker")
        if (path.get("d") or "").count(",") > 1
    ]
    drawn_points = [place for place in places if place[1] > plot.top]
    assert len(drawn_points) == 5
    assert all(plot.left < x < plot.right for x, _ in drawn_points)
    xs = sorted(x for x, _ in drawn_points)
    assert all(b - a >= 8 for a, b in itertools.pairwise(xs))


def test_a_missing_value_interrupts_the_line_and_draws_no_point() -> None:
    svg, _ = intervals(WIDE)
    (through,) = classed(svg, "line")
    assert through.get("d", "").count("L") == 2
    assert len(classed(svg, "point")) == 5


def test_places_that_do_not_follow_one_another_are_not_joined() -> None:
    svg, _ = intervals(WIDE, joined=False)
    assert not classed(svg, "line")


def test_a_value_without_an_interval_is_a_point_alone() -> None:
    svg, _ = intervals(WIDE)
    said = [point.find(f"{SVG}title").text for point in classed(svg, "point")]
    assert "l2, k 10: 0.8500" in said
    assert "none, k 1: 0.7000, 95 % interval 0.6800 to 0.7300" in said


@pytest.mark.parametrize(
    ("interval", "low", "high"),
    [
        pytest.param(Interval(0.5, 0.5, 0.5), 0.49, 0.51, id="equal values keep a range"),
        pytest.param(Interval(0.99, 0.9, 1.0), 0.892, 1.0, id="never above one"),
        pytest.param(Interval(0.0, 0.0, 0.1), 0.0, 0.108, id="never below zero"),
        pytest.param(Interval(NAN, NAN, NAN), 0.0, 1.0, id="nothing known"),
    ],
)
def test_the_axis_of_intervals_shows_all_and_does_not_blow_up(
    interval: Interval, low: float, high: float
) -> None:
    axis = interval_axis("value", IntervalSeries({"l2": [interval]}, {}))
    assert (axis.low, axis.high) == (pytest.approx(low), pytest.approx(high))


def grid(labels: list[str]) -> dict[tuple[str, str], float]:
    return {
        (one, other): 1.0 if one == other else (len(one) + len(other)) / 40
        for one in labels
        for other in labels
    }


def test_cells_are_darker_for_larger_values_and_print_them() -> None:
    svg = drawn(heat_map(WORDS, NARROW, ["a", "b"], {("a", "b"): 0.25, ("b", "a"): 0.75}))
    depths = [float(cell.get("fill-opacity", "")) for cell in classed(svg, "cell")]
    assert depths == [pytest.approx(0.1875, abs=0.001), pytest.approx(0.4625, abs=0.001)]
    assert {"0.25", "0.75"} <= {text.text for text in svg.iter(f"{SVG}text")}


def test_a_pair_without_a_value_stays_empty() -> None:
    svg = drawn(heat_map(WORDS, NARROW, ["a", "b"], {("a", "b"): 0.25}))
    assert len(classed(svg, "cell")) == 1


@pytest.mark.parametrize("norms", [2, 4, 8, 10])
@pytest.mark.parametrize("name", ["lp:{}.5", "l2:{}+mean+int8"])
def test_names_above_cells_do_not_touch_however_many_there_are(norms: int, name: str) -> None:
    labels = [name.format(n) for n in range(10 - norms, 10)]
    svg = drawn(heat_map(WORDS, NARROW, labels, grid(labels)))
    heads = [
        t for t in svg.iter(f"{SVG}text") if t.text in labels and t.get("text-anchor") != "end"
    ]
    for y in {head.get("y") for head in heads}:
        xs = [float(head.get("x", "")) for head in heads if head.get("y") == y]
        assert all(b - a >= len(labels[0]) * 7 for a, b in itertools.pairwise(xs))
    assert all(0 <= float(cell.get("x", "")) < 350 for cell in classed(svg, "cell"))


@FRAMES
def test_bars_go_both_ways_from_zero_and_stay_inside(frame: Frame) -> None:
    rows = [Row("none", 4.0, "4.0"), Row("l2", -2.0, "\u22122.0"), Row("max", NAN, "\u2013")]
    svg = drawn(row_chart(WORDS, frame, rows))
    up, down = classed(svg, "bar")
    assert float(up.get("width", "")) == pytest.approx(2 * float(down.get("width", "")), abs=0.2)
    zero = float(up.get("x", ""))
    assert float(down.get("x", "")) + float(down.get("width", "")) == pytest.approx(zero, abs=0.2)
    names = [t for t in svg.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert all(float(t.get("x", "")) - len(t.text or "") * 7 > 0 for t in names)
    assert float(up.get("x", "")) + float(up.get("width", "")) < frame.width - 20


@FRAMES
def test_outlines_stand_on_the_axis_and_are_as_high_as_their_values(frame: Frame) -> None:
    heights = {"l1": [0.0, 2.0, 4.0, 0.0], "l2": [1.0, 0.0, 3.0, 0.0], "none": [0.0] * 4}
    axes = Axis("norm", 1.0, 16.0, "log"), Axis("vectors, %", 0, 4)
    outlines = Outlines([1, 2, 4, 8, 16], heights, series_styles(heights))
    svg = drawn(outline_chart(WORDS, frame, axes, outlines))
    plot = Plot(*axes, frame, 1)
    one, other = classed(svg, "outline")
    ups = [float(y) for y in re.findall(r"V([\d.]+)", one.get("d", ""))]
    assert ups == [pytest.approx(plot.down(y), abs=0.1) for y in (2, 4, 0)]
    assert len(re.findall("V", other.get("d", ""))) == 4
    assert one.get("d", "").startswith(f"M{plot.across(2):.1f}".removesuffix(".0"))
    assert {text.text for text in svg.iter(f"{SVG}text")} >= {"l1", "l2", "none"}


def test_a_legend_takes_as_many_rows_as_its_names_need() -> None:
    assert legend_rows([], NARROW) == 0
    assert legend_rows(["none", "l1"], NARROW) == 1
    assert legend_rows(["x" * 30] * 3, NARROW) == 3


def test_the_first_series_is_neutral_and_the_others_have_colours_and_dashes() -> None:
    first, second = series_styles(["none", "l2"]).values()
    assert (first.colour, first.dashes) == ("var(--series-0, #3d464e)", None)
    assert (second.colour, second.dashes) == ("var(--series-1, #1b62b5)", "7 3")


def test_sixty_series_look_different_in_more_than_colour() -> None:
    every = list(series_styles(map(str, range(60))).values())
    assert len(set(every)) == 60
    assert len({(look.dashes, look.marker) for look in every[:20]}) == 20


def test_a_legend_that_is_too_long_takes_more_rows_and_stays_inside() -> None:
    labels = [f"a series of {n}" for n in range(6)]
    values = {label: [Interval(0.5, 0.4, 0.6)] for label in labels}
    series = IntervalSeries(values, series_styles(labels))
    axes = Places.of("k", [10]), interval_axis("value", series)
    svg = drawn(interval_chart(WORDS, NARROW, axes, series))
    names = [text for text in svg.iter(f"{SVG}text") if text.text in labels]
    assert len(names) == 6
    assert len({name.get("y") for name in names}) == 3
    assert all(float(name.get("x", "")) + 13 * 7 <= 350 for name in names)
    points = classed(svg, "whisker")
    top = min(float(re.findall(r"V([\d.]+)", point.get("d", ""))[0]) for point in points)
    assert top > max(float(name.get("y", "")) for name in names)


def test_bars_below_zero_hang_from_it() -> None:
    axes = Axis("dimension", 0, 2), Axis("shift", -1, 1)
    svg = drawn(bar_chart(WORDS, WIDE, axes, [Bar(0, 1, 0.5, "up"), Bar(1, 2, -0.5, "down")]))
    up, down = classed(svg, "bar")
    zero = Plot(*axes, WIDE, 0).down(0)
    assert float(up.get("y", "")) + float(up.get("height", "")) == pytest.approx(zero, abs=0.2)
    assert float(down.get("y", "")) == pytest.approx(zero, abs=0.2)
    assert float(down.get("height", "")) == pytest.approx(float(up.get("height", "")), abs=0.2)


def test_a_narrow_logarithmic_axis_keeps_enough_ticks() -> None:
    labels = [label for _, label in Axis("norm", 2.0, 600.0, "log").ticks(6)]
    assert labels == ["3", "10", "30", "100", "300"]


@pytest.mark.parametrize("log_from", [2.0, 1e9], ids=["log", "linear"])
def test_norms_that_are_drawn_together_are_counted_exactly_between_the_same_edges(
    log_from: float, make_stats: Make
) -> None:
    generator = np.random.default_rng(0)
    norms = {"l1": generator.lognormal(4, 0.3, 3000), "l2": generator.lognormal(2, 0.3, 2000)}
    stats = {label: make_stats(np.append(values, 0.0)) for label, values in norms.items()}
    bins = bin_together(stats, log_from=log_from)
    assert bins["l1"].edges == bins["l2"].edges
    assert {its.kind for its in bins.values()} == {"log" if log_from == 2 else "linear"}
    for label, values in norms.items():
        edges = bins[label].edges
        counted = [((values >= a) & (values < b)).sum() for a, b in itertools.pairwise(edges)]
        assert list(bins[label].counts) == counted
        assert bins[label].below + sum(counted) + bins[label].above == len(values)
        assert bins[label].zero == 1
    assert 16 <= len(edges) <= 65


def test_bars_on_a_logarithmic_axis_are_equally_wide_even_within_an_octave_or_two(
    make_stats: Make,
) -> None:
    values = np.linspace(1.0, 2.1, 1000)
    bins = bin_together({"l2": make_stats(values)}, log_from=2.0)["l2"]
    widths = np.diff(np.log2(bins.edges))
    assert bins.kind == "log"
    assert widths.max() < 1.4 * widths.min()
