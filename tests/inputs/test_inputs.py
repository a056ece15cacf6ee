from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import InputError, InputWarning, WorkFailed
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.inputs.files import InputFile, Table, list_files
from batchnorm_tool.job import Input


def opened(path: object, **options: object) -> Table:
    spec = path if isinstance(path, dict | list) else str(path)
    return inputs_table.open_table(Input(path=spec, **options))


def store(path: Path, start: int = 0, rows: int = 10, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": np.arange(start, start + rows), **columns}), path)
    return path


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def rows_of(table: Table, columns: list[str], batch_rows: int = 4) -> list[dict[str, object]]:
    return [
        row
        for file in table.files
        for batch in reading.read_rows(file, columns, 0, file.rows, batch_rows)
        for row in batch.to_pylist()
    ]


def ids(table: Table) -> list[object]:
    return [row["id"] for row in rows_of(table, ["id"])]


def test_one_file(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet")
    table = opened(path)
    (file,) = table.files
    assert (file.path, file.format, file.bytes) == (str(path), "parquet", path.stat().st_size)
    assert table.rows == 10
    assert table.schema.names == ["id"]
    assert ids(table) == list(range(10))


def test_directory_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name, start in [("b/x.parquet", 20), ("a.parquet", 0), ("b.parquet", 10)]:
        store(tmp_path / name, start)
    for name in ["_SUCCESS", ".hidden", "_state/part.parquet"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not a table")
    table = opened(tmp_path)
    names = [os.path.relpath(file.path, tmp_path) for file in table.files]
    assert names == sorted(names) == ["a.parquet", "b.parquet", "b/x.parquet"]
    assert ids(table) == list(range(30))


@pytest.mark.parametrize("pattern", ["*.parquet", "[ab].parquet", "**/*.parquet", "?.parquet"])
def test_glob(tmp_path: Path, pattern: str) -> None:
    store(tmp_path / "a.parquet")
    store(tmp_path / "b.parquet", 10)
    (tmp_path / "readme.md").write_text("words")
    assert ids(opened(tmp_path / pattern)) == list(range(20))


def test_name_with_wildcard_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    assert ids(opened(store(tmp_path / "a[1].parquet"))) == list(range(10))


def test_list_of_files(tmp_path: Path) -> None:
    paths = [str(store(tmp_path / "b.parquet", 10)), str(store(tmp_path / "a.parquet"))]
    assert ids(opened(paths)) == list(range(20))


def test_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="twice"):
        opened([str(path), str(tmp_path)])


def test_format_is_recognised_by_content(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npy")
    assert opened(path).files[0].format == "parquet"
    with pytest.raises(InputError, match=r"Expected: npy\. Received: parquet"):
        opened(path, format="npy")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"id,x\n1,2\n", "none of parquet, npy, arrow"),
        (b"\x1f\x8b\x08data", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"FEA1....", "Feather version 1"),
    ],
    ids=["empty", "lfs pointer", "csv", "gzip", "hdf5", "feather 1"],
)
def test_other_content_is_refused_saying_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        opened(path)
    assert str(path) in caught.value.message


def test_missing_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="file not found"):
        opened(path)
    with pytest.raises(InputError, match="file not found") as caught:
        list_files(path)
    assert caught.value.message.startswith(f"{path}: ")


def test_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no files"):
        opened(tmp_path)


def test_pattern_without_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no file"):
        opened(tmp_path / "*.parquet")


@pytest.mark.parametrize("place", ["alone", "in a directory"])
def test_fifo_is_refused_without_waiting_for_it(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="FIFO"):
        opened(tmp_path / "a.parquet" if place == "alone" else tmp_path)


def test_device_is_refused() -> None:
    with pytest.raises(InputError, match="a device"):
        opened("/dev/null")


@pytest.mark.parametrize("uri", ["s3://bucket/key", "gs://bucket/*.parquet"])
def test_object_stores_are_refused_with_words(uri: str) -> None:
    with pytest.raises(InputError, match="cannot read object stores") as caught:
        inputs_table.open_table(SimpleNamespace(path=uri, format=None, dtype=None, keys=None))
    assert "bucket" not in caught.value.message


