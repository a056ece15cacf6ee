"""The page of a store's nights in a real browser, see `tests.report.browser`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.report.history_page import history_page
from tests.refresh_records import history_of
from tests.report import history_documents as histories
from tests.report.browser import Browser

WIDTHS = pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
LONG_NAME = "a_name_that_is_" + "very_" * 30 + "long"


def crowded() -> dict[str, Any]:
    """Long names everywhere, a hold, and large numbers."""
    hold = {"since": "2026-03-20T02:00:00+00:00", "reason": LONG_NAME, "version": 20}
    document = histories.history(path=f"/stores/{LONG_NAME}.lance", hold=hold)
    for night in document["nights"]:
        night["model"] = {"path": LONG_NAME, "content": ""}
        night["rows"] |= {"live": 12_345_678_901}
    findings = document["nights"][8]["gate"]["findings"]
    rows = [{"key": {"id": "k" * 300}, "value": 1.0}]
    document["nights"][8]["gate"]["findings"] = [f | {"rows": rows} for f in findings]
    return document


PAGES = {
    "thirty nights": histories.history,
    "one night": lambda: histories.history(1),
    "four hundred nights": lambda: histories.history(400),
    "crowded": crowded,
}


@pytest.fixture(name="page", scope="module", params=PAGES)
def _page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(history_page(history_of(PAGES[request.param]())), encoding="utf-8")
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
    assert len(heights) > 20
    assert min(heights) >= 12  # CSS pixels of a line, about 11 for the letters
    assert overlaps == []


@WIDTHS
def test_one_drawing_of_each_chart_is_shown(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, "light")
    assert browser.drawings_shown() == {1}


@THEMES
def test_text_and_lines_stand_out_in_both_themes(
    browser: Browser, tmp_path: Path, theme: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(history_page(history_of(histories.history())), encoding="utf-8")
    browser.open(path, 1280, theme)
    texts = ["h1", ".quiet", ".figures dt", ".figures dd", ".alarm dd", "th", "td", ".note", "svg"]
    # WCAG 2.2, success criterion 1.4.3 (AA).
    assert min(browser.contrasts(texts)) >= 4.5
    colours = browser.run(
        """const of = (s, what) => getComputedStyle(document.querySelector(s))[what];
           return [of('.alarm dd', 'color'), of('.limit', 'stroke'), of('path.beyond', 'fill')];"""
    )
    assert len(set(colours)) == 1  # limits have the colour of what should worry the reader
