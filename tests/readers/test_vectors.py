"""Stored predictions, whatever they lie in, come as the raw vectors that they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.run.run import run
from batchnorm_tool.errors import Damaged, InputError, InputWarning
from batchnorm_tool.job import Input, Job, Normalize, Output
from batchnorm_tool.readers.source import VectorSource
from batchnorm_tool.readers.vectors import open_predictions

ROWS, WIDTH = 300, 5


def vectors(rows: int = ROWS, width: int = WIDTH, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows + width).normal(size=(rows, width)).astype(dtype)


def lists(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def store(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def loaded(found: VectorSource) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in found.batches()])


def missing(found: VectorSource) -> list[int]:
    flags = [batch.missing for batch in found.batches()]
    return np.flatnonzero(np.concatenate(flags)).tolist()


def normalized(path: Path, out: Path, **sections: Any) -> Path:
    job = Job(
        input=Input(path=str(path), **sections.get("input", {})),
        normalize=Normalize(**sections.get("normalize", {})),
        output=Output(path=str(out), part_rows=128, **sections.get("output", {})),
    )
    run(job)
    return out


def write_parquet(path: Path, x: np.ndarray) -> None:
    store(path, raw=lists(x))


def write_open_lists(path: Path, x: np.ndarray) -> None:
    store(path, raw=pa.array(x.tolist(), pa.list_(pa.from_numpy_dtype(x.dtype))))


def write_arrow(path: Path, x: np.ndarray) -> None:
    pyarrow.feather.write_feather(pa.table({"raw": lists(x)}), path, compression="uncompressed")


def write_npy(path: Path, x: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, x)


WRITERS = {
    "parquet": write_parquet,
    "lists of open length": write_open_lists,
    "arrow": write_arrow,
    "npy": write_npy,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_come_as_they_are_stored(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None], dtype: str
) -> None:
    write(tmp_path / "file", vectors(dtype=dtype))
    found = open_predictions(tmp_path / "file")
    np.testing.assert_array_equal(loaded(found), vectors(dtype=dtype), strict=True)
    assert (found.kind, found.rows, found.width, found.dtype) == ("data", ROWS, WIDTH, dtype)
    assert (found.keys, found.provenance) == ((), None)
    assert missing(found) == []


def test_vectors_are_views_of_what_was_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "file", vectors())
    (batch,) = open_predictions(tmp_path / "file").batches()
    assert not batch.vectors.flags.writeable
    assert batch.vectors.flags.c_contiguous


def test_whole_numbers_become_float64(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.int32).reshape(4, 3)
    write_npy(tmp_path / "x.npy", numbers)
    found = open_predictions(tmp_path / "x.npy")
    np.testing.assert_array_equal(loaded(found), numbers.astype(np.float64), strict=True)
    assert found.dtype == "float64"


def test_scalar_columns_make_a_vector(tmp_path: Path) -> None:
    x = vectors(width=2)
    path = store(tmp_path / "wide", b=x[:, 1], a=x[:, 0], label=np.arange(ROWS))
    found = open_predictions(path, column=("a", "b"))
    np.testing.assert_array_equal(loaded(found), x, strict=True)
    assert found.columns == ("label",)
    assert found.facts()["column"] == ["a", "b"]


def test_a_pattern_makes_a_vector_of_scalar_columns(tmp_path: Path) -> None:
    x = vectors(width=3)
    path = store(tmp_path / "wide", e_0=x[:, 0], e_1=x[:, 1], e_2=x[:, 2], e_id=np.arange(ROWS))
    found = open_predictions(path, column="e_*", key="e_id")
    np.testing.assert_array_equal(loaded(found), x, strict=True)
    assert (found.column, found.columns) == (("e_0", "e_1", "e_2"), ("e_id",))


def test_files_of_a_directory_follow_each_other(tmp_path: Path) -> None:
    for name, part in zip("abc", np.split(vectors(), 3), strict=True):
        write_parquet(tmp_path / f"{name}.parquet", part)
    found = open_predictions(tmp_path)
    np.testing.assert_array_equal(loaded(found), vectors())
    assert [batch.first_row for batch in found.batches()] == [0, 100, 200]
    glob = open_predictions(f"{tmp_path}/[ab].parquet")
    np.testing.assert_array_equal(loaded(glob), vectors()[:200])


@pytest.mark.parametrize(
    ("width", "most"), [(2, 16_384), (1024, 2048)], ids=["many rows", "many bytes"]
)
def test_batches_are_small(tmp_path: Path, width: int, most: int) -> None:
    rows = most + 5
    write_npy(tmp_path / "x.npy", np.ones((rows, width), np.float32))
    found = open_predictions(tmp_path / "x.npy")
    assert [batch.rows for batch in found.batches()] == [most, 5]


def test_batches_start_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x", vectors())
    found = open_predictions(tmp_path / "x")
    next(found.batches())
    np.testing.assert_array_equal(loaded(found), vectors())
    np.testing.assert_array_equal(loaded(found), vectors())


def test_further_columns_come_along(tmp_path: Path) -> None:
    label = pa.array([f"class {row}" for row in range(ROWS)])
    path = store(tmp_path / "x", id=np.arange(ROWS) * 2, label=label, raw=lists(vectors()))
    found = open_predictions(path, key="id")
    assert found.keys == ("id",)
    assert found.columns == ("id", "label")
    (batch,) = found.batches(["label", *found.keys])
    assert batch.columns.column_names == ["label", "id"]
    assert batch.columns["id"].to_pylist() == list(range(0, 2 * ROWS, 2))
    assert batch.columns["label"].combine_chunks() == label
    (bare,) = found.batches()
    assert bare.columns.column_names == []
    assert bare.columns.num_rows == ROWS


def test_partitions_are_columns(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        write_parquet(tmp_path / f"day={day}" / "x.parquet", vectors(3))
    found = open_predictions(tmp_path)
    days = [batch.columns["day"].to_pylist() for batch in found.batches(["day"])]
    assert days == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (None, pa.list_(pa.float32(), 2)),
        ([1.0, None], pa.list_(pa.float32(), 2)),
        ([1.0], pa.list_(pa.float32())),
        ([1.0, 2.0, 3.0], pa.list_(pa.float32())),
    ],
    ids=["null", "null component", "short", "long"],
)
def test_null_and_ragged_vectors_are_missing(tmp_path: Path, bad: object, kind: Any) -> None:
    path = store(tmp_path / "x", raw=pa.array([[1, 2], bad, [3, 4]], kind))
    found = open_predictions(path)
    assert found.width == 2
    assert missing(found) == [1]
    np.testing.assert_array_equal(loaded(found), [[1, 2], [np.nan, np.nan], [3, 4]])


def test_values_that_are_not_finite_are_not_missing(tmp_path: Path) -> None:
    x = np.array([[1, np.nan], [np.inf, 2], [0, 0]], np.float32)
    write_parquet(tmp_path / "x", x)
    found = open_predictions(tmp_path / "x")
    assert missing(found) == []
    np.testing.assert_array_equal(loaded(found), x)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 7), pa.list_(pa.float32())], ids=str)
def test_a_source_without_rows_is_empty(tmp_path: Path, kind: pa.DataType) -> None:
    found = open_predictions(store(tmp_path / "x", raw=pa.array([], kind)))
    assert found.rows == 0
    assert list(found.batches()) == []


def test_columns_are_read_without_vectors(tmp_path: Path) -> None:
    for first, name in ((0, "a"), (100, "b")):
        store(tmp_path / name, id=np.arange(first, first + 100), raw=lists(vectors(100)))
    table = open_predictions(tmp_path).read_columns(["id"])
    assert table.column_names == ["id"]
    assert table["id"].to_pylist() == list(range(200))
    assert open_predictions(tmp_path).locate(130) == f"{tmp_path}/b, row 30"


# Finished runs


@pytest.mark.parametrize("form", ["parquet", "arrow", "npy"])
@pytest.mark.parametrize("norm", ["l2", "l1", "none"])
def test_predictions_of_a_run_are_restored(tmp_path: Path, form: str, norm: str) -> None:
    source = store(tmp_path / "in.parquet", id=np.arange(ROWS), raw=lists(vectors()))
    sections = {"normalize": {"norm": norm}, "output": {"format": form}}
    out = normalized(source, tmp_path / "out", input={"key": "id"}, **sections)
    found = open_predictions(out)
    np.testing.assert_allclose(loaded(found), vectors(), rtol=2e-7)
    assert (found.kind, found.rows, found.width, found.dtype) == ("run", ROWS, WIDTH, "float32")
    assert found.keys == ("id",)
    assert [batch.first_row for batch in found.batches()] == [0, 128, 256]
    ids = [batch.columns["id"].to_numpy() for batch in found.batches(found.keys)]
    assert np.concatenate(ids).tolist() == list(range(ROWS))


def test_rows_of_a_run_without_a_key_keep_their_numbers(tmp_path: Path) -> None:
    x = vectors()
    x[3] = np.nan
    source = store(tmp_path / "in.parquet", raw=lists(x))
    fate = {"nonfinite": "drop", "max_bad_fraction": 1}
    found = open_predictions(normalized(source, tmp_path / "out", normalize=fate))
    assert found.keys == ("row",)
    first = next(found.batches(["row"]))
    assert first.columns["row"].to_pylist()[:5] == [0, 1, 2, 4, 5]


def test_a_nullified_vector_is_missing(tmp_path: Path) -> None:
    x = vectors()
    x[[3, 130], 2] = np.nan
    fate = {"nonfinite": "nullify", "max_bad_fraction": 1}
    source = store(tmp_path / "in.parquet", raw=lists(x))
    found = open_predictions(normalized(source, tmp_path / "out", normalize=fate))
    assert missing(found) == [3, 130]
    assert np.isnan(loaded(found)[[3, 130]]).all()


def test_the_directory_of_its_vectors_is_the_run(tmp_path: Path) -> None:
    source = store(tmp_path / "in.parquet", raw=lists(vectors()))
    out = normalized(source, tmp_path / "out")
    found = open_predictions(out / "vectors")
    assert found.kind == "run"
    np.testing.assert_allclose(loaded(found), vectors(), rtol=2e-7)


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_columns_of_a_run_are_read_without_vectors(tmp_path: Path, form: str) -> None:
    source = store(tmp_path / "in.parquet", raw=lists(vectors()))
    out = normalized(source, tmp_path / "out", output={"format": form})
    found = open_predictions(out)
    assert found.read_columns(["row"])["row"].to_pylist() == list(range(ROWS))
    assert found.locate(130) == f"{out}/vectors/part-000001.{form}, row 2"


def test_an_output_is_chosen_by_its_name(tmp_path: Path) -> None:
    a, b = vectors(), vectors(width=3)
    source = store(tmp_path / "in.parquet", a=lists(a), b=lists(b))
    named = {"features": {"left": "a", "right": "b"}}
    out = normalized(source, tmp_path / "out", input=named)
    found = open_predictions(out, column="right")
    assert (found.width, found.column) == (3, ("right",))
    assert found.columns == ("row", "left_norm", "right_norm")
    np.testing.assert_allclose(loaded(found), b, rtol=2e-7)
    with pytest.raises(InputError, match=r"one of: `left`, `right`\. Received: none"):
        open_predictions(out)
    with pytest.raises(InputError, match=r"Received: `rigth` \(did you mean `right`\?\)"):
        open_predictions(out, column="rigth")


def test_provenance_of_a_run(tmp_path: Path) -> None:
    source = store(tmp_path / "in.parquet", raw=lists(vectors()))
    found = open_predictions(normalized(source, tmp_path / "out", normalize={"norm": "l1"}))
    made = dict(found.provenance or {})
    assert len(made.pop("space")) == 64
    assert made.pop("versions").keys() == {"numpy", "pyarrow", "batchnorm-tool"}
    assert made.pop("made_of")["features"] == {"vector": ["raw"]}
    assert made == {"model": None, "model_sha256": None, "output": "vector", "norm": "l1"}
    assert found.facts()["provenance"]["norm"] == "l1"


def test_a_lone_part_tells_where_it_came_from(tmp_path: Path) -> None:
    source = store(tmp_path / "in.parquet", raw=lists(vectors()))
    out = normalized(source, tmp_path / "out")
    space = (open_predictions(out).provenance or {})["space"]
    with pytest.warns(InputWarning, match="contains unit vectors"):
        found = open_predictions(out / "vectors" / "part-000001.parquet")
    assert found.provenance == {"space": space, "output": "vector", "norm": "l2"}
    np.testing.assert_allclose(np.linalg.norm(loaded(found), axis=1), 1, rtol=1e-6)


def test_metadata_of_another_program_is_ignored(tmp_path: Path) -> None:
    table = pa.table({"raw": lists(vectors())}).replace_schema_metadata({"batchnorm_tool": "[1]"})
    pq.write_table(table, tmp_path / "x")
    with warnings.catch_warnings(action="error"):
        assert open_predictions(tmp_path / "x").provenance is None


# What is refused


def tables(path: Path) -> dict[str, Path]:
    x = lists(vectors(4))
    (path / "empty").mkdir()
    stored = {
        "one": store(path / "one", id=np.arange(4), prediction=x),
        "two": store(path / "two", a=x, b=x),
        "none": store(path / "none", a=np.arange(4.0), text=pa.array(list("abcd"))),
        "nested": store(path / "nested", id=x, raw=pa.array([[[1.0, 2.0]]] * 4)),
        "cube": path / "cube.npy",
        "empty": path / "empty",
        "gone": path / "gone.parquet",
    }
    write_npy(stored["cube"], np.zeros((4, 2, 3)))
    return stored


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "one",
            {"column": "predicton"},
            r"no column `predicton`, which `column` names.*mean `pred",
        ),
        ("one", {"key": "ids"}, r"no column `ids`, which `key` names \(did you mean `id`\?\)"),
        ("one", {"column": ("id", "nothing")}, "no column `nothing`"),
        ("one", {"column": "predicton*"}, "one: No column of the input matches `predicton.`"),
        ("two", {}, r"Cannot tell.*Received: `a`, `b`.*--column"),
        ("none", {}, "Cannot tell.*Received: none among"),
        ("none", {"column": "text"}, "`text` .string. does not hold vectors"),
        ("nested", {"key": "id", "column": "id"}, "`id`, which cannot be a key"),
        ("nested", {"column": "raw"}, r"`raw` holds an array of shape \(None, None\) in each row"),
        ("cube", {}, r"`data` holds an array of shape \(2, 3\) in each row"),
        ("empty", {}, "contains no files"),
        ("gone", {}, "file not found"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_opened_is_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], words: str
) -> None:
    path = tables(tmp_path)[name]
    with pytest.raises(InputError, match=words) as caught:
        open_predictions(path, **arguments)
    assert caught.value.message.startswith(str(path))


def test_an_unknown_further_column_is_refused(tmp_path: Path) -> None:
    found = open_predictions(store(tmp_path / "x", label=np.arange(ROWS), raw=lists(vectors())))
    with pytest.raises(InputError, match=r"no column `labl` \(did you mean `label`\?\)"):
        found.batches(["labl"])


def test_higher_ranks_of_a_run_are_refused(tmp_path: Path) -> None:
    write_npy(tmp_path / "x.npy", np.ones((4, 2, 3), np.float32))
    out = normalized(tmp_path / "x.npy", tmp_path / "out")
    with pytest.raises(InputError, match=r"`vector` holds an array of shape \(2, 3\)"):
        open_predictions(out)


def test_a_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x", vectors())
    found = open_predictions(tmp_path / "x")
    write_parquet(tmp_path / "x", vectors() + 1)
    with pytest.raises(InputError, match="replaced"):
        loaded(found)


def test_a_damaged_run_is_not_read_as_data(tmp_path: Path) -> None:
    source = store(tmp_path / "in.parquet", raw=lists(vectors()))
    out = normalized(source, tmp_path / "out")
    (out / "_SUCCESS").write_text("0" * 64)
    with pytest.raises(Damaged, match="checksum"):
        open_predictions(out)
    (out / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="lacks `_SUCCESS`"):
        open_predictions(out)
