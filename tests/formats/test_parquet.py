from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import encryption

from batchnorm_tool.errors import Damaged, InputError, WorkFailed
from batchnorm_tool.formats import Layout, format_named, recognise
from batchnorm_tool.formats import parquet as rows_module
from batchnorm_tool.formats.parquet import (
    Cursor,
    Cursors,
    Footer,
    GroupRange,
    ReadSpec,
    read_footer,
)
from batchnorm_tool.storage import Storage

PARQUET = format_named("parquet")
LAYOUT = Layout(100, ("vector",), ("norm",), row_group_bytes=4096, metadata={"who": "test"})


def table_of(rows: int, width: int = 4) -> pa.Table:
    values = np.arange(rows * width, dtype=np.float32)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    names = pa.array([None if row % 7 == 3 else f"name {row % 5}" for row in range(rows)])
    norms = pa.array(np.arange(rows, dtype=np.float64))
    return pa.table({"id": np.arange(rows), "name": names, "vector": vector, "norm": norms})


def write_sink(root: Path, tables: Sequence[pa.Table], layout: Layout = LAYOUT) -> Path:
    storage = Storage(root)
    files = []

    def create(path: str) -> object:
        files.append(storage.create(path))
        return files[-1]

    sink = PARQUET.open_sink(create, "vectors/part-000000", tables[0].schema, layout)
    for table in tables:
        sink.write(table)
    sink.close()
    for file in files:
        file.commit()
    return root / "vectors" / "part-000000.parquet"


def store(path: Path, table: pa.Table, group: int = 100, **options: object) -> str:
    pq.write_table(table, path, row_group_size=group, **options)
    return str(path)


def ids(path: str, start: int, stop: int, batch_rows: int = 64) -> list[int]:
    batches = PARQUET.read(path, ["id"], start, stop, batch_rows)
    return [value for batch in batches for value in batch["id"].to_pylist()]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1000), (0, 1), (99, 101), (100, 200), (250, 749), (999, 1000), (5, 5)]
)
@pytest.mark.parametrize("batch_rows", [1, 64, 5000])
def test_reads_exactly_the_rows_asked_for(
    tmp_path: Path, start: int, stop: int, batch_rows: int
) -> None:
    path = store(tmp_path / "a.parquet", table_of(1000))
    batches = list(PARQUET.read(path, ["norm", "id"], start, stop, batch_rows))
    assert all(batch.schema.names == ["norm", "id"] for batch in batches)
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)
    assert [v for b in batches for v in b["id"].to_pylist()] == list(range(start, stop))


def test_parts_that_share_a_row_group_read_their_own_rows(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", table_of(1000), group=1000)
    starts = [640, 0, 128, 64, 700, 960, 192]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda start: ids(path, start, min(start + 64, 1000), 48), starts))
    assert read == [list(range(start, min(start + 64, 1000))) for start in starts]


def test_next_part_goes_on_where_the_last_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "a.parquet", table_of(1000), group=1000)
    opened = []

    class Counted(Cursor):
        def __init__(self, stretch: ReadSpec, footer: Footer, groups: GroupRange) -> None:
            opened.extend(groups.numbers)
            super().__init__(stretch, footer, groups)

    monkeypatch.setattr(rows_module, "Cursor", Counted)
    cursors, stretch = Cursors(), ReadSpec(path, (), ("id",), 100)
    for start in range(0, 1000, 50):
        batches = list(cursors.read(stretch, read_footer(path, ()), start, start + 50))
        assert [v for b in batches for v in b["id"].to_pylist()] == [*range(start, start + 50)]
    assert opened == [0]
    assert not cursors._idle


