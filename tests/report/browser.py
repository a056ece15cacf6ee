"""A real browser; its tests skip where there is none, unless REQUIRE_ALL_SUITES is set."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
# Where Chromium's own pages lie, such as the one of a new tab: what they ask for is not the page's.
OWN = ("chrome://", "chrome-untrusted://", "chrome-extension://", "devtools://")


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
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in messages if not message.startswith(OWN)]

    def requests(self) -> list[str]:
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and not event["params"]["documentURL"].startswith(OWN)
        ]

    def sticking_out(self) -> list[str]:
        """Name what reaches beyond the page's sides, boxes that scroll by themselves aside."""
        self.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        room = self.run("return document.documentElement.clientWidth")
        assert self.run("return document.documentElement.scrollWidth") == room
        return self.run(
            """return [...document.querySelectorAll('body *')]
                 .filter(e => !e.closest('.scroll') || e.matches('.scroll'))
                 .filter(e => e.getBoundingClientRect().width > 0)
                 .filter(e => e.getBoundingClientRect().right > ROOM + 0.5
                           || e.getBoundingClientRect().left < -0.5)
                 .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))""".replace(
                "ROOM", str(room)
            )
        )

    def chart_labels(self) -> tuple[list[float], list[str]]:
        """Give the heights of all texts in charts, and the pairs of texts that overlap."""
        heights, overlaps = self.run(
            """const heights = [], overlaps = [];
               for (const svg of document.querySelectorAll('svg')) {
                 const texts = [...svg.querySelectorAll('text')]
                   .map(t => [t.textContent, t.getBoundingClientRect()])
                   .filter(t => t[1].width > 0);
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
        return heights, overlaps

    def drawings_shown(self) -> set[int]:
        """Give how many drawings figures show at once."""
        return set(
            self.run(
                """return [...document.querySelectorAll('figure')].map(
                     f => [...f.querySelectorAll('svg')].filter(s => s.clientWidth > 0).length)"""
            )
        )

    def contrasts(self, selectors: list[str]) -> list[float]:
        """Give the contrast of the first text of each selector to what lies behind it (WCAG)."""
        return self.run(
            """const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
                   .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                 return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
               const clear = 'rgba(0, 0, 0, 0)';
               const behind = e => { const c = getComputedStyle(e).backgroundColor;
                 return c === clear ? behind(e.parentElement) : c; };
               return SELECTORS.map(s => document.querySelector(s)).map(e =>
                 [light(getComputedStyle(e).color), light(behind(e))]).map(([ink, paper]) =>
                 (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));""".replace(
                "SELECTORS", json.dumps(selectors)
            )
        )


def opened(profile: Path) -> Iterator[Browser]:
    """Open a browser for a fixture, close it afterwards."""
    lack = missing()
    if lack and os.environ.get("REQUIRE_ALL_SUITES"):
        pytest.fail(lack)
    if lack:
        pytest.skip(lack)
    browser = Browser(profile)
    yield browser
    browser.driver.quit()
