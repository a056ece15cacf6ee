from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report.compare_page import comparison_page
from tests.report import comparison_documents as documents
from tests.report.page_reader import HOSTILE, Reader, shown

Document = dict[str, Any]

EVERY = {
    "with labels": documents.comparison,
    "with clicks": documents.with_clicks,
    "without judgements": lambda: documents.comparison(judged=False),
    "under cosine": documents.under_cosine,
    "by deciles": documents.by_column,
    "by values without judgements": lambda: documents.by_column(["a", "b"], judged=False),
    "two norms at one k": lambda: documents.comparison(("none", "l2"), (10,)),
    "one norm": lambda: documents.comparison(("l2",)),
    "full of gaps": documents.full_of_gaps,
}
ANY = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def page_of(document: Document) -> Reader:
    return Reader(comparison_page(document))


def hints(markup: str, drawing: str) -> list[str]:
    """What pointing at the pieces of the wide drawing of a chart says."""
    piece = markup[markup.index(f'id="{drawing}-wide-title"') :]
    return re.findall(r"<title>([^<]*)</title>", piece[: piece.index("</svg>")])


def test_the_verdict_comes_first_with_reason_cost_and_notes() -> None:
    document = documents.comparison()
    texts = page_of(document).texts
    order = [texts.index(document["verdict"][name]) for name in ("words", "reason", "cost")]
    order.append(texts.index(document["verdict"]["notes"][0]))
    assert order == sorted(order)
    assert max(order) < texts.index("dimensions") < texts.index("Retrieval quality")


def test_the_page_says_what_was_compared() -> None:
    texts = page_of(documents.with_clicks()).texts
    assert "Norms compared under the dot product: none, l1, l2, max and lp:3" in texts
    for fact in ("/data/runs/digits", "/data/queries.parquet", "/data/clicks.csv", "1.90 s"):
        assert fact in texts
    assert "12,345 clicks in " in texts
    assert ", 2 unknown queries, 17 unknown items" in texts


def test_rows_that_are_lost_are_counted_in_the_figures() -> None:
    document = documents.comparison()
    document["source"] |= {"missing": 7, "nonfinite": 5}
    document["queries"] |= {"nonfinite": 3, "used": 1794}
    texts = page_of(document).texts
    assert texts[texts.index("rows without a vector") + 1] == "7"
    assert texts[texts.index("not finite") + 1] == "5"
    assert "1,794 queries, seed 0; 3 not finite were ignored" in texts


def test_the_headline_table_holds_value_interval_difference_and_corrected_p() -> None:
    document = documents.comparison()
    rows = page_of(document).tables["precision@10 of each norm"]
    assert rows[0][-2:] == ["p", "p (Holm)"]
    assert rows[0][3] == "difference from none"
    assert rows[1][:2] == ["none", "0.6500"]
    assert rows[3] == [
        *("l2", "0.9100", "0.9003\u20130.9197", "+0.2600", "+0.2490 to +0.2720"),
        *("0.0001", "0.0003"),
    ]


def test_every_metric_family_is_drawn_with_its_intervals_and_has_its_numbers() -> None:
    document = documents.comparison()
    markup = comparison_page(document)
    reader = Reader(markup)
    for family, name in (("precision", "precision"), ("ndcg", "nDCG"), ("mrr", "MRR")):
        said = hints(markup, f"quality-{family}-1")
        assert len(said) == 16
        its = document["quality"]["l1"][f"{family}@100"]
        numbers = "{value:.4f}, 95 % interval {low:.4f} to {high:.4f}".format(**its)
        assert f"l1, k 100: {numbers}" in said
        table = reader.tables[f"{name}@k by norm"]
        assert len(table) == 1 + 16
        assert ["l1", f"{name}@100", f"{its['value']:.4f}"] in [row[:3] for row in table]


def test_the_family_of_the_headline_is_drawn_first() -> None:
    document = documents.comparison()
    document["headline"] = "ndcg@10"
    headings = [text for text in page_of(document).texts if text.endswith("@k")]
    assert headings[0] == "nDCG@k"
    assert "nDCG@10 of each norm" in page_of(document).tables


