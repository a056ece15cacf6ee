"""Inputs that are no plain files of rows: what they are is said, and the line that converts."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import InputError
from batchnorm_tool.features.columns import StoredColumn, conversion
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.job import Input
from tests.command_line import invoke

ROWS = pa.table(
    {"id": [1, 2], "emb": pa.array([[3.0, 4.0], [0.0, 2.0]], pa.list_(pa.float32(), 2))}
)

# The format, a file that marks it, where its data lie, and what the message says.
TABLES = [
    ("Delta", "_delta_log/00000000000000000000.json", "day=1/part-0.parquet", "polars.scan_delta"),
    ("Iceberg", "metadata/v3.metadata.json", "data/0.parquet", "v3.metadata.json"),
    ("Iceberg", "metadata/00001-ab.metadata.json", "data/x=1/0.parquet", "polars.scan_iceberg"),
    ("Spark stream", "_spark_metadata/0", "part-0.parquet", "spark.read.parquet"),
    ("Hudi", ".hoodie/hoodie.properties", "2024/0.parquet", 'format("hudi")'),
    ("Lance", "_versions/1.manifest", "data/0.parquet", "lance.dataset"),
    ("Paimon", "snapshot/snapshot-1", "bucket-0/0.parquet", 'format("paimon")'),
]


def table(root: Path, mark: str, data: str) -> Path:
    for path in (root / mark, root / data, root / "schema" / "schema-0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pq.write_table(ROWS, root / data)
    return root / data


@pytest.mark.parametrize("given", ["directory", "above", "glob", "file", "list", "link"])
@pytest.mark.parametrize("case", TABLES, ids=[case[1] for case in TABLES])
def test_a_table_of_another_program_is_refused(
    tmp_path: Path, case: tuple[str, str, str, str], given: str
) -> None:
    name, mark, data, words = case
    stored = table(tmp_path / "in" / "items", mark, data)
    (tmp_path / "link.parquet").symlink_to(stored)
    paths: dict[str, str | list[str]] = {
        "directory": str(tmp_path / "in" / "items"),
        "above": str(tmp_path / "in"),
        "glob": str(stored.parent / "*.parquet"),
        "file": str(stored),
        "list": [str(stored)],
        "link": str(tmp_path / "link.parquet"),
    }
    with pytest.raises(InputError) as told:
        inputs_table.open_table(Input(path=paths[given]))
    assert f"{tmp_path}/in/items: is a" in told.value.message
    assert name in told.value.message
    assert words in told.value.message


def test_commands_refuse_a_table_before_anything_is_written(tmp_path: Path) -> None:
    table(tmp_path / "in", "_delta_log/0.json", "a.parquet")
    for command in (["normalize", tmp_path / "in", tmp_path / "out"], ["show", tmp_path / "in"]):
        done = invoke(*command)
        assert done.exit_code == 2
        assert "is a Delta table" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_real_lance_dataset_is_refused_and_its_line_converts_it(tmp_path: Path) -> None:
    lance.write_dataset(ROWS, tmp_path / "items.lance")
    with pytest.raises(InputError, match="is a Lance dataset") as told:
        inputs_table.open_table(Input(path=str(tmp_path / "items.lance")))
    line = told.value.message.split("`")[1].replace("rows.parquet", str(tmp_path / "rows.parquet"))
    eval(line, {"lance": lance, "pyarrow": pa})  # noqa: S307
    assert inputs_table.open_table(Input(path=str(tmp_path / "rows.parquet"))).rows == 2


@pytest.mark.parametrize("mark", ["metadata/croissant.metadata.json", "snapshot/x", "state.json"])
def test_what_only_looks_like_a_table_is_read(tmp_path: Path, mark: str) -> None:
    stored = table(tmp_path, mark, "data/0.parquet")
    assert inputs_table.open_table(Input(path=str(stored.parent))).rows == 2


def stream(path: Path, *tables: pa.Table, **options: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(path, tables[0].schema, options=written) as writer:
        for each in tables:
            writer.write_table(each)
    return path


def test_a_folder_of_save_to_disk_is_refused_and_its_stream_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    path = stream(folder / "data-00000-of-00001.arrow", ROWS)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=r"`save_to_disk` wrote.*load_from_disk\("):
        inputs_table.open_table(Input(path=str(folder)))
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match=r"several datasets.*\[\"train\"\]\.to_parquet"):
        inputs_table.open_table(Input(path=str(tmp_path / "saved")))
    assert inputs_table.open_table(Input(path=str(path))).rows == 2


def words(text: str) -> pa.Table:
    return ROWS.append_column("word", pa.array([text] * 2).dictionary_encode())


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("encoded", [False, True], ids=["", "dictionary"])
def test_a_stream_is_read_by_its_content(
    tmp_path: Path, compression: str | None, *, encoded: bool
) -> None:
    tables = [words("a"), words("b")] if encoded else [ROWS, ROWS]
    path = stream(tmp_path / "in.parquet", *tables, compression=compression)
    flags = ["--passthrough", "word"] if encoded else []
    done = invoke("normalize", path, tmp_path / "out", "--part-rows", "3", *flags)
    assert done.exit_code == 0, done.stderr
    rows = ds.dataset(tmp_path / "out" / "vectors").to_table()
    assert rows["norm"].to_pylist() == [5.0, 2.0, 5.0, 2.0]
    if encoded:
        assert rows["word"].to_pylist() == ["a", "a", "b", "b"]
    assert invoke("diff", path, path).exit_code == 0


def test_an_empty_stream_has_no_rows(tmp_path: Path) -> None:
    assert inputs_table.open_table(Input(path=str(stream(tmp_path / "a", ROWS.slice(2))))).rows == 0


@pytest.mark.parametrize("cut", [1, 8, 9, 60])
def test_a_stream_without_its_end_is_refused(tmp_path: Path, cut: int) -> None:
    path = stream(tmp_path / "a.arrow", ROWS, ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"truncated"):
        inputs_table.open_table(Input(path=str(path)))


def test_bytes_beyond_a_stream_are_refused(tmp_path: Path) -> None:
    path = stream(tmp_path / "a.arrow", ROWS)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(InputError, match="bytes after it"):
        inputs_table.open_table(Input(path=str(path)))


def archive(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"")

    return write


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


SAFE = b'{"emb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "CSV": (content(b"id,x\n1,2\n"), "text, such as CSV.*pyarrow.csv.read_csv"),
    "half a letter": (content(b"x" * 63 + "ä".encode()), "text"),
    "JSON lines": (content(b'{"id": 1}\n{"id": 2}\n'), "JSON.*pandas.read_json"),
    "npz": (archive("emb.npy"), r"npz.*numpy.load\("),
    "PyTorch": (archive("model/data.pkl"), "PyTorch.*torch.load"),
    "Keras": (archive("model.weights.h5"), "a Keras model"),
    "Excel": (archive("xl/workbook.xml"), "Excel.*pandas.read_excel"),
    "ZIP": (archive("a.txt"), "ZIP.*extractall"),
    "damaged ZIP": (content(b"PK\x03\x04"), "damaged ZIP"),
    "pickle": (content(pickle.dumps([1])), "a pickle, which can run code.*pandas.read_pickle"),
    "safetensors": (content(len(SAFE).to_bytes(8, "little") + SAFE + bytes(4)), "safetensors"),
    "HDF5": (content(b"\x89HDF\r\n\x1a\n"), "HDF5.*h5py.File"),
    "ORC": (content(b"ORC" + bytes(9)), "ORC.*pyarrow.orc.read_table"),
    "Avro": (content(b"Obj\x01"), "Avro.*polars.read_avro"),
    "SQLite": (content(b"SQLite format 3\0"), "SQLite.*pandas.read_sql"),
    "DuckDB": (content(bytes(8) + b"DUCK" + bytes(9)), "DuckDB.*duckdb.connect"),
    "Lance file": (content(bytes(60) + b"LANC"), "file of a Lance dataset.*lance.dataset"),
    "gzip": (content(b"\x1f\x8b\x08data"), "compressed with gzip.*gzip.open"),
    "zstd": (content(b"\x28\xb5\x2f\xfd"), "compressed with zstd"),
    "noise": (content(b"\xff\x00\x17"), "Convert it, or exclude it"),
}


@pytest.mark.parametrize(("write", "words"), OTHERS.values(), ids=OTHERS)
def test_other_formats_are_refused_with_the_line_that_converts_them(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    with pytest.raises(InputError, match=f"none of parquet, npy, arrow.*{words}") as told:
        inputs_table.open_table(Input(path=str(path)))
    assert str(path) in told.value.message


def test_a_partition_with_an_escaped_slash_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"emb": [1.0, 2.0], "day": ["2024/01/02", "a=b"]})
    frame.to_parquet(tmp_path / "in", partition_cols=["day"])
    found = inputs_table.open_table(Input(path=str(tmp_path / "in")))
    assert [file.partitions[0].value for file in found.files] == ["2024/01/02", "a=b"]


SPARK = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)
KEPT_APART: dict[str, tuple[pa.Array, str]] = {
    "Spark vectors": (
        pa.array([{"type": 1, "values": [3.0, 4.0]}] * 2, SPARK),
        r"vectors of Spark ML.*vector_to_array\(\"emb\"\)",
    ),
    "blobs": (pa.array([np.ones(2, "<f4").tobytes()] * 2), "numpy.frombuffer"),
    "fixed blobs": (pa.array([np.ones(2, "<f4").tobytes()] * 2, pa.binary(8)), "numpy.frombuffer"),
}


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("column", "words"), KEPT_APART.values(), ids=KEPT_APART)
def test_vectors_kept_in_another_way_are_refused_with_the_line_that_makes_lists(
    tmp_path: Path, column: pa.Array, words: str, *, named: bool
) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1, 2], "emb": column}), source)
    flags = ["--column", "emb"] if named else []
    for command in (["normalize", source, tmp_path / "out"], ["compare", source]):
        done = invoke(*command, *flags)
        assert done.exit_code == 2
        assert str(source) in done.stderr
        assert re.search(words, done.stderr)


def test_the_line_for_blobs_makes_lists() -> None:
    table = pa.table({"emb": [np.arange(2, dtype="<f4").tobytes()] * 2})
    line = conversion(StoredColumn.of(table.schema.field("emb"))).split("`")[3]
    names = {"numpy": np, "pyarrow": pa, "table": table}
    lists = eval(line.replace("WIDTH", "2"), names)  # noqa: S307
    assert lists.to_pylist() == [[0.0, 1.0]] * 2
