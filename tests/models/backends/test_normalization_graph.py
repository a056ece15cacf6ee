from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchnorm_tool.models.backends.normalization_graph import normalize_tensor
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization, unit_direction

pytestmark = pytest.mark.usefixtures("tensorflow")

NORMS = ("l1", "l2", "max", "lp:3", "lp:1.5", "lp:40", "lp:inf")
KEPT: dict[str, dict[str, Any]] = {
    "whole": {},
    "truncated": {"truncate": 5},
    "projected": {"mean": unit_direction(np.arange(1.0, 9.0))},
    "both": {"truncate": 2, "mean": (0.6, 0.8)},
}
BOUND = 3  # ulp of float32 at the L2 length of the expected row


def rows(seed: int = 0) -> np.ndarray:
    """Rows of 8 of all sizes, half of them near a common direction."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((400, 8)) + np.outer(np.arange(400) % 2, np.arange(1, 9)) * 5
    return (found * 10.0 ** random.integers(-30, 30, (400, 1))).astype(np.float32)


def ulp(received: Any, expected: np.ndarray) -> float:
    """The largest difference of a component, in ulp of float32 at the row's expected length."""
    lengths = np.linalg.norm(expected, axis=-1, keepdims=True).astype(np.float32)
    return float((np.abs(np.float64(received) - expected) / np.spacing(lengths)).max())


def l2(x: Any, axis: int | str = -1) -> tuple[np.ndarray, np.ndarray]:
    vectors, norms = normalize_tensor(tf.constant(x), Normalization(Norm("l2")), axis)
    return vectors.numpy(), norms.numpy()


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_what_is_done_after_prediction(norm: str, kept: str) -> None:
    plan = Normalization(Norm.parse(norm), **KEPT[kept])
    expected, lengths = plan.apply(rows(), np.float64)
    vectors, norms = normalize_tensor(tf.constant(rows()), plan)
    assert ulp(vectors, expected) < BOUND
    np.testing.assert_allclose(norms, lengths, rtol=5e-7)


@pytest.mark.parametrize("kept", KEPT)
def test_none_divides_by_nothing(kept: str) -> None:
    plan = Normalization(Norm("none"), **KEPT[kept])
    expected, _ = plan.apply(rows(), np.float64)
    vectors, norms = normalize_tensor(tf.constant(rows()), plan)
    assert ulp(vectors, expected) < BOUND
    assert np.array_equal(norms, np.ones((400, 1)))


