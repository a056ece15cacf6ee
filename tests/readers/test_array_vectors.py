"""Arrays in memory come as stored predictions do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.errors import InputError
from batchnorm_tool.readers.source import VectorSource, predictions_of_array
from batchnorm_tool.readers.vectors import open_predictions


def loaded(found: VectorSource) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in found.batches()])


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("float16", "float16"),
        ("float32", "float32"),
        ("float64", "float64"),
        (">f4", "float32"),
        ("int8", "float64"),
        ("uint64", "float64"),
        ("bool", "float64"),
        (ml_dtypes.bfloat16, "float32"),
    ],
    ids=str,
)
def test_numbers_keep_their_values(given: Any, dtype: str) -> None:
    numbers = np.arange(12).reshape(4, 3) % 5
    found = predictions_of_array(numbers.astype(given))
    expected = numbers.astype(given).astype(dtype)
    np.testing.assert_array_equal(loaded(found), expected)
    assert (found.dtype, found.rows, found.width) == (dtype, 4, 3)
    (batch,) = found.batches()
    assert batch.vectors.dtype == dtype


def test_lists_are_read_as_an_array() -> None:
    x = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(loaded(predictions_of_array(pa.array(x.tolist()))), x)


def test_an_array_is_read_as_the_file_that_holds_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40_000, 2)).astype(np.float32)
    x[7, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    of_array, of_file = predictions_of_array(x), open_predictions(tmp_path / "x.npy")
    for one, other in zip(of_array.batches(), of_file.batches(), strict=True):
        np.testing.assert_array_equal(one.vectors, other.vectors)
        np.testing.assert_array_equal(one.missing, other.missing)
        assert (one.first_row, one.rows) == (other.first_row, other.rows)
    facts = of_file.facts()
    assert of_array.facts() == facts | {"path": "array", "column": "array"}
    assert loaded(of_array).shape == x.shape  # it starts over


@pytest.mark.parametrize("order", ["F", "strided"])
def test_batches_are_in_c_order(order: str) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    given = np.asfortranarray(x) if order == "F" else np.repeat(x, 2, axis=1)[:, ::2]
    (batch,) = predictions_of_array(given).batches()
    assert batch.vectors.flags.c_contiguous
    np.testing.assert_array_equal(batch.vectors, x)


def test_an_array_in_c_order_is_not_copied() -> None:
    x = np.ones((20_000, 3), np.float32)
    assert all(np.shares_memory(batch.vectors, x) for batch in predictions_of_array(x).batches())


def test_rows_go_by_their_number_and_have_no_columns() -> None:
    found = predictions_of_array([[1, 2], [3, 4]])  # type: ignore[arg-type]
    assert (found.keys, found.columns, found.kind) == ((), (), "data")
    assert found.locate(1) == "array, row 1"
    with pytest.raises(InputError, match=r"array: has no column `id`\. It has only vectors\."):
        found.read_columns(["id"])


def test_an_array_without_rows_is_empty() -> None:
    found = predictions_of_array(np.ones((0, 3)))
    assert (found.rows, list(found.batches())) == (0, [])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(3), r"the shape \(rows, width\)\. Received: \(3,\)\. Reshape it"),
        (np.ones((2, 3, 4)), r"Received: \(2, 3, 4\)"),
        (np.ones((3, 0)), r"Received: \(3, 0\)"),
        (np.ones((2, 2), complex), "Received: dtype complex128"),
        (np.array([["a"]]), "Received: dtype <U1"),
        ([[1, 2], [3]], "vectors of equal length"),
        (None, "Received: dtype object"),
    ],
    ids=["one axis", "three axes", "no width", "complex", "text", "ragged", "nothing"],
)
def test_what_is_no_array_of_vectors_is_refused(array: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        predictions_of_array(array)
