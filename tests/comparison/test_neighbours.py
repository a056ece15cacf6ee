from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.comparison import neighbours as module
from batchnorm_tool.comparison.neighbours import ArrayBase, Queries
from batchnorm_tool.comparison.scores import Filter, Metric, TopK
from batchnorm_tool.norms.norm import Norm, row_norms, widen
from tests.comparison.searched import neighbours

NORMS = [Norm.parse(text) for text in ("none", "l1", "l2", "max", "lp:3")]


@dataclass(frozen=True)
class Blocks(ArrayBase):
    """Rows that come in blocks of a few."""

    size: int = 7

    def blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), self.size):
            yield self.array[start : start + self.size]


def normalized(rows: np.ndarray, norm: Norm) -> np.ndarray:
    lengths = row_norms(widen(rows), norm)
    return widen(rows) / np.where(lengths == 0, 1, lengths)


def brute_force(
    base: np.ndarray, query_rows: Sequence[int], norm: Norm, metric: Metric, k: int
) -> np.ndarray:
    """All rows sorted by their score, rounded to where ties are ties, then by their number."""
    stored = normalized(base, norm)
    found = []
    for query in query_rows:
        if metric is Metric.DOT:
            scores = stored @ widen(base)[query]
        elif metric is Metric.COSINE:
            scores = normalized(base, Norm("l2")) @ widen(base)[query]
        else:
            scores = -np.linalg.norm(stored - stored[query], axis=1)
        scores = np.array([float(f"{score:.10e}") for score in scores])
        scores[query] = -np.inf
        scores[~np.isfinite(base).all(axis=1)] = -np.inf
        order = np.lexsort((np.arange(len(base)), -scores))[:k]
        found.append(np.where(scores[order] == -np.inf, -1, order))
    return np.array(found)


def found_in(
    base: ArrayBase, query_rows: Sequence[int], norms: Sequence[Norm], metric: Metric, k: int
) -> dict[str, np.ndarray]:
    queries = Queries.of(base.array[list(query_rows)], np.array(query_rows))
    return neighbours(queries, base, norms, metric, k)


def random_rows(rows: int = 900, width: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(0, 0.5, (rows, 1))
    return (rng.standard_normal((rows, width)) * lengths).astype(np.float32)


@pytest.mark.parametrize("metric", list(Metric), ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.label)
def test_the_nearest_rows_are_those_of_brute_force(norm: Norm, metric: Metric) -> None:
    rows, queries = random_rows(), range(0, 900, 9)
    found = found_in(ArrayBase(rows), queries, NORMS, metric, 20)
    expected = brute_force(rows, queries, norm, metric, 20)
    assert np.array_equal(found[norm.label], expected)


@pytest.mark.parametrize("size", [1, 7, 300, 5000])
def test_blocks_change_nothing(size: int) -> None:
    rows, queries = random_rows(), range(0, 900, 90)
    expected = found_in(ArrayBase(rows), queries, NORMS, Metric.EUCLIDEAN, 10)
    found = found_in(Blocks(rows, size), queries, NORMS, Metric.EUCLIDEAN, 10)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], expected[norm.label])


def test_faiss_finds_the_same() -> None:
    rows = random_rows(20_000, 32)
    queries = np.arange(0, 20_000, 100)
    found = found_in(ArrayBase(rows), queries, NORMS, Metric.DOT, 100)
    for norm in NORMS:
        stored = normalized(rows, norm).astype(np.float32)
        index = faiss.IndexFlatIP(32)
        index.add(stored)
        _, expected = index.search(rows[queries], 101)
        for row, query, others in zip(found[norm.label], queries, expected, strict=True):
            # Faiss computes in float32: rows that are as near as makes no difference change places.
            assert len(set(row) & (set(others) - {query})) >= 99


@pytest.mark.parametrize("metric", list(Metric), ids=str)
def test_of_equal_rows_the_lower_ones_are_found(metric: Metric) -> None:
    few = np.random.default_rng(1).integers(-2, 3, (6, 5)).astype(np.float32)
    rows = few[np.random.default_rng(2).integers(0, 6, 500)]
    queries = range(0, 500, 50)
    found = found_in(Blocks(rows, 64), queries, NORMS, metric, 30)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], brute_force(rows, queries, norm, metric, 30))


