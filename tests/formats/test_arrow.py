from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather

from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.formats import Layout, format_named, recognise
from batchnorm_tool.storage import Storage

ARROW = format_named("arrow")


def table_of(rows: int) -> pa.Table:
    values = np.arange(rows * 4, dtype=np.float32)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    good = pa.array([row % 3 != 1 for row in range(rows)])
    score = pa.array([None if row % 5 == 2 else row for row in range(rows)], pa.int32())
    return pa.table({"id": np.arange(rows), "vector": vector, "good": good, "score": score})


def store(path: Path, table: pa.Table, batch: int, compression: str | None = None) -> str:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return str(path)


def write_sink(root: Path, tables: Sequence[pa.Table], compression: str | None = None) -> Path:
    storage = Storage(root)
    files = []

    def create(path: str) -> object:
        files.append(storage.create(path))
        return files[-1]

    layout = Layout(100, ("vector",), (), 2048, compression=compression, metadata={"who": "test"})
    sink = ARROW.open_sink(create, "vectors/part-000000", tables[0].schema, layout)
    for table in tables:
        sink.write(table)
    sink.close()
    for file in files:
        file.commit()
    return root / "vectors" / "part-000000.arrow"


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize(("start", "stop"), [(0, 500), (99, 101), (100, 200), (123, 457), (7, 7)])
def test_reads_exactly_the_rows_asked_for(
    tmp_path: Path, compression: str | None, start: int, stop: int
) -> None:
    path = store(tmp_path / "a", table_of(500), 100, compression)
    batches = list(ARROW.read(path, ["score", "id"], start, stop, 30))
    assert all(0 < batch.num_rows <= 30 for batch in batches)
    expected = table_of(500).slice(start, stop - start).select(["score", "id"])
    assert pa.Table.from_batches(batches, expected.schema).equals(expected)


def test_feather_is_read(tmp_path: Path) -> None:
    feather.write_feather(table_of(50), tmp_path / "a.feather")
    path = str(tmp_path / "a.feather")
    assert recognise(path) == "arrow"
    found = ARROW.inspect(path)
    assert (found.rows, found.schema.names) == (50, ["id", "vector", "good", "score"])


def test_batches_outlive_the_reader(tmp_path: Path) -> None:
    path = store(tmp_path / "a", table_of(500), 100)
    batches = list(ARROW.read(path, ["id"], 0, 500, 50))
    Path(path).unlink()
    assert [v for b in batches for v in b["id"].to_pylist()] == list(range(500))


def test_fingerprint_tells_files_with_other_values_apart(tmp_path: Path) -> None:
    first = store(tmp_path / "a", pa.table({"x": [1, 2]}), 10)
    other = store(tmp_path / "b", pa.table({"x": [1, 3]}), 10)
    assert ARROW.fingerprint(first)[0] == ARROW.fingerprint(other)[0]
    assert ARROW.fingerprint(first)[1] != ARROW.fingerprint(other)[1]


@pytest.mark.parametrize("keep", [6, 8, 100, -4, -12], ids=str)
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = Path(store(tmp_path / "a", table_of(500), 100))
    path.write_bytes(path.read_bytes()[:keep])
    assert recognise(str(path)) == "arrow"
    with pytest.raises(InputError, match="missing or truncated"):
        ARROW.inspect(str(path))


def test_garbled_footer_is_refused(tmp_path: Path) -> None:
    path = Path(store(tmp_path / "a", table_of(500), 100))
    data = path.read_bytes()
    length = int.from_bytes(data[-10:-6], "little")
    path.write_bytes(data[: -10 - length] + b"\xff" * length + data[-10:])
    with pytest.raises(InputError, match="damaged or truncated"):
        ARROW.inspect(str(path))


def test_string_offsets_out_of_bounds_stop_the_work(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array([1, 2], pa.int64()), "text": ["abcdefgh", "ijklmnop"]})
    path = Path(store(tmp_path / "a", table, 10))
    offsets = np.array([0, 8, 16], np.int32).tobytes()
    forged = np.array([0, 8, 1 << 29], np.int32).tobytes()
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, forged))
    with pytest.raises(Damaged, match="at or soon after row 0"):
        list(ARROW.read(str(path), ["text"], 0, 2, 10))


def test_missing_column_is_refused_with_near_matches(tmp_path: Path) -> None:
    path = store(tmp_path / "a", table_of(5), 10)
    with pytest.raises(InputError, match="did you mean `score`"):
        list(ARROW.read(path, ["scores"], 0, 5, 10))


@pytest.mark.parametrize("compression", [None, "lz4", "zstd:9"])
@pytest.mark.parametrize("cuts", [[], [1, 2, 3], [63, 64, 65, 400], range(0, 500, 7)])
def test_bytes_do_not_depend_on_how_the_rows_arrive(
    tmp_path: Path, cuts: Sequence[int], compression: str | None
) -> None:
    table = table_of(500)
    edges = [0, *cuts, 500]
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    whole = write_sink(tmp_path / "whole", [table], compression)
    cut = write_sink(tmp_path / "cut", pieces, compression)
    assert pa.ipc.open_file(whole).num_record_batches > 3
    assert cut.read_bytes() == whole.read_bytes()


def test_what_hides_in_null_slots_is_not_written(tmp_path: Path) -> None:
    def hiding(value: int) -> pa.Table:
        validity = pa.py_buffer(b"\x05")
        values = pa.py_buffer(np.array([1, value, 3], np.int64))
        array = pa.Array.from_buffers(pa.int64(), 3, [validity, values])
        vector = pa.array([[1.0] * 4] * 3, pa.list_(pa.float32(), 4))
        return pa.table({"x": array, "vector": vector})

    first, other = (write_sink(tmp_path / str(v), [hiding(v)]) for v in (7, 8))
    assert first.read_bytes() == other.read_bytes()


def test_what_is_written_reads_back_whole(tmp_path: Path) -> None:
    path = write_sink(tmp_path, [table_of(300)])
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.equals(table_of(300))
    assert table.schema.metadata[b"who"] == b"test"
    assert pl.read_ipc(path)["id"].to_list() == list(range(300))


@pytest.mark.parametrize("compression", ["zstd:1", "lz4"])
def test_what_is_written_compressed_is_smaller_and_reads_back(
    tmp_path: Path, compression: str
) -> None:
    path = write_sink(tmp_path / "small", [table_of(300)], compression)
    assert path.stat().st_size < write_sink(tmp_path / "plain", [table_of(300)]).stat().st_size
    assert pl.read_ipc(path)["id"].to_list() == list(range(300))
    assert sum(len(batch) for batch in ARROW.read(str(path), ["vector"], 0, 300, 100)) == 300


def test_empty_part_is_a_valid_file(tmp_path: Path) -> None:
    path = write_sink(tmp_path, [table_of(0)])
    assert ARROW.inspect(str(path)).rows == 0
