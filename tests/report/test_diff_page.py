from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from batchnorm_tool.report.diff_page import diff_page
from tests.report import difference_documents as differences
from tests.report.page_reader import HOSTILE, Reader, shown

Document = dict[str, Any]

EVERY = {
    "two nights": differences.difference,
    "768 dimensions": lambda: differences.difference(768),
    "nothing in common": differences.nothing_in_common,
}
ANY = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def page_of(document: Document) -> Reader:
    return Reader(diff_page(document))


def test_the_verdict_comes_first_then_the_counts() -> None:
    document = differences.difference()
    texts = page_of(document).texts
    counts = texts.index("rows in both")
    assert texts.index(document["verdict"]["words"]) < counts < texts.index("Rows that are in both")
    shown_counts = {texts[n]: texts[n + 1] for n in range(counts, counts + 10, 2)}
    assert shown_counts == {
        "rows in both": "1,797",
        "identical": "12",
        "only in B": "4",
        "only in A": "0",
        "not comparable": "2",
    }
    assert texts.index("a-1800") < texts.index("Cosine of each pair")


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        ("/data/runs/monday", "runs/tuesday/", ("monday", "tuesday")),
        ("/data/monday/x.npy", "/data/tuesday/x.npy", ("monday/x.npy", "tuesday/x.npy")),
        ("x.npy", "runs/x.npy", ("x.npy", "runs/x.npy")),
        ("/data/x.npy", "/data/x.npy", ("x.npy", "x.npy")),
    ],
)
def test_the_title_names_what_tells_the_two_apart(a: str, b: str, names: tuple[str, str]) -> None:
    document = differences.difference()
    document["a"]["path"], document["b"]["path"] = a, b
    texts = page_of(document).texts
    arrow = texts.index(" \N{RIGHTWARDS ARROW} ")
    assert (texts[arrow - 1], texts[arrow + 1]) == names


def test_pairs_that_are_all_alike_are_said_and_not_drawn() -> None:
    document = differences.difference()
    ones = dict.fromkeys(document["cosine"]["quantiles"], 1.0)
    document["cosine"] |= {"mean": 1.0, "min": 1.0, "max": 1.0, "quantiles": ones}
    document["cosine"]["histogram"] = [[0.5, 1.0, document["cosine"]["count"]]]
    reader = page_of(document)
    assert "1,796 pairs, mean 1.000000: all are alike to six digits." in reader.texts
    assert "Histogram of the cosine" not in reader.texts


def test_cosines_that_differ_in_the_eighth_digit_are_told_apart() -> None:
    document = differences.difference()
    edges = [1 - (9 - n) * 1e-8 for n in range(9)]
    document["cosine"]["histogram"] = [[low, low + 1e-8, 5] for low in edges]
    rows = page_of(document).tables["Pairs by cosine"][1:]
    assert len({row[0] for row in rows}) == 9


def test_keys_of_several_parts_are_one_text() -> None:
    document = differences.difference()
    document["worst"][0]["key"] = ["shop", 17]
    document["examples"]["added"] = [["shop", 18]]
    reader = page_of(document)
    assert reader.tables["Rows whose direction changed most"][1][0] == "shop, 17"
    assert "shop, 18" in reader.texts


@pytest.mark.parametrize("name", ["cosine", "norm_ratio"])
def test_the_histograms_hold_every_pair(name: str) -> None:
    document = differences.difference()
    measure = {"cosine": "cosine", "norm_ratio": "ratio of L2 norms, B to A"}[name]
    tables = page_of(document).tables
    bars = tables[f"Pairs by {measure}"]
    assert sum(int(row[2].replace(",", "")) for row in bars[1:]) == document[name]["count"]
    quantiles = tables[f"Quantiles of the {measure}"][1]
    assert float(quantiles[4]) == pytest.approx(document[name]["quantiles"]["0.5"], rel=1e-5)


def test_the_rows_that_changed_most_come_with_key_and_norms() -> None:
    document = differences.difference()
    rows = page_of(document).tables["Rows whose direction changed most"]
    worst = document["worst"][0]
    assert rows[1][:2] == [worst["key"], f"{worst['cosine']:.6f}"]
    assert float(rows[1][3]) == pytest.approx(worst["norm_b"], rel=1e-3)
    assert len(rows) == 11


