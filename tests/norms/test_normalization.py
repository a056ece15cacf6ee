"""What becomes of a vector after prediction: truncated, projected, quantized; what is fitted."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchnorm_tool.norms.norm import Norm, row_norms, unit_vectors, widen
from batchnorm_tool.norms.normalization import (
    DirectionSum,
    Normalization,
    int8_scale,
    unit_direction,
)
from tests.bits import same_bits

L2 = Norm("l2")
NORMS = [Norm.parse(text) for text in ("none", "l1", "l2", "max", "lp:3")]
by_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.label)
EDGES = np.array(
    [
        [0, 0, 0, 0],
        [1e-30, 2e-30, -1e-30, 0],
        [3e38, 1, -3e38, 2],
        [math.nan, 1, 2, 3],
        [1e-45, 0, 3e-45, -1e-45],
        [math.inf, 1, 2, 3],
        [1, 2, 3, -4],
    ],
    np.float32,
)


def vectors(width: int = 4, least: int = 1) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(least, 9), st.just(width))
    finite = st.floats(-1e6, 1e6, allow_subnormal=False, width=32)
    return hnp.arrays(np.float32, shapes, elements=finite)


def random(rows: int = 500, width: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, width)) + rng.normal(size=width)).astype(np.float32)


def fitted(norm: Norm, raw: np.ndarray) -> Normalization:
    scale = int8_scale(Normalization(norm).largest(raw))
    return Normalization(norm, dtype="int8", scale=scale)


@by_norm
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16], ids=str)
def test_without_options_nothing_is_added_to_norm_and_division(norm: Norm, dtype: Any) -> None:
    raw = np.vstack([EDGES, random(width=4)])
    x64 = widen(raw)
    norms = row_norms(x64, norm)
    found = Normalization(norm).apply(raw, dtype)
    assert same_bits(found[0], unit_vectors(x64, norms, norm, dtype))
    assert same_bits(found[1], norms)


@by_norm
@given(raw=vectors(6))
def test_truncated_vectors_are_those_of_the_first_components(norm: Norm, raw: np.ndarray) -> None:
    found, expected = (
        Normalization(norm, truncate=3).apply(raw),
        Normalization(norm).apply(raw[:, :3]),
    )
    assert same_bits(found[0], expected[0])
    assert same_bits(found[1], expected[1])


@given(raw=vectors(7), direction=vectors(7))
def test_nothing_is_left_along_the_mean(raw: np.ndarray, direction: np.ndarray) -> None:
    if not direction[0].any():
        direction[0, 0] = 1
    mean = unit_direction(direction[0])
    kept = Normalization(L2, mean=mean).kept(raw)
    along = np.array([math.fsum(a * b for a, b in zip(row, mean, strict=True)) for row in kept])
    assert (np.abs(along) <= 4 * np.spacing(np.linalg.norm(raw.astype(np.float64), axis=1))).all()
    across = raw - (raw.astype(np.float64) @ mean)[:, np.newaxis] * np.array(mean)
    np.testing.assert_allclose(kept, across, atol=1e-14 * np.abs(raw).max(initial=1.0))


def test_truncation_comes_first_then_the_mean_then_the_norm() -> None:
    raw = np.array([[3.0, 4.0, 12.0, 99.0]])
    units, norms = Normalization(L2, truncate=3, mean=(0.0, 0.0, 1.0)).apply(raw, np.float64)
    assert norms.tolist() == [[5.0]]
    assert units.tolist() == [[0.6, 0.8, 0.0]]


def test_a_vector_along_the_mean_is_zero_and_not_the_noise_of_rounding() -> None:
    mean = unit_direction(random(1, 300)[0])
    raw = np.outer([1.0, -7e-310, 3e307, 1e-30], mean)
    units, norms = Normalization(L2, mean=mean).apply(raw)
    assert not units.any()
    assert not norms.any()


def test_edge_rows_are_projected_without_overflow_and_without_harm_to_others() -> None:
    mean = unit_direction(np.array([1.0, 1.0, 1.0, 1.0]))
    kept = Normalization(L2, mean=mean).kept(EDGES)
    good = [0, 1, 2, 4, 6]
    assert np.isfinite(kept[good]).all()
    assert not np.isfinite(kept[[3, 5]]).any()
    np.testing.assert_array_equal(kept[6], [0.5, 1.5, 2.5, -4.5])
    np.testing.assert_allclose(kept[2] / 3e38, [1, 0, -1, 0], atol=1e-7)
    huge = Normalization(L2, mean=mean).kept(np.array([[1.7e308, 1.7e308, 1.7e308, 0]]))
    np.testing.assert_allclose(huge / 1.7e308, [[0.25, 0.25, 0.25, -0.75]], rtol=1e-14)


@pytest.mark.parametrize("parts", [1, 3, 500])
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours(parts: int) -> None:
    raw = random()
    way = Normalization(L2, 17, unit_direction(random(1, 17)[0]), "int8", 0.005)
    pieces = [way.apply(piece) for piece in np.array_split(raw, parts)]
    whole = way.apply(raw)
    assert same_bits(np.vstack([piece[0] for piece in pieces]), whole[0])
    assert same_bits(np.vstack([piece[1] for piece in pieces]), whole[1])


@by_norm
@given(raw=vectors())
def test_int8_is_at_most_half_a_step_away(norm: Norm, raw: np.ndarray) -> None:
    way = fitted(norm, raw)
    codes, norms = way.apply(raw)
    units, expected = Normalization(norm).apply(raw, np.float64)
    assert codes.dtype == np.int8
    assert same_bits(norms, expected)
    assert way.scale is not None
    off = np.abs(codes * way.scale - units)
    assert off.max() <= way.scale * 0.5000001
    assert same_bits(way.decode(codes), (codes * way.scale).astype(np.float32))
    assert np.abs(codes.astype(int)).max(initial=0) == (127 if raw.any() else 0)


def test_int8_of_edge_rows() -> None:
    way = Normalization(L2, dtype="int8", scale=1 / 127)
    codes, norms = way.apply(EDGES)
    assert codes.tolist()[:5] == [
        [0, 0, 0, 0],
        [52, 104, -52, 0],
        [90, 0, -90, 0],
        [0, 0, 0, 0],
        [52, 0, 104, -52],
    ]
    assert np.isnan(norms[3]).all()
    assert Normalization(L2, dtype="int8", scale=0.001).apply(EDGES)[0][6].tolist() == [
        127, 127, 127, -127
    ]  # fmt: skip


@by_norm
@pytest.mark.parametrize("width", [1, 8, 13])
def test_binary_keeps_the_signs_and_decodes_to_length_one(norm: Norm, width: int) -> None:
    raw = random(50, width)
    raw[:, 0] = -np.abs(raw[:, 0])
    way = Normalization(norm, dtype="binary")
    bits, norms = way.apply(raw)
    assert bits.dtype == np.uint8
    assert bits.shape == (50, way.stored_width(width)) == (50, math.ceil(width / 8))
    assert (bits[:, 0] < 128).all()  # the first component is the highest bit
    decoded = way.decode(bits, width)
    assert decoded.shape == raw.shape
    assert ((decoded > 0) == (raw > 0)).all()
    np.testing.assert_allclose(row_norms(widen(decoded), norm), 1, rtol=1e-6)
    assert same_bits(norms, Normalization(norm).apply(raw)[1])
    assert same_bits(way.apply(decoded)[0], bits)


def test_floats_are_decoded_as_they_are() -> None:
    raw = random(3)
    assert Normalization(L2).decode(raw) is raw


@given(st.lists(vectors(5), min_size=1, max_size=6), st.randoms())
def test_what_is_fitted_does_not_depend_on_how_rows_are_split(
    pieces: list[np.ndarray], shuffle: Any
) -> None:
    whole = np.vstack(pieces)
    shuffle.shuffle(pieces)
    summed = functools.reduce(operator.add, map(DirectionSum.of, pieces))
    assert summed == DirectionSum.of(whole)
    way = Normalization(L2, mean=summed.mean())
    assert max(way.largest(way.kept(piece)) for piece in pieces) == way.largest(way.kept(whole))


def test_the_mean_is_that_of_directions_so_that_no_huge_vector_decides() -> None:
    raw = random().astype(np.float64)
    units = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected = units.sum(axis=0) / np.linalg.norm(units.sum(axis=0))
    raw[0] *= 2.0**100
    mean = DirectionSum.of(np.vstack([raw, np.zeros((2, 24)), np.full((1, 24), math.nan)])).mean()
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-12)
    assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("width", [1, 3, 24, 300])
def test_nothing_is_left_of_vectors_that_are_all_alike(width: int) -> None:
    raw = np.tile(random(1)[:, :1] if width == 1 else np.resize(random(1), width) + 1, (3000, 1))
    way = Normalization(L2, mean=DirectionSum.of(raw).mean())
    assert not way.kept(raw).any()


@pytest.mark.parametrize(
    "raw",
    [
        np.ones((0, 3)),
        np.zeros((2, 3)),
        np.array([[1, 2, 3], [-2, -4, -6]]),
        np.array([[1, 2, 3], [-3, -6, -9], [0.1, 0.2, 0.3], [-0.7, -1.4, -2.1]]),
    ],
    ids=str,
)
def test_directions_that_cancel_out_have_no_mean(raw: np.ndarray) -> None:
    assert DirectionSum.of(raw).mean() is None


def test_bad_rows_do_not_count_for_the_scale() -> None:
    assert Normalization(L2).largest(EDGES) == pytest.approx(2 / math.sqrt(6), abs=1e-7)
    assert Normalization(Norm("none")).largest(EDGES[[3, 6]]) == 4
    assert Normalization(L2).largest(np.zeros((0, 3))) == 0
    assert int8_scale(0.0) == 1 / 127
