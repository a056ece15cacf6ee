from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.features import FeatureReader
from tests.features.tables import GOOD, NAN, NONFINITE, NULL, RAGGED, fixed, read, spec, vector

INF = math.inf


def test_garbage_under_a_null_decides_nothing() -> None:
    values = pa.array([1, 2, NAN, 1e30, 5, 6], pa.float64())
    column = pa.FixedSizeListArray.from_arrays(values, 2, mask=pa.array([False, True, False]))
    array, faults = read(column, vector(2, "int8"))
    assert array.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert faults == [GOOD, NULL, GOOD]


def test_null_list_may_hide_values() -> None:
    offsets, values = pa.array([0, 2, 5, 7], pa.int32()), pa.array(np.arange(7.0))
    column = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    array, faults = read(column, vector(2))
    assert array.tolist() == [[0, 1], [0, 0], [5, 6]]
    assert faults == [GOOD, NULL, GOOD]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param(None, NULL, id="null row"),
        pytest.param([None, [3, 4]], NULL, id="null inner list"),
        pytest.param([[1, 2], [3, None]], NULL, id="null value"),
        pytest.param([[1, 2]], RAGGED, id="too few lists"),
        pytest.param([[1, 2], [3]], RAGGED, id="short inner list"),
        pytest.param([[1, 2], [3, 4, 5]], RAGGED, id="long inner list"),
        pytest.param([None, [3]], RAGGED, id="ragged beats null"),
        pytest.param([[NAN, 2], [None, 4]], NULL, id="null beats nan"),
        pytest.param([[NAN, 2], [3, 4]], NONFINITE, id="nan"),
        pytest.param([[1, 2], [3, -INF]], NONFINITE, id="infinity"),
        pytest.param([[1, 2], [3, 1e39]], NONFINITE, id="infinite in float32"),
    ],
)
def test_bad_nested_row_is_named_and_blanked(row: object, reason: Reason) -> None:
    good = [[1.0, 2.0], [3.0, 4.0]]
    column = pa.array([good, row, good], pa.list_(pa.list_(pa.float64())))
    array, faults = read(column, Field("x", (2, 2), "float32"))
    assert faults == [GOOD, reason, GOOD]
    assert array.tolist() == [good, [[0, 0], [0, 0]], good]


def test_ragged_garbage_under_a_null_is_a_null() -> None:
    lists = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0], [], [6.0, 7.0], [8.0, 9.0]])
    mask = pa.array([False, True, False])
    column = pa.FixedSizeListArray.from_arrays(lists, 2, mask=mask)
    field = Field("x", (2, 2), "float32")
    array, faults = read(column, field)
    assert array.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[6, 7], [8, 9]]]
    assert faults == [GOOD, NULL, GOOD]
    array, faults = read(column, field, fill={"x": 7})
    assert array[1].tolist() == [[7, 7], [7, 7]]
    assert faults == [GOOD, GOOD, GOOD]


def test_all_rows_null_without_a_type() -> None:
    array, faults = read(pa.nulls(2), vector(1))
    assert array.tolist() == [[0], [0]]
    assert faults == [NULL, NULL]


def test_first_bad_input_names_the_reason() -> None:
    table = pa.table({"a": [NAN, 1.0, None, 1.0], "b": [None, None, NAN, 1.0]})
    inputs = [Field("a", (1,), "float32"), Field("b", (1,), "float32")]
    arrays, faults = FeatureReader({"a": ("a",), "b": ("b",)}, inputs, spec()).read(table)
    assert faults.tolist() == [NONFINITE, NULL, NULL, GOOD]
    assert arrays["b"].tolist() == [[0], [0], [0], [1]]


def test_null_in_one_stacked_column_beats_nan_in_another() -> None:
    table = pa.table({"a": [NAN, 1.0], "b": [None, 2.0]})
    for dtype in ("float32", "int32"):
        _, faults = read(table, vector(2, dtype))
        assert faults == [NULL, GOOD]


def test_stored_predictions_that_are_not_finite_are_no_fault_of_the_input() -> None:
    table = pa.table({"x": fixed([[1, NAN], None, [INF, 2]], 2)})
    reader = FeatureReader({"vector": ("x",)}, (), spec())
    arrays, faults = reader.read(table)
    assert np.array_equal(arrays["vector"], [[1, NAN], [0, 0], [INF, 2]], equal_nan=True)
    assert faults.tolist() == [GOOD, NULL, GOOD]
    known = FeatureReader({"x": ("x",)}, [vector(2)], spec(), check_nonfinite=False)
    assert known.read(table)[1].tolist() == [GOOD, NULL, GOOD]


numbers = st.one_of(
    st.none(), st.floats(width=32), st.sampled_from([NAN, INF, -INF, 1e300, -0.0, 5e-324])
)
flat_rows = st.lists(
    st.one_of(st.none(), st.lists(numbers, min_size=2, max_size=2), st.lists(numbers, max_size=3)),
    max_size=12,
)
even_rows = st.lists(st.one_of(st.none(), st.lists(numbers, min_size=2, max_size=2)), max_size=12)
kinds = st.sampled_from(
    [
        pa.list_(pa.float64(), 2),
        pa.list_(pa.float64()),
        pa.large_list(pa.float64()),
        pa.list_(pa.dictionary(pa.int8(), pa.float64())),
    ]
)


def judged(row: list[float | None] | None, fill: float | None) -> tuple[Reason, list[float]]:
    """What should become of a row for an input of two float32."""
    if row is None and fill is None:
        return NULL, [0, 0]
    if row is not None and len(row) != 2:
        return RAGGED, [0, 0]
    if fill is None and row is not None and None in row:
        return NULL, [0, 0]
    filled = [fill if value is None else value for value in row or [None, None]]
    with np.errstate(over="ignore"):
        narrow = [float(np.float32(value)) for value in filled]
    return (GOOD, narrow) if all(map(math.isfinite, narrow)) else (NONFINITE, [0, 0])


def cut(array: pa.Array, cuts: list[int]) -> pa.ChunkedArray:
    """The same rows in chunks that are slices of larger arrays."""
    places = sorted({0, len(array), *(place % (len(array) + 1) for place in cuts)})
    pieces = [array[a:b] for a, b in itertools.pairwise(places)]
    return pa.chunked_array(pieces, array.type)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    kind=kinds,
    cuts=st.lists(st.integers(0, 20), max_size=4),
    fill=st.sampled_from([None, 3.5]),
)
def test_arrays_and_faults_are_the_same_whatever_the_chunks(
    data: st.DataObject, kind: pa.DataType, cuts: list[int], fill: float | None
) -> None:
    rows = data.draw(even_rows if pa.types.is_fixed_size_list(kind) else flat_rows)
    before = [[7.0, 7.0]] * data.draw(st.integers(0, 3))
    array = pa.array([*before, *rows], kind)[len(before) :]
    keys = {} if fill is None else {"fill": {"x": fill}}
    expected = [judged(row, fill) for row in rows]

    whole = cut(array, cuts)
    values, faults = read(whole, vector(2), **keys)
    assert faults == [reason for reason, _ in expected]
    assert values.tolist() == [row for _, row in expected]

    parts = [read(piece, vector(2), **keys) for piece in whole.chunks]
    assert [fault for _, found in parts for fault in found] == faults
    joined = [row.tobytes() for part, _ in parts for row in part]
    assert joined == [row.tobytes() for row in values]


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.lists(numbers, max_size=3)))),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_nested_rows_are_the_same_whatever_the_chunks(rows: list[object], cuts: list[int]) -> None:
    kind = pa.list_(pa.large_list(pa.float64()))
    rows = [*rows, [[1.0, 2.0]], [[NAN, 2.0]], [None]]
    field = Field("x", (1, 2), "float64")
    array = pa.array([[[0.0]], *rows], kind)[1:]
    values, faults = read(array, field)
    for row, fault, value in zip(rows, faults, values.tolist(), strict=True):
        whole = row is not None and len(row) == 1 and row[0] is not None and len(row[0]) == 2
        finite = whole and None not in row[0] and all(map(math.isfinite, row[0]))
        assert (fault == GOOD) == finite
        assert value == (row if finite else [[0, 0]])
    again, faults_again = read(cut(array, cuts), field)
    assert again.tobytes() == values.tobytes()
    assert faults_again == faults


@settings(deadline=None, max_examples=60)
@given(
    columns=st.lists(
        st.sampled_from(["int", "float", "bool", "dictionary"]), min_size=2, max_size=5
    ),
    rows=st.integers(0, 12),
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_stacked_columns_are_the_same_whatever_the_chunks(
    columns: list[str], rows: int, seed: int, cuts: list[int]
) -> None:
    random = np.random.default_rng(seed)
    table, expected = {}, np.zeros((rows, len(columns)), np.float32)
    null = np.zeros(rows, bool)
    for place, kind in enumerate(columns):
        values = random.integers(0, 2 if kind == "bool" else 50, rows)
        mask = random.random(rows) < 0.2
        dtype = {"int": np.int16, "bool": np.bool_}.get(kind, np.float64)
        array = pa.array(values.astype(dtype), mask=mask)
        array = array.dictionary_encode() if kind == "dictionary" else array
        table[f"c{place}"] = cut(array, [number + place for number in cuts])
        expected[:, place] = values
        null |= mask
    expected[null] = 0
    array, faults = read(pa.table(table), vector(len(columns)))
    assert array.tolist() == expected.tolist()
    assert faults == np.where(null, NULL, GOOD).tolist()


def test_dictionaries_that_differ_between_chunks_are_read_alike() -> None:
    chunks = [pa.array(["b", "a"]), pa.array(["c", None, "a"])]
    column = pa.chunked_array([chunk.dictionary_encode() for chunk in chunks])
    array, faults = read(column, vector(1, "string"))
    assert array.ravel().tolist() == ["b", "a", "c", "", "a"]
    assert faults == [GOOD, GOOD, GOOD, NULL, GOOD]


def test_null_in_a_dictionary_is_a_null() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array([1.5, None]))
    assert read(column, vector(1))[1] == [GOOD, NULL]


@pytest.mark.parametrize(
    ("rows", "width", "faults"),
    [
        ([[], [], [1.0, 2.0]], 2, [RAGGED, RAGGED, GOOD]),
        ([[], None, [1.0, 2.0]], 2, [RAGGED, NULL, GOOD]),
        ([[], [], []], 1, [RAGGED] * 3),
        ([None, None], 1, [NULL] * 2),
    ],
    ids=["most are empty", "empty and null", "all are empty", "all are null"],
)
def test_an_empty_list_is_ragged_and_no_usual_length(
    rows: list[list[float] | None], width: int, faults: list[int]
) -> None:
    array, found = read(pa.array(rows, pa.list_(pa.float32())), Field("x", (None,), "float32"))
    assert array.shape == (len(rows), width)
    assert found == faults
