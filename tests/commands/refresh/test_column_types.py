"""Every Arrow type as a key and as a passed-through column of a store, through several nights."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, diff, read, refresh, verify
from batchnorm_tool.errors import InputError, JobError
from tests.commands.refresh.nightly import LOOSE, Nightly, features, lists

ROWS = range(8)
TEXTS = [f"k{row}" for row in ROWS]
BYTES = [text.encode() for text in TEXTS]


def numbers(kind: pa.DataType) -> pa.Array:
    return pa.array(np.array(ROWS), pa.int64()).cast(kind)


def decimals(kind: pa.DataType) -> pa.Array:
    return pa.array([Decimal(row) for row in ROWS], pa.decimal128(5, 0)).cast(kind)


def each_row(value: Any, kind: pa.DataType) -> pa.Array:
    return pa.array([value] * len(ROWS), kind)


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
UNSIGNED = [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DECIMALS = [pa.decimal32(7, 2), pa.decimal64(12, 3), pa.decimal128(20, 0), pa.decimal256(50, 4)]
UNITS = ["s", "ms", "us", "ns"]
TIMES = [
    *[pa.timestamp(unit) for unit in UNITS],
    *[pa.timestamp(unit, "Europe/Berlin") for unit in UNITS],
    *[pa.duration(unit) for unit in UNITS],
    pa.time64("us"),
    pa.time64("ns"),
]
KEYS = {
    **{str(kind): numbers(kind) for kind in [*INTEGERS, *UNSIGNED, *TIMES]},
    **{str(kind): decimals(kind) for kind in DECIMALS},
    "float16": pa.array(np.arange(8, dtype=np.float16)),
    "float32": numbers(pa.float32()),
    "float64": numbers(pa.float64()),
    "date32": numbers(pa.int32()).cast(pa.date32()),
    "date64": pa.array([row * 86_400_000 for row in ROWS], pa.int64()).cast(pa.date64()),
    "time32[s]": numbers(pa.int32()).cast(pa.time32("s")),
    "time32[ms]": numbers(pa.int32()).cast(pa.time32("ms")),
    **{str(kind): pa.array(BYTES, kind) for kind in (pa.binary(), pa.binary(2))},
    **{str(kind): pa.array(BYTES, kind) for kind in (pa.large_binary(), pa.binary_view())},
    **{str(kind): pa.array(TEXTS, kind) for kind in (pa.large_string(), pa.string_view())},
    "dictionary of texts": pa.array(TEXTS).dictionary_encode(),
    "dictionary of decimals": decimals(pa.decimal128(20, 2)).dictionary_encode(),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b * 8 for b in BYTES], pa.binary(16))
    ),
}
DICTIONARY = pa.array(TEXTS).dictionary_encode()
PASSED = {
    **KEYS,
    "bool": pa.array([row % 2 == 0 for row in ROWS]),
    "null": pa.nulls(len(ROWS)),
    "list": each_row([1, None], pa.list_(pa.int64())),
    "large list": each_row(["x"], pa.large_list(pa.large_string())),
    "list of views": each_row(["x"], pa.list_(pa.string_view())),
    "list of decimals": each_row([Decimal(1)], pa.list_(pa.decimal256(50, 2))),
    "list of nulls": each_row([None], pa.list_(pa.null())),
    "list of dictionaries": pa.ListArray.from_arrays(pa.array(range(9), pa.int32()), DICTIONARY),
    "fixed list of floats": each_row([1.0, 2.0], pa.list_(pa.float32(), 2)),
    "fixed list of bools": each_row([True, False], pa.list_(pa.bool_(), 2)),
    "fixed list of texts": each_row(["a", "b"], pa.list_(pa.string(), 2)),
    "list of lists": each_row([[1], []], pa.list_(pa.list_(pa.int8()))),
    "struct": each_row(
        {"a": Decimal(1), "b": None}, pa.struct({"a": pa.decimal32(7, 2), "b": pa.null()})
    ),
    "struct of views": each_row({"a": "x"}, pa.struct({"a": pa.string_view()})),
    "struct with a dot": each_row({"a.b": 1}, pa.struct({"a.b": pa.int8()})),
    "list view": each_row([1], pa.list_view(pa.int8())),
    "run-end encoded": pa.RunEndEncodedArray.from_arrays([8], ["a"]),
    "map": each_row([("a", Decimal(1))], pa.map_(pa.string(), pa.decimal128(20, 2))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), numbers(pa.int8())),
    "json": pa.ExtensionArray.from_storage(pa.json_(), each_row("{}", pa.string())),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2,)), each_row([1, 2], pa.list_(pa.float32(), 2))
    ),
}
REFUSED = {
    "interval": each_row((1, 2, 3), pa.month_day_nano_interval()),
    "list of width 0": each_row([], pa.list_(pa.float32(), 0)),
    "struct without fields": each_row({}, pa.struct([])),
    "union": pa.UnionArray.from_sparse(pa.nulls(8, pa.int8()).fill_null(0), [numbers(pa.int8())]),
}


def edited(columns: dict[str, Any], edit: int, first: int, count: int) -> pa.Table:
    """Rows from ``first`` on, as a slice of more, with the features of an edit."""
    x = lists([features(row, edit) for row in ROWS])
    return pa.table({**columns, "x": x}).slice(first, count)


def put(nightly: Nightly, table: pa.Table) -> None:
    """As an Arrow file: Parquet has not all of these types."""
    (nightly.path / "in").mkdir(exist_ok=True)
    with pa.ipc.new_file(nightly.path / "in/items.arrow", table.schema) as writer:
        writer.write_table(table)


def spec(keys: list[str], passthrough: list[str]) -> dict[str, Any]:
    return {"path": "in", "key": keys, "features": {"x": "x"}, "passthrough": passthrough}


def check_nights(nightly: Nightly, columns: dict[str, Any], keys: list[str]) -> None:
    """Load, change and remove, add again: each night the store has what the input has."""
    passthrough = [name for name in columns if name not in keys]
    for edit, first, count in ((0, 1, 5), (1, 2, 3), (1, 2, 6)):
        table = edited(columns, edit, first, count)
        put(nightly, table)
        job = nightly.job({"input": spec(keys, passthrough)})
        assert refresh(job).state == "published"
        found = pa.Table.from_batches([*read(nightly.store).batches()])
        wanted = table.select([*keys, *passthrough]).to_pylist()
        assert by_text(found.select([*keys, *passthrough]).to_pylist()) == by_text(wanted)
        assert refresh(job).state == "nothing to do"
        verify(nightly.store)


def by_text(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(map(repr, rows))


def test_all_types_are_passed_through_night_by_night(nightly: Nightly) -> None:
    with_nulls = {
        name: column.take(pa.array([None if row == 4 else row for row in ROWS], pa.int64()))
        for name, column in PASSED.items()
        if "view" not in str(column.type) and "run_end" not in str(column.type)  # Arrow cannot take
    }
    check_nights(nightly, {"id": numbers(pa.int64()), **PASSED}, ["id"])
    put(nightly, edited({"id": numbers(pa.int64()), **with_nulls}, 1, 2, 6))
    refresh(nightly.job({"input": spec(["id"], [*with_nulls])}))
    found = {row["id"]: row for batch in read(nightly.store).batches() for row in batch.to_pylist()}
    assert {found[4][name] for name in with_nulls} == {None}
    assert found[5]["decimal128(20, 0)"] == 5


@pytest.mark.parametrize(
    "name",
    [
        "decimal32(7, 2)",
        "decimal128(20, 0)",
        "decimal256(50, 4)",
        "string_view",
        "float16",
        "date64",
        "time32[s]",
        "timestamp[s]",
        "duration[ns]",
        "uuid",
        "dictionary of decimals",
    ],
)
def test_a_key_of_a_type_names_its_rows_night_by_night(nightly: Nightly, name: str) -> None:
    check_nights(nightly, {"key": KEYS[name]}, ["key"])


def test_a_key_of_all_types_at_once(nightly: Nightly) -> None:
    check_nights(nightly, KEYS, [*KEYS])


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_store_cannot_hold_is_refused_before_anything_is_written(
    nightly: Nightly, name: str
) -> None:
    put(nightly, edited({"id": numbers(pa.int64()), "c": REFUSED[name]}, 0, 0, 8))
    with pytest.raises(InputError, match=r"The column `c` cannot be stored.*Received: "):
        refresh(nightly.job({"input": spec(["id"], ["c"])}))
    assert not (nightly.path / "items.lance").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.nulls(4), pa.array(["a", None, "b", "c"])),
        (pa.array(["a", None, "b", "c"]), pa.nulls(4)),
        (pa.array([[]] * 4, pa.list_(pa.null())), pa.array([[1]] * 4)),
        (pa.array([[1]] * 4), pa.array([None, [], [], []], pa.list_(pa.null()))),
        (pa.array([{"a": 1}] * 4), pa.array([{"a": None}] * 4, pa.struct({"a": pa.null()}))),
    ],
    ids=["null, then text", "text, then null", "lists fill", "lists empty", "a field empties"],
)
@pytest.mark.parametrize("mode", ["full", "delta"])
def test_a_column_may_be_all_null_one_night(
    nightly: Nightly, first: pa.Array, second: pa.Array, mode: str
) -> None:
    for column in (first, second):
        table = pa.table({"id": range(4), "x": lists([features(row) for row in ROWS[:4]])})
        nightly.put(table.append_column("c", column))
        night = nightly.night(None, {"input": spec(["id"], ["c"])}, store__mode=mode)
        assert night.state == "published"
        found = {row["id"]: row["c"] for row in nightly.rows().values()}
        assert [found[row] for row in range(4)] == column.to_pylist()
    (kind,) = {batch.schema.field("c").type for batch in read(nightly.store).batches()}
    assert "null" not in str(kind)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([0.0, -0.0], "row 1, column `id`: the key `id` -0.0 is a duplicate of .*row 0"),
        ([1.0, float("nan")], "row 1, column `id`: the key is NaN"),
        ([1.0, None], "row 1, column `id`: the key is null"),
    ],
    ids=["two zeros", "NaN", "null"],
)
@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_float_that_names_no_row_or_two_is_refused(
    nightly: Nightly, keys: list[Any], said: str, kind: pa.DataType
) -> None:
    column = pa.array(keys, pa.float64()).cast(kind)
    nightly.put(pa.table({"id": column, "x": lists([features(row) for row in range(2)])}))
    with pytest.raises(InputError, match=said):
        nightly.night(input__passthrough=[])


def test_minus_zero_is_zero_the_next_night(nightly: Nightly) -> None:
    for zero in (0.0, -0.0):
        nightly.put(pa.table({"id": [zero], "x": lists([features(0)])}))
        night = nightly.night(input__passthrough=[])
    assert night.state == "nothing to do"


def test_a_value_that_the_stores_type_does_not_hold_is_named(nightly: Nightly) -> None:
    column = pa.array([1, 2**60], pa.int64()).cast(pa.timestamp("s"))
    put(nightly, pa.table({"id": [1, 2], "c": column, "x": lists([features(1), features(2)])}))
    with pytest.raises(InputError, match=r"column `c`: a value does not fit.*timestamp.ms"):
        refresh(nightly.job({"input": spec(["id"], ["c"])}))


NAMES = ["status", "version", "feature_hash", "passthrough_hash"]


@pytest.mark.parametrize("name", [*NAMES, "vector", "norm"])
@pytest.mark.parametrize("role", ["key", "passthrough"])
def test_the_remedy_for_a_name_of_the_stores_own_works(
    nightly: Nightly, name: str, role: str
) -> None:
    column = "id" if role == "key" else "label"
    for keys in (range(4), range(2, 6)):
        table = pa.table({"id": keys, "label": [f"l{key}" for key in keys]})
        table = table.append_column("x", lists([features(key) for key in keys]))
        names = [name if each == column else each for each in table.column_names]
        nightly.put(table.rename_columns(names))
        sections = {
            "input": spec([names[0]], [names[1]]),
            "publish": [{"to": "parquet", "path": "pq"}],
        }
        with pytest.raises(JobError, match=f"would be named `{name}`") as caught:
            nightly.night(None, sections)
        remedy = f"{'store' if name in NAMES else 'output'}.columns.{name}"
        assert remedy.removesuffix(f".{name}") in caught.value.message
        night = nightly.night(None, sections, **{remedy.replace(".", "__"): "ours"})
        assert night.state == "published"
        verify(nightly.store)
        found = pa.Table.from_batches([*read(nightly.store).batches()])
        snapshot = pq.read_table(nightly.path / "pq/versions" / str(night.version))
        for shown in (found, snapshot):
            assert sorted(shown[names[0]].to_pylist()) == [*keys]
            assert sorted(shown[names[1]].to_pylist()) == [f"l{key}" for key in keys]
    assert night.rows["vanished"] == 2
    same = diff(nightly.store, nightly.store, sample=0).to_dict()
    assert same["rows"]["common"] == 4


def test_the_stores_own_columns_may_be_renamed_later(nightly: Nightly) -> None:
    nightly.night({1: 0, 2: 0})
    status = {"store": {"path": "items.lance", "columns": {"status": "state"}}}
    table = pa.table({"id": [1, 2], "x": lists([features(1), features(2)]), "label": ["a", "b"]})
    renamed = table.append_column("status", pa.array(["new", "old"]))
    nightly.put(renamed)
    night = nightly.night(None, status, input__passthrough=["status"])
    assert night.rows["predicted"] == 0
    rows = nightly.rows()
    assert [(rows[key]["status"], rows[key]["state"]) for key in (1, 2)] == [
        ("new", "good"),
        ("old", "good"),
    ]
    older = read(nightly.store, version=1)
    assert {name for batch in older.batches() for name in batch.schema.names} >= {"status", "label"}
    verify(nightly.store)


@pytest.mark.parametrize("name", ["_rowid", "_rowaddr", "_rowoffset", "a.b", "a`b", "a\0b"])
def test_a_name_that_lance_cannot_keep_is_refused(nightly: Nightly, name: str) -> None:
    table = pa.table({"id": [1], name: [1], "x": lists([features(1)])})
    nightly.put(table)
    with pytest.raises(JobError, match="cannot be kept in a Lance dataset"):
        refresh(
            Job.from_dict(
                {"input": spec(["id"], [name]), "store": {"path": "items.lance"}, "gate": LOOSE},
                nightly.path,
            )
        )
