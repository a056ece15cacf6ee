"""The page in a real browser; skipped where there is none, unless REQUIRE_ALL_SUITES is set."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.report.run_page import run_page

Make = Callable[..., Any]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])
LONG_NAME = "an_output_with_a_name_that_is_" + "very_" * 20 + "long"


def missing() -> str | None:
    """Say what the suite lacks here."""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if programs:
        return f"browser suite: {' and '.join(programs)} not installed (apt-get install chromium)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "browser suite: the Python package selenium is not installed"
    return None


class Browser:
    """Headless Chromium that keeps a log of what pages ask for and complain about."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, page: Path, width: int, theme: str) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(page.as_uri())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module", name="browser")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    lack = missing()
    if lack and os.environ.get("REQUIRE_ALL_SUITES"):
        pytest.fail(lack)
    if lack:
        pytest.skip(lack)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture(name="page")
def _page(tmp_path: Path, make_run: Make, make_predictions: Make) -> Path:
    run = make_run({"vector": make_predictions(), LONG_NAME: make_predictions(1797, 700)})
    run.manifest["first_bad_rows"][0]["key"] = "k" * 300
    run.manifest["warnings"] = ["`" + "w" * 200 + "` <script>console.error('ran')</script>"]
    path = tmp_path / "run.html"
    path.write_text(run_page(run.manifest, run.chunks), encoding="utf-8")
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
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("return window.innerWidth") == width
    room = browser.run("return document.documentElement.clientWidth")
    assert browser.run("return document.documentElement.scrollWidth") == room
    outside = browser.run(
        """return [...document.querySelectorAll('body *')]
             .filter(e => !e.closest('.scroll') || e.matches('.scroll'))
             .filter(e => e.getBoundingClientRect().width > 0)
             .filter(e => e.getBoundingClientRect().right > arguments[0] + 0.5
                       || e.getBoundingClientRect().left < -0.5)
             .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))""".replace(
            "arguments[0]", str(room)
        )
    )
    assert outside == []


@WIDTHS
def test_chart_labels_are_large_enough_to_read_and_do_not_overlap(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width, "light")
    heights, overlaps = browser.run(
        """const heights = [], overlaps = [];
           for (const svg of document.querySelectorAll('svg')) {
             const texts = [...svg.querySelectorAll('text')]
               .map(t => [t.textContent, t.getBoundingClientRect()]).filter(t => t[1].width > 0);
             for (const [i, [word, a]] of texts.entries()) {
               heights.push(a.height);
               for (const [other, b] of texts.slice(i + 1))
                 if (a.left < b.right && b.left < a.right
                     && a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2)
                   overlaps.push(word + ' / ' + other);
             }
           }
           return [heights, overlaps];"""
    )
    assert len(heights) > 40
    assert min(heights) >= 12  # CSS pixels of a line, about 11 for the letters
    assert overlaps == []


@WIDTHS
def test_one_drawing_of_each_chart_is_shown(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, "light")
    shown = browser.run(
        """return [...document.querySelectorAll('figure')].map(
             f => [...f.querySelectorAll('svg')].filter(s => s.clientWidth > 0).length)"""
    )
    assert set(shown) == {1}


@THEMES
def test_text_stands_out_from_the_paper(browser: Browser, page: Path, theme: str) -> None:
    browser.open(page, 1280, theme)
    ratios = browser.run(
        """const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
               .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
             return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
           const paper = light(getComputedStyle(document.body).backgroundColor);
           return ['h1', '.quiet', 'dt', 'dd', 'th', 'td', 'summary', '.note', '.alarm dd', 'svg']
             .map(s => document.querySelector(s)).map(e => light(getComputedStyle(e).color))
             .map(ink => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));"""
    )
    # WCAG 2.2, success criterion 1.4.3 (AA).
    assert min(ratios) >= 4.5


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
