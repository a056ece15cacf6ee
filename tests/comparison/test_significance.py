from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.comparison import verdict
from batchnorm_tool.comparison.verdict import bootstrap, holm, paired_randomization

SAMPLES = {
    "normal": np.random.default_rng(0).normal(size=200),
    "skewed": np.random.default_rng(1).exponential(size=80),
    "hits": np.random.default_rng(2).integers(0, 2, 500).astype(float),
}


def on_samples(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("name", SAMPLES)(test)


# Bootstrap


@on_samples
def test_an_interval_is_that_of_a_plain_loop(name: str) -> None:
    values, draws = SAMPLES[name], np.random.default_rng(5)
    means = [values[draws.integers(len(values), size=len(values))].mean() for _ in range(2_000)]
    low, high = bootstrap(values[:, None], 5)
    expected = np.percentile(means, [2.5, 97.5])
    assert [low.item(), high.item()] == pytest.approx(expected.tolist(), rel=1e-12)


@on_samples
def test_an_interval_is_scipys_but_for_chance(name: str) -> None:
    values = SAMPLES[name]
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    low, high = bootstrap(values[:, None], 5)
    # The 2.5 % quantile of 2,000 means varies by 6 % of their standard deviation.
    chance = 4 * 0.06 * values.std() / math.sqrt(len(values))
    assert low.item() == pytest.approx(theirs.low, abs=chance)
    assert high.item() == pytest.approx(theirs.high, abs=chance)


def test_columns_share_their_samples_and_keep_to_themselves() -> None:
    values = np.stack([SAMPLES["skewed"], 1 - 2 * SAMPLES["skewed"], np.full(80, 0.3)], axis=1)
    low, high = bootstrap(values, 3)
    assert [low[1], high[1]] == pytest.approx([1 - 2 * high[0], 1 - 2 * low[0]], rel=1e-12)
    assert [low[2], high[2]] == pytest.approx([0.3, 0.3], rel=1e-12)
    assert low[0] < SAMPLES["skewed"].mean() < high[0]
    alone = bootstrap(values[:, :1], 3)
    assert [alone[0].item(), alone[1].item()] == pytest.approx([low[0], high[0]], rel=1e-12)


def test_a_single_query_has_an_interval_of_no_width() -> None:
    low, high = bootstrap(np.array([[0.25, 1.0]]), 0)
    assert low.tolist() == high.tolist() == [0.25, 1.0]


# Randomization


def exact_p(differences: Sequence[Fraction]) -> float:
    """Share of all choices of signs whose sum is at least as far from zero as the observed one."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed for total in sums) / len(sums)


@pytest.mark.parametrize(
    "tenths",
    [
        [1, 2, 3],
        [3, -1, 2, 4, 1, 2, 5, -2],
        [1, 1, 1, 1, -1, 0, 0, 0, 0, 0],
        [5],
        [7, 1, -3, 2, 9, 4, 4, -6, 8, 3, 5],
        # 0.1 + 0.2 is not 0.3 in float64: sums that equal the observed one miss it by an ulp.
        [1, 2, -3, 4],
        [3, 6, 7, -1, 2, 8],
    ],
    ids=str,
)
def test_p_is_that_of_all_signs_but_for_chance(tenths: list[int]) -> None:
    exact = exact_p([Fraction(value, 10) for value in tenths])
    (p,) = paired_randomization(np.array(tenths)[:, None] / 10, 0).tolist()
    assert p == pytest.approx(exact, abs=1e-3 + 4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_p_counts_the_observed_signs_so_that_it_is_never_zero() -> None:
    assert paired_randomization(np.ones((60, 1)), 0).tolist() == [1 / 10_001]


def test_no_difference_at_all_is_certain() -> None:
    assert paired_randomization(np.zeros((40, 2)), 0).tolist() == [1, 1]


def test_p_does_not_depend_on_the_sign_the_scale_or_other_columns() -> None:
    differences = np.random.default_rng(4).normal(0.1, 1, 100)
    columns = np.stack([differences, -differences, 1e-9 * differences, np.ones(100)], axis=1)
    p = paired_randomization(columns, 7)
    assert p.tolist()[:3] == [p[0]] * 3
    assert 0.05 < p[0] < 0.9
    assert paired_randomization(columns[:, :1], 7).tolist() == [p[0]]


def test_p_is_that_of_scipys_permutation_test_but_for_chance() -> None:
    differences = np.random.default_rng(6).normal(0.15, 1, 120)
    theirs = scipy.stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=10_000,
        rng=np.random.default_rng(8),
    ).pvalue
    (p,) = paired_randomization(differences[:, None], 0).tolist()
    assert p == pytest.approx(theirs, abs=6 * math.sqrt(theirs / 10_000))


# Both


@pytest.mark.parametrize("draw", [bootstrap, paired_randomization])
def test_a_seed_gives_the_same_again_and_another_seed_does_not(
    draw: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    values = np.random.default_rng(4).normal(0.05, 1, (300, 2))
    first, again, other = (np.array(draw(values, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("draw", [bootstrap, paired_randomization])
def test_memory_is_bounded_whatever_the_number_of_queries(
    draw: Callable[[np.ndarray, int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "RESAMPLES", 600)
    monkeypatch.setattr(verdict, "FLIPS", 600)
    values = np.random.default_rng(0).normal(size=(20_000, 2))
    tracemalloc.start()
    draw(values, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all draws at once would be 96 MB, and their counts as much again


# Holm


def rejected(p: Sequence[float], level: float) -> set[int]:
    """Holm's procedure as he wrote it: from the smallest on, until one is not small enough."""
    found: set[int] = set()
    for place in sorted(range(len(p)), key=lambda place: p[place]):
        if p[place] > level / (len(p) - len(found)):
            break
        found.add(place)
    return found


@given(st.lists(st.integers(0, 400), min_size=1, max_size=7), st.integers(1, 399))
def test_adjusted_values_reject_what_the_step_down_procedure_rejects(
    thousandths: list[int], level: int
) -> None:
    p = [value / 1000 for value in thousandths]
    between = (level + 0.5) / 1000 + 1e-5  # never a multiple of a p-value
    adjusted = holm(p)
    assert {place for place, value in enumerate(adjusted) if value <= between} == rejected(
        p, between
    )


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.9, 0.4, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.4, 0.01, 0.3], [0.6, 0.03, 0.6]),
    ],
    ids=["none", "one", "monotone", "at_most_one", "ties", "order"],
)
def test_adjusted_values_worked_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted, rel=1e-12)
