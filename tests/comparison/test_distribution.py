"""A distribution in a few numbers, against NumPy."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.comparison.norm_survey import BARS, describe
from batchnorm_tool.norms.stats import QUANTILES

any_numbers = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(allow_nan=True))


@given(values=any_numbers)
def test_bars_hold_every_finite_number(values: np.ndarray) -> None:
    found = describe(values)
    finite = values[np.isfinite(values)]
    bars = found["histogram"]
    assert found["count"] == sum(count for _, _, count in bars) == len(finite)
    assert all(low < high for low, high, _ in bars)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bars))
    if len(finite):
        assert bars[0][0] <= finite.min()
        assert bars[-1][1] >= finite.max()


def test_figures_agree_with_numpy() -> None:
    values = np.random.default_rng(0).normal(size=1001)
    found = describe(values)
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    expected = np.quantile(values, QUANTILES, method="inverted_cdf")
    assert list(found["quantiles"].values()) == expected.tolist()
    counts, edges = np.histogram(values, BARS)
    assert [bar[2] for bar in found["histogram"]] == counts.tolist()
    np.testing.assert_allclose([bar[0] for bar in found["histogram"]], edges[:-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "bar"),
    [(0.0, [-0.5, 0.5, 3]), (4.0, [2.0, 6.0, 3]), (-4.0, [-6.0, -2.0, 3])],
    ids=["zero", "positive", "negative"],
)
def test_equal_numbers_have_one_bar_around_them(value: float, bar: list[float]) -> None:
    assert describe(np.full(3, value))["histogram"] == [bar]


def test_no_bar_reaches_beyond_what_is_possible() -> None:
    assert describe(np.ones(3), most=1.0)["histogram"] == [[0.5, 1.0, 3]]


def test_no_numbers_have_no_figures() -> None:
    found = describe(np.array([math.nan, math.inf]))
    assert (found["count"], found["mean"], found["histogram"]) == (0, None, [])
    assert set(found["quantiles"].values()) == {None}
    json.dumps(found, allow_nan=False)
