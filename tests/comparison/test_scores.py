"""How a norm enters a score, against vectors that are really divided by it."""

from __future__ import annotations

import numpy as np
import pytest

from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.errors import JobError
from batchnorm_tool.norms.norm import Float64s, Norm, row_norms

NORMS = [Norm.parse(text) for text in ("none", "l1", "l2", "max", "lp:3")]


def served(metric: Metric, query: Float64s, row: Float64s) -> float:
    """What a system that holds the vectors as they are ranks by: higher is nearer."""
    if metric is Metric.DOT:
        return float(query @ row)
    if metric is Metric.COSINE:
        return float(query @ row / np.linalg.norm(query) / np.linalg.norm(row))
    return -float(np.linalg.norm(query - row))


def scored(metric: Metric, norm: Norm, queries: Float64s, rows: Float64s) -> Float64s:
    """Scores of all pairs, ``float64[q, n]``."""
    score = Score.of(metric, norm)
    pairs = np.indices((len(queries), len(rows))).reshape(2, -1)
    one, other = queries[pairs[0]], rows[pairs[1]]
    products, squares = (one * other).sum(axis=1), (other * other).sum(axis=1)
    found = score.exact(products, squares, score.divisors(one), score.divisors(other))
    return found.reshape(len(queries), len(rows))


@pytest.mark.parametrize("metric", list(Metric), ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.label)
def test_scores_rank_as_the_system_that_serves_divided_vectors(metric: Metric, norm: Norm) -> None:
    rng = np.random.default_rng(0)
    queries, rows = rng.normal(size=(20, 5)), rng.normal(size=(60, 5)) * rng.lognormal(size=(60, 1))
    stored = [each / row_norms(each, norm) for each in (queries, rows)]
    expected = np.array([[served(metric, query, row) for row in stored[1]] for query in stored[0]])
    found = scored(metric, norm, queries, rows)
    assert np.array_equal(np.argsort(-found, axis=1), np.argsort(-expected, axis=1))


def test_rows_of_zeros_are_stored_as_they_are() -> None:
    for norm in NORMS:
        assert Score.of(Metric.DOT, norm).divisors(np.zeros((1, 3))).tolist() == [1]


def test_equal_ways_to_rank_are_equal() -> None:
    under_cosine = {Score.of(Metric.COSINE, norm) for norm in NORMS}
    assert under_cosine == {Score.of(Metric.DOT, Norm("l2"))}
    assert len({Score.of(metric, norm) for metric in Metric for norm in NORMS}) == 10


@pytest.mark.parametrize("name", list(Metric), ids=str)
def test_metrics_go_by_their_names(name: str) -> None:
    assert Metric.parse(str(name)) is Metric(name)


@pytest.mark.parametrize(
    ("text", "hint"), [("cosin", " Did you mean `cosine`?"), ("l2", "")], ids=["near", "norm"]
)
def test_what_is_no_metric_is_refused(text: str, hint: str) -> None:
    with pytest.raises(JobError) as caught:
        Metric.parse(text)
    assert caught.value.message == (
        f"`metric` must be one of dot, euclidean, cosine. Received: {text!r}.{hint}"
    )