@given(
    sizes=st.lists(st.integers(0, 4), max_size=12),
    ends=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_any_rows_of_any_row_groups_are_read(sizes: list[int], ends: tuple[int, int]) -> None:
    rows = sum(sizes)
    start, stop = sorted(min(end, rows) for end in ends)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.parquet"
        with pq.ParquetWriter(path, pa.schema({"id": pa.int64()})) as writer:
            for first, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
                writer.write_table(pa.table({"id": np.arange(first, first + size)}))
        assert ids(path, start, stop, 3) == [*range(start, stop)]


def test_small_row_groups_are_opened_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(tmp_path / "a.parquet", table_of(1000), group=1)
    opened = []
    real = rows_module.open_parquet
    monkeypatch.setattr(
        rows_module, "open_parquet", lambda *a, **k: opened.append(a) or real(*a, **k)
    )
    for start in range(0, 1000, 100):
        assert ids(path, start, start + 100) == [*range(start, start + 100)]
    assert len(opened) == 11, "once for the footer, once for each part"


def test_a_part_larger_than_the_read_ahead_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "READ_AHEAD_BYTES", 500)
    path = store(tmp_path / "a.parquet", table_of(1000), group=400)
    assert ids(path, 10, 990, 20) == list(range(10, 990))


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    rows, width = 60_000, 256
    values = np.random.default_rng(0).standard_normal(rows * width, dtype=np.float32)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    path = store(tmp_path / "a.parquet", pa.table({"v": vector}), group=rows, use_dictionary=False)
    del vector, values
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() for _ in PARQUET.read(path, ["v"], 0, rows, 1000)]
    read_ahead = rows_module.READ_AHEAD_BYTES
    assert max(held) - before < 1.5 * read_ahead < rows * width * 4


def test_constant_column_bomb_stays_small(tmp_path: Path) -> None:
    rows = 400_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * 1000])
    path = store(tmp_path / "a.parquet", pa.table({"t": text.cast(pa.string())}), group=rows)
    assert Path(path).stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() for _ in PARQUET.read(path, ["t"], 0, rows, 1000)]
    assert max(held) - before < 64 * 2**20 < rows * 1000


def test_inspect_tells_schema_rows_and_identity(tmp_path: Path) -> None:
    table = table_of(250)
    path = store(tmp_path / "a.parquet", table)
    found = PARQUET.inspect(path)
    assert (found.rows, found.bytes) == (250, Path(path).stat().st_size)
    assert found.schema.names == table.schema.names
    assert found.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert found.details["row_groups"] == 3
    assert (found.bytes, found.fingerprint) == PARQUET.fingerprint(path)


def test_fingerprint_tells_files_with_other_values_apart(tmp_path: Path) -> None:
    first = store(tmp_path / "a.parquet", pa.table({"x": [1, 2]}))
    same = store(tmp_path / "b.parquet", pa.table({"x": [1, 2]}))
    other = store(tmp_path / "c.parquet", pa.table({"x": [1, 3]}))
    assert PARQUET.fingerprint(first) == PARQUET.fingerprint(same)
    assert PARQUET.fingerprint(first)[1] != PARQUET.fingerprint(other)[1]