@pytest.mark.parametrize("width", [1, 1000, 20_000])
def test_width_takes_no_digits(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((20, width), np.float32)
    for norm in NORMS:
        plan = Normalization(Norm.parse(norm))
        vectors, _ = normalize_tensor(tf.constant(x), plan)
        assert ulp(vectors, plan.apply(x, np.float64)[0]) < BOUND


EDGES = {
    "zeros": ([0, 0, 0, 0], [0, 0, 0, 0], 0),
    "-0": ([-0.0, 0, 0, 0], [0, 0, 0, 0], 0),
    "1e-30": ([3e-30, 4e-30, 0, 0], [0.6, 0.8, 0, 0], 5e-30),
    "1e20": ([3e20, 4e20, 0, 0], [0.6, 0.8, 0, 0], 5e20),
    "3e38 beside 1": ([3e38, 1, 0, 0], [1, 0, 0, 0], 3e38),
    "beyond the maximum": ([3e38] * 4, [0.5] * 4, np.inf),
    "subnormal": ([1e-39, 1e-40, 0, 0], [0, 0, 0, 0], 0),
    "one-hot": ([0, 0, -7, 0], [0, 0, -1, 0], 7),
    "NaN": ([np.nan, 1, 0, 0], [np.nan] * 4, np.nan),
    "inf": ([np.inf, 1, 0, 0], [np.nan] * 4, np.nan),
}


@pytest.mark.parametrize("norm", NORMS)
def test_bad_rows_change_no_other(norm: str) -> None:
    plan = Normalization(Norm.parse(norm))
    bad = np.float32([row for row, *_ in EDGES.values()])
    good = rows()[:10, :4]
    alone, _ = normalize_tensor(tf.constant(good), plan)
    beside, norms = normalize_tensor(tf.constant(np.concatenate([bad, good])), plan)
    assert np.array_equal(beside[len(bad) :], alone)
    for name, vector, length in zip(EDGES, beside.numpy(), norms.numpy(), strict=False):
        assert np.isnan(vector).all() == (name in ("NaN", "inf")), name
        assert (length == 0) == (name in ("zeros", "-0", "subnormal")), name


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_has_its_own_value(edge: str) -> None:
    row, vector, length = EDGES[edge]
    vectors, norms = l2(np.float32([row]))
    np.testing.assert_allclose(vectors[0], np.float32(vector), rtol=2e-7, atol=1e-38)
    np.testing.assert_allclose(norms, np.float32([[length]]), rtol=2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32"])
def test_narrow_floats_are_computed_in_float32(dtype: str) -> None:
    vectors, norms = l2(tf.cast([[300.0] * 4, [0] * 4], dtype))
    assert vectors.dtype == norms.dtype == ("float64" if dtype == "float64" else "float32")
    assert vectors.tolist() == [[0.5] * 4, [0] * 4]
    assert norms.tolist() == [[600], [0]]


def test_an_axis_is_a_vector_or_all_of_a_row() -> None:
    x = np.float32([[[3, 4], [0, 0]], [[1, 1], [1, 1]]])
    vectors, norms = l2(x)
    assert vectors[0].tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
    assert norms[..., 0].tolist() == [[5, 0], [np.float32(2**0.5)] * 2]
    vectors, norms = l2(x, "all")
    assert vectors[1].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert norms.tolist() == [[[5]], [[2]]]


def test_what_is_kept_of_a_whole_row_is_flat() -> None:
    x = np.float32([[[3, 4], [1, 1]]])
    plan = Normalization(Norm("l2"), truncate=2)
    vectors, norms = normalize_tensor(tf.constant(x), plan, "all")
    assert vectors.numpy().round(6).tolist() == np.float32([[0.6, 0.8]]).tolist()
    assert norms.numpy().tolist() == [[5]]


POINTS = {
    "ordinary": [0.5, -2.0, 1.0, 0.1],
    "one-hot": [0.0, 3.0, 0.0, 0.0],
    "1e-30": [3e-30, -4e-30, 1e-30, 2e-31],
    "1e20": [3e20, -4e20, 1e20, 2e19],
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_those_of_finite_differences(norm: str, point: str) -> None:
    plan, x = Normalization(Norm.parse(norm)), np.float64(POINTS[point])
    weights = np.float64([1, 2, -3, 4])
    step = 1e-6 * np.abs(x).max()

    def along(moved: np.ndarray) -> np.ndarray:
        vectors, norms = plan.apply(moved[np.newaxis], np.float64)
        return np.array([vectors[0] @ weights, norms[0, 0]])

    sides = [(along(x + step * one), along(x - step * one)) for one in np.eye(4)]
    expected = np.array([(up - down) / (2 * step) for up, down in sides]).T
    given = tf.Variable(np.float32([x]))
    with tf.GradientTape(persistent=True) as tape:
        vectors, norms = normalize_tensor(given, plan)
        totals = (tf.reduce_sum(vectors * np.float32(weights)), norms)
    for total, wanted in zip(totals, expected, strict=True):
        received = tape.gradient(total, given)[0].numpy()
        np.testing.assert_allclose(received, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("norm", NORMS)
def test_compiled_gradients_are_the_same(norm: str) -> None:
    points = np.float32([*POINTS.values(), [0.0] * 4])
    sizes = np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)

    def gradient(given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given)
            vectors, _ = normalize_tensor(given, Normalization(Norm.parse(norm)))
            total = tf.reduce_sum(vectors * np.float32([1, 2, -3, 4]))
        return tape.gradient(total, given)

    compiled = tf.function(gradient, jit_compile=True)(tf.constant(points))
    plain = gradient(tf.constant(points))
    np.testing.assert_allclose(compiled * sizes, plain * sizes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", [[0.0] * 4, [1e-40] * 4, [3e38, 1, 0, 0], [1e-30, 0, 0, 0]])
def test_gradients_are_finite_at_the_edges(row: list[float]) -> None:
    for norm, kept in itertools.product(NORMS, ({}, {"mean": (0.5,) * 4})):
        plan = Normalization(Norm.parse(norm), **kept)
        given = tf.Variable(np.float32([row]))
        with tf.GradientTape() as tape:
            vectors, norms = normalize_tensor(given, plan)
            total = tf.reduce_sum(vectors) + tf.reduce_sum(norms)
        found = tape.gradient(total, given).numpy()
        assert np.isfinite(found).all(), (norm, kept)


def test_it_is_of_plain_operations() -> None:
    inputs = keras.Input((8,))
    for kept in KEPT.values():
        model = keras.Model(inputs, normalize_tensor(inputs, Normalization(Norm("lp", 3), **kept)))
        modules = {type(operation).__module__ for operation in model.operations}
        allowed = ("keras.src.ops.", "keras.src.layers.core.input_layer")
        assert all(module.startswith(allowed) for module in modules)
