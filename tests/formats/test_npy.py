from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.errors import Damaged, InputError, OutputError
from batchnorm_tool.formats import Layout, format_named, npy, recognise
from batchnorm_tool.formats.npy import Npy
from batchnorm_tool.storage import Storage

NPY = format_named("npy")


def store(path: Path, array: np.ndarray) -> str:
    np.save(path, array, allow_pickle=True)
    return str(path)


def with_header(path: Path, header: str, data: bytes, *, version: int = 1) -> str:
    width = {1: 2, 2: 4, 3: 4}[version]
    text = header.encode() + b"\n"
    length = len(text).to_bytes(width, "little")
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + data)
    return str(path)


def values(path: str, start: int, stop: int, batch_rows: int = 3) -> np.ndarray:
    batches = list(NPY.read(path, ["data"], start, stop, batch_rows))
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)
    return np.array([row for batch in batches for row in batch["data"].to_pylist()])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u2", "u8"])
@pytest.mark.parametrize("shape", [(10,), (10, 3), (10, 2, 3), (10, 2, 1, 4)], ids=str)
def test_reads_what_was_saved(
    tmp_path: Path, order: str, byte_order: str, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(byte_order + dtype)
    path = store(tmp_path / "a.npy", np.asarray(array, order=order))
    expected = array[2:9].reshape(7, -1) if len(shape) > 1 else array[2:9]
    assert np.array_equal(values(path, 2, 9), expected)
    assert NPY.inspect(path).rows == 10


def test_column_is_a_flat_list_with_its_shape(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npy", np.zeros((5, 8, 8, 1), np.uint8))
    field = NPY.inspect(path).schema.field("data")
    assert field.type == pa.list_(pa.uint8(), 64)
    assert field.metadata == {b"shape": b"[8, 8, 1]"}
    (batch,) = NPY.read(path, ["data"], 0, 5, 10)
    assert batch.schema.field("data").equals(field, check_metadata=True)


def test_one_axis_is_a_plain_column(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npy", np.arange(5, dtype=np.int64))
    assert NPY.inspect(path).schema.field("data").type == pa.int64()


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    array = np.array([[np.nan, -0.0, np.inf, 1e-45]], np.float32)
    (batch,) = NPY.read(store(tmp_path / "a.npy", array), ["data"], 0, 1, 1)
    assert batch["data"].null_count == batch["data"].values.null_count == 0
    assert batch["data"].values.to_numpy().tobytes() == array.tobytes()


def test_booleans(tmp_path: Path) -> None:
    array = np.array([[True, False], [False, True]])
    path = store(tmp_path / "a.npy", array)
    assert NPY.inspect(path).schema.field("data").type == pa.list_(pa.bool_(), 2)
    assert np.array_equal(values(path, 0, 2), array)


@pytest.mark.parametrize("dtype", ["<U5", ">U5", "S5"])
def test_texts(tmp_path: Path, dtype: str) -> None:
    path = store(tmp_path / "a.npy", np.array(["a", "bcdef", ""], dtype))
    assert NPY.inspect(path).schema.field("data").type == pa.string()
    assert values(path, 0, 3).tolist() == ["a", "bcdef", ""]


def test_bytes_that_are_no_text_stop_the_work(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npy", np.array([b"ok", b"ok", b"\xff\xfe", b"ok"]))
    with pytest.raises(Damaged, match="at or soon after row 2"):
        values(path, 0, 4, 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_bfloat16_is_read_where_the_job_names_it(tmp_path: Path, order: str) -> None:
    array = np.array([[1.5, -2.0], [3e38, 1e-40], [0.1, np.inf]]).astype(ml_dtypes.bfloat16)
    path = store(tmp_path / "a.npy", np.asarray(array, order=order))
    with pytest.raises(InputError, match=r"input\.dtype: bfloat16"):
        NPY.inspect(path)
    form = Npy(dtype="bfloat16")
    assert form.inspect(path).schema.field("data").type == pa.list_(pa.float32(), 2)
    (batch,) = form.read(path, ["data"], 0, 3, 10)
    expected = array.astype(np.float32)
    assert np.array_equal(batch["data"].values.to_numpy().reshape(3, 2), expected)


def test_fortran_order_gives_the_bytes_of_c_order(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((50, 3, 5))
    paths = [
        store(tmp_path / f"{order}.npy", np.asarray(array, order=order)) for order in ("C", "F")
    ]
    c_order, f_order = (list(NPY.read(path, ["data"], 11, 47, 10)) for path in paths)
    assert c_order == f_order


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        pytest.param(HEADER % "(10, 4)", 159, "truncated", id="truncated"),
        pytest.param(HEADER % "(10, 4)", 161, "followed by other bytes", id="trailing bytes"),
        pytest.param(HEADER % "(1000000000000, 4)", 160, "truncated", id="huge shape"),
        pytest.param(HEADER % "(4294967296, 4294967296)", 0, "1 to", id="size that wraps int64"),
        pytest.param(HEADER % "(-1, 4)", 0, "Expected", id="negative"),
        pytest.param(HEADER % "(1000000000000, 0)", 0, "1 to", id="rows of nothing"),
        pytest.param(HEADER % "()", 4, "0-d", id="no axis"),
        pytest.param("[" * 9000, 0, "readable header", id="nesting bomb"),
        pytest.param("{'descr': '<f4'}", 0, "readable header", id="keys missing"),
        pytest.param("__import__('os').getcwd()", 0, "readable header", id="code"),
        pytest.param(HEADER.replace("<f4", "<c8") % "(2,)", 16, "complex64", id="complex"),
        pytest.param(HEADER.replace("<f4", "<M8[s]") % "(2,)", 16, "datetime64", id="time"),
        pytest.param(HEADER.replace("<f4", "<f16") % "(2,)", 32, "float128", id="long double"),
        pytest.param(HEADER.replace("<f4", "|S0") % "(9,)", 0, "Expected", id="empty texts"),
        pytest.param(HEADER.replace("<f4", "|V3") % "(2,)", 6, "V3", id="void"),
        pytest.param(HEADER.replace("'<f4'", "[('a', '<f4')]") % "(2,)", 8, "'a'", id="structure"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: str, size: int, words: str) -> None:
    path = with_header(tmp_path / "a.npy", header, b"\0" * size)
    with pytest.raises(InputError) as caught:
        NPY.inspect(path)
    assert words in caught.value.message
    assert path in caught.value.message


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    path = store(tmp_path / "a.npy", np.array([{"a": 1}, None], object))
    with pytest.raises(InputError, match="Python objects"):
        NPY.inspect(path)


def test_header_bomb_is_refused_by_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 50_000)
    with pytest.raises(InputError, match="expected 2147483648 bytes"):
        NPY.inspect(str(path))


@pytest.mark.parametrize("length", range(6, 60, 9))
def test_truncated_header_is_refused(tmp_path: Path, length: int) -> None:
    path = Path(store(tmp_path / "a.npy", np.zeros((2, 2))))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError):
        NPY.inspect(str(path))


@given(flips=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4))
def test_garbled_headers_are_read_or_refused(
    flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbled.npy"
    store(path, np.arange(12, dtype=np.float32).reshape(3, 4))
    data = bytearray(path.read_bytes())
    for place, byte in flips:
        data[place] = byte
    path.write_bytes(data)
    try:
        rows = NPY.inspect(str(path)).rows
    except InputError:
        return
    assert sum(b.num_rows for b in NPY.read(str(path), ["data"], 0, rows, 100)) == rows


def test_headers_are_parsed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    inside, most = [], []
    parse = npy._PARSERS[(1, 0)]

    def watched(file: io.BytesIO) -> npy._Parsed:
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()
        return parse(file)

    monkeypatch.setitem(npy._PARSERS, (1, 0), watched)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Npy().inspect, [str(tmp_path / "a.npy")] * 6))
    assert most == [1] * len(most)


def test_zip_archive_is_refused_with_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"NumPy archive .*npz.*numpy.load"):
        recognise(str(tmp_path / "a.npz"))


def test_file_that_shrinks_while_it_is_read_stops_the_work(tmp_path: Path) -> None:
    path = Path(store(tmp_path / "a.npy", np.zeros((100, 8))))
    batches = NPY.read(str(path), ["data"], 0, 100, 10)
    next(batches)
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(Damaged, match=r"row 20.*too early"):
        list(batches)


def test_fingerprint_notices_other_data_of_the_same_shape(tmp_path: Path) -> None:
    first = store(tmp_path / "a.npy", np.zeros((9, 9)))
    other = store(tmp_path / "b.npy", np.eye(9))
    assert NPY.fingerprint(first)[0] == NPY.fingerprint(other)[0]
    assert NPY.fingerprint(first)[1] != NPY.fingerprint(other)[1]


def write_sink(root: Path, tables: Sequence[pa.Table], layout: Layout) -> Path:
    storage = Storage(root)
    files = []

    def create(path: str) -> object:
        files.append(storage.create(path))
        return files[-1]

    sink = NPY.open_sink(create, "vectors/part-000007", tables[0].schema, layout)
    for table in tables:
        sink.write(table)
    sink.close()
    for file in files:
        file.commit()
    return root


def vectors_of(array: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_are_those_of_numpy_save(tmp_path: Path, dtype: str) -> None:
    array = np.arange(40).reshape(10, 4).astype(dtype)
    table = pa.table({"id": np.arange(10), "vector": vectors_of(array), "norm": np.arange(10) / 2})
    layout = Layout(10, ("vector",), ("norm",))
    write_sink(tmp_path, [table.slice(0, 3), table.slice(3)], layout)
    expected = io.BytesIO()
    np.save(expected, array)
    assert (tmp_path / "vectors/part-000007.npy").read_bytes() == expected.getvalue()
    assert np.array_equal(np.load(tmp_path / "norms/part-000007.npy"), np.arange(10) / 2)
    keys = pq.read_table(tmp_path / "keys/part-000007.parquet")
    assert keys.to_pydict() == {"id": list(range(10))}


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_header_is_corrected_where_rows_were_dropped(tmp_path: Path, rows: int) -> None:
    array = np.arange(28, dtype=np.float32).reshape(7, 4)[:rows]
    table = pa.table({"vector": vectors_of(array)})
    write_sink(tmp_path, [table], Layout(123_456, ("vector",)))
    stored = np.load(tmp_path / "vectors/part-000007.npy")
    assert stored.shape == (rows, 4)
    assert np.array_equal(stored, array)
    assert NPY.inspect(str(tmp_path / "vectors/part-000007.npy")).rows == rows


def test_higher_ranks_get_their_true_shape(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 12)
    field = pa.field("vector", pa.list_(pa.float32(), 12), metadata={"shape": "[3, 4]"})
    norms = vectors_of(np.ones((2, 3)))
    norm_field = pa.field("norm", norms.type)
    table = pa.table([vectors_of(array), norms], schema=pa.schema([field, norm_field]))
    write_sink(tmp_path, [table], Layout(2, ("vector",), ("norm",)))
    stored = np.load(tmp_path / "vectors/part-000007.npy")
    assert np.array_equal(stored, array.reshape(2, 3, 4))
    assert np.load(tmp_path / "norms/part-000007.npy").shape == (2, 3)


def test_null_vectors_become_nan(tmp_path: Path) -> None:
    vector = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    table = pa.table({"vector": vector, "norm": pa.array([1.0, None, 5.0])})
    write_sink(tmp_path, [table.slice(1)], Layout(2, ("vector",), ("norm",)))
    stored = np.load(tmp_path / "vectors/part-000007.npy")
    assert np.isnan(stored[0]).all()
    assert stored[1].tolist() == [3.0, 4.0]
    assert np.isnan(np.load(tmp_path / "norms/part-000007.npy")[0])


def test_several_vector_columns_get_directories_of_their_own(tmp_path: Path) -> None:
    arrays = {name: np.full((3, 2), number) for number, name in enumerate(["a:b", "c"])}
    columns = {name: vectors_of(array.astype(np.float32)) for name, array in arrays.items()}
    norms = {f"{name}_norm": np.ones(3) for name in arrays}
    layout = Layout(3, tuple(columns), tuple(norms))
    write_sink(tmp_path, [pa.table({**columns, **norms})], layout)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy"))
    directories = ["a%3Ab", "a%3Ab_norm", "c", "c_norm"]
    assert names == [f"{directory}/part-000007.npy" for directory in directories]
    assert np.array_equal(np.load(tmp_path / "c/part-000007.npy"), arrays["c"])


def test_vector_column_called_keys_is_refused(tmp_path: Path) -> None:
    column = vectors_of(np.ones((1, 2), np.float32))
    table = pa.table({"keys": column, "other": column})
    with pytest.raises(OutputError, match="keys"):
        write_sink(tmp_path, [table], Layout(1, ("keys", "other")))
