"""Relevance files in a comparison, against ir-measures and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from batchnorm_tool.commands.compare.compare import compare
from batchnorm_tool.commands.run.run import run
from batchnorm_tool.errors import InputError, Refused
from batchnorm_tool.job import Job
from tests.commands.compare.compared import (
    EVERYONE,
    NORMS,
    ROWS,
    classes,
    draw,
    figures,
    nearest,
    shared,
    store,
    values,
)

ASKED = 60
ITEMS = [f"item {row}" for row in range(ROWS)]
ASKING = [f"query {row}" for row in range(ASKED)]
NAMES = {"precision": "P", "recall": "R", "ndcg": "nDCG", "mrr": "RR", "map": "AP"}
# What each query says of items, by their ids.
Grades = Mapping[str, Mapping[str, int]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    x = draw()
    return store(tmp_path / "base.parquet", x, id=pa.array(ITEMS), label=classes(x))


@pytest.fixture
def asking(tmp_path: Path) -> Path:
    x = draw(ASKED, seed=1)
    group = np.arange(ASKED) % 3
    return store(tmp_path / "asking.parquet", x, id=pa.array(ASKING), label=classes(x), group=group)


def grades_of(ids: list[str]) -> dict[str, dict[str, int]]:
    """Judgements of some queries: of themselves, without relevant items, of items that are gone."""
    rng = np.random.default_rng(5)
    found = {
        name: {ITEMS[row]: int(rng.integers(4)) for row in rng.choice(ROWS, 60, replace=False)}
        for name in ids[:40]
    }
    for name in ids[:40:3]:
        found[name] |= {"gone 1": 2, "gone 2": 1, name: 3}
    found[ids[1]] = dict.fromkeys(found[ids[1]], 0)
    return found


def as_rows(grades: Grades) -> list[tuple[str, str, int]]:
    return [(query, item, of[item]) for query, of in grades.items() for item in of]


def write_parquet(path: Path, grades: Grades) -> None:
    users, films, stars = zip(*as_rows(grades), strict=True)
    pq.write_table(pa.table({"stars": stars, "user": users, "film": films}), path)


def write_csv(path: Path, grades: Grades) -> None:
    lines = [f"{query},{item},{grade}" for query, item, grade in as_rows(grades)]
    path.write_text("\n".join(["query,item,grade", *lines]))


def write_trec(path: Path, grades: Grades) -> None:
    lines = [f"{query} 0 {item} {grade}" for query, item, grade in as_rows(grades)]
    path.write_text("\n".join(lines))


def measured(grades: Grades, rows: np.ndarray, ids: list[str]) -> dict[str, float]:
    """Every metric as ir-measures has it."""
    qrels = [ir_measures.Qrel(*row) for row in as_rows(grades)]
    run = [
        ir_measures.ScoredDoc(query, ITEMS[row], -float(rank))
        for query, of in zip(ids, rows.tolist(), strict=True)
        for rank, row in enumerate(of)
        if query in grades
    ]
    metrics = {
        f"{ours}@{k}": ir_measures.parse_measure(f"{theirs}@{k}")
        for ours, theirs in NAMES.items()
        for k in (1, 10)
    }
    found = ir_measures.calc_aggregate(list(metrics.values()), qrels, run)
    return {ours: found[theirs] for ours, theirs in metrics.items()}


@pytest.mark.parametrize(
    ("write", "columns"),
    [(write_parquet, ["user", "film", "stars"]), (write_csv, None)],
    ids=["parquet", "csv"],
)
def test_quality_of_a_second_file_equals_ir_measures(
    tmp_path: Path, base: Path, asking: Path, write: Callable[..., None], columns: Any
) -> None:
    grades = grades_of(ASKING)
    write(tmp_path / "judged", {**grades, "nobody": {ITEMS[3]: 1}})
    given = {"relevance": tmp_path / "judged", "relevance_columns": columns}
    found = figures(compare(base, key="id", queries=asking, k=[1, 10], **given, **EVERYONE))
    assert found["queries"] == {
        "rows": 40,
        "used": 40,
        "nonfinite": 0,
        "judged": 40,
        "without_relevant": 1,
    }
    for norm in NORMS:
        rows = nearest(draw(ASKED, seed=1), draw(), norm, k=10)
        expected = measured(grades, rows, ASKING)
        assert {m: of["value"] for m, of in found["quality"][norm].items()} == pytest.approx(
            expected, rel=1e-12
        )
        assert min(expected.values()) > 0
    assert found["relevance"]["path"] == str(tmp_path / "judged")
    # Of the queries' ids none is an item's: what they say of themselves is of unknown items.
    assert found["relevance"]["unknown_items"] == 2 + len(ASKING[:40:3])
    assert (found["relevance"]["unknown_queries"], found["relevance"]["clicks"]) == (1, False)
    barren, queries, items = found["warnings"]
    assert barren == "Judged queries without a relevant row, counted as 0: 1."
    assert queries.endswith("are not among the queries, ignored: 1.")
    assert items.endswith("counted as relevant rows that no norm can find: 16.")


def test_quality_of_rows_of_the_base_equals_ir_measures(tmp_path: Path) -> None:
    """Keys are row numbers, judged as TREC does, whose ids hold no blanks."""
    source = store(tmp_path / "base", draw())
    grades = {
        query.removeprefix("item "): {
            item.removeprefix("item ").replace(" ", "-"): grade for item, grade in of.items()
        }
        for query, of in grades_of(ITEMS).items()
    }
    write_trec(tmp_path / "qrels", grades)
    found = figures(compare(source, relevance=tmp_path / "qrels", k=[1, 10]))
    others = {
        f"item {query}": {f"item {item}": of[item] for item in of if item != query}
        for query, of in grades.items()
    }
    for norm in NORMS:
        expected = measured(others, nearest(draw(), draw(), norm, k=10), ITEMS)
        assert {m: of["value"] for m, of in found["quality"][norm].items()} == pytest.approx(
            expected, rel=1e-12
        )
    assert (found["relevance"]["format"], found["relevance"]["unknown_items"]) == ("trec", 2)


def test_only_judged_queries_are_drawn(tmp_path: Path, base: Path, asking: Path) -> None:
    write_csv(tmp_path / "judged.csv", grades_of(ASKING))
    given = {"key": "id", "queries": asking, "relevance": tmp_path / "judged.csv", "k": 5}
    found = figures(compare(base, **given, sample=15, seed=3))
    assert (found["queries"]["rows"], found["queries"]["judged"]) == (15, 15)
    drawn = np.sort(np.random.default_rng(3).choice(40, 15, replace=False))
    rows = [nearest(draw(ASKED, seed=1)[drawn], draw(), norm, k=5) for norm in ("none", "l2")]
    assert found["overlap"]["none"]["l2"]["5"] == pytest.approx(shared(*rows))


def test_popularity_is_scipys_rank_correlation(tmp_path: Path, base: Path, asking: Path) -> None:
    grades = grades_of(ASKING)
    write_csv(tmp_path / "judged.csv", grades)
    given = {"key": "id", "queries": asking, "relevance": tmp_path / "judged.csv", "k": 5}
    found = figures(compare(base, norms=["none", "lp:3"], **given, sample=5))
    counts = [sum(of.get(item, 0) > 0 for of in grades.values()) for item in ITEMS]
    lengths = np.linalg.norm(draw().astype(float), 3, axis=1)
    assert list(found["popularity"]) == ["l1", "l2", "max", "lp:3"]
    expected = stats.spearmanr(lengths, counts).statistic
    assert found["popularity"]["lp:3"] == pytest.approx(expected, rel=1e-12)


def test_popularity_is_that_of_finite_rows(tmp_path: Path) -> None:
    x = draw()
    x[10] = np.nan
    write_csv(tmp_path / "clicks.csv", {"1": {"10": 1, "20": 1, "30": 1}})
    found = figures(compare(x, relevance=tmp_path / "clicks.csv", k=5))
    kept = np.delete(np.arange(ROWS), 10)
    lengths = np.linalg.norm(x[kept].astype(float), axis=1)
    expected = stats.spearmanr(lengths, np.isin(kept, [20, 30])).statistic
    assert found["popularity"]["l2"] == pytest.approx(expected, rel=1e-12)


def test_clicks_are_added_up_and_noted(tmp_path: Path, base: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("query,item\n" + "item 1,item 2\nitem 1,item 2\nitem 1,item 3\n")
    found = figures(compare(base, key="id", relevance=clicks, k=[ROWS - 1], metric="euclidean"))
    assert (found["relevance"]["clicks"], found["relevance"]["pairs"]) == (True, 2)
    (note,) = found["verdict"]["notes"]
    assert "Clicks favour the ranking that produced them" in note
    row = nearest(draw()[1:2], draw(), "l2", k=ROWS - 1, metric="euclidean")[0].tolist()
    two, three = (np.log2(row.index(item) + 2) for item in (2, 3))
    expected = (2 / two + 1 / three) / (2 + 1 / np.log2(3))
    assert values(found["quality"], f"ndcg@{ROWS - 1}")["l2"] == pytest.approx(expected)


def test_an_array_that_asks_goes_by_row_numbers(tmp_path: Path, base: Path) -> None:
    write_csv(tmp_path / "judged.csv", {"0": {"item 7": 1}, "1": {"item 8": 1}})
    y = draw()[[7, 8]]
    given = {"queries": y, "relevance": tmp_path / "judged.csv", "metric": "cosine"}
    found = figures(compare(base, key="id", k=1, **given))
    assert values(found["quality"], "precision@1") == dict.fromkeys(NORMS, 1)


def test_ids_without_a_key_are_row_numbers_with_a_warning(tmp_path: Path) -> None:
    named = store(tmp_path / "named.parquet", draw(), item=pa.array(ITEMS))
    bare = store(tmp_path / "bare.parquet", draw())
    write_csv(tmp_path / "judged.csv", {"0": {"7": 1, "199": 1}})
    given = {"relevance": tmp_path / "judged.csv", "k": 5}
    first, second = (
        warning
        for warning in figures(compare(named, **given))["warnings"]
        if "were read as" in warning
    )
    assert "its items were read as row numbers of" in first
    assert "its queries" in second
    assert "`key` (`--key`), one of: `item`" in first
    assert not figures(compare(bare, **given))["warnings"]  # nothing there could be a key
    assert not figures(compare(named, key="item", queries=bare, **swap(tmp_path)))["warnings"]


def swap(tmp_path: Path) -> dict[str, Any]:
    write_csv(tmp_path / "items.csv", {"0": {"item 7": 1}})
    return {"relevance": tmp_path / "items.csv", "k": 5}


@pytest.mark.parametrize("query", [0, ROWS], ids=["items", "queries"])
def test_ids_that_are_no_row_numbers_need_a_key(tmp_path: Path, query: int) -> None:
    source = store(tmp_path / "base.parquet", draw(), item=np.arange(ROWS) + 1)
    write_csv(tmp_path / "judged.csv", {"1": {"7": 1, str(ROWS - query): 1}, str(query): {"3": 1}})
    with pytest.raises(InputError, match=r"no key is given.*numbers from 0 to 199.*one of: `item`"):
        compare(source, relevance=tmp_path / "judged.csv", k=5)
    normalized = tmp_path / "out"
    run(
        Job.from_dict(
            {
                "input": {"path": str(source), "passthrough": ["item"]},
                "output": {"path": str(normalized)},
            }
        )
    )
    with pytest.raises(InputError, match=r"no key is given.*one of: `item`"):
        compare(normalized, relevance=tmp_path / "judged.csv", k=5)


@pytest.mark.parametrize(
    ("arguments", "content", "words"),
    [
        ({}, "query,item\nitem 1,item 2\n", "none of its queries matches a row.*'0'.*'item"),
        ({"key": "id"}, "query,item\nitem 1,x\n", "none of its items matches a row"),
        ({"key": "label"}, "query,item\n1,1\n", "identifies [0-9]+ rows of the queries"),
        ({"key": ["id", "label"]}, "query,item\n1,1\n", "key has several columns: id, l"),
        ({"key": "id"}, "query,film\n1,1\n", "no column `item`"),
        ({"key": "id"}, "query,item\nitem 1,item 1\n", "against itself only"),
        (
            {"key": "id", "relevance_columns": ["a"]},
            "query,item\n1,1\n",
            "two or three different names",
        ),
    ],
    ids=["queries", "items", "twice", "two keys", "columns", "itself", "one name"],
)
def test_judgements_of_nobody_are_refused(
    tmp_path: Path, base: Path, arguments: dict[str, Any], content: str, words: str
) -> None:
    (tmp_path / "judged.csv").write_text(content)
    with pytest.raises(Refused, match=words):
        compare(base, relevance=tmp_path / "judged.csv", k=5, **arguments)