def test_a_single_k_makes_one_chart_of_all_metrics() -> None:
    markup = comparison_page(documents.comparison(("none", "l2"), (10,)))
    said = hints(markup, "quality-precision-10")
    assert [words.split(":")[0] for words in said] == [
        f"{norm}, metric {name}"
        for norm in ("none", "l2")
        for name in ("precision", "recall", "nDCG", "MRR", "MAP")
    ]
    drawing = markup[markup.index('id="quality-precision-10-wide-title"') :]
    assert 'class="line"' not in drawing[: drawing.index("</svg>")]


def test_without_judgements_the_page_says_how_to_give_some() -> None:
    reader = page_of(documents.comparison(judged=False))
    assert "--label COLUMN" in reader.under("Retrieval quality")
    assert not [caption for caption in reader.tables if "precision" in caption]


def test_queries_without_anything_relevant_are_counted() -> None:
    words = page_of(documents.comparison()).under("Retrieval quality")[1]
    assert words.startswith("Means over 1,797 judged queries; 3 of them have no relevant row")


def test_the_overlap_matrix_prints_every_pair_once_from_either_side() -> None:
    document = documents.comparison()
    markup = comparison_page(document)
    said = hints(markup, "overlap")
    assert len(said) == 12
    value = document["overlap"]["none"]["l2"]["10"]
    assert f"none and l2: {value:.4f}" in said
    assert f"l2 and none: {value:.4f}" in said
    value = document["rbo"]["l1"]["max"]
    assert {f"l1 and max: {value:.4f}", f"max and l1: {value:.4f}"} <= set(hints(markup, "rbo"))


def test_the_numbers_behind_the_matrix_have_every_k() -> None:
    document = documents.comparison()
    rows = page_of(document).tables["Agreement of each pair of norms"]
    assert rows[0] == ["norms", *(f"overlap@{k}" for k in (1, 5, 10, 100)), "rank-biased overlap"]
    overlap = document["overlap"]["l1"]["max"]
    assert rows[5][:2] == ["l1 and max", f"{overlap['1']:.4f}"]
    assert len(rows) == 1 + 6


def test_hubness_is_drawn_and_listed() -> None:
    markup = comparison_page(documents.comparison())
    assert hints(markup, "hubness-skewness")[0] == "none: 2.10"
    assert hints(markup, "hubness-antihubs")[2] == "l2: 4.0 %"
    rows = Reader(markup).tables["How often rows are neighbours"]
    assert rows[1] == ["none", "10", "2.10", "30.0 %", "310 times"]


def test_the_overlaid_norms_hold_every_vector() -> None:
    reader = page_of(documents.comparison())
    rows = reader.tables["Distribution of each norm"]
    assert rows[0] == ["from", "to", "l1", "l2", "max"]
    for column in (2, 3, 4):
        assert sum(int(row[column].replace(",", "")) for row in rows[1:]) == 1797 - 1
    assert "Not shown of l1, l2, max: 1 zero." in reader.texts


def test_norms_that_are_all_the_same_do_not_flatten_the_others() -> None:
    document = documents.comparison()
    ones = NormStats.of(documents.predictions()[:, 0] * 0 + 1.0).to_dict()
    document["norms"]["l2"] = ones
    words = [text for text in page_of(document).texts if text.startswith("Cut at the top")]
    assert words == ["Cut at the top: the highest bar of l2 holds 100.0 %."]


def test_quantiles_and_agreement_of_norms_are_listed() -> None:
    document = documents.with_clicks()
    document["unit_share"]["l2"] = 0.25
    tables = page_of(document).tables
    l2 = document["norms"]["l2"]
    row = tables["Norms before normalization"][2]
    assert (row[0], row[1]) == ("l2", "1,797")
    assert float(row[5]) == pytest.approx(l2["quantiles"]["0.5"], rel=1e-3)
    rows = tables["Rank correlation of each norm with others"]
    assert rows[0][-2:] == ["with popularity", "rows of unit length"]
    assert rows[2] == ["l2", "0.9400", "1.0000", "0.9300", "0.9200", "0.3300", "25.0 %"]