def test_norms_of_both_sets_are_overlaid_with_their_distances() -> None:
    reader = page_of(differences.difference())
    rows = reader.tables["L2 norms of A and B"]
    assert rows[0] == ["from", "to", "A", "B"]
    assert sum(int(row[2].replace(",", "")) for row in rows[1:]) == 1796
    assert sum(int(row[3].replace(",", "")) for row in rows[1:]) == 1797
    texts = reader.under("L2 norms of A and B")
    assert texts[1:5] == ["PSI", "0.0120", "KS distance", "0.0312"]


def test_the_shift_of_the_set_and_of_each_dimension() -> None:
    document = differences.difference()
    reader = page_of(document)
    texts = reader.under("Shift of the whole set")
    assert texts[2:9:2] == ["1.510", "7.31 %", "0.9981", "2.410"]
    rows = reader.tables["Shift of each dimension"]
    assert rows[4] == ["3", f"{document['dimensions']['shift'][3]:+.4f}"]
    assert len(rows) == 65
    assert reader.tables["Dimensions that moved most"][1][0] == "3"


def test_a_dimension_without_a_unit_is_left_out_and_said() -> None:
    document = differences.difference()
    document["dimensions"]["shift"][5] = None
    reader = page_of(document)
    assert any(text.startswith("Omitted: 1 dimension constant in A") for text in reader.texts)
    assert reader.tables["Shift of each dimension"][6] == ["5", "\u2013"]


def test_groups_of_many_dimensions_keep_their_extremes() -> None:
    document = differences.difference(768)
    document["dimensions"]["shift"] = [0.5 if n % 2 else -0.25 for n in range(768)]
    markup = diff_page(document)
    drawing = markup[markup.index('id="shift-wide-title"') :]
    hints = re.findall(r"<title>([^<]*)</title>", drawing[: drawing.index("</svg>")])
    assert hints[:2] == ["dimensions 0 to 1: \u22120.2500", "dimensions 0 to 1: +0.5000"]
    assert len(hints) == 768


def test_neighbours_that_rows_keep_have_intervals() -> None:
    reader = page_of(differences.difference())
    assert reader.tables["overlap@k"][3] == ["10", "0.9200", "0.9080\u20130.9310"]
    assert "k 10: 0.9200, 95 % interval 0.9080 to 0.9310" in "".join(reader.texts)


@pytest.mark.parametrize(
    ("same", "words"), [(True, "the same"), (False, "different"), (None, "unknown")]
)
def test_the_spaces_are_told_apart(*, same: bool | None, words: str) -> None:
    document = differences.difference()
    document["same_space"] = same
    assert f"Vector spaces: {words}." in page_of(document).texts


def test_what_was_compared_is_listed_side_by_side() -> None:
    rows = {row[0]: row[1:] for row in page_of(differences.difference()).tables["The two sets"]}
    assert rows["path"] == ["/data/runs/monday", "/data/runs/tuesday"]
    assert rows["rows"] == ["1,797", "1,801"]
    assert rows["model"] == ["/models/encoder.keras"] * 2


def test_nothing_in_common_is_said_where_there_would_be_charts() -> None:
    texts = page_of(differences.nothing_in_common()).texts
    assert texts.count("No pair of rows is finite in both sets.") == 2
    assert "No dimension has a shift." in texts
    assert "Neighbours kept" not in texts


@ANY
def test_the_page_is_sound(make: Callable[[], Document]) -> None:
    document = make()
    document["cosine"]["mean"] = math.nan
    markup = diff_page(document)
    reader = Reader(markup)
    drawings = re.findall("<svg.*?</svg>", markup)
    ids = [value for key, value in reader.attributes if key == "id"]
    assert len(set(ids)) == len(ids) == 2 * len(drawings)
    assert not re.search(r'(?<=[",MLHV])-?(nan|inf)', "".join(drawings))
    assert not re.search(r"\b(None|nan|inf)\b", " ".join(reader.texts))
    assert [v for key, v in reader.attributes if key in {"src", "href", "srcset"}] == ["data:,"]
    assert "script" not in reader.elements


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_only_text(name: str) -> None:
    def with_name(name: str) -> Document:
        document = differences.difference()
        document["worst"][0]["key"] = name
        document["examples"] = {"added": [name, name], "removed": [name]}
        document["a"] |= {"path": name, "column": name, "key": [name], "dtype": name}
        document["verdict"]["words"] = name
        document["warnings"] = [name, f"`{name}`"]
        return document

    markup = diff_page(with_name(name))
    reader = Reader(markup)
    assert set(reader.elements) == set(page_of(with_name("plain")).elements)
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", markup)
    assert reader.texts.count(shown(name)) >= 9
