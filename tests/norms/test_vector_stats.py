"""Statistics of vectors and dimensions against NumPy, and themselves however rows are split."""

from __future__ import annotations

import json
import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.errors import Damaged
from batchnorm_tool.norms.histogram import reduced
from batchnorm_tool.norms.norm import L2, Norm, row_norms
from batchnorm_tool.norms.vector_stats import DimensionStats, VectorStats
from tests.merging import pieces_of, through_json, unsplit

HUGE = np.finfo(np.float64).max
LP3 = Norm("lp", 3.0)

any_vectors = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 12), st.just(3)),
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(-0.0), st.floats()),
)


def vector_stats(x: np.ndarray, in_use: Norm = LP3) -> VectorStats:
    return VectorStats.of(x, rows=len(x), in_use=in_use, in_use_norms=row_norms(x, in_use))


def unsplit_all(stats: VectorStats) -> Any:
    data = stats.to_dict()
    norms = {label: unsplit(norm) for label, norm in data["norms"].items()}
    return {**data, "norms": norms, "dimensions": unsplit(data["dimensions"])}


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


@pytest.mark.parametrize("shape", [(1,), (5000,), (1, 3), (7, 3), (2049, 64), (40, 1500), (9, 0)])
def test_reducing_side_by_side_gives_what_numpy_gives(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    assert np.array_equal(reduced(np.maximum, values), values.max(axis=0))
    assert np.allclose(reduced(np.add, values), values.sum(axis=0), rtol=1e-12)
