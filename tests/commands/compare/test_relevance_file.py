from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.compare.relevance import RelevanceTable, judgements_of, read_relevance
from batchnorm_tool.errors import InputError

Triple = tuple[str, str, float]


def triples(table: RelevanceTable) -> list[Triple]:
    columns = (table.queries.to_pylist(), table.items.to_pylist(), table.grades.tolist())
    return list(zip(*columns, strict=True))


# Duplicates


def test_clicks_of_the_same_pair_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("query,item\n1,a\n2,a\n1,b\n1,a\n1,a\n2,a\n")
    table = read_relevance(str(path))
    assert triples(table) == [("1", "a", 3.0), ("2", "a", 2.0), ("1", "b", 1.0)]
    assert table.facts == {"path": str(path), "format": "csv", "rows": 6, "duplicates": 3}


def test_grades_of_the_same_pair_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("1 0 a 2\n1 0 a 0.5\n1 0 b -1\n1 0 b 1\n")
    assert triples(read_relevance(str(path))) == [("1", "a", 2.5), ("1", "b", 1.0)]


# Matching


def table(*rows: Triple) -> RelevanceTable:
    queries, items, grades = zip(*rows, strict=True)
    columns = (pa.array(ids, pa.large_string()) for ids in (queries, items))
    return RelevanceTable("clicks.csv", "csv", len(rows), *columns, np.array(grades))


OUTSIDE = np.array([-1, -1, -1])


def test_judgements_are_found_by_query_and_item() -> None:
    judgements, facts = judgements_of(
        table(("c", "30", 1), ("a", "10", 2), ("c", "10", 3), ("a", "99", 4), ("c", "20", 0)),
        ["a", "b", "c"],
        [10, 20, 30],
        OUTSIDE,
    )
    assert judgements.judged.tolist() == [True, False, True]
    assert judgements.relevant.tolist() == [2, 0, 2]
    rows = np.tile([0, 1, 2, -1], (3, 1))
    assert judgements.grades(rows).tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [3, 0, 1, 0]]
    assert judgements.ideal(3).tolist() == [[4, 2, 0], [0, 0, 0], [3, 1, 0]]
    assert facts == {"judged_queries": 2, "unknown_queries": 0, "unknown_items": 1, "pairs": 5}


def test_unknown_ids_are_counted_once() -> None:
    _, facts = judgements_of(
        table(("a", "1", 1), ("x", "1", 1), ("x", "8", 1), ("y", "8", 1), ("a", "9", 1)),
        ["a", "b", "c"],
        [1, 2, 3],
        OUTSIDE,
    )
    assert facts == {"judged_queries": 1, "unknown_queries": 2, "unknown_items": 2, "pairs": 2}


def test_what_a_query_says_of_its_own_row_is_left_out() -> None:
    judgements, facts = judgements_of(
        table(("1", "1", 5), ("1", "2", 1), ("2", "2", 1), ("3", "1", 1)),
        [1, 2, 3],
        [3, 2, 1, 0],
        np.array([2, 1, -1]),
    )
    assert judgements.judged.tolist() == [True, False, True]
    assert judgements.relevant.tolist() == [1, 0, 1]
    assert judgements.grades(np.tile([2, 1], (3, 1))).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert facts["pairs"] == 2


@pytest.mark.parametrize(
    "keys",
    [
        [17, 3],
        ["17", "3"],
        np.array([17, 3]),
        np.array([17, 3], np.uint16),
        np.array(["17", "3"], object),
        pa.array([17, 3]),
        pa.chunked_array([["17"], ["3"]]),
        pa.array(["17", "3"]).dictionary_encode(),
    ],
    ids=["ints", "texts", "int64", "uint16", "objects", "arrow", "chunked", "dictionary"],
)
def test_keys_are_matched_by_their_text(keys: Any) -> None:
    judged = table(("3", "17", 1), ("17", "017", 1))
    judgements, facts = judgements_of(judged, keys, keys, np.array([0, 1]))
    assert judgements.items.tolist() == [-1, 0]
    assert facts == {"judged_queries": 2, "unknown_queries": 0, "unknown_items": 1, "pairs": 2}


@pytest.mark.parametrize(
    ("queries", "base", "words", "key", "given"),
    [
        ([7, 8, 9], [1, 2, 3], "queries", "'7'", "'a'"),
        (["a", "b", "c"], ["x"], "items", "'x'", "'1'"),
    ],
    ids=["queries", "items"],
)
def test_ids_that_nobody_has_are_refused_with_an_example_of_either_side(
    queries: list[Any], base: list[Any], words: str, key: str, given: str
) -> None:
    with pytest.raises(InputError) as caught:
        judgements_of(table(("a", "1", 1)), queries, base, OUTSIDE)
    assert caught.value.message.startswith(f"clicks.csv: none of its {words} matches a row.")
    assert f"keys such as {key}" in caught.value.message
    assert f"ids such as {given}" in caught.value.message


@pytest.mark.parametrize("side", ["queries", "items"])
def test_a_key_of_two_rows_is_refused(side: str) -> None:
    keys = {"queries": ["a", "b", "c"], "items": ["1", "2"], side: [None, None, "1", "a", "1"]}
    with pytest.raises(InputError, match=f"'1' identifies 2 rows of the {side}"):
        judgements_of(table(("a", "1", 1), ("1", "a", 1)), keys["queries"], keys["items"], OUTSIDE)


def test_rows_without_a_key_are_nobodys() -> None:
    keys = ["a", None, None]
    judgements, facts = judgements_of(table(("a", "a", 1), ("a", "b", 1)), keys, keys, OUTSIDE)
    assert judgements.items.tolist() == [0, -1]
    assert facts == {"judged_queries": 1, "unknown_queries": 0, "unknown_items": 1, "pairs": 2}


def test_nothing_but_judgements_of_oneself_is_refused() -> None:
    with pytest.raises(InputError, match="against itself only"):
        judgements_of(table(("a", "a", 1)), ["a", "b", "c"], ["a", "b"], np.array([0, 1, -1]))
