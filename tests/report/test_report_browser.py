"""The page of a run in a real browser; skipped where there is none, see `tests.report.browser`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.report.run_page import run_page
from tests.report.browser import Browser

Make = Callable[..., Any]

WIDTHS = pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
LONG_NAME = "an_output_with_a_name_that_is_" + "very_" * 20 + "long"


@pytest.fixture(name="page")
def _page(tmp_path: Path, make_run: Make, make_predictions: Make) -> Path:
    run = make_run({"vector": make_predictions(), LONG_NAME: make_predictions(1797, 700)})
    run.manifest["first_bad_rows"][0]["key"] = "k" * 300
    run.manifest["warnings"] = ["`" + "w" * 200 + "` <script>console.error('ran')</script>"]
    path = tmp_path / "run.html"
    path.write_text(run_page(run.record, run.chunks), encoding="utf-8")
    return path


@WIDTHS
@THEMES
def test_the_page_loads_nothing_and_complains_of_nothing(
    browser: Browser, page: Path, width: int, theme: str
) -> None:
    browser.open(page, width, theme)
    assert browser.run("return document.querySelectorAll('svg').length") >= 8
    assert browser.complaints() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [page.as_uri()]


@WIDTHS
def test_nothing_sticks_out_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, "light")
    assert browser.run("return window.innerWidth") == width
    assert browser.sticking_out() == []


@WIDTHS
def test_chart_labels_are_large_enough_to_read_and_do_not_overlap(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width, "light")
    heights, overlaps = browser.chart_labels()
    assert len(heights) > 40
    assert min(heights) >= 12  # CSS pixels of a line, about 11 for the letters
    assert overlaps == []


@WIDTHS
def test_one_drawing_of_each_chart_is_shown(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, "light")
    assert browser.drawings_shown() == {1}


@THEMES
def test_text_stands_out_from_the_paper(browser: Browser, page: Path, theme: str) -> None:
    browser.open(page, 1280, theme)
    texts = ["h1", ".quiet", "dt", "dd", "th", "td", "summary", ".note", ".alarm dd", "svg"]
    # WCAG 2.2, success criterion 1.4.3 (AA).
    assert min(browser.contrasts(texts)) >= 4.5


def test_dark_and_light_differ(browser: Browser, page: Path) -> None:
    papers, marks = [], []
    for theme in ("light", "dark"):
        browser.open(page, 1280, theme)
        papers.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        marks.append(browser.run("return getComputedStyle(document.querySelector('.bar')).fill"))
    assert papers == ["rgb(253, 253, 252)", "rgb(20, 23, 26)"]
    assert marks[0] != marks[1]


def test_a_chart_is_announced_by_its_title(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, "light")
    svg = browser.driver.find_element("css selector", ".wide svg")
    assert svg.aria_role in {"img", "image"}
    assert svg.accessible_name == "Histogram of l2 norms"
