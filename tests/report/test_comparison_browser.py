"""The pages of a comparison and a diff in a real browser, see `tests.report.browser`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.report.compare_page import comparison_page
from batchnorm_tool.report.diff_page import diff_page
from tests.report import comparison_documents as documents
from tests.report import difference_documents as differences
from tests.report.browser import Browser

WIDTHS = pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
LONG_NAME = "a_name_that_is_" + "very_" * 30 + "long"
NINE_NORMS = ("none", "l1", "l2", "max", *(f"lp:{order}" for order in (1.5, 2.5, 3, 4, 12.25)))


def crowded() -> dict[str, Any]:
    """A comparison with more of everything than anybody asks for, and long names."""
    document = documents.by_column([LONG_NAME, "b"])
    document["by"]["column"] = LONG_NAME
    document["source"] |= {"path": f"/data/{LONG_NAME}", "column": LONG_NAME, "missing": 3}
    document["relevance"]["column"] = LONG_NAME
    document["warnings"] = ["`" + "w" * 200 + "` <script>console.error('ran')</script>"]
    document["verdict"]["words"] += f" Not so `{LONG_NAME}`."
    document["compared"] = list(NINE_NORMS)
    for norm in NINE_NORMS[4:]:
        document["tests"][norm] = document["tests"]["l2"]
        document["norms"][norm] = document["norms"]["l2"]
    for holder in (document, *document["by"]["groups"]):
        for norm in NINE_NORMS[4:]:
            holder["quality"][norm] = holder["quality"]["l2"]
            holder["hubness"][norm] = holder["hubness"]["none"] | {"skewness": -1.25}
        for one in NINE_NORMS:
            shared = holder["overlap"].setdefault(one, {})
            alike = dict.fromkeys(map(str, documents.KS), 0.987)
            shared |= {other: alike for other in NINE_NORMS if other not in shared}
            holder["rbo"].setdefault(one, {}).update(dict.fromkeys(NINE_NORMS, 0.5))
    measured = dict.fromkeys(document["norms"], 0.9)
    document["rank_correlation"] = {norm: measured | {norm: 1.0} for norm in measured}
    return document


def crowded_diff() -> dict[str, Any]:
    document = differences.difference(768)
    document["a"] |= {"path": f"/data/{LONG_NAME}", "column": LONG_NAME}
    document["worst"][0]["key"] = "k" * 300
    document["examples"]["added"][0] = "k" * 300
    return document


PAGES = {
    "comparison": lambda: comparison_page(documents.by_column()),
    "crowded comparison": lambda: comparison_page(crowded()),
    "comparison at one k": lambda: comparison_page(documents.comparison(("none", "l2"), (10,))),
    "comparison of nothing": lambda: comparison_page(documents.full_of_gaps()),
    "diff": lambda: diff_page(differences.difference()),
    "crowded diff": lambda: diff_page(crowded_diff()),
}


@pytest.fixture(name="page", scope="module", params=PAGES)
def _page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(PAGES[request.param](), encoding="utf-8")
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
def test_text_stands_out_from_what_lies_behind_it(browser: Browser, page: Path, theme: str) -> None:
    browser.open(page, 1280, theme)
    texts = ["h1", ".quiet", ".verdict h2", ".words", ".figures dt", ".figures dd", "th", "td"]
    # WCAG 2.2, success criterion 1.4.3 (AA).
    assert min(browser.contrasts([*texts, "summary", ".note", "svg"])) >= 4.5


@THEMES
def test_series_and_cells_stand_out_in_both_themes(
    browser: Browser, tmp_path: Path, theme: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["crowded comparison"](), encoding="utf-8")
    browser.open(path, 1280, theme)
    paper, marks, ink, cells = browser.run(
        """const rgb = c => c.match(/[\\d.]+/g).map(Number);
           const all = s => [...document.querySelectorAll(s)].map(e => getComputedStyle(e));
           const paper = rgb(getComputedStyle(document.body).backgroundColor);
           return [paper, all('.wide .marker').map(s => rgb(s.fill)),
                   rgb(getComputedStyle(document.body).color),
                   all('.narrow .cell').map(s => [rgb(s.fill), Number(s.fillOpacity)])];"""
    )
    # Graphical objects need 3 to 1 (WCAG 2.2, 1.4.11), the numbers in cells 4.5 (1.4.3).
    assert min(contrast(mark, paper) for mark in marks) >= 3
    mixed = [
        [depth * c + (1 - depth) * p for c, p in zip(colour, paper, strict=True)]
        for colour, depth in cells
    ]
    assert min(contrast(ink, ground) for ground in mixed) >= 4.5


def contrast(one: list[float], other: list[float]) -> float:
    def light(colour: list[float]) -> float:
        parts = [c / 255 for c in colour[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_verdict_is_on_the_first_screen_of_a_phone(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["comparison"](), encoding="utf-8")
    browser.open(path, 390, "light")
    bottom = browser.run(
        "return document.querySelector('.verdict .words').getBoundingClientRect().bottom"
    )
    assert bottom < 400


def test_a_chart_is_announced_by_its_title(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["comparison"](), encoding="utf-8")
    browser.open(path, 1280, "light")
    svg = browser.driver.find_element("css selector", ".wide svg")
    assert svg.aria_role in {"img", "image"}
    assert svg.accessible_name == "precision@k by norm"
