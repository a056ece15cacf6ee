"""Figures of drift against SciPy, NumPy and plain loops."""

from __future__ import annotations

import math
import warnings
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg, spatial, stats

from batchnorm_tool.comparison.drift import (
    EMPTY_SHARE,
    Gaussian,
    centroid_shift,
    dimension_shift,
    frechet_distance,
    kolmogorov_smirnov_distance,
    pair_cosines,
    population_stability_index,
)
from batchnorm_tool.norms.norm import L2, row_norms
from tests.merging import pieces_of

few_values = hnp.arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 5).map(float))
many_values = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1e6))


def draw(seed: int, rows: int = 400, width: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(rows, width)) @ generator.normal(size=(width, width))
    return np.ascontiguousarray(mixed + generator.normal(size=width))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return pair_cosines(a, b, row_norms(a, L2)[:, 0], row_norms(b, L2)[:, 0])


# Pairs


def test_cosines_agree_with_scipy() -> None:
    a, b = draw(0), draw(1)
    expected = [1 - spatial.distance.cosine(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(cosines(a, b), expected, atol=1e-14)


def test_a_zero_vector_has_no_cosine() -> None:
    found = cosines(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert np.isnan(found).all()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200], ids=str)
def test_cosines_do_not_depend_on_scale(scale: float) -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosines(a * scale, a[::-1].copy()), [0.6, 0.6], rtol=1e-12)


def test_cosines_stay_within_one() -> None:
    a = draw(2, rows=2000)
    assert np.abs(cosines(a, a * 3)).max() <= 1


# Distributions of one number


def psi_by_a_loop(expected: np.ndarray, actual: np.ndarray) -> float:
    edges = sorted({float(np.quantile(expected, tenth / 10)) for tenth in range(1, 10)})
    total = 0.0
    for low, high in zip([-math.inf, *edges], [*edges, math.inf], strict=True):
        p, q = (
            max(sum(low < value <= high for value in values.tolist()) / len(values), EMPTY_SHARE)
            for values in (expected, actual)
        )
        total += (q - p) * math.log(q / p)
    return total


@given(expected=few_values | many_values, actual=few_values | many_values)
def test_stability_index_agrees_with_a_loop(expected: np.ndarray, actual: np.ndarray) -> None:
    found = population_stability_index(expected, actual)
    assert found == pytest.approx(psi_by_a_loop(expected, actual), abs=1e-12)
    assert found >= 0


def test_stability_index_of_a_known_table() -> None:
    # Deciles of equal shares that become 0.19 and 0.01 twice: 2 (0.09 ln 1.9 - 0.09 ln 0.1).
    expected = np.repeat(np.arange(10.0), 100)
    counts = [190, 10, 190, 10, 100, 100, 100, 100, 100, 100]
    actual = np.repeat(np.arange(10.0), counts)
    index = population_stability_index(expected, actual)
    assert index == pytest.approx(2 * (0.09 * math.log(1.9) - 0.09 * math.log(0.1)), rel=1e-12)


def test_stability_index_of_sets_that_do_not_overlap_is_finite() -> None:
    index = population_stability_index(np.arange(100.0), np.arange(100.0) + 1000)
    tenth = (1 - 0.1) * math.log(10) + 9 * (EMPTY_SHARE - 0.1) * math.log(EMPTY_SHARE / 0.1)
    assert index == pytest.approx(tenth, rel=1e-12)


@given(one=few_values | many_values, other=few_values | many_values)
def test_kolmogorov_smirnov_agrees_with_scipy(one: np.ndarray, other: np.ndarray) -> None:
    with warnings.catch_warnings(action="ignore"):  # of its p-value, for so few numbers
        expected = stats.ks_2samp(one, other).statistic
    assert kolmogorov_smirnov_distance(one, other) == pytest.approx(expected, abs=1e-15)


# Distributions of vectors