@pytest.mark.parametrize("distinct", [2, 8192], ids=lambda count: f"{count} different rows")
def test_equal_rows_take_no_more_memory(distinct: int) -> None:
    few = np.random.default_rng(1).integers(-2, 3, (distinct, 5)).astype(np.float32)
    rows = few[np.random.default_rng(2).integers(0, distinct, 8192)]
    queries = range(0, 8192, 32)
    tracemalloc.start()
    try:
        found = found_in(ArrayBase(rows), queries, NORMS[:2], Metric.DOT, 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Products and comparisons of one block take 10 MiB; every product that may do took 100 more.
    assert peak < 48 << 20
    for norm in NORMS[:2]:
        expected = brute_force(rows, queries[::32], norm, Metric.DOT, 10)
        assert np.array_equal(found[norm.label][::32], expected)


def test_queries_with_one_neighbour_each_take_turns() -> None:
    rows, peaks = random_rows(33_000, 4), []
    for count in (16_000, 33_000):
        queries = Queries.of(rows[:count], np.full(count, -1))
        tracemalloc.start()
        found = neighbours(queries, ArrayBase(rows[:512]), NORMS[:1], Metric.COSINE, 1)["none"]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Products of all at once took 26 MiB more for each thread.
    assert peaks[1] - peaks[0] < 12 << 20
    assert np.array_equal(found[:512, 0], np.arange(512))
    cosines = normalized(rows[-100:], Norm("l2")) @ normalized(rows[:512], Norm("l2")).T
    assert np.array_equal(found[-100:, 0], cosines.argmax(axis=1))


def test_few_products_pass_for_rows_of_uneven_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    offered, real = [], TopK.offer

    def offer(*arguments: Any) -> None:
        offered.append(len(arguments[1]))
        real(*arguments)

    monkeypatch.setattr(TopK, "offer", offer)
    found_in(ArrayBase(random_rows(32_768, 64)), range(0, 32_768, 256), NORMS[:4], Metric.DOT, 10)
    # 0.9 % of all; 2.3 % did in order of the lengths under that norm where these differ most.
    assert sum(offered) < 0.015 * len(NORMS[:4]) * 32_768 * 128


@given(
    hnp.arrays(
        np.int8, st.tuples(st.integers(4, 40), st.integers(1, 5)), elements=st.integers(-3, 3)
    ),
    st.sampled_from(list(Metric)),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_ties_are_broken_by_the_lower_row(rows: np.ndarray, metric: Metric, k: int) -> None:
    found = found_in(Blocks(rows, 5), range(len(rows)), NORMS, metric, k)
    for norm in NORMS:
        expected = brute_force(rows, range(len(rows)), norm, metric, k)
        assert np.array_equal(found[norm.label], expected), norm.label


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32], ids=str)
def test_any_dtype_is_read(dtype: type) -> None:
    rows = (random_rows(200, 8) * 10).astype(dtype)
    found = found_in(ArrayBase(rows), range(20), NORMS, Metric.DOT, 5)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], brute_force(rows, range(20), norm, Metric.DOT, 5))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15, 1e30])
@pytest.mark.parametrize("metric", list(Metric), ids=str)
def test_long_and_short_rows_rank_as_ordinary_ones(scale: float, metric: Metric) -> None:
    rows, queries = random_rows(400, 12), range(0, 400, 40)
    scaled = rows.astype(np.float64) * scale
    expected = found_in(ArrayBase(rows), queries, NORMS, metric, 10)
    found = found_in(ArrayBase(scaled), queries, NORMS, metric, 10)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], expected[norm.label]), norm.label


def test_rows_that_are_not_finite_are_nobodys_neighbours() -> None:
    rows = random_rows(300, 6)
    rows[10], rows[200, 3] = np.nan, np.inf
    found = found_in(Blocks(rows, 50), [0, 1, 2], NORMS, Metric.DOT, 297)
    for rows_found in found.values():
        assert not {10, 200} & set(rows_found.ravel())
        assert (np.sort(rows_found, axis=1)[:, 0] >= 0).all()


def test_rows_that_are_not_finite_set_no_bar() -> None:
    rows = random_rows(3000, 6)
    rows[::3] = np.nan
    for metric in Metric:
        found = found_in(ArrayBase(rows), [1, 2], NORMS, metric, 5)
        for norm in NORMS:
            assert np.array_equal(found[norm.label], brute_force(rows, [1, 2], norm, metric, 5))


def test_where_there_are_no_more_rows_the_number_is_minus_one() -> None:
    rows = random_rows(5, 3)
    rows[4] = np.nan
    found = found_in(ArrayBase(rows), [0], NORMS, Metric.DOT, 4)
    for rows_found in found.values():
        assert sorted(rows_found[0]) == [-1, 1, 2, 3]
        assert rows_found[0, -1] == -1


def test_rows_of_zeros_score_nothing_and_a_query_of_zeros_finds_the_lowest_rows() -> None:
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 0], [2, 0]], np.float32)
    found = found_in(ArrayBase(rows), [0, 1], [Norm("none")], Metric.DOT, 4)["none"]
    assert found.tolist() == [[1, 2, 3, 4], [4, 0, 3, 2]]


def test_queries_of_another_file_leave_no_row_out() -> None:
    rows = random_rows(100, 6)
    found = neighbours(
        Queries.of(rows[:3], np.full(3, -1)), ArrayBase(rows), NORMS, Metric.COSINE, 1
    )
    assert found["l2"].tolist() == [[0], [1], [2]]


def test_a_bar_that_is_too_high_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the best rows alone lets too few pass; they are looked for again."""
    rows, queries = random_rows(3000, 8), [5]
    best = brute_force(rows, queries, Norm("none"), Metric.DOT, 60)[0]

    @dataclass(frozen=True)
    class Unfair(ArrayBase):
        def sample(self, rows: int) -> np.ndarray:
            return self.array[best]

    searched = []
    real = module.Exact.add
    monkeypatch.setattr(module.Exact, "add", lambda *a: searched.append(real(*a)))
    found = found_in(Unfair(rows), queries, NORMS, Metric.DOT, 40)
    assert np.array_equal(found["none"][0], best[:40])
    assert not searched  # float32 without a bar was enough


def test_a_lenient_filter_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = random_rows(20_000, 16), range(0, 20_000, 1000)
    expected = found_in(ArrayBase(rows), queries, NORMS, Metric.EUCLIDEAN, 10)
    monkeypatch.setattr(Filter, "expect", lambda *_: None)
    found = found_in(ArrayBase(rows), queries, NORMS, Metric.EUCLIDEAN, 10)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], expected[norm.label])


def test_all_norms_rank_alike_under_cosine() -> None:
    found = found_in(ArrayBase(random_rows(300)), range(30), NORMS, Metric.COSINE, 10)
    for norm in NORMS:
        assert np.array_equal(found[norm.label], found["l2"])
