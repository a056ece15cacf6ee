"""Statistics against exact fractions, and against themselves however rows are split and merged."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.errors import JobError
from batchnorm_tool.norms.stats import QUANTILES, NormStats
from tests.merging import pieces_of, through_json, unsplit

HUGE = np.finfo(np.float64).max

any_norms = hnp.arrays(
    np.float64,
    hnp.array_shapes(max_dims=1, max_side=40, min_side=0),
    elements=st.one_of(
        st.floats(0.5, 100), st.floats(min_value=0), st.just(math.nan), st.just(-0.0)
    ),
)
some_norms = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e6))


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