def test_link_out_of_the_directory_is_read_with_a_warning(tmp_path: Path) -> None:
    store(tmp_path / "in/a.parquet")
    store(tmp_path / "out/b.parquet", 10)
    (tmp_path / "in/b.parquet").symlink_to(tmp_path / "out/b.parquet")
    with pytest.warns(InputWarning, match="symbolic link out of"):
        table = opened(tmp_path / "in")
    assert ids(table) == list(range(20))


def test_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    store(tmp_path / "in/a.parquet")
    store(tmp_path / "in/_b/b.parquet", 10)
    (tmp_path / "in/c").symlink_to(tmp_path / "in/_b")
    assert ids(opened(tmp_path / "in")) == list(range(20))


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    store(tmp_path / "a/a.parquet")
    (tmp_path / "a/b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="loop"):
        opened(tmp_path)


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    for number, (day, kind) in enumerate([(1, "a%20b"), (1, "c"), (10, "007")]):
        store(tmp_path / f"day={day}/kind={kind}/x.parquet", number * 10)
    table = opened(tmp_path)
    assert table.schema.names == ["id", "day", "kind"]
    assert table.schema.types == [pa.int64(), pa.int64(), pa.string()]
    rows = rows_of(table, ["kind", "id", "day"])
    assert list(rows[0]) == ["kind", "id", "day"]
    expected = {(1, "a b"): 0, (1, "c"): 10, (10, "007"): 20}
    assert {(row["day"], row["kind"]): row["id"] - row["id"] % 10 for row in rows} == expected


def test_partitions_that_pyarrow_wrote(tmp_path: Path) -> None:
    table = pa.table({"id": range(6), "day": [1, 1, 2, 2, None, None]})
    ds.write_dataset(
        table, tmp_path, format="parquet", partitioning=["day"], partitioning_flavor="hive"
    )
    rows = rows_of(opened(tmp_path), ["id", "day"])
    assert {row["id"]: row["day"] for row in rows} == dict(enumerate([1, 1, 2, 2, None, None]))
    assert opened(tmp_path).schema.field("day").type == pa.int64()


def test_partition_columns_alone_can_be_read(tmp_path: Path) -> None:
    store(tmp_path / "day=1/x.parquet", rows=3)
    assert rows_of(opened(tmp_path), ["day"]) == [{"day": 1}] * 3


def test_partitions_of_a_glob(tmp_path: Path) -> None:
    store(tmp_path / "day=1/x.parquet")
    assert opened(tmp_path / "day=*" / "*.parquet").schema.names == ["id", "day"]


@pytest.mark.parametrize("value", ["..%2F..%2Fetc", "a%2F..%2Fb", "..", "%2E", "", "a%00b"])
def test_partition_value_that_is_a_path_is_refused(tmp_path: Path, value: str) -> None:
    store(tmp_path / f"day={value}" / "x.parquet")
    with pytest.raises(InputError, match="not a plain name"):
        opened(tmp_path)


def test_files_with_other_partitions_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "day=1/x.parquet")
    store(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="partitions differ"):
        opened(tmp_path)


def test_stored_column_wins_over_the_directory(tmp_path: Path) -> None:
    store(tmp_path / "day=1/x.parquet", day=[7] * 10)
    with pytest.warns(InputWarning, match="column `day` is stored"):
        table = opened(tmp_path)
    assert rows_of(table, ["day"])[0] == {"day": 7}


@pytest.mark.parametrize(
    ("other", "expected", "received"),
    [
        ({"x": ["1"] * 10}, "int64", "string"),
        ({"x": [1.0] * 10}, "int64", "double"),
        ({}, "int64", "no such column"),
        ({"x": [1] * 10, "y": [1] * 10}, "no such column", "int64"),
    ],
    ids=["other type", "not exact", "missing", "added"],
)
def test_columns_that_differ_are_refused_where_they_are_used(
    tmp_path: Path, other: dict[str, object], expected: str, received: str
) -> None:
    first = store(tmp_path / "a.parquet", x=[1] * 10)
    second = store(tmp_path / "b.parquet", **other)
    table = opened(tmp_path)
    column = "y" if "y" in other else "x"
    assert column not in table.columns
    assert ids(table) == [*range(10), *range(10)], "what does not differ is read"
    for use in (table.check, lambda names: reading.head(table, names, 1)):
        with pytest.raises(InputError, match=f"Expected: {expected}. Received: {received}") as told:
            use(["id", column])
        assert f"{second}, column `{column}`" in told.value.message
        assert str(first) in told.value.message


