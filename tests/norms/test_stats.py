"""Statistics against fractions and NumPy, and themselves however rows are split and merged."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.errors import Damaged, JobError
from batchnorm_tool.norms.norm import L2, Norm, row_norms
from batchnorm_tool.norms.stats import (
    QUANTILES,
    DimensionStats,
    NormStats,
    VectorStats,
    finite_or_none,
    quantile_column,
    quantile_label,
)
from tests.merging import pieces_of, through_json, unsplit

HUGE = np.finfo(np.float64).max
LP3 = Norm("lp", 3.0)

any_norms = hnp.arrays(
    np.float64,
    hnp.array_shapes(max_dims=1, max_side=40, min_side=0),
    elements=st.one_of(
        st.floats(0.5, 100), st.floats(min_value=0), st.just(math.nan), st.just(-0.0)
    ),
)
some_norms = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e6))
any_vectors = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 12), st.just(3)),
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(-0.0), st.floats()),
)


def test_norms_are_counted_by_what_they_are() -> None:
    stats = NormStats.of(np.array([[2.0], [0.0], [-0.0], [math.nan], [math.inf], [5.0]]))
    assert (stats.count, stats.zero, stats.nonfinite) == (4, 2, 2)
    assert (stats.min, stats.max, stats.mean) == (0.0, 5.0, 1.75)
    assert stats.std == pytest.approx(np.std([2, 0, 0, 5]))
    assert stats.histogram == {0: 2, 1024 * 512: 1, 1025 * 512 + 128: 1}


def test_statistics_of_nothing_say_none() -> None:
    for stats in (NormStats(), NormStats.of(np.empty((0, 1)))):
        assert (stats.count, stats.min, stats.max, stats.mean, stats.std) == (0, *[None] * 4)
        assert set(stats.quantiles().values()) == {None}
        assert [len(side) for side in stats.histogram.coarse()] == [0, 0, 0]
        assert stats.buckets(3)[1].tolist() == [0, 0, 0]


@given(any_norms, st.data())
def test_splitting_norms_changes_no_count_extreme_or_quantile(
    norms: np.ndarray, data: st.DataObject
) -> None:
    whole = NormStats.of(norms)
    merged = reduce(add, [NormStats.of(piece) for piece in pieces_of(norms, data)], NormStats())
    assert unsplit(merged.to_dict()) == unsplit(whole.to_dict())


@given(some_norms, st.data())
def test_merged_moments_are_those_of_the_whole(norms: np.ndarray, data: st.DataObject) -> None:
    exact = [Fraction(float(x)) for x in norms]
    mean = sum(exact) / len(exact)
    m2 = sum((x - mean) ** 2 for x in exact)
    merged = reduce(add, [NormStats.of(piece) for piece in pieces_of(norms, data)])
    assert merged.mean == pytest.approx(float(mean), rel=1e-14)
    # Deviations carry the rounding error of the mean, once for each norm.
    error = 1e-14 * float(mean) * math.sqrt(len(exact))
    assert math.sqrt(merged.m2) == pytest.approx(math.sqrt(m2), rel=1e-7, abs=max(error, 1e-150))


@given(any_norms, any_norms, any_norms)
def test_merging_is_commutative_and_has_a_neutral_element(
    a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> None:
    one, two, three = (NormStats.of(x) for x in (a, b, c))
    assert one + NormStats() == one == NormStats() + one
    assert unsplit((one + two).to_dict()) == unsplit((two + one).to_dict())
    assert unsplit(((one + two) + three).to_dict()) == unsplit((one + (two + three)).to_dict())


def test_merging_in_the_same_order_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.lognormal(size=n) for n in (1000, 1, 517, 4000)]
    runs = [reduce(add, [NormStats.of(np.array(part)) for part in parts]) for _ in range(2)]
    reloaded = [NormStats.from_dict(through_json(NormStats.of(part).to_dict())) for part in parts]
    assert runs[0] == runs[1] == reduce(add, reloaded)


@given(some_norms, some_norms)
def test_of_two_sets_the_larger_leads_whichever_comes_first(a: np.ndarray, b: np.ndarray) -> None:
    one, two = NormStats.of(a), NormStats.of(np.append(b, np.ones(len(a))))
    assert one + two == two + one


def test_equal_norms_have_no_spread_however_often_they_are_merged() -> None:
    stats = reduce(add, [NormStats.of(np.full(n, 0.1)) for n in (3, 1, 10, 7)])
    assert (stats.mean, stats.m2, stats.std) == (0.1, 0.0, 0.0)


def test_a_small_spread_beside_a_large_mean_survives() -> None:
    norms = 1e9 + np.arange(10_000) % 3
    merged = reduce(add, map(NormStats.of, np.split(norms, 10)))
    assert merged.std == pytest.approx(np.std(np.arange(10_000) % 3), rel=1e-9)


@given(any_norms)
def test_norm_statistics_come_back_from_json(norms: np.ndarray) -> None:
    stats = NormStats.of(norms)
    assert NormStats.from_dict(through_json(stats.to_dict())) == stats


def test_norms_near_the_end_of_float64_keep_a_mean() -> None:
    stats = NormStats.of(np.full(10, HUGE)) + NormStats.of(np.full(5, HUGE / 2))
    assert stats.mean == pytest.approx(HUGE * (5 / 6), rel=1e-15)
    assert (stats.max, stats.quantile(0.5), stats.m2, stats.std) == (HUGE, HUGE, math.inf, math.inf)
    data = through_json(stats.to_dict())
    assert (data["m2"], data["std"]) == (None, None)
    assert NormStats.from_dict(data) == stats
    assert [side[-1] for side in stats.histogram.coarse()[1:]] == [HUGE, 10]


@given(some_norms, st.floats(0, 1))
def test_a_quantile_is_within_half_a_bucket(norms: np.ndarray, q: float) -> None:
    expected = np.sort(norms)[max(1, math.ceil(q * len(norms))) - 1]
    got = NormStats.of(norms).quantile(q)
    assert got is not None
    assert abs(got - expected) <= expected * 2**-10 + 5e-311


def test_quantiles_of_a_known_distribution() -> None:
    norms = np.random.default_rng(4).permutation(np.arange(1, 10_001) / 100)
    quantiles = NormStats.of(norms).quantiles()
    assert tuple(quantiles) == QUANTILES
    assert list(quantiles.values()) == pytest.approx([100 * q for q in QUANTILES], rel=2**-10)


def test_the_ends_and_zeros_are_exact_quantiles() -> None:
    stats = NormStats.of(np.array([0.0, 0.0, 0.1, 0.3, 0.7]))
    assert [stats.quantile(q) for q in (0, 0.4, 1)] == [0.0, 0.0, 0.7]
    assert NormStats.of(np.array([0.1, 0.3])).quantile(0) == 0.1


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_0_and_1_is_refused(q: float) -> None:
    with pytest.raises(JobError, match="from 0 to 1"):
        NormStats.of(np.ones(3)).quantile(q)


@given(any_norms, st.integers(1, 50))
@example(np.array([HUGE, 1.0]), 3)
@example(np.array([0.89 * HUGE]), 1)
def test_bars_hold_every_norm_once(norms: np.ndarray, bins: int) -> None:
    stats = NormStats.of(norms)
    edges, counts = stats.buckets(bins)
    assert (len(edges), len(counts)) == (bins + 1, bins)
    assert counts.sum() == stats.count
    assert (counts >= 0).all()


def test_bars_are_near_the_true_histogram() -> None:
    norms = np.random.default_rng(0).normal(10, 1, 100_000)
    edges, counts = NormStats.of(norms).buckets(20)
    expected, expected_edges = np.histogram(norms, 20)
    assert edges.tolist() == pytest.approx(expected_edges.tolist())
    assert np.abs(counts - expected).max() <= 0.002 * len(norms)


@pytest.mark.parametrize("norm", [0.0, 1.0, 3e-300, HUGE])
def test_bars_of_equal_norms_have_one_that_holds_them(norm: float) -> None:
    edges, counts = NormStats.of(np.full(7, norm)).buckets(5)
    (bar,) = np.flatnonzero(counts)
    assert counts[bar] == 7
    assert edges[bar] <= norm <= edges[bar + 1]
    assert (np.diff(edges) > 0).all()


def test_coarse_buckets_are_an_eighth_of_an_octave() -> None:
    norms = 2 ** np.random.default_rng(0).uniform(-3, 3, 1000)
    rows = list(zip(*NormStats.of(np.append(norms, 0.0)).histogram.coarse(), strict=True))
    assert rows[0][::2] == (0.0, 1)
    assert len(rows) == 1 + 6 * 8
    for lower, upper, count in rows[1:]:
        assert upper - lower == 2 ** math.floor(math.log2(lower)) / 8
        assert count == ((norms >= lower) & (norms < upper)).sum()


def test_norms_of_every_magnitude_are_counted_like_close_ones() -> None:
    close, far = np.array([1.0, 1.0, 1.5]), np.array([5e-324, 1e-300, HUGE])
    together = NormStats.of(np.concatenate([close, far])).histogram
    assert together == {**NormStats.of(close).histogram, **NormStats.of(far).histogram}
    assert sum(together.values()) == 6


@pytest.mark.parametrize(
    ("share", "column", "label"),
    [(0.05, "q05", "5 %"), (0.5, "q50", "median"), (0.999, "q99_9", "99.9 %")],
)
def test_quantiles_have_names(share: float, column: str, label: str) -> None:
    assert (quantile_column(share), quantile_label(share)) == (column, label)


def test_json_has_no_number_for_what_is_not_finite() -> None:
    given = (0.5, np.float64(2), np.nan, np.inf, None)
    assert [finite_or_none(value) for value in given] == [0.5, 2, None, None, None]


# Dimensions


def test_dimensions_are_measured() -> None:
    x = np.random.default_rng(0).normal(size=(500, 7)) * np.arange(7)
    stats = DimensionStats.of(x)
    np.testing.assert_allclose(stats.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.variance, x.var(axis=0), rtol=1e-12)
    assert stats.min.tolist() == x.min(axis=0).tolist()
    assert stats.max.tolist() == x.max(axis=0).tolist()


def test_merged_dimensions_are_those_of_the_whole() -> None:
    x = np.random.default_rng(0).normal(1e6, 1, size=(1000, 4))
    merged = reduce(add, map(DimensionStats.of, np.split(x, [0, 10, 700])))
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.variance, x.var(axis=0), rtol=1e-9)


def test_signed_zeros_have_one_extreme_in_any_order() -> None:
    for values in ([-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]):
        stats = DimensionStats.of(np.array(values)[:, None])
        assert json.dumps([stats.to_dict()["min"], stats.to_dict()["max"]]) == "[[0.0], [0.0]]"


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_dimensions_come_back_from_json(rows: int) -> None:
    stats = DimensionStats.of(np.random.default_rng(0).normal(size=(rows, 3)))
    back = DimensionStats.from_dict(through_json(stats.to_dict()))
    assert back == stats
    assert (back.min.tolist(), back.max.tolist()) == (stats.min.tolist(), stats.max.tolist())
    assert (back + DimensionStats.of(np.ones((2, 3)))).count == rows + 2


def test_opposite_extremes_keep_a_finite_mean() -> None:
    high, low = np.full((3, 1), HUGE), np.full((1, 1), -HUGE)
    for stats in (
        DimensionStats.of(np.concatenate([high, low])),
        DimensionStats.of(high) + DimensionStats.of(low),
    ):
        assert stats.mean.tolist() == pytest.approx([HUGE / 2])
        assert stats.to_dict()["m2"] == [None]
        assert DimensionStats.from_dict(through_json(stats.to_dict())) == stats


def test_vectors_of_different_widths_do_not_merge() -> None:
    with pytest.raises(Damaged, match=r"Expected: 3 dimensions. Received: 2"):
        DimensionStats.of(np.ones((1, 3))).merge(DimensionStats.of(np.ones((1, 2))))


# Vectors


def vector_stats(x: np.ndarray, in_use: Norm = LP3) -> VectorStats:
    return VectorStats.of(x, rows=len(x), in_use=in_use, in_use_norms=row_norms(x, in_use))


def unsplit_all(stats: VectorStats) -> Any:
    data = stats.to_dict()
    norms = {label: unsplit(norm) for label, norm in data["norms"].items()}
    return {**data, "norms": norms, "dimensions": unsplit(data["dimensions"])}


def test_vectors_are_counted_and_bad_ones_kept_out_of_the_dimensions() -> None:
    x = np.array([[3.0, -4.0], [0.0, -0.0], [math.nan, 1.0], [1.0, -math.inf], [HUGE, HUGE]])
    stats = VectorStats.of(x, rows=5, in_use=L2)
    assert (stats.rows, stats.vectors, stats.zero, stats.nonfinite) == (5, 5, 1, 2)
    assert {name: (n.count, n.nonfinite) for name, n in stats.norms.items()} == {
        "l1": (2, 3),
        "l2": (2, 3),
        "max": (3, 2),
    }
    assert stats.dimensions.count == 3
    assert stats.dimensions.min.tolist() == [0.0, -4.0]
    alone = VectorStats.of(x[:1], rows=1, in_use=L2).norms
    assert {label: norms.max for label, norms in alone.items()} == {"l1": 7, "l2": 5, "max": 4}


@pytest.mark.parametrize(
    ("norm", "labels"), [("none", "l1 l2 max"), ("l1", "l1 l2 max"), ("lp:3", "l1 l2 max lp:3")]
)
def test_the_norm_in_use_is_measured_beside_the_three(norm: str, labels: str) -> None:
    in_use = Norm.parse(norm)
    x = np.array([[3.0, 4.0, 5.0]])
    given_norms = VectorStats.of(x, rows=1, in_use=in_use, in_use_norms=row_norms(x, in_use))
    assert list(given_norms.norms) == labels.split()
    assert given_norms == VectorStats.of(x, rows=1, in_use=in_use)
    assert given_norms.norms["l1"].max == 12.0
    assert norm != "lp:3" or given_norms.norms[norm].max == pytest.approx(6.0)


def test_the_norms_in_use_are_not_measured_again() -> None:
    stats = VectorStats.of(np.ones((2, 4)), rows=2, in_use=L2, in_use_norms=np.full((2, 1), 9.0))
    assert (stats.norms["l2"].min, stats.norms["l1"].min) == (9.0, 4.0)


@given(any_vectors, st.data())
def test_splitting_vectors_changes_no_count_extreme_or_histogram(
    x: np.ndarray, data: st.DataObject
) -> None:
    merged = reduce(add, map(vector_stats, pieces_of(x, data)))
    assert json.dumps(unsplit_all(merged)) == json.dumps(unsplit_all(vector_stats(x)))


@given(any_vectors)
def test_vector_statistics_come_back_from_json(x: np.ndarray) -> None:
    stats = vector_stats(x)
    assert VectorStats.from_dict(through_json(stats.to_dict())) == stats


def test_several_vectors_of_a_row_are_counted_apart_from_rows() -> None:
    stats = VectorStats.of(np.ones((6, 2)), rows=2, in_use=L2)
    merged = stats + stats
    assert (merged.rows, merged.vectors, merged.norms["l2"].count) == (4, 12, 12)


def test_records_of_different_norms_do_not_merge() -> None:
    x = np.ones((1, 2))
    with pytest.raises(Damaged, match=r"Expected: l1, l2, max. Received: l1, l2, max, lp:3"):
        vector_stats(x, L2).merge(vector_stats(x, LP3))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("rows"),
        lambda data: data.update(norms=[]),
        lambda data: data["norms"]["l1"].update(count=3),
        lambda data: data["norms"]["l1"].update(histogram=[[1]]),
        lambda data: data["dimensions"].update(mean=["x", 1.0]),
        lambda data: data["dimensions"]["min"].pop(),
        lambda data: data["dimensions"].update(max=[1.0, None]),
        lambda data: data["norms"].pop("max"),
    ],
    ids=["missing", "no-dict", "count", "histogram", "text", "length", "infinite", "norm"],
)
def test_damaged_statistics_are_told_apart(spoil: Any) -> None:
    data = vector_stats(np.ones((2, 2))).to_dict()
    spoil(data)
    with pytest.raises(Damaged, match="cannot be read"):
        VectorStats.from_dict(data)
