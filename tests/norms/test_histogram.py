from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.norms.histogram import Histogram, reduced

some_values = hnp.arrays(
    np.float64, st.integers(1, 30), elements=st.floats(0, allow_infinity=False, allow_nan=False)
)


def counted(values: np.ndarray) -> dict[int, int]:
    """One value after the other."""
    return dict(Counter((np.abs(values).view(np.uint64) >> np.uint64(43)).tolist()))


@given(some_values)
def test_every_value_is_counted_in_its_bucket(values: np.ndarray) -> None:
    histogram = Histogram.of(np.abs(values))
    assert dict(histogram) == counted(values)
    assert list(histogram) == sorted(counted(values))
    assert [histogram[bucket] for bucket in histogram] == histogram.counts.tolist()


@given(some_values, some_values)
def test_merged_they_are_the_histogram_of_all_values(one: np.ndarray, other: np.ndarray) -> None:
    merged = Histogram.of(np.abs(one)).merge(Histogram.of(np.abs(other)))
    assert merged == Histogram.of(np.abs(np.concatenate([one, other])))
    assert merged == Histogram().merge(merged)


def test_an_empty_bucket_is_not_there() -> None:
    histogram = Histogram.of(np.array([1.0, 3.0]))
    assert len(histogram) == 2
    assert 1024 * 512 not in histogram
    assert Histogram() == {}


@given(some_values)
def test_pairs_are_read_back(values: np.ndarray) -> None:
    histogram = Histogram.of(np.abs(values))
    assert Histogram.from_pairs(histogram.pairs()) == histogram
    assert Histogram.from_pairs([]) == Histogram()


@pytest.mark.parametrize(
    "pairs", [[[5, 1], [4, 1]], [[4, 1], [4, 1]], [[4, 0]], [[4]], [[-5, 3]], [[2**70, 1]]], ids=str
)
def test_pairs_that_are_none_are_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Histogram.from_pairs(pairs)


def test_coarse_buckets_are_64_fine_ones() -> None:
    values = np.linspace(1, 2, 1000, endpoint=False)
    lower, upper, counts = Histogram.of(values).coarse()
    assert lower.tolist() == [1 + eighth / 8 for eighth in range(8)]
    assert upper.tolist() == [1 + eighth / 8 for eighth in range(1, 9)]
    assert counts.tolist() == [125] * 8


@pytest.mark.parametrize("shape", [(1,), (5000,), (1, 3), (7, 3), (2049, 64), (40, 1500), (9, 0)])
def test_reducing_side_by_side_gives_what_numpy_gives(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    assert np.array_equal(reduced(np.maximum, values), values.max(axis=0))
    assert np.allclose(reduced(np.add, values), values.sum(axis=0), rtol=1e-12)
