"""The page of a store's nights: what stands in it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from batchnorm_tool.report.history_page import history_page
from tests.refresh_records import history_of
from tests.report import history_documents as histories
from tests.report.page_reader import HOSTILE, Reader, shown

EVERY = "Every refresh, newest first"
BROKEN = "Broken limits, newest first"
VALUES = "What the gate measured, newest first"


def page_of(document: dict[str, Any]) -> Reader:
    return Reader(history_page(history_of(document)))


def drawing(page: str, id_: str) -> str:
    """The element of one chart."""
    found = re.search(
        rf'<svg(?:(?!</svg>).)*aria-labelledby="{id_}-title".*?</svg>', page, re.DOTALL
    )
    assert found
    return found[0]


def test_the_page_says_where_the_store_stands() -> None:
    reader = page_of(histories.history())
    texts = reader.under("items.lance")
    assert texts[:2] == ["items.lance", "/stores/items.lance"]
    figures = ["live version", "29", "live rows", "999,999", "waiting", "30", "on hold", "no"]
    assert texts[2:12] == [*figures, "versions kept", "14"]


def test_a_hold_is_said_with_its_reason() -> None:
    hold = {"since": "2026-03-20T02:00:00+00:00", "reason": "rollback to 17", "version": 20}
    texts = page_of(histories.history(hold=hold)).texts
    assert texts[texts.index("on hold") + 1] == "yes"
    assert "Publication is on hold since 2026-03-20T02:00:00+00:00 (rollback to 17)." in texts


def test_every_night_has_a_row_the_newest_first() -> None:
    document = histories.history()
    rows = page_of(document).tables[EVERY]
    assert [row[0] for row in rows[1:]] == [str(v) for v in range(30, 0, -1)]
    night = document["nights"][27]
    norms = night["norms"]
    assert rows[3] == [
        "28",
        "2026-03-28 02:00",
        "kept",
        "refresh",
        "999,999",
        f"{night['rows']['new']:,}",
        f"{night['rows']['changed']:,}",
        f"{night['rows']['vanished']:,}",
        f"{norms['q50']:.3f} [{norms['q05']:.4f}\N{EN DASH}{norms['q95']:.3f}]",
        "passed",
        "encoder.keras",
    ]


def test_what_became_of_each_night_is_told() -> None:
    rows = page_of(histories.history()).tables[EVERY]
    states = {int(row[0]): (row[2], row[3]) for row in rows[1:]}
    assert states[30] == ("waiting (gate)", "refresh")
    assert states[29] == ("live", "refresh")
    assert states[20] == ("kept", "rollback to 17")
    assert states[19] == states[18] == ("rolled back, kept", "refresh")
    assert states[17] == ("kept", "refresh")
    assert states[15] == ("removed", "refresh, new space")
    assert states[9] == ("superseded", "refresh")
    assert states[1] == ("removed", "load")


def test_what_became_of_each_night_is_drawn() -> None:
    document = histories.history()
    chart = drawing(history_page(history_of(document)), "outcomes-wide")
    told = dict(re.findall(r"<title>version (\d+): ([a-z ]+)</title>", chart))
    assert len(told) == 30
    assert told["30"] == "waiting"
    assert told["18"] == "rolled back"
    assert told["9"] == "not published"
    assert re.findall(r">(live|kept|rolled back|removed|waiting|not published)</text>", chart) == [
        "live",
        "kept",
        "rolled back",
        "removed",
        "waiting",
        "not published",
    ]
    heights = set(re.findall(r' y="([\d.]+)" width', chart))
    assert len(heights) == 6


@pytest.mark.parametrize("kind", ["new", "changed", "vanished", "touched"])
def test_rows_of_each_kind_are_drawn(kind: str) -> None:
    document = histories.history()
    chart = drawing(history_page(history_of(document)), f"rows-{kind}")
    bars = dict(re.findall(r"<title>version (\d+): ([\d,]+)</title>", chart))
    expected = {str(n["version"]): n["rows"][kind] for n in document["nights"] if n["rows"][kind]}
    assert bars == {version: f"{rows:,}" for version, rows in expected.items()}


def test_a_first_load_does_not_press_the_other_nights_down() -> None:
    chart = drawing(history_page(history_of(histories.history(5))), "rows-new")
    heights = [float(h) for h in re.findall(r' height="([\d.]+)" fill="var\(--mark', chart)]
    assert heights[0] == max(heights)
    assert min(heights[1:]) > heights[0] / 2


def test_rows_that_were_computed_again_count_as_changed() -> None:
    document = histories.history(3)
    document["nights"][2]["rows"] |= {"changed": 5, "recomputed": 7}
    page = history_page(history_of(document))
    assert "version 3: 12" in drawing(page, "rows-changed")
    assert Reader(page).tables[EVERY][1][6] == "12"


def test_norm_quantiles_are_drawn_with_a_gap_where_there_are_none() -> None:
    document = histories.history(9)
    document["nights"][4]["norms"] = None
    chart = drawing(history_page(history_of(document)), "norms-wide")
    bands = re.findall(r'class="band" d="([^"]+)"', chart)
    line = re.search(r'class="line" d="([^"]+)"', chart)
    assert line
    assert [band.count("M") for band in bands] == [2, 2]
    assert line[1].count("M") == 2
    assert line[1].count("H") == 8
    medians = [n["norms"]["q50"] for n in document["nights"] if n["norms"]]
    assert f"Medians from {min(medians):.3f} to {max(medians):.3f}." in chart


def test_without_norms_the_page_says_so() -> None:
    document = histories.history(3)
    for night in document["nights"]:
        night["norms"] = {"count": 0, **dict.fromkeys(("q05", "q25", "q50", "q75", "q95"))}
    assert "No refresh has norms." in page_of(document).texts


def test_gate_values_are_drawn_against_their_limits() -> None:
    page = history_page(history_of(histories.history()))
    chart = drawing(page, "gate-changed-4")
    assert "norm_psi</title>" in chart
    assert "Broken in versions 9, 30." in chart
    limit = re.search(r'class="limit" d="([^"]+)"', chart)
    value = re.search(r'class="line" d="([^"]+)"', chart)
    assert limit
    assert value
    # Neither the first load nor the rollback was judged by it.
    assert limit[1].count("H") == value[1].count("H") == 28
    assert limit[1].count("M") == value[1].count("M") == 2
    marks = re.findall(r"<title>(version \d+: [^<]+)</title>", chart)
    assert marks == [f"version {v}: 0.9000, allowed 0.2000" for v in (9, 30)]


def test_gate_charts_stand_under_what_they_are_about() -> None:
    page = history_page(history_of(histories.history()))
    headings = re.findall(r"<h3>([^<]+)</h3>", page[page.index("What the gate measured") :])
    assert headings == [
        "The input",
        "changed",
        "vanished",
        "mean_shift",
        "Vectors of the changed rows alone",
        "norm_psi",
        "centroid_shift",
        "frechet",
        "Vectors of all rows",
        "bad",
        "norm_psi",
    ]


def test_a_value_far_beyond_its_limit_is_cut_so_that_others_can_be_read() -> None:
    document = histories.history(6)
    document["nights"][3] = histories.broken(4, "superseded", measured=500.0)
    chart = drawing(history_page(history_of(document)), "gate-changed-4")
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', chart)]
    assert max(ticks) == 0.8
    assert "version 4: 500.0, allowed 0.2000" in chart


def test_a_value_beyond_any_number_is_marked_at_the_top() -> None:
    document = histories.history(6)
    document["nights"][3] = histories.broken(4, "superseded", measured=None)
    chart = drawing(history_page(history_of(document)), "gate-changed-4")
    mark = re.search(r'class="beyond" d="M[\d.]+,([\d.]+)m', chart)
    assert mark
    assert float(mark[1]) == 26.0
    assert "version 4: \N{EN DASH}, allowed 0.2000" in chart


def test_limits_that_were_never_judged_have_no_chart() -> None:
    document = histories.history(3)
    for night in document["nights"]:
        night["gate"]["findings"] = [
            histories.finding("gate.output.frechet", "whole", None, 0.3),
            histories.finding("audit.keys", "audit", 0.0, 0.0),
        ]
    assert "What the gate measured" not in page_of(document).texts


def test_the_numbers_behind_the_gate_charts_are_there() -> None:
    document = histories.history()
    rows = page_of(document).tables[VALUES]
    assert rows[0][:3] == ["version", "bad (all rows)", "changed (input)"]
    night = next(row for row in rows if row[0] == "28")
    found = document["nights"][27]["gate"]["findings"]
    assert float(night[2]) == pytest.approx(found[0]["measured"], rel=1e-3)
    assert next(row for row in rows if row[0] == "20")[1:] == ["\N{EN DASH}"] * 8


def test_broken_limits_come_with_their_worst_rows() -> None:
    rows = page_of(histories.history()).tables[BROKEN]
    assert [row[0] for row in rows[1:]] == ["30"] * 3 + ["9"] * 3
    assert rows[1] == [
        "30",
        "frechet (changed rows)",
        "0.9000",
        "0.3000",
        "Measured 0.9; at most 0.3 allowed.",
        "17 ,  18 ,  19",
    ]


def test_no_limit_broken_no_table() -> None:
    assert BROKEN not in page_of(histories.history(5)).tables


@pytest.mark.parametrize("nights", [1, 2, 400])
def test_any_number_of_nights(nights: int) -> None:
    page = history_page(history_of(histories.history(nights)))
    assert len(Reader(page).tables[EVERY]) == nights + 1
    assert len(page) < 1_000_000
    assert "NaN" not in page
    assert "nan" not in re.sub("[^<>]*encoder[^<>]*", "", page)


def test_a_store_without_nights() -> None:
    reader = page_of(histories.history(0, live=None))
    assert "No refresh has reached the gate yet." in reader.texts
    assert reader.texts[reader.texts.index("live version") + 1] == "none"


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_stay_text(name: str) -> None:
    document = histories.history(path=f"/stores/{name}")
    night = document["nights"][8]
    night["model"]["path"] = night["state"] = night["kind"] = name
    night["gate"]["findings"][-2] |= {"what": name, "rows": [{"key": {"id": name}, "value": 1.0}]}
    reader = page_of(document)
    assert {"script", "img"}.isdisjoint(reader.elements)
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert shown(name) in [text.strip() for text in reader.texts]


def test_labels_of_versions_are_round_where_there_are_many() -> None:
    chart = drawing(history_page(history_of(histories.history(400))), "norms-wide")
    labels = re.findall(r'text-anchor="middle">([^<]+)</text>', chart)
    assert labels == [str(version) for version in range(50, 401, 50)]
    assert not math.isnan(float(labels[0]))
