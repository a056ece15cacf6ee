"""`normalize` against scikit-learn and NumPy: any rank, any axes, any dtype, and bad vectors."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.preprocessing import normalize as sklearn_normalize

from batchnorm_tool.errors import BadRows, InputError, JobError
from batchnorm_tool.norms.array import normalize
from batchnorm_tool.norms.norm import Norm
from tests.bits import same_bits

HUGE = np.finfo(np.float64).max
BAD = [[[3.0, 4.0], [0.0, -0.0]], [[math.nan, 1.0], [math.inf, 1.0]]]


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalize_agrees_with_scikit_learn(norm: str, dtype: str) -> None:
    x = np.random.default_rng(1).standard_normal((200, 30)).astype(dtype)
    x[7] = 0
    expected, lengths = sklearn_normalize(x, norm, return_norm=True)
    vectors, norms = normalize(x, norm, return_norm=True)
    assert vectors.dtype == x.dtype
    np.testing.assert_allclose(vectors, expected, rtol=5e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_allclose(np.where(norms, norms, 1), lengths, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), (-2, -1), (0, 1, 2), ()], ids=str)
def test_normalize_takes_any_axes(axis: Any) -> None:
    x = np.random.default_rng(2).standard_normal((3, 4, 5))
    vectors, norms = normalize(x, axis=axis, return_norm=True)
    lengths = np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    np.testing.assert_allclose(vectors, x / lengths, rtol=1e-15)
    assert norms.shape == np.sum(x, axis=axis).shape
    assert norms.ravel().tolist() == pytest.approx(lengths.ravel().tolist(), rel=1e-15)
    assert vectors.flags.c_contiguous


def test_the_order_of_axes_and_the_memory_order_change_no_bit() -> None:
    x = np.random.default_rng(2).standard_normal((30, 40, 50)).astype("float32")
    assert same_bits(normalize(x, axis=(0, 2)), normalize(x, axis=(2, 0)))
    assert same_bits(normalize(np.asfortranarray(x)), normalize(x))


ROWS = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 2)


@pytest.mark.parametrize(
    ("lists", "dtype"),
    [
        pytest.param(FIXED, "float32", id="fixed-size lists"),
        pytest.param(pa.concat_arrays([FIXED, FIXED]).slice(4), "float32", id="a slice"),
        pytest.param(pa.chunked_array([FIXED[:1], FIXED[1:]]), "float32", id="chunks"),
        pytest.param(pa.array(ROWS.tolist()), "float64", id="lists"),
        pytest.param(pa.array(list(ROWS), pa.large_list(pa.float32())), "float32", id="large"),
        pytest.param(pa.array(ROWS.tolist(), pa.list_(pa.int8())), "float64", id="integers"),
        pytest.param(
            pa.array(ROWS.astype(int).tolist(), pa.list_(pa.decimal128(4, 1))),
            "float64",
            id="decimals",
        ),
        pytest.param(pa.FixedShapeTensorArray.from_numpy_ndarray(ROWS), "float32", id="tensors"),
        pytest.param(
            pa.DictionaryArray.from_arrays(pa.array(range(len(FIXED))), FIXED),
            "float32",
            id="a dictionary of lists",
        ),
        pytest.param(pd.Series(list(ROWS)), "float32", id="pandas, arrays"),
        pytest.param(pd.Series(ROWS.tolist()), "float64", id="pandas, lists"),
        pytest.param(pd.DataFrame({"e": list(ROWS)})["e"], "float32", id="a column of a frame"),
        pytest.param(ROWS.tolist(), "float64", id="lists of lists"),
        pytest.param(list(ROWS), "float32", id="list of arrays"),
    ],
)
def test_rows_that_are_lists_are_stacked(lists: Any, dtype: str) -> None:
    vectors, norms = normalize(lists, return_norm=True)
    assert vectors.dtype == dtype
    assert same_bits(vectors, normalize(ROWS.astype(dtype)))
    assert norms.shape == (4,)


def test_lists_of_lists_are_axes() -> None:
    nested = [[[3, 4], [0, 2]], [[8, 6], [1, 0]]]
    assert normalize(pa.array(nested)).tolist() == normalize(np.array(nested)).tolist()
    assert normalize(pa.array([3.0, 4.0])).tolist() == [0.6, 0.8]
    empty = pa.array([[], []], pa.list_(pa.float32()))
    assert normalize(empty).shape == (2, 0)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ([[1.0, 2.0], None], "Row 1 is null"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, None]], r"Row 2 .*contains a null.*\[5.0, None\]"),
        ([[1.0, 2.0], [3.0], [4.0, 5.0]], r"Row 1 differs in length from most, which have 2"),
        ([[1.0], [2.0, 3.0]], "Row 1 differs in length from most, which have 1"),
        ([[], [], [1.0, 2.0]], "Row 0 differs in length from most, which have 2"),
        ([[[1.0], [2.0]], [[3.0], [4.0, 5.0]]], "Row 1 differs in length"),
    ],
    ids=["null", "null inside", "ragged", "the first counts", "empty", "ragged inside"],
)
@pytest.mark.parametrize("kind", [pa.array, pd.Series, list], ids=["Arrow", "pandas", "list"])
def test_a_row_that_does_not_stack_is_named(lists: list, words: str, kind: Any) -> None:
    with pytest.raises(InputError, match=words):
        normalize(kind(lists))


@pytest.mark.parametrize(
    "other",
    [None, "abc", {"a": 1}, [2**70, 1], ["a"], [{"a": 1}], pa.array(["a"]), pa.array([{"a": 1}])],
    ids=["none", "text", "mapping", "too large", "texts", "mappings", "Arrow texts", "structs"],
)
def test_what_holds_no_numbers_is_refused(other: Any) -> None:
    with pytest.raises(InputError, match="Norms need real numbers"):
        normalize(other)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("norm", ["none", "l1", "l2", "max", "lp:3"])
def test_normalize_takes_empty_arrays(shape: tuple[int, ...], norm: str) -> None:
    vectors, norms = normalize(np.ones(shape, "float32"), norm, return_norm=True)
    assert (vectors.shape, vectors.dtype) == (shape, np.float32)
    assert (norms.shape, norms.dtype) == (shape[:-1], np.float64)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(d, d) for d in ("float16", "float32", "float64", ">f4", np.dtype(ml_dtypes.bfloat16))]
    + [(d, "float64") for d in ("int8", "uint16", "int64", "bool")],
    ids=str,
)
def test_normalize_keeps_float_dtypes_and_widens_integers(given_dtype: Any, dtype: Any) -> None:
    vectors = normalize(np.array([[1, 0, 0, 0], [1, 1, 1, 1]]).astype(given_dtype))
    assert vectors.dtype == np.dtype(dtype)
    assert vectors.tolist() == [[1, 0, 0, 0], [0.5] * 4]


def test_normalize_scales_a_single_vector_and_takes_a_norm_object() -> None:
    vector, length = normalize([1, 3], Norm("l1"), return_norm=True)
    assert (vector.tolist(), float(length), length.shape) == ([0.25, 0.75], 4.0, ())


@pytest.mark.parametrize("norm", ["none", "l1", "l2", "max", "lp:3"])
def test_bad_vectors_become_nan_where_asked(norm: str) -> None:
    good = normalize(BAD, norm)[0, 0]
    vectors = normalize(BAD, norm, zero="nan", nonfinite="nan")
    assert np.isnan(vectors).all(axis=2).tolist() == [[False, True], [True, True]]
    assert same_bits(vectors[0, 0], good)


def test_bad_vectors_are_kept_by_default() -> None:
    expected = [[[0.6, 0.8], [0, 0]], [[math.nan, math.nan], [math.nan, 0]]]
    np.testing.assert_array_equal(normalize(BAD), expected)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"zero": "raise"}, r"index \(0, 1\) is zero.*zero='raise'"),
        ({"nonfinite": "raise"}, r"index \(1, 0\) contains NaN or inf.*nonfinite='raise'"),
    ],
    ids=["zero", "nonfinite"],
)
def test_the_first_bad_vector_is_named(policy: Any, words: str) -> None:
    with pytest.raises(BadRows, match=words):
        normalize(BAD, **policy)


def test_bad_vectors_are_found_and_named_far_into_a_large_array() -> None:
    x = np.ones((1 << 17, 32), "float16")
    x[100_000] = 0
    with pytest.raises(BadRows, match=r"index \(100000,\)"):
        normalize(x, zero="raise")
    vectors = normalize(x, zero="nan")
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == [100_000]


def test_an_overflowing_norm_is_not_a_vector_that_is_not_finite() -> None:
    vectors, norms = normalize([[HUGE, HUGE]], "l1", nonfinite="raise", return_norm=True)
    assert (vectors.tolist(), norms.tolist()) == ([[0.5, 0.5]], [math.inf])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axis": 2}, "between -2 and 1"),
        ({"axis": (0, -2)}, "different axes"),
        ({"axis": 0.5}, "an integer or a tuple"),
        ({"zero": "drop"}, "`zero` must be one of keep, nan, raise. Received: 'drop'"),
        ({"nonfinite": None}, "`nonfinite`"),
        ({"norm": "l4"}, "Unknown norm"),
        ({"p": 3}, "is only for the norm 'lp'"),
        ({"norm": Norm("l1"), "p": 3}, "is only for the norm 'lp'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(JobError, match=words):
        normalize(np.ones((2, 2)), **arguments)
