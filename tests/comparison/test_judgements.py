from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.comparison.judgements import GradedJudgements, Judgements, LabelJudgements
from tests.comparison.judged import Grades, graded, random_grades, random_rows

BASE = 30
GRADES = st.lists(
    st.dictionaries(
        st.integers(-6, BASE - 1).filter(lambda item: item != -1),
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        max_size=8,
    ),
    min_size=1,
    max_size=6,
)


def looked_up(grades: Grades, rows: np.ndarray) -> list[list[float]]:
    return [
        [grades[query].get(row, 0.0) if row >= 0 else 0.0 for row in of_query]
        for query, of_query in enumerate(rows.tolist())
    ]


def best(grades: Grades, k: int) -> list[list[float]]:
    return [([*sorted(of_query.values(), reverse=True), *[0.0] * k])[:k] for of_query in grades]


def assert_same(one: Judgements, other: Judgements, rows: np.ndarray) -> None:
    for k in (1, 4):
        np.testing.assert_array_equal(one.ideal(k), other.ideal(k))
    np.testing.assert_array_equal(one.judged, other.judged)
    np.testing.assert_array_equal(one.relevant, other.relevant)
    np.testing.assert_array_equal(one.grades(rows), other.grades(rows))


# Graded


@given(GRADES, st.integers(0, 2**32))
def test_every_neighbour_has_its_own_grade(grades: Grades, seed: int) -> None:
    # One row more than any item: the code of a row beyond the last is another query's.
    rows = random_rows(np.random.default_rng(seed), len(grades), BASE + 1, 12)
    assert graded(grades).grades(rows).tolist() == looked_up(grades, rows)


def test_all_rows_and_none_have_the_grades_given() -> None:
    grades = random_grades(np.random.default_rng(1), 50, BASE)
    rows = np.tile(np.arange(-1, 2 * BASE), (50, 1))
    found = graded(grades).grades(rows)
    assert found.tolist() == looked_up(grades, rows)
    assert found.max() == 3


@given(GRADES, st.integers(1, 12))
def test_the_ideal_ranking_holds_the_largest_grades(grades: Grades, k: int) -> None:
    assert graded(grades).ideal(k).tolist() == best(grades, k)


@given(GRADES)
def test_grades_above_zero_are_relevant_wherever_the_item_is(grades: Grades) -> None:
    judgements = graded(grades)
    expected = [sum(grade > 0 for grade in of_query.values()) for of_query in grades]
    assert judgements.relevant.tolist() == expected
    assert judgements.judged.tolist() == [bool(of_query) for of_query in grades]


@given(GRADES, st.data())
def test_a_subset_of_queries_is_judged_as_before(grades: Grades, data: st.DataObject) -> None:
    queries = data.draw(st.lists(st.integers(0, len(grades) - 1), max_size=8))
    taken = graded(grades).take(np.array(queries, np.int64))
    rows = np.tile(np.arange(-1, BASE), (len(queries), 1))
    assert_same(taken, graded([grades[query] for query in queries]), rows)


def test_judgements_of_items_that_are_nowhere_give_no_row_a_grade() -> None:
    judgements = graded([{-2: 2.0, -3: 1.0}])
    assert judgements.grades(np.array([[-1, 0]])).tolist() == [[0, 0]]
    assert judgements.ideal(3).tolist() == [[2, 1, 0]]
    assert judgements.relevant.tolist() == [2]


# Labels


def of_labels(labels: LabelJudgements) -> GradedJudgements:
    """The same by comparing every query with every row."""
    return graded(
        [
            {row: 1.0 for row, of_row in enumerate(labels.base_labels) if of_row == of_query}
            | ({} if own < 0 else {int(own): 0.0})
            for of_query, own in zip(labels.query_labels, labels.query_rows, strict=True)
        ]
    )


@pytest.mark.parametrize("inside", [True, False], ids=["rows_of_the_base", "vectors_of_their_own"])
def test_rows_of_the_same_class_are_relevant(*, inside: bool) -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 5, BASE)
    base[7] = 8  # alone
    own = np.array([7, *rng.permutation(BASE)[:11]]) if inside else np.full(12, -1)
    queries = base[own] if inside else rng.integers(0, 5, 12)
    labels = LabelJudgements(queries, base, own)
    rows = np.tile(np.arange(-1, BASE), (12, 1))
    assert_same(labels, of_labels(labels), rows)
    if inside:
        assert labels.relevant[0] == 0
        assert labels.grades(rows)[np.arange(12), own + 1].max() == 0
    some = np.array([4, 0, 9])
    assert_same(labels.take(some), of_labels(labels).take(some), rows[some])


def test_a_query_of_a_class_that_the_base_lacks_counts_without_relevant_rows() -> None:
    labels = LabelJudgements(np.array([-1, 9, 0]), np.array([0, 0, 1]), np.array([-1, -1, -1]))
    assert labels.judged.tolist() == [True, True, True]
    assert labels.relevant.tolist() == [0, 0, 2]
    assert labels.ideal(2).tolist() == [[0, 0], [0, 0], [1, 1]]
    assert labels.grades(np.array([[0, -1]] * 3)).tolist() == [[0, 0], [0, 0], [1, 0]]


def test_the_size_of_a_class_costs_no_memory() -> None:
    base = np.zeros(300_000, np.int64)
    own = np.arange(1_000)
    tracemalloc.start()
    labels = LabelJudgements(base[own], base, own)
    labels.ideal(10)
    labels.grades(np.tile(np.arange(10), (1_000, 1)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.relevant.tolist() == [299_999] * 1_000
    assert peak < 1_000_000  # each query's class would be 300 kB even as bits