def test_order_of_columns_may_differ(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "x": [2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [4], "id": [3]}), tmp_path / "b.parquet")
    assert rows_of(opened(tmp_path), ["x", "id"]) == [{"x": 2, "id": 1}, {"x": 4, "id": 3}]


def test_shapes_of_arrays_must_agree(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", np.zeros((2, 4, 4)))
    save(tmp_path / "b.npy", np.zeros((2, 2, 8)))
    with pytest.raises(InputError, match=r"shape \[4, 4\].*shape \[2, 8\]"):
        opened(tmp_path)


def test_mixed_formats_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "a.parquet")
    save(tmp_path / "b.npy", np.zeros(10))
    with pytest.raises(InputError, match=r"Expected: parquet\. Received: npy"):
        opened(tmp_path)


def test_unknown_extension_type_is_read_with_a_warning(tmp_path: Path) -> None:
    metadata = {"ARROW:extension:name": "strange.kind", "ARROW:extension:metadata": ""}
    schema = pa.schema([pa.field("x", pa.int64(), metadata=metadata)])
    pq.write_table(pa.table({"x": [1, 2]}, schema=schema), tmp_path / "a.parquet")
    with pytest.warns(InputWarning, match=r"`x`: extension type `strange\.kind` is unknown"):
        table = opened(tmp_path / "a.parquet")
    assert rows_of(table, ["x"]) == [{"x": 1}, {"x": 2}]


def test_files_without_rows(tmp_path: Path) -> None:
    table = opened(store(tmp_path / "a.parquet", rows=0))
    assert table.rows == 0
    assert ids(table) == []


def test_arrays_side_by_side(tmp_path: Path) -> None:
    left, right = np.arange(20.0).reshape(10, 2), np.arange(10, dtype=np.int32)
    paths = {"l": save(tmp_path / "l.npy", left), "r": save(tmp_path / "r.npy", right)}
    table = opened(paths)
    assert table.schema.names == ["l", "r"]
    assert table.files[0].bytes == sum(Path(path).stat().st_size for path in paths.values())
    rows = rows_of(table, ["r", "l"])
    assert rows == [{"r": row, "l": left[row].tolist()} for row in range(10)]


def test_directories_of_arrays_side_by_side(tmp_path: Path) -> None:
    for column in ("l", "r"):
        (tmp_path / column).mkdir()
        for part in range(2):
            save(tmp_path / column / f"{part}.npy", np.full(3, part))
    table = opened({column: str(tmp_path / column) for column in ("l", "r")})
    assert [file.rows for file in table.files] == [3, 3]
    assert rows_of(table, ["l", "r"])[3] == {"l": 1, "r": 1}


def test_arrays_of_other_lengths_are_refused(tmp_path: Path) -> None:
    paths = {"l": save(tmp_path / "l.npy", np.zeros(3)), "r": save(tmp_path / "r.npy", np.ones(4))}
    with pytest.raises(InputError, match=r"`input\.path\.r`: does not match the rows of `l`"):
        opened(paths)