def test_gaussian_agrees_with_numpy() -> None:
    x = draw(3)
    found = Gaussian.of(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(found.deviations, x.std(axis=0, ddof=1), rtol=1e-12)
    distances = np.linalg.norm(x - x.mean(axis=0), axis=1)
    assert found.spread == pytest.approx(math.sqrt((distances**2).mean()), rel=1e-12)


@given(data=st.data())
def test_merged_gaussians_are_those_of_the_whole(data: st.DataObject) -> None:
    x = draw(4, rows=20) + 1e4
    merged = reduce(add, map(Gaussian.of, pieces_of(x, data)))
    assert merged.count == 20
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-8)


def test_what_never_varies_has_no_deviation_however_it_is_split() -> None:
    x = np.column_stack((np.full(700, 0.1), np.arange(700.0)))
    merged = reduce(add, map(Gaussian.of, np.split(x, [3, 100, 450])))
    assert merged.deviations[0] == 0
    assert merged.mean[0] == 0.1


def frechet_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y)
    between = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return float(between + np.trace(cov_x + cov_y - 2 * np.real(root)))


@pytest.mark.parametrize("width", [2, 6, 32])
def test_frechet_distance_agrees_with_scipy(width: int) -> None:
    x, y = draw(5, width=width), draw(6, rows=900, width=width)
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    assert found == pytest.approx(frechet_by_scipy(x, y), rel=1e-9)
    assert frechet_distance(Gaussian.of(y), Gaussian.of(x)) == pytest.approx(found, rel=1e-9)


def test_frechet_distance_of_numbers_is_known() -> None:
    # Of two normal distributions of one number: (m1 - m2)² + (s1 - s2)².
    x = np.array([[0.0], [2.0], [4.0]])
    assert frechet_distance(Gaussian.of(x), Gaussian.of(3 * x + 1)) == pytest.approx(5**2 + 4**2)


def test_frechet_distance_of_a_set_from_itself_is_zero_in_a_subspace_too() -> None:
    x = np.ascontiguousarray(np.repeat(draw(7), 20, axis=1))  # 120 dimensions, of which 6 vary
    one = Gaussian.of(x)
    assert frechet_distance(one, one) <= 1e-11 * np.trace(one.covariance)


def test_frechet_distance_beyond_float64_is_infinite() -> None:
    x = draw(8)
    assert frechet_distance(Gaussian.of(x), Gaussian.of(x * 1e200)) == math.inf


def test_dimension_shift_is_in_deviations_of_the_first_set() -> None:
    x, y = draw(9), draw(10)
    shift = dimension_shift(Gaussian.of(x), Gaussian.of(y))
    expected = (y.mean(axis=0) - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    np.testing.assert_allclose(shift, expected, rtol=1e-10)


def test_dimension_shift_without_variance_is_zero_or_unknown() -> None:
    one = Gaussian.of(np.array([[1.0, 1.0], [1.0, 1.0]]))
    other = Gaussian.of(np.array([[1.0, 2.0], [1.0, 2.0]]))
    np.testing.assert_array_equal(dimension_shift(one, other), [0, np.nan])


def test_centroid_shift() -> None:
    x, y = draw(11), draw(12)
    found = centroid_shift(Gaussian.of(x), Gaussian.of(y))
    a, b = x.mean(axis=0), y.mean(axis=0)
    assert found["shift"] == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
    spread = math.sqrt(((x - a) ** 2).sum(axis=1).mean())
    assert found["relative"] == pytest.approx(found["shift"] / spread, rel=1e-12)
    assert found["cosine"] == pytest.approx(1 - spatial.distance.cosine(a, b), rel=1e-12)


def test_centroid_of_equal_vectors() -> None:
    one, other = Gaussian.of(np.ones((3, 2))), Gaussian.of(np.zeros((3, 2)))
    assert centroid_shift(one, one)["relative"] == 0
    moved = centroid_shift(one, other)
    assert math.isnan(moved["relative"])
    assert math.isnan(moved["cosine"])
