"""Hashes depend on values alone, and on every value."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from batchnorm_tool.chunk import Reason
from batchnorm_tool.inputs.row_hash import (
    BlockHash,
    feature_hashes,
    key_ids,
    passthrough_hashes,
    plain_array,
    type_name,
)

GOOD = np.zeros(3, np.uint8)


def hashed(column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    found = passthrough_hashes(pa.table({"x": column}), ["x"])
    assert found.dtype == np.uint8
    assert found.shape == (len(column), 8)
    return [row.tobytes() for row in found]


COLUMNS = {
    "int8": pa.array([0, None, 1, -1], pa.int8()),
    "uint64": pa.array([0, None, 2**64 - 1, 1], pa.uint64()),
    "float16": pa.array(np.array([0, 1, 2], np.float16)),
    "double": pa.array([0.0, None, 1.5, -0.0]),
    "bool": pa.array([False, None, True]),
    "string": pa.array(["", None, "a", "ä", "a\0"]),
    "binary": pa.array([b"", None, b"a", b"\0"]),
    "date": pa.array([dt.date(1970, 1, 1), None, dt.date(2026, 1, 1)]),
    "timestamp": pa.array([0, None, 7], pa.timestamp("us", "UTC")),
    "decimal": pa.array([decimal.Decimal("0.00"), None, decimal.Decimal("1.25")]),
    "fixed binary": pa.array([b"\0\0\0", None, b"abc"], pa.binary(3)),
    "list": pa.array([[], None, [None], [0], [0, 0], [1]], pa.list_(pa.int64())),
    "list of lists": pa.array([[], [[]], [[], []], [[1], [2]], [[1, 2], []], None]),
    "list of strings": pa.array([[""], ["", ""], ["a", "b"], ["ab"], ["b", "a"]]),
    "fixed list": pa.array([[0, 0], None, [None, 0], [0, None], [1, 2]], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": 0, "b": ""}, None, {"a": None, "b": ""}, {"a": 0, "b": None}]),
    "map": pa.array([[("a", 1)], None, [], [("a", 2)]], pa.map_(pa.string(), pa.int8())),
    "dictionary": pa.array(["", None, "a"]).dictionary_encode(),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_different_values_have_different_hashes(name: str) -> None:
    assert len(set(hashed(COLUMNS[name]))) == len(COLUMNS[name])


def block_hash(column: pa.Array | pa.ChunkedArray, *features: np.ndarray) -> str:
    found = BlockHash()
    arrays = {f"x{place}": array for place, array in enumerate(features)}
    found.add(arrays, np.zeros(len(column), np.uint8), pa.table({"x": column}))
    return found.to_text()


@pytest.mark.parametrize("name", COLUMNS)
def test_blocks_of_different_values_have_different_hashes(name: str) -> None:
    column = COLUMNS[name]
    rows = [block_hash(column.slice(row, 1)) for row in range(len(column))]
    assert len({*rows, block_hash(column), block_hash(column[::-1])}) == len(column) + 2


@pytest.mark.parametrize("name", COLUMNS)
def test_a_block_has_the_hash_of_its_values(name: str) -> None:
    column = COLUMNS[name]
    padded = pa.concat_arrays([column.slice(1), column, column.slice(0, 1)])
    cut = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    same = {block_hash(x) for x in (padded.slice(len(column) - 1, len(column)), column, cut)}
    assert len(same) == 1


def test_what_lies_under_a_null_is_no_value() -> None:
    valid, zeros = pa.py_buffer(b"\x02"), pa.py_buffer(bytes(16))
    other = pa.py_buffer(np.array([5, 0]))
    one, two = (pa.Array.from_buffers(pa.int64(), 2, [valid, data]) for data in (zeros, other))
    assert one.to_pylist() == two.to_pylist() == [None, 0]
    assert block_hash(one) == block_hash(two)


def test_blocks_of_different_features_have_different_hashes() -> None:
    texts = [np.array(rows, object) for rows in (["ab", "c"], ["a", "bc"], ["abc", ""], [b"a", ""])]
    numbers = [np.array(rows) for rows in ([0.0, 1.0], [-0.0, 1.0], [0.0, 2.0])]
    assert len({block_hash(pa.nulls(2), array) for array in (*texts, *numbers)}) == 7


@pytest.mark.parametrize("name", ["string", "binary", "dictionary"])
def test_texts_of_several_chunks_together_may_exceed_2_gib(name: str) -> None:
    column = COLUMNS[name]
    found = plain_array(pa.chunked_array([column, column]))
    assert found.type in {pa.large_string(), pa.large_binary()}  # with offsets of 64 bits
    assert found.to_pylist() == column.to_pylist() * 2


@pytest.mark.parametrize("name", COLUMNS)
def test_chunks_and_slices_make_no_difference(name: str) -> None:
    column = COLUMNS[name]
    padded = pa.concat_arrays([column.slice(1), column, column.slice(0, 1)])
    cut = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    assert hashed(padded.slice(len(column) - 1, len(column))) == hashed(column) == hashed(cut)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int16(), pa.string())),
        (pa.string(), pa.string_view()),
        (pa.binary(), pa.large_binary()),
        (pa.list_(pa.string()), pa.large_list(pa.large_string())),
        (pa.list_(pa.int8()), pa.list_(pa.field("element", pa.int8(), nullable=False))),
    ],
    ids=str,
)
def test_encodings_of_the_same_values_make_no_difference(
    one: pa.DataType, other: pa.DataType
) -> None:
    values = {"list<item: string>": [["a"], []], "list<item: int8>": [[1], []]}
    texts = [b"a", b""] if one == pa.binary() else ["a", "", "a"]
    given = pa.array(values.get(str(one), texts), one)
    again = (
        pa.array(given.to_pylist(), other.value_type).dictionary_encode()
        if (pa.types.is_dictionary(other))
        else pa.array(given.to_pylist(), other)
    )
    assert hashed(given) == hashed(again)


def test_what_hides_under_a_null_makes_no_difference() -> None:
    mask = pa.py_buffer(np.packbits([1, 0, 1], bitorder="little"))
    arrays = [
        pa.Array.from_buffers(pa.int32(), 3, [mask, pa.py_buffer(np.array([1, x, 3], np.int32))])
        for x in (2, 99)
    ]
    assert hashed(arrays[0]) == hashed(arrays[1])


def test_names_types_order_and_set_of_columns_make_a_difference() -> None:
    table = pa.table({"a": pa.array([1], pa.int32()), "b": pa.array([1], pa.int32())})
    wide = table.cast(pa.schema([("a", pa.int64()), ("b", pa.int32())]))
    variants = [
        passthrough_hashes(table, ["a"]),
        passthrough_hashes(table, ["b"]),
        passthrough_hashes(table, ["a", "b"]),
        passthrough_hashes(table, ["b", "a"]),
        passthrough_hashes(wide, ["a"]),
        passthrough_hashes(wide, ["a", "b"]),
    ]
    assert len({found.tobytes() for found in variants}) == len(variants)


def test_a_moved_border_between_columns_makes_a_difference() -> None:
    found = passthrough_hashes(pa.table({"a": ["ab", "a"], "b": ["c", "bc"]}), ["a", "b"])
    assert found[0].tobytes() != found[1].tobytes()


def test_nothing_passed_through_is_zeros() -> None:
    assert passthrough_hashes(pa.table({"a": [1, 2]}), []).tolist() == [[0] * 8] * 2


def test_a_single_string_column_is_hashed_as_in_every_chunk_without_nulls() -> None:
    assert hashed(pa.array(["a", None]))[0] == hashed(pa.array(["a"]))[0]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([7, -1], pa.int64(), [7, 2**64 - 1]),
        ([7, -1], pa.int8(), [7, 255]),
        ([True, False], pa.bool_(), [1, 0]),
        ([dt.date(1970, 1, 3)], pa.date32(), [2]),
        ([5], pa.timestamp("ns"), [5]),
    ],
    ids=str,
)
def test_ids_of_whole_numbers_are_their_bits(
    values: list[object], kind: pa.DataType, expected: list[int]
) -> None:
    ids = key_ids(pa.table({"k": pa.array(values, kind)}), ["k"])
    assert ids.dtype == np.uint64
    assert ids.flags.c_contiguous
    assert ids.tolist() == [[word, 0] for word in expected]


def test_id_of_a_string_is_its_xxh3() -> None:
    for kind in (pa.string(), pa.large_string()):
        ids = key_ids(pa.table({"k": pa.array(["ä"], kind)}), ["k"])
        assert ids.tobytes() == xxhash.xxh3_128_digest("ä".encode())


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": ["x", "x", "y"], "b": [1, 2, 1]}),
        pa.table({"a": [0.0, 1.0, 2.0]}),
        pa.table({"a": [b"1" * 16, b"2" * 16, b"3" * 16]}),
        pa.table({"a": pa.array([1, 2, 3], pa.decimal128(5))}),
    ],
    ids=["composite", "float", "binary", "decimal"],
)
def test_ids_of_other_keys_differ_and_stay(table: pa.Table) -> None:
    ids = key_ids(table, table.column_names)
    assert len({row.tobytes() for row in ids}) == 3
    again = key_ids(pa.concat_tables([table, table]).slice(3), table.column_names)
    assert again.tolist() == ids.tolist()


def test_feature_hash_of_one_input_is_the_xxh3_of_its_bytes() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = feature_hashes({"x": array}, GOOD)
    assert found.shape == (3, 16)
    assert [row.tobytes() for row in found] == [xxhash.xxh3_128_digest(row.data) for row in array]


def test_feature_hash_of_several_inputs_is_over_their_sorted_names() -> None:
    a, b = np.arange(3, dtype=np.int32), np.arange(6, dtype=np.float16).reshape(3, 2, 1)
    found = feature_hashes({"b": b, "a": a}, GOOD)
    expected = xxhash.xxh3_128_digest(a[1].tobytes() + b[1].tobytes())
    assert found[1].tobytes() == expected
    assert feature_hashes({"a": a, "b": b}, GOOD).tolist() == found.tolist()


def test_feature_hash_of_many_rows_is_that_of_each() -> None:
    array = np.random.default_rng(1).random((5000, 3))
    found = feature_hashes({"x": array}, np.zeros(5000, np.uint8))
    alone = [feature_hashes({"x": array[n : n + 1]}, GOOD[:1]) for n in (0, 2047, 2048, 4999)]
    assert found[[0, 2047, 2048, 4999]].tolist() == np.concatenate(alone).tolist()


def test_memory_order_makes_no_difference() -> None:
    array = np.arange(6.0).reshape(3, 2)
    fortran = np.asfortranarray(array)
    assert feature_hashes({"x": fortran}, GOOD).tolist() == (
        feature_hashes({"x": array}, GOOD).tolist()
    )


def test_texts_are_told_apart_wherever_they_end() -> None:
    texts = np.array([["ab", "c"], ["a", "bc"], ["", "abc"]], object)
    numbers = np.zeros(3, np.float32)
    for arrays in ({"t": texts}, {"t": texts, "n": numbers}, {"a": texts[:, 0], "b": texts[:, 1]}):
        assert len({row.tobytes() for row in feature_hashes(arrays, GOOD)}) == 3


def test_a_fault_makes_a_difference() -> None:
    faults = np.array([Reason.GOOD, Reason.NULL_FEATURE, Reason.RAGGED_FEATURE], np.uint8)
    found = feature_hashes({"x": np.zeros((3, 2))}, faults)
    assert len({row.tobytes() for row in found}) == 3


def test_no_rows() -> None:
    assert feature_hashes({"x": np.zeros((0, 2))}, GOOD[:0]).shape == (0, 16)
    assert feature_hashes({"x": np.zeros((0, 2), object)}, GOOD[:0]).shape == (0, 16)
    assert key_ids(pa.table({"a": pa.array([], pa.string())}), ["a"]).shape == (0, 2)
    assert passthrough_hashes(pa.table({"a": pa.array([], pa.string())}), ["a"]).shape == (0, 8)


def test_golden_hashes() -> None:
    """What is stored in indices: if this changes, `HASH_VERSION` must."""
    table = pa.table({"s": ["a", None], "n": [1, 2], "l": [[1], None]})
    assert passthrough_hashes(table, ["s"])[:, 0].tolist() == GOLDEN_TEXT
    assert passthrough_hashes(table, ["s", "n", "l"])[:, 0].tolist() == GOLDEN_MIXED
    assert key_ids(table, ["s", "n"])[0].tolist() == GOLDEN_KEY
    assert feature_hashes({"x": np.ones((1, 2), np.float32)}, GOOD[:1])[0, :4].tolist() == (
        GOLDEN_FEATURES
    )


GOLDEN_TEXT = [227, 136]
GOLDEN_MIXED = [109, 154]
GOLDEN_KEY = [591224260180319823, 13598359768499045885]
GOLDEN_FEATURES = [133, 116, 177, 235]


def test_extension_types_are_their_storage() -> None:
    assert type_name(pa.fixed_shape_tensor(pa.float32(), (2,))) == "list<float>[2]"
    assert type_name(pa.struct([("a", pa.large_string())])) == "struct<'a': string>"
    assert type_name(pa.dictionary(pa.int32(), pa.large_string())) == "string"
    assert type_name(pa.large_list(pa.int8())) == "list<int8>"