def test_tables_cannot_stand_side_by_side(tmp_path: Path) -> None:
    paths = {"l": str(store(tmp_path / "a.parquet")), "r": save(tmp_path / "r.npy", np.ones(10))}
    with pytest.raises(InputError, match=r"`input\.path\.l`.*Expected: NPY"):
        opened(paths)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_keys_stand_beside_the_rows_of_all_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    for part in range(3):
        save(tmp_path / "data" / f"{part}.npy", np.full((5, 2), part))
    keys = tmp_path / f"keys.{kind}"
    names = [f"k{row}" for row in range(15)]
    if kind == "npy":
        np.save(keys, np.array(names))
    else:
        pq.write_table(pa.table({"name": names, "day": range(15)}), keys, row_group_size=4)
    table = opened(tmp_path / "data", keys=str(keys), key="name")
    assert table.keys == (("name",) if kind == "npy" else ("name", "day"))
    rows = rows_of(table, ["data", "name"], 3)
    assert rows == [{"data": [row // 5] * 2, "name": names[row]} for row in range(15)]


def test_keys_without_a_name_are_called_key(tmp_path: Path) -> None:
    data, keys = save(tmp_path / "a.npy", np.zeros(2)), save(tmp_path / "k.npy", np.array([7, 8]))
    assert rows_of(opened(data, keys=keys), ["key"]) == [{"key": 7}, {"key": 8}]


def test_keys_for_key_is_told_from_the_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(3)}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"`input\.keys` is a key file .* Did you mean `input\.key`"
    ):
        opened(tmp_path / "a.parquet", keys="id")


def test_keys_of_another_length_are_refused(tmp_path: Path) -> None:
    data, keys = save(tmp_path / "a.npy", np.zeros(2)), save(tmp_path / "k.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"Expected: 2 keys\. Received: 3"):
        opened(data, keys=keys)


def test_bfloat16_travels_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([0x3FC0, 0xC000], np.uint16).view("V2"))
    table = opened(path, dtype="bfloat16")
    (file,) = (InputFile.from_dict(json.loads(json.dumps(f.to_dict()))) for f in table.files)
    assert table.schema.field("data").type == pa.float32()
    assert rows_of(Table((file,), table.schema), ["data"]) == [{"data": 1.5}, {"data": -2.0}]


def test_planned_files_survive_json(tmp_path: Path) -> None:
    store(tmp_path / "day=1/x.parquet")
    store(tmp_path / f"day={'__HIVE_DEFAULT_PARTITION__'}/x.parquet")
    (tmp_path / "d").mkdir()
    save(tmp_path / "d/a.npy", np.zeros(3))
    tables = [
        opened(tmp_path / "day=*"),
        opened({"a": str(tmp_path / "d"), "b": str(tmp_path / "d")}),
    ]
    for table in tables:
        copies = [InputFile.from_dict(json.loads(json.dumps(f.to_dict()))) for f in table.files]
        assert tuple(copies) == table.files


def test_part_of_a_file_is_read(tmp_path: Path) -> None:
    (file,) = opened(store(tmp_path / "a.parquet", rows=100)).files
    batches = list(reading.read_rows(file, ["id"], 37, 61, 10))
    assert [v for b in batches for v in b["id"].to_pylist()] == list(range(37, 61))


@pytest.mark.parametrize("kind", ["parquet", "npy", "member"])
@pytest.mark.parametrize("fate", ["replaced", "removed", "truncated"])
def test_file_that_changed_since_it_was_planned_stops_the_work(
    tmp_path: Path, kind: str, fate: str
) -> None:
    path = tmp_path / "a"
    if kind == "parquet":
        (file,) = opened(store(path)).files
    else:
        path = Path(save(path.with_suffix(".npy"), np.arange(10)))
        (file,) = opened({"id": str(path)} if kind == "member" else path).files
    other = store(tmp_path / "b", 5) if kind == "parquet" else save(tmp_path / "b.npy", np.ones(10))
    if fate == "removed":
        path.unlink()
    else:
        path.write_bytes(Path(other).read_bytes()[: None if fate == "replaced" else 100])
    with pytest.raises(WorkFailed, match="file replaced during the run"):
        next(reading.read_rows(file, ["id" if kind != "npy" else "data"], 0, 10, 5))


def test_touching_a_file_does_not_change_it(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet")
    table = opened(path)
    os.utime(path, (1, 1))
    assert opened(path) == table
    assert ids(table) == list(range(10))


def test_column_that_is_not_there_is_refused_with_near_matches(tmp_path: Path) -> None:
    (file,) = opened(store(tmp_path / "a.parquet", pixels=[0] * 10)).files
    with pytest.raises(InputError, match="did you mean `pixels`"):
        list(reading.read_rows(file, ["pixel"], 0, 10, 5))


def test_quiet_about_good_input(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(store(tmp_path / "a.parquet"))
