"""Quality of rankings against ir-measures, which runs trec_eval's and MS MARCO's own code."""

from __future__ import annotations

import math
from typing import Any

import ir_measures
import numpy as np
import pytest

from batchnorm_tool.comparison.judgements import Judgements, LabelJudgements
from batchnorm_tool.comparison.metrics import quality
from tests.comparison.judged import Grades, graded, random_grades, random_rows

KS = [1, 5, 10, 20]
NAMES = {"precision": "P", "recall": "R", "ndcg": "nDCG", "mrr": "RR", "map": "AP"}
METRICS = [f"{metric}@{k}" for metric in NAMES for k in KS]
QUERIES, BASE = 60, 40


def measure(metric: str) -> Any:
    name, k = metric.split("@")
    return ir_measures.parse_measure(f"{NAMES[name]}@{k}")


def as_qrels(grades: Grades) -> list[ir_measures.Qrel]:
    return [
        ir_measures.Qrel(str(query), str(item), int(grade))
        for query, of_query in enumerate(grades)
        for item, grade in of_query.items()
    ]


def as_run(rows: np.ndarray) -> list[ir_measures.ScoredDoc]:
    return [
        ir_measures.ScoredDoc(str(query), str(row), -float(rank))
        for query, of_query in enumerate(rows.tolist())
        for rank, row in enumerate(of_query)
        if row >= 0
    ]


@pytest.fixture(scope="module")
def grades() -> Grades:
    return random_grades(np.random.default_rng(0), QUERIES, BASE)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return random_rows(np.random.default_rng(1), QUERIES, BASE, max(KS))


@pytest.fixture(scope="module")
def measured(grades: Grades, rows: np.ndarray) -> dict[str, np.ndarray]:
    return quality(graded(grades), rows, KS)


def test_every_metric_comes_at_every_depth(measured: dict[str, np.ndarray]) -> None:
    assert list(measured) == METRICS


def test_the_samples_hold_every_kind_of_query(grades: Grades, rows: np.ndarray) -> None:
    judgements = graded(grades)
    assert (~judgements.judged).any()
    assert (judgements.judged & (judgements.relevant == 0)).any()
    assert (judgements.items == -1).any()
    assert (rows[:, 0] == -1).any()
    assert {1.0, 2.0, 3.0} <= set(judgements.grades(rows).reshape(-1))


@pytest.mark.parametrize("metric", METRICS)
def test_each_query_equals_ir_measures(
    metric: str, grades: Grades, rows: np.ndarray, measured: dict[str, np.ndarray]
) -> None:
    theirs = {
        int(found.query_id): found.value
        for found in ir_measures.iter_calc([measure(metric)], as_qrels(grades), as_run(rows))
    }
    judged = np.flatnonzero(graded(grades).judged)
    assert set(theirs) <= set(judged.tolist())
    expected = [theirs.get(query, 0.0) for query in judged.tolist()]
    np.testing.assert_allclose(measured[metric][judged], expected, rtol=1e-12, atol=1e-15)
    assert len(set(expected)) >= 2


@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_equals_ir_measures(
    metric: str, grades: Grades, rows: np.ndarray, measured: dict[str, np.ndarray]
) -> None:
    wanted = measure(metric)
    theirs = ir_measures.calc_aggregate([wanted], as_qrels(grades), as_run(rows))[wanted]
    assert np.nanmean(measured[metric]) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_classes_equal_ir_measures(metric: str) -> None:
    rng = np.random.default_rng(2)
    base = rng.integers(0, 6, BASE)
    queries = np.arange(BASE)
    shuffled = np.array([rng.permutation(np.delete(queries, query)) for query in queries])
    qrels = as_qrels(
        [
            {row: float(base[row] == base[query]) for row in queries if row != query}
            for query in queries
        ]
    )
    wanted = measure(metric)
    theirs = ir_measures.calc_aggregate([wanted], qrels, as_run(shuffled[:, : max(KS)]))[wanted]
    ours = quality(LabelJudgements(base, base, queries), shuffled, KS)[metric]
    assert ours.mean() == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_that_is_not_judged_has_no_value(
    metric: str, grades: Grades, measured: dict[str, np.ndarray]
) -> None:
    np.testing.assert_array_equal(np.isnan(measured[metric]), [not of for of in grades])


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_without_relevant_rows_counts_as_zero(metric: str) -> None:
    values = quality(graded([{4: 0.0, 5: 0.0}]), np.arange(20)[None], KS)[metric]
    assert values.tolist() == [0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_the_ideal_ranking_is_perfect(metric: str) -> None:
    best = graded([{row: 30.0 - row for row in range(25)}])
    value = quality(best, np.arange(20)[None], KS)[metric].item()
    share = int(metric.split("@")[1]) / 25 if metric.startswith(("recall", "map")) else 1.0
    assert value == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("precision@5", 2 / 5),
        ("recall@5", 2 / 4),
        ("mrr@5", 1 / 2),
        ("mrr@1", 0.0),
        ("map@5", (1 / 2 + 2 / 5) / 4),
        ("ndcg@1", 0.0),
        (
            "ndcg@5",
            (1 / math.log2(3) + 3 / math.log2(6))
            / (3 + 2 / math.log2(3) + 1 / math.log2(4) + 0.5 / math.log2(5)),
        ),
    ],
)
def test_a_ranking_worked_by_hand(metric: str, value: float) -> None:
    judgements: Judgements = graded([{10: 1.0, 11: 3.0, 12: 0.5, -2: 2.0, 20: 0.0}])
    rows = np.array([[20, 10, 21, 22, 11]])
    assert quality(judgements, rows, [5, 1])[metric].item() == pytest.approx(value, rel=1e-15)


def test_deeper_neighbours_do_not_change_what_is_above_them(
    grades: Grades, rows: np.ndarray
) -> None:
    judgements = graded(grades)
    shallow, deep = quality(judgements, rows[:, :5], [5]), quality(judgements, rows, [20, 5])
    for metric, values in shallow.items():
        np.testing.assert_array_equal(values, deep[metric])