def test_tensor_extension_is_read_as_a_flat_list_with_its_shape(tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(24.0).reshape(4, 2, 3))
    path = store(tmp_path / "a.parquet", pa.table({"t": tensors}))
    field = PARQUET.inspect(path).schema.field("t")
    assert field.type == pa.list_(pa.float64(), 6)
    assert field.metadata[b"shape"] == b"[2, 3]"
    (batch,) = PARQUET.read(path, ["t"], 1, 2, 10)
    assert batch.schema.field("t").metadata[b"shape"] == b"[2, 3]"
    assert batch["t"].to_pylist() == [[6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]


def test_missing_column_is_refused_with_near_matches(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", table_of(10))
    with pytest.raises(InputError, match=r"no column `vectors` .did you mean `vector`"):
        list(PARQUET.read(path, ["vectors"], 0, 10, 5))


def test_column_whose_name_has_a_dot_is_not_mixed_up(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", pa.table({"a": [1], "a.b": [2]}))
    (batch,) = PARQUET.read(path, ["a"], 0, 1, 5)
    assert batch.to_pydict() == {"a": [1]}


def damaged(path: Path, kind: str) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    contents = {
        "magic only": b"PAR1",
        "magic twice": b"PAR1PAR1",
        "truncated": data[: len(data) // 2],
        "footer cut": data[: -length // 2],
        "footer claims more": data[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1",
        "footer garbled": data[: -8 - length] + b"\xff" * length + data[-8:],
        "encrypted": b"PARE" + data[4:-4] + b"PARE",
        "front cut": data[200:],
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("magic only", "missing or truncated"),
        ("magic twice", "missing or truncated"),
        ("truncated", "missing or truncated"),
        ("footer cut", "missing or truncated"),
        ("footer claims more", "missing or truncated"),
        ("footer garbled", "damaged or truncated"),
        ("encrypted", "encrypted"),
    ],
)
def test_damaged_footer_is_refused(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "a.parquet"
    store(path, table_of(100))
    damaged(path, kind)
    assert recognise(str(path)) == "parquet"
    with pytest.raises(InputError, match=words) as caught:
        PARQUET.inspect(str(path))
    assert str(path) in caught.value.message


def test_column_encrypted_under_a_plain_footer_is_named_so(tmp_path: Path) -> None:
    class Keys(encryption.KmsClient):
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return key

    factory = encryption.CryptoFactory(lambda _: Keys())
    settings = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["id"]}, plaintext_footer=True
    )
    connection = encryption.KmsConnectionConfig()
    properties = factory.file_encryption_properties(connection, settings)
    path = store(tmp_path / "a.parquet", table_of(10), encryption_properties=properties)
    with pytest.raises((InputError, Damaged), match="encrypted"):
        ids(path, 0, 10)


def test_flipped_bit_in_a_checksummed_page_stops_the_work(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    store(path, table_of(1000), compression="none", write_page_checksum=True, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(5).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 0x10
    path.write_bytes(data)
    assert ids(str(path), 0, 500) == list(range(500))
    with pytest.raises(Damaged, match=r"a\.parquet, at or soon after row 500: .*checksum"):
        ids(str(path), 480, 600)


def test_page_cut_short_stops_the_work(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    store(path, table_of(1000), compression="none")
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data[column.data_page_offset : column.data_page_offset + 12] = b"\x00" * 12
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"[Ww]rite or copy it again"):
        ids(str(path), 0, 1000)


def test_rows_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", table_of(10))
    with pytest.raises(WorkFailed, match="no rows 5 to 11"):
        ids(path, 5, 11)


def test_duplicate_column_names_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    path = store(tmp_path / "a.parquet", table)
    with pytest.raises(InputError, match=r"same name.*'x'"):
        PARQUET.inspect(path)


@pytest.mark.parametrize("cuts", [[500], [1, 2, 3], [63, 64, 65, 400], range(0, 500, 7)])
@pytest.mark.parametrize("split", [False, True], ids=["plain", "byte stream split"])
def test_bytes_do_not_depend_on_how_the_rows_arrive(
    tmp_path: Path, cuts: Sequence[int], *, split: bool
) -> None:
    table = table_of(500)
    layout = Layout(500, ("vector",), ("norm",), 4096, byte_stream_split=split)
    whole = write_sink(tmp_path / "whole", [table], layout)
    edges = [0, *cuts, 500]
    pieces = [table.slice(start, max(0, stop - start)) for start, stop in itertools.pairwise(edges)]
    cut = write_sink(tmp_path / "cut", pieces, layout)
    assert pq.ParquetFile(whole).metadata.num_row_groups > 3
    assert cut.read_bytes() == whole.read_bytes()


def test_dictionary_encoded_rows_give_the_bytes_of_plain_ones(tmp_path: Path) -> None:
    table = table_of(50)
    encoded = table.set_column(1, "name", table["name"].dictionary_encode())
    halves = [encoded.slice(0, 20), encoded.slice(20).unify_dictionaries()]
    assert (
        write_sink(tmp_path / "a", halves).read_bytes()
        == write_sink(tmp_path / "b", [table]).read_bytes()
    )


def test_layout_is_the_plain_one(tmp_path: Path) -> None:
    path = write_sink(tmp_path, [table_of(500)])
    file = pq.ParquetFile(path, page_checksum_verification=True)
    columns = {c.path_in_schema: c for c in map(file.metadata.row_group(0).column, range(4))}
    vector = columns["vector.list.element"]
    assert set(vector.encodings) == {"PLAIN", "RLE"}
    assert not vector.has_dictionary_page
    assert not columns["norm"].has_dictionary_page
    assert columns["name"].has_dictionary_page
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert file.schema_arrow.metadata[b"who"] == b"test"
    assert file.schema_arrow.field("vector").type == pa.list_(pa.float32(), 4)
    assert file.read().equals(table_of(500))


@pytest.mark.parametrize(
    ("compression", "codec"), [("zstd:9", "ZSTD"), ("lz4", "LZ4"), ("none", "UNCOMPRESSED")]
)
def test_other_compressions_hold_the_same_rows(
    tmp_path: Path, compression: str, codec: str
) -> None:
    tables = [table_of(500)]
    path = write_sink(tmp_path / "other", tables, replace(LAYOUT, compression=compression))
    usual = write_sink(tmp_path / "usual", tables)
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert {group.column(place).compression for place in range(4)} == {codec}
    assert path.read_bytes() != usual.read_bytes()
    assert list(PARQUET.read(str(path), ["name"], 0, 500, 500)) == list(
        PARQUET.read(str(usual), ["name"], 0, 500, 500)
    )


def test_row_groups_have_about_the_bytes_asked_for(tmp_path: Path) -> None:
    path = write_sink(tmp_path, [table_of(2000, width=32)])
    sizes = rows_module.group_sizes(pq.ParquetFile(path).metadata)
    assert set(sizes[:-1]) <= {24, 25, 26, 27, 28}  # 4096 bytes / (128 + 8 + 8 + about 10)
    assert sum(sizes) == 2000


def test_small_tables_share_their_pages(tmp_path: Path) -> None:
    tables = [table_of(50, width=32)] * 40
    for name, written in (("many", tables), ("one", [pa.concat_tables(tables).combine_chunks()])):
        (tmp_path / name).mkdir()
        write_sink(tmp_path / name, written, Layout(2000, ("vector",)))
    many, one = (tmp_path / name / "vectors/part-000000.parquet" for name in ("many", "one"))
    assert many.read_bytes() == one.read_bytes()


def test_long_strings_make_small_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 3000] * 10 + ["y"] * 200})
    path = write_sink(tmp_path, [table], Layout(210, (), row_group_bytes=4096))
    assert rows_module.group_sizes(pq.ParquetFile(path).metadata)[:5] == [2] * 5


def test_empty_part_is_a_valid_file(tmp_path: Path) -> None:
    path = write_sink(tmp_path, [table_of(0)])
    assert PARQUET.inspect(str(path)).rows == 0
    assert pq.read_table(path).schema.names == ["id", "name", "vector", "norm"]


def test_null_vectors_stay_null(tmp_path: Path) -> None:
    vector = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    table = pa.table({"vector": vector, "norm": pa.array([1.0, None, 2.0])})
    path = write_sink(tmp_path, [table.slice(1)])
    assert pq.read_table(path).to_pydict() == {"vector": [None, [3.0, 4.0]], "norm": [None, 2.0]}


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda d: np.stack(pd.read_parquet(d)["vector"].to_list()), id="pandas"),
        pytest.param(lambda d: pl.read_parquet(f"{d}/")["vector"].to_numpy(), id="polars"),
        pytest.param(
            lambda d: np.array(
                duckdb.sql(
                    "select vector from read_parquet(?) order by id", params=[f"{d}/*.parquet"]
                ).fetchall()
            ).squeeze(1),
            id="duckdb",
        ),
        pytest.param(
            lambda d: np.stack(ds.dataset(d).to_table()["vector"].to_pylist()), id="dataset"
        ),
    ],
)
def test_other_libraries_read_the_directory(tmp_path: Path, read: object) -> None:
    table = table_of(300)
    directory = write_sink(tmp_path, [table]).parent
    expected = np.arange(1200, dtype=np.float32).reshape(300, 4)
    assert np.array_equal(np.asarray(read(str(directory)), np.float32), expected)


def test_readers_of_one_row_group_take_turns(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", table_of(1000), group=1000)
    seen: list[list[int]] = []
    threads = [threading.Thread(target=lambda: seen.append(ids(path, 500, 600))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [list(range(500, 600))] * 4


def test_text_that_is_no_utf_8_is_damage_and_names_column_and_row(tmp_path: Path) -> None:
    data = pa.array([b"a", b"\xff\xfe"])
    text = pa.StringArray.from_buffers(2, *data.buffers()[1:])
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [1, 2], "word": text}), path, write_statistics=False)
    assert ids(path, 0, 2) == [1, 2]
    with pytest.raises(Damaged, match=r"a\.parquet, at or soon after row 0.*column `word`: .*UTF8"):
        list(PARQUET.read(path, ["word"], 0, 2, 64))
