"""Norms of many rows, against NumPy and the statistics of a run."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.comparison.norm_survey import NormSurvey, measured, norms_to_measure
from batchnorm_tool.norms.norm import L1, L2, MAX, Norm
from batchnorm_tool.norms.stats import NormStats, VectorStats
from tests.merging import pieces_of, unsplit

NONE, CUBIC = Norm("none"), Norm("lp", 3.0)
ORDERS = {"l1": 1, "l2": 2, "max": np.inf, "lp:3": 3}


def vectors() -> np.ndarray:
    """100 rows: 0 is missing, 1 and 2 are not finite, 3 and 4 are zeros, 5 has length 1."""
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    x[0], x[1, 2], x[2, 0] = np.nan, np.inf, np.nan
    x[3:5] = 0
    x[5] = [0, -1, 0, 0]
    return x


def missing(x: np.ndarray) -> np.ndarray:
    return np.isnan(x).all(axis=1)


def survey(x: np.ndarray, *compared: Norm) -> NormSurvey:
    return NormSurvey.of(measured(x, norms_to_measure(compared)), missing(x))


@pytest.mark.parametrize("norm", [L1, L2, MAX, CUBIC], ids=lambda norm: norm.label)
def test_norms_are_numpys(norm: Norm) -> None:
    x = vectors()
    expected = np.linalg.norm(x.astype(np.float64), ORDERS[norm.label], axis=1)
    np.testing.assert_allclose(measured(x, [norm])[norm.label], expected, rtol=1e-14)


def test_without_a_norm_a_row_is_divided_by_one() -> None:
    found = measured(vectors(), [NONE])["none"]
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 1, 2]
    assert set(found[3:]) == {1}


def test_rows_of_every_kind_are_counted() -> None:
    found = survey(vectors(), NONE, CUBIC)
    assert (found.rows, found.missing, found.nonfinite, found.zero) == (100, 1, 2, 2)
    assert found.unit == {"l1": 1, "l2": 1, "max": 1, "none": 97, "lp:3": 1}
    for stats in found.norms.values():
        assert (stats.count, stats.nonfinite) == (97, 3)


def test_statistics_are_those_of_a_run() -> None:
    of_run = VectorStats.of(vectors(), rows=100, in_use=CUBIC)
    found = survey(vectors(), CUBIC)
    assert dict(found.norms) == dict(of_run.norms)
    assert found.zero == of_run.zero
    assert found.missing + found.nonfinite == of_run.nonfinite


@given(data=st.data())
def test_merged_surveys_are_that_of_the_whole(data: st.DataObject) -> None:
    merged = reduce(add, (survey(piece, NONE) for piece in pieces_of(vectors(), data)))
    whole = survey(vectors(), NONE)
    for name in ("rows", "missing", "nonfinite", "zero", "unit"):
        assert getattr(merged, name) == getattr(whole, name)
    for label, stats in whole.norms.items():
        assert unsplit(merged.norms[label].to_dict()) == unsplit(stats.to_dict())
        assert merged.norms[label].mean == pytest.approx(stats.mean, rel=1e-13)


def test_nothing_has_no_norms() -> None:
    found = survey(np.empty((0, 4)))
    assert (found.rows, found.zero, found.nonfinite) == (0, 0, 0)
    assert found.norms["l2"] == NormStats()


@pytest.mark.parametrize(
    ("length", "count"),
    [(1.0009, 1), (0.9991, 1), (1.0011, 0), (0.9989, 0)],
    ids=["above", "below", "too long", "too short"],
)
def test_unit_length_is_told_to_a_thousandth(length: float, count: int) -> None:
    assert survey(np.array([[0.6, 0.8]]) * length).unit["l2"] == count


def test_three_norms_are_always_measured_and_each_once() -> None:
    assert norms_to_measure([MAX, CUBIC, L1]) == (L1, L2, MAX, CUBIC)