def test_the_norm_none_has_no_distribution() -> None:
    document = documents.comparison()
    document["norms"]["none"] = NormStats().to_dict()
    assert "none" not in page_of(document).tables["Distribution of each norm"][0]


def test_groups_have_a_table_for_each_metric() -> None:
    document = documents.by_column()
    reader = page_of(document)
    assert reader.under("By deciles of ")[1] == "height"
    rows = reader.tables["precision@10, with 95 % intervals"]
    assert rows[0] == ["group", "queries", *documents.NORMS]
    its = document["by"]["groups"][3]["quality"]["l1"]["precision@10"]
    assert rows[4][:2] == ["[0.3, 0.4)", "177"]
    assert rows[4][3] == "{value:.4f} {low:.4f}\u2013{high:.4f}".format(**its)
    captions = [caption for caption in reader.tables if "with 95 %" in caption]
    assert len(captions) == 5 * 4
    assert "overlap@100 with none" in reader.tables
    assert reader.tables["Skewness of the k-occurrence"][1][2:] == ["2.10", "0.96", "0.54", "2.07"]


def test_groups_without_judgements_begin_with_the_overlap() -> None:
    reader = page_of(documents.by_column(["a", "b"], judged=False))
    rows = reader.tables["overlap@10 with none"]
    assert rows[0] == ["group", "queries", "l1", "l2", "max"]
    assert rows[2][:2] == ["b", "179"]
    assert next(caption for caption in reader.tables if "with none" in caption).startswith(
        "overlap@10"
    )


def test_thousands_of_groups_are_cut_and_counted() -> None:
    document = documents.by_column([f"user {n}" for n in range(300)])
    assert "… and 200 more rows." in page_of(document).texts


def test_warnings_come_with_their_names_marked() -> None:
    reader = page_of(documents.with_clicks())
    assert reader.under("Warnings")[1:4] == [
        "17 items of ",
        "/data/clicks.csv",
        " are not among the vectors.",
    ]


@ANY
def test_what_is_not_known_is_a_dash(make: Callable[[], Document]) -> None:
    markup = comparison_page(make())
    assert not re.search(r'(?<=[",MLHV])-?(nan|inf)', "".join(re.findall("<svg.*?</svg>", markup)))
    assert not re.search(r"\b(None|nan|inf)\b", " ".join(Reader(markup).texts))


@ANY
def test_the_page_asks_for_nothing_and_runs_nothing(make: Callable[[], Document]) -> None:
    markup = comparison_page(make())
    reader = Reader(markup)
    assert [v for key, v in reader.attributes if key in {"src", "href", "srcset"}] == ["data:,"]
    assert "script" not in reader.elements
    assert "url(" not in markup


@ANY
def test_identifiers_are_unique_and_every_drawing_has_title_and_description(
    make: Callable[[], Document],
) -> None:
    markup = comparison_page(make())
    ids = [value for key, value in Reader(markup).attributes if key == "id"]
    assert len(set(ids)) == len(ids)
    drawings = re.findall("<svg.*?</svg>", markup)
    for drawing in drawings:
        assert re.match(
            r'<svg[^>]*><title id="[^"]+">[^<]+</title><desc id="[^"]+">[^<]+</', drawing
        )
    assert len(ids) == 2 * len(drawings)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_only_text(name: str) -> None:
    def with_name(name: str) -> Document:
        document = documents.by_column([name, "b"])
        document["by"]["column"] = name
        document["source"] |= {"path": name, "column": name}
        document["source"]["provenance"]["model"] = name
        document["relevance"]["column"] = name
        document["warnings"] = [name, f"`{name}`"]
        document["verdict"] |= {"words": name, "reason": name, "cost": name, "notes": [name]}
        return document

    markup = comparison_page(with_name(name))
    reader = Reader(markup)
    assert set(reader.elements) == set(page_of(with_name("plain")).elements)
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", markup)
    assert reader.texts.count(shown(name)) >= 12
