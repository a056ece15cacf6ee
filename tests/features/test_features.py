from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.features import FeatureReader, infer_fields, match_features, stored_fields
from tests.features.tables import GOOD, NAN, NONFINITE, NULL, RAGGED, fixed, read, spec, vector


@pytest.mark.parametrize("kind", ["fixed", "list", "large_list"])
def test_lists_without_nulls_are_not_copied(kind: str) -> None:
    values = pa.array(np.arange(24, dtype=np.float32))
    array = pa.FixedSizeListArray.from_arrays(values, 4)
    if kind != "fixed":
        array = array.cast(getattr(pa, f"{kind}_" if kind == "list" else kind)(pa.float32()))
    inner = array.values.to_numpy()
    table = pa.table({"x": array}).slice(2, 3)
    arrays, faults = FeatureReader({"x": ("x",)}, [vector(4)], spec()).read(table)
    assert np.shares_memory(arrays["x"], inner)
    assert arrays["x"].tolist() == np.arange(8, 20).reshape(3, 4).tolist()
    assert not faults.any()


def test_reading_bad_rows_leaves_the_table_as_it_was() -> None:
    values = np.array([1, NAN, 3, 4], np.float32)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), 2)})
    array, faults = read(table, vector(2))
    assert array.tolist() == [[0, 0], [3, 4]]
    assert faults == [NONFINITE, GOOD]
    assert np.array_equal(values, [1, NAN, 3, 4], equal_nan=True)


@pytest.mark.parametrize(
    ("column", "shape"),
    [
        pytest.param(fixed([[1, 2, 3, 4]], 4), (2, 2, 1), id="flat to image"),
        pytest.param(pa.array([[1, 2, 3, 4]]), (2, 2), id="list to matrix"),
        pytest.param(pa.array([[[1, 2], [3, 4]]]), (2, 2), id="nested lists"),
        pytest.param(pa.array([[[1, 2], [3, 4]]]), (2, 2, 1), id="nested without channel axis"),
        pytest.param(pa.array([[[[1], [2]], [[3], [4]]]]), (2, 2), id="nested with channel axis"),
        pytest.param(
            pa.array([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.int8(), 2), 2)), (2, 2), id="fixed²"
        ),
        pytest.param(pa.array([[[1, 2], [3, 4]]]), (None, None, 1), id="open sizes"),
        pytest.param(pa.array([[[1, 2], [3, 4]]]), (None, 2), id="one open size"),
        pytest.param(fixed([[1, 2, 3, 4]], 4), (None, 2), id="open size of a flat list"),
    ],
)
def test_row_takes_the_shape_of_the_input(column: pa.Array, shape: tuple[int | None, ...]) -> None:
    array, faults = read(column, Field("x", shape, "float32"))
    sizes = tuple(2 if size is None else size for size in shape)
    assert array.shape == (1, *sizes)
    assert array.ravel().tolist() == [1, 2, 3, 4]
    assert faults == [GOOD]


def test_tensor_extension_type_is_read_with_its_shape() -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2))
    array, _ = read(tensor, Field("x", (2, 2), "float64"))
    assert array.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_scalar_columns_are_stacked_in_the_order_given() -> None:
    table = pa.table({"a": [1, 2], "b": [0.5, None], "c": [True, False], "d": [7, 8]})
    columns = {"x": ("d", "b", "c", "a")}
    arrays, faults = FeatureReader(columns, [vector(4)], spec()).read(table)
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[7, 0.5, 1, 1], [0, 0, 0, 0]]
    assert faults.tolist() == [GOOD, NULL]


def test_many_columns_over_many_blocks_are_stacked() -> None:
    expected = np.arange(5000 * 3, dtype=np.float32).reshape(5000, 3)
    table = pa.table({f"c{place}": expected[:, place] for place in range(3)})
    array, _ = read(table, vector(3))
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("shape", [(), (1,), (None,)], ids=["scalar", "one", "open"])
def test_one_scalar_column_feeds_an_input_of_one_value(shape: tuple[int | None, ...]) -> None:
    array, _ = read(pa.array([3, 4]), Field("x", shape, "int32"))
    assert array.shape == (2,) if shape == () else (2, 1)
    assert array.ravel().tolist() == [3, 4]


def test_open_length_is_the_most_common_one() -> None:
    column = pa.array([[9.0], [1.0, 2.0], None, [3.0, 4.0]])
    array, faults = read(column, vector(None))
    assert array.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert faults == [RAGGED, GOOD, NULL, GOOD]


@pytest.mark.parametrize(
    ("column", "field", "shape"),
    [
        pytest.param(fixed([], 4), vector(4), (0, 4), id="fixed"),
        pytest.param(pa.array([], pa.list_(pa.int8())), vector(4), (0, 4), id="list"),
        pytest.param(
            pa.array([], pa.list_(pa.list_(pa.int8()))),
            Field("x", (2, 3), "float32"),
            (0, 2, 3),
            id="nested",
        ),
        pytest.param(pa.array([], pa.string()), vector(1, "string"), (0, 1), id="strings"),
        pytest.param(pa.array([], pa.float32()), Field("x", (), "float32"), (0,), id="scalar"),
        pytest.param(pa.chunked_array([], pa.list_(pa.int8(), 4)), vector(4), (0, 4), id="chunks"),
    ],
)
def test_empty_table_gives_empty_arrays(
    column: pa.Array | pa.ChunkedArray, field: Field, shape: tuple[int, ...]
) -> None:
    array, faults = read(column, field)
    assert array.shape == shape
    assert faults == []


def test_sizes_inferred_from_a_sample_hold_for_later_rows() -> None:
    columns, inputs = {"x": ("x",)}, [vector(None)]
    sample = pa.table({"x": [[1.0, 2.0], [3.0, 4.0], [5.0]]})
    fields = infer_fields(sample, columns, inputs, spec())
    assert fields == (vector(2),)
    _, faults = FeatureReader(columns, fields, spec()).read(sample.slice(2))
    assert faults.tolist() == [RAGGED]


@pytest.mark.parametrize(
    ("column", "field"),
    [
        pytest.param(fixed([[1, 2]], 2, pa.float16()), ((2,), "float16"), id="float16"),
        pytest.param(fixed([[1, 2]], 2, pa.int8()), ((2,), "float64"), id="integers"),
        pytest.param(pa.array([[1.0]]), ((None,), "float64"), id="list"),
        pytest.param(pa.array([1.5]), ((1,), "float64"), id="scalar"),
    ],
)
def test_stored_predictions_keep_their_float_type(column: pa.Array, field: tuple) -> None:
    table = pa.table({"x": column})
    assert stored_fields(table.schema, {"v": ("x",)}) == (Field("v", *field),)


def test_stored_predictions_take_their_declared_shape() -> None:
    kind = pa.list_(pa.float32(), 6)
    schema = pa.schema([pa.field("x", kind, metadata={"shape": "[3, 2]"})])
    table = pa.table({"x": pa.array([[1, 2, 3, 4, 5, 6]], kind)}, schema=schema)
    columns = match_features(schema, (), spec())
    arrays, _ = FeatureReader(columns, (), spec()).read(table)
    assert arrays["vector"].tolist() == [[[1, 2], [3, 4], [5, 6]]]
    assert arrays["vector"].dtype == np.float32


def test_reader_can_be_pickled() -> None:
    reader = FeatureReader({"x": ("x",)}, [vector(2)], spec(fill={"x": 1}))
    table = pa.table({"x": [[1.0, None]]})
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own bytes
    assert again.read(table)[0]["x"].tolist() == [[1, 1]]
