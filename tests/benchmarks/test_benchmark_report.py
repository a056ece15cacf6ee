from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.bench import Record
from benchmarks.cases.growing import straight_line
from benchmarks.findings import Finding, Target, figure
from benchmarks.growth_plot import growth_plot
from benchmarks.measure import Measurement
from benchmarks.places import ROOT
from benchmarks.report import BEGIN, END, Report

SVG = "{http://www.w3.org/2000/svg}"


def finding(value: float | None, target: Target) -> Finding:
    return Finding("1", "a | b", "4.00 s", "plain script: 40.0 s", value, target)


def record(seconds: float) -> Record:
    said = {"body_seconds": seconds, "body_cpu_seconds": 2 * seconds}
    return Record("1", "ours", Measurement(seconds + 9, 20.0, 800_000_000, 700_000_000, said))


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [
        (12.0, Target("at least", 12), "met"),
        (11.99, Target("at least", 12), "missed"),
        (1.15, Target("at most", 1.15), "met"),
        (1.151, Target("at most", 1.15), "missed"),
        (math.inf, Target("at most", 0.3, "s"), "missed"),
        (math.nan, Target("at most", 0.3, "s"), "not measured"),
        (None, Target("at least", 4), "not measured"),
    ],
)
def test_a_value_is_held_to_its_target(value: float, target: Target, verdict: str) -> None:
    assert finding(value, target).verdict == verdict


def test_the_table_says_what_was_missed() -> None:
    report = Report(
        "make bench SIZE=full",
        findings=[finding(11.0, Target("at least", 12)), finding(3.0, Target("at most", 4, "s"))],
        failures={"3": "Ray\nhas no room"},
        records=[record(3.0), record(9.0), record(4.0)],
        machine={"CPU": "a processor", "cores": "2"},
        versions={"the tool": {"tensorflow": "2.21.0"}},
        date="2026-01-02",
    )
    text = report.to_markdown()
    lines = text.splitlines()
    assert lines[0] == "| row | work | ours | the other | ratio | target | met |"
    assert lines[2:4] == [
        "| 1 | a \\| b | 4.00 s | plain script: 40.0 s | 11.0 times | at least 12 times | missed |",
        "| 1 | a \\| b | 4.00 s | plain script: 40.0 s | 3.00 s | at most 4 s | met |",
    ]
    assert "Case 3 could not be measured: Ray has no room" in lines
    assert "| 1 | ours | 3 | 4.00 | 13.0 | 20.0 | 800 |" in lines
    assert (
        "Made by `make bench SIZE=full` on 2026-01-02. Machine: CPU a processor, cores 2." in text
    )
    assert "Versions of the tool: tensorflow 2.21.0." in text


def test_the_page_shows_the_saved_table() -> None:
    shown = (ROOT / "docs" / "speed.md").read_text().partition(BEGIN)[2].partition(END)[0]
    saved = (ROOT / "benchmarks" / "results" / "full.md").read_text()
    rows = [line for line in shown.splitlines() if line]
    assert len(rows) > 12
    assert set(rows) <= set(saved.splitlines())


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report = Report("make bench", findings=[finding(13.0, Target("at least", 12))])
    for _ in range(2):
        report.show_in(page)
    inner = f"{BEGIN}\n{report.targets()}\n\n{report.origin()}\n{END}"
    assert page.read_text() == f"before\n{inner}\nafter\n"


def test_a_page_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{BEGIN}\nafter\n")
    with pytest.raises(ValueError, match="no marks"):
        Report("make bench").show_in(page)
    assert page.read_text() == f"before\n{BEGIN}\nafter\n"


def test_every_measurement_is_saved(tmp_path: Path) -> None:
    curves = {"rows": [(1e6, 4.0), (4e6, 16.0)], "width": [(16.0, 1e6), (4096.0, 6e7)]}
    report = Report("make bench", records=[record(3.0), record(9.0)], curves=curves)
    report.findings.append(finding(1.0, Target("at least", 12)))
    report.save(tmp_path / "new", "quick")
    saved = json.loads((tmp_path / "new" / "quick.json").read_text())
    assert [one["said"]["body_seconds"] for one in saved["measurements"]] == [3.0, 9.0]
    assert saved["findings"][0]["verdict"] == "missed"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "quick.md",
        "quick.json",
        "quick-growth.svg",
    }


def test_the_plot_is_one_file_that_says_what_it_shows() -> None:
    rows, widths = [(250_000, 1.2), (1e6, 4.0), (16e6, 64.0)], [(16, 2e6), (4096, 6e7)]
    root = ET.fromstring(growth_plot(rows, widths))  # noqa: S314  (our own)
    assert [child.tag for child in root][:3] == [f"{SVG}title", f"{SVG}desc", f"{SVG}style"]
    assert "16 million rows 64 s" in str(root[1].text)
    assert "prefers-color-scheme: dark" in str(root[2].text)
    assert len(root.findall(f".//{SVG}circle")) == 5
    assert "href" not in growth_plot(rows, widths)


def test_a_curve_is_found_not_to_be_a_straight_line() -> None:
    sizes = [1.0, 4.0, 16.0]
    (fixed, each), worst = straight_line([[1, 1, 1], sizes], [3.0, 9.0, 33.0])
    assert (fixed, each, worst) == (pytest.approx(1), pytest.approx(2), pytest.approx(0))
    assert straight_line([[1, 1, 1], sizes], [3.0, 9.0, 66.0])[1] > 0.1


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0512, "1.051"), (13.37, "13.4"), (2e6, "2,000,000"), (0.0123, "0.0123")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown
