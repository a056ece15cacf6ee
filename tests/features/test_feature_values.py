from __future__ import annotations

import warnings
from decimal import Decimal

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError, InputWarning, JobError, ModelError, capture_warnings
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.values import nonfinite_rows, numbers_of
from tests.features.tables import (
    GOOD,
    NAN,
    NONFINITE,
    NULL,
    RAGGED,
    UNFIT,
    fixed,
    read,
    spec,
    vector,
)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(fixed([[1, None], None, [3, 4]], 2), [[1, 7], [7, 7], [3, 4]], id="fixed"),
        pytest.param(
            pa.array([[1, None], None, [3, 4]]), [[1, 7], [7, 7], [3, 4]], id="integer list"
        ),
        pytest.param(
            pa.array([[1.0, None], [1.0], [3.0, 4.0]]), [[1, 7], [0, 0], [3, 4]], id="not ragged"
        ),
    ],
)
def test_fill_takes_the_place_of_nulls(column: pa.Array, expected: list[list[float]]) -> None:
    array, faults = read(column, vector(2), fill={"x": 7})
    assert array.tolist() == expected
    assert faults == [GOOD, RAGGED if [0, 0] in expected else GOOD, GOOD]


def test_fill_concerns_only_its_column() -> None:
    table = pa.table({"a": [None, 1.0], "b": [2, None]})
    array, faults = read(table, vector(2), fill={"a": 0.5})
    assert array.tolist() == [[0.5, 2], [0, 0]]
    assert faults == [GOOD, NULL]


@pytest.mark.parametrize(
    ("fill", "dtype"),
    [
        pytest.param("none", "float32", id="text for a number"),
        pytest.param(0.5, "int32", id="fraction"),
        pytest.param(300, "uint8", id="too large"),
        pytest.param(2.0**63, "int64", id="a float too large"),
        pytest.param(1, "string", id="number for a text"),
        pytest.param(1e39, "float32", id="infinite in float32"),
        pytest.param(10**400, "float64", id="infinite in float64"),
        pytest.param(10**400, "int64", id="no number of a computer's"),
        pytest.param(2**24 + 1, "float32", id="rounded"),
    ],
)
def test_fill_must_be_a_value_of_the_input(fill: object, dtype: str) -> None:
    column = pa.array(["a", None]) if dtype == "string" else pa.array([1, None])
    with pytest.raises(JobError, match=r"`input\.fill\.x` does not fit .* Received: "):
        read(column, vector(1, dtype), fill={"x": fill})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint16(),
        pa.int64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.decimal128(6, 2),
        pa.dictionary(pa.int8(), pa.float32()),
    ],
    ids=str,
)
def test_any_numeric_type_becomes_the_inputs_dtype(kind: pa.DataType, dtype: str) -> None:
    values = [0, 1, 2, 100, None, 7]
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = pa.array(values, pa.int64()).cast(pa.float64()).cast(plain)
    column = column.dictionary_encode() if plain is not kind else column
    array, faults = read(column, vector(1, dtype))
    expected = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert array.dtype == expected
    assert array.astype(np.float64).ravel().tolist() == [0, 1, 2, 100, 0, 7]
    assert faults == [GOOD] * 4 + [NULL, GOOD]


def test_booleans_feed_numbers_and_booleans() -> None:
    column = pa.array([None, True, False, True]).slice(1)
    assert read(column, vector(1))[0].ravel().tolist() == [1, 0, 1]
    array, _ = read(column, vector(1, "bool"))
    assert array.dtype == np.bool_
    assert array.ravel().tolist() == [True, False, True]


def test_integers_beside_nulls_keep_every_bit() -> None:
    array, faults = read(pa.array([2**62 + 1, None, 5]), vector(1, "int64"))
    assert array.ravel().tolist() == [2**62 + 1, 0, 5]
    assert faults == [GOOD, NULL, GOOD]


DECIMAL = pa.decimal128(20, 0)


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "expected", "faults"),
    [
        pytest.param([2**53 + 1, -5], DECIMAL, "int64", [2**53 + 1, -5], [GOOD, GOOD], id="int64"),
        pytest.param([2**64 - 1, -5], DECIMAL, "uint64", [2**64 - 1, 0], [GOOD, UNFIT], id="sign"),
        pytest.param([2**63, 3], DECIMAL, "int64", [0, 3], [UNFIT, GOOD], id="too large"),
        pytest.param(
            ["1.5", "2.0"], pa.decimal32(6, 1), "int8", [0, 2], [UNFIT, GOOD], id="fraction"
        ),
        pytest.param([10**60, 7], pa.decimal256(70, 0), "int8", [0, 7], [UNFIT, GOOD], id="wide"),
        pytest.param([1200, 0], pa.decimal128(4, -2), "int32", [1200, 0], [GOOD] * 2, id="scale"),
        pytest.param([1, 2], DECIMAL, "bool", [True, False], [GOOD, UNFIT], id="bool"),
        pytest.param([None, 2**25], DECIMAL, "float32", [0, 2**25], [NULL, GOOD], id="float32"),
    ],
)
def test_decimals_are_exact_or_make_a_bad_row(
    values: list, kind: pa.DataType, dtype: str, expected: list, faults: list
) -> None:
    numbers = [None if value is None else Decimal(value) for value in values]
    array, found = read(pa.array(numbers, kind), vector(1, dtype))
    assert (array.ravel().tolist(), found) == (expected, faults)


def test_decimals_are_rounded_once() -> None:
    numbers = [Decimal(number).scaleb(-2) for number in range(93_000, 95_000)]
    array, _ = read(pa.array(numbers, pa.decimal128(10, 2)), vector(1, "float64"))
    assert array.ravel().tolist() == [float(number) for number in numbers]


def test_floats_without_fraction_feed_integers() -> None:
    array, faults = read(pa.array([3.0, NAN, -4.0]), vector(1, "int32"))
    assert array.ravel().tolist() == [3, 0, -4]
    assert faults == [GOOD, NONFINITE, GOOD]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        pytest.param([1.0, 2.5], "int32", id="fraction"),
        pytest.param([1, 2**31], "int32", id="too large"),
        pytest.param([1, -1], "uint8", id="negative"),
        pytest.param([0.0, 2.0**63], "int64", id="float beyond int64"),
        pytest.param([1, 2], "bool", id="no boolean"),
    ],
)
def test_what_an_integer_input_cannot_hold_makes_a_bad_row(values: list[float], dtype: str) -> None:
    array, faults = read(pa.array(values), vector(1, dtype))
    assert array.ravel().tolist() == [values[0], 0]
    assert faults == [GOOD, UNFIT]


@pytest.mark.parametrize(
    ("value", "kind", "dtype", "warned"),
    [
        (2**24, pa.int64(), "float32", False),
        (2**24 + 1, pa.int64(), "float32", True),
        (-(2**24) - 1, pa.int64(), "float32", True),
        (2**40, pa.int64(), "float32", False),
        (-(2**63), pa.int64(), "float32", False),
        (2**63 - 1, pa.int64(), "float64", True),
        (2**64 - 1, pa.uint64(), "float64", True),
        (-(2**15), pa.int16(), "bfloat16", False),
        (257, pa.int16(), "bfloat16", True),
        (2049, pa.uint16(), "float16", True),
        (2**53 + 1, DECIMAL, "float64", True),
        (2**53, DECIMAL, "float32", False),
        (-(10**60) - 1, pa.decimal256(70, 0), "float64", True),
    ],
)
def test_integers_that_a_float_must_round_are_warned_of(
    value: int, kind: pa.DataType, dtype: str, *, warned: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(pa.array([value], kind), vector(1, dtype))
    assert [warning.category for warning in caught] == [InputWarning] * warned
    assert all("`x`" in str(warning.message) for warning in caught)


def test_warnings_go_to_whoever_collects_them() -> None:
    """In a thread a warning would end on standard error, or in another thread's list."""
    table = pa.table({"a": [1, 2**24 + 1], "b": [0, 2**53 + 1]})
    reader = FeatureReader({"x": ("a", "b")}, [vector(2)], spec())
    told: list[str] = []
    with capture_warnings(told.append):
        reader.read(table)
        reader.read(table.slice(1))
    assert [text.partition(" contains ")[0] for text in told] == [
        "The column `a`",
        "The column `b`",
    ] * 2
    assert told[:2] == told[2:], "the same words, wherever the row lies"


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_strings_come_as_text(kind: pa.DataType) -> None:
    column = pa.array(["no", "a", None, "ß"], pa.string()).cast(kind).slice(1)
    array, faults = read(column, vector(1, "string"))
    assert array.dtype == object
    assert array.tolist() == [["a"], [""], ["ß"]]
    assert faults == [GOOD, NULL, GOOD]
    filled, faults = read(column, vector(1, "string"), fill={"x": "?"})
    assert filled.tolist() == [["a"], ["?"], ["ß"]]
    assert faults == [GOOD, GOOD, GOOD]


def test_lists_of_strings_may_be_ragged() -> None:
    column = pa.array([["a", "b"], ["c"], None])
    array, faults = read(column, vector(2, "string"))
    assert array.tolist() == [["a", "b"], ["", ""], ["", ""]]
    assert faults == [GOOD, RAGGED, NULL]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_a_model_takes_bytes_for_text(kind: pa.DataType) -> None:
    array, faults = read(pa.array([b"\xff\x00", None, b"a"], kind), Field("x", (), "string"))
    assert array.tolist() == [b"\xff\x00", "", b"a"]
    assert faults == [GOOD, NULL, GOOD]


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        pytest.param(pa.array(["1"]), vector(1), r"`x` \(string\).*numbers", id="number in text"),
        pytest.param(pa.array([1]), vector(1, "string"), "Expected strings", id="text wanted"),
        pytest.param(
            fixed([[1, 2]], 2), vector(3), "3 values in each row. Received: 2 values", id="width"
        ),
        pytest.param(
            pa.array([[[1, 2], [3, 4]]]), vector(4), "width differs", id="3-d for a 2-d input"
        ),
        pytest.param(pa.array([b"1"]), vector(1), "decode: {x: jpeg}", id="bytes"),
    ],
)
def test_column_that_does_not_fit_is_refused(column: pa.Array, field: Field, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(column, field)


def test_invalid_text_is_refused_in_words() -> None:
    data = pa.py_buffer(b"\xff\xfe")
    offsets = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
    column = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    with pytest.raises(InputError, match=r"`x` cannot be read as arrays.*Received: "):
        read(column, vector(1, "string"))


def test_input_of_a_type_that_no_column_feeds_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="Received: complex64"):
        read(pa.array([1.0]), vector(1, "complex64"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_are_judged_alone_whatever_their_sum(dtype: str) -> None:
    large = np.finfo(dtype).max
    sums_overflow = np.array([[large, large], [1, 2]], dtype)
    assert nonfinite_rows(sums_overflow) is None
    opposite = np.array([[np.inf, 1], [-np.inf, 2], [3, 4]], dtype)
    assert nonfinite_rows(opposite).tolist() == [True, True, False]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_()])
def test_numbers_of_a_slice_are_its_own_and_read_only(kind: pa.DataType) -> None:
    whole = pa.array([1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1], pa.int8()).cast(pa.float32()).cast(kind)
    numbers = numbers_of(whole.slice(3, 6))
    assert numbers.tolist() == [1, 0, 1, 1, 0, 0]
    assert numbers.dtype == kind.to_pandas_dtype()
    assert not numbers.flags.writeable
    assert numbers_of(whole.slice(11)).shape == (0,)
    with_nulls = pa.array([None, 1, None, 1], pa.float32()).cast(kind)
    assert numbers_of(with_nulls)[[1, 3]].tolist() == [1, 1]
