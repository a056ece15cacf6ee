from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.run.run import run
from batchnorm_tool.errors import BadRows, Damaged, InputError, JobError
from batchnorm_tool.job import Input, Job, Normalize, Output
from batchnorm_tool.readers.vectors import StoredVectors, read
from batchnorm_tool.storage import Storage

FORMATS = ["parquet", "arrow", "npy"]
ROWS = 300


@dataclass
class Workshop:
    """Makes finished runs over stored predictions in a directory of its own."""

    path: Path

    def run(self, columns: dict[str, pa.Array], form: str, **sections: dict[str, Any]) -> Path:
        source = self.path / "input.parquet"
        pq.write_table(pa.table(columns), source, row_group_size=77)
        return self._run(str(source), form, sections)

    def run_array(self, array: np.ndarray, form: str, **sections: dict[str, Any]) -> Path:
        source = self.path / "input.npy"
        np.save(source, array)
        return self._run(str(source), form, sections)

    def _run(self, source: str, form: str, sections: dict[str, dict[str, Any]]) -> Path:
        output = {"path": str(self.path / form), "format": form, "part_rows": 128}
        job = Job(
            input=Input(path=source, **sections.get("input", {})),
            normalize=Normalize(**sections.get("normalize", {})),
            output=Output(**{**output, **sections.get("output", {})}),
        )
        run(job)
        return Path(job.output.path)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def predictions(rows: int = ROWS, width: int = 5, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.integers(-4, 5, size=(rows, 1))
    return (generator.normal(size=(rows, width)) * scales).astype(np.float32)


def lists(array: np.ndarray, nulls: np.ndarray | None = None) -> pa.Array:
    mask = None if nulls is None else pa.array(nulls)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1], mask=mask)


def words(rows: int = ROWS) -> pa.Array:
    return pa.array([f"item {row}" for row in range(rows)])


def one_output(workshop: Workshop, form: str) -> Path:
    columns = {"id": words(), "label": pa.array(range(ROWS)), "raw": lists(predictions())}
    spec = {"key": "id", "passthrough": ["label"], "features": "raw"}
    return workshop.run(columns, form, input=spec)


def two_outputs(workshop: Workshop, form: str) -> Path:
    columns = {"id": words(), "a": lists(predictions()), "b": lists(predictions(width=3, seed=1))}
    spec = {"key": "id", "features": {"left": "a", "right": "b"}}
    return workshop.run(columns, form, input=spec, normalize={"outputs": {"right": {"norm": "l1"}}})


def with_null_rows(workshop: Workshop, form: str) -> Path:
    raw = predictions()
    raw[[3, 130], 2] = np.nan
    columns = {"id": words(), "raw": lists(raw)}
    spec = {"key": "id", "features": "raw"}
    fate = {"nonfinite": "nullify", "max_bad_fraction": 1}
    return workshop.run(columns, form, input=spec, normalize=fate)


@pytest.mark.parametrize("form", FORMATS)
def test_keys_vectors_and_norms_come_back(workshop: Workshop, form: str) -> None:
    keys, vectors, norms = read(one_output(workshop, form)).to_numpy()
    wide = predictions().astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    assert keys.tolist() == words().to_pylist()
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, (wide / lengths).astype(np.float32))
    np.testing.assert_array_equal(norms, lengths[:, 0])


@pytest.mark.parametrize("form", FORMATS)
def test_higher_ranks_come_back_in_their_shape(workshop: Workshop, form: str) -> None:
    raw = predictions(width=12).reshape(-1, 3, 4)
    keys, vectors, norms = read(workshop.run_array(raw, form)).to_numpy()
    assert keys.tolist() == list(range(ROWS))
    assert vectors.shape == raw.shape
    assert norms.shape == (ROWS, 3)
    np.testing.assert_allclose(vectors * norms[..., None], raw, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_one_norm_for_a_whole_tensor(workshop: Workshop, form: str) -> None:
    raw = predictions(width=12).reshape(-1, 3, 4)
    stored = read(workshop.run_array(raw, form, normalize={"axis": "all"}), raw=True)
    _, vectors, norms = stored.to_numpy()
    assert norms.shape == (ROWS,)
    np.testing.assert_allclose(vectors, raw, rtol=2**-23)


@pytest.mark.parametrize("form", FORMATS)
def test_outputs_are_chosen_by_name(workshop: Workshop, form: str) -> None:
    stored = read(two_outputs(workshop, form))
    assert stored.outputs == ("left", "right")
    _, left, _ = stored.to_numpy("left")
    keys, right, lengths = stored.to_numpy("right")
    assert left.shape == (ROWS, 5)
    assert keys[-1] == f"item {ROWS - 1}"
    np.testing.assert_allclose(np.abs(right).sum(axis=1), 1, rtol=1e-6)
    raw = predictions(width=3, seed=1).astype(np.float64)
    np.testing.assert_array_equal(lengths, np.abs(raw).sum(axis=1))


@pytest.mark.parametrize(
    ("name", "hint"),
    [(None, "Received: None"), ("rigth", "Did you mean `right`?")],
    ids=["no name", "wrong name"],
)
def test_several_outputs_need_a_name(workshop: Workshop, name: str | None, hint: str) -> None:
    stored = read(two_outputs(workshop, "parquet"))
    with pytest.raises(JobError, match="must be one of `left`, `right`") as caught:
        stored.to_numpy(name)
    assert hint in caught.value.message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("make", [one_output, two_outputs], ids=["one output", "two outputs"])
def test_raw_gives_the_predictions_back(
    workshop: Workshop, make: Callable[[Workshop, str], Path], form: str
) -> None:
    stored = read(make(workshop, form), raw=True)
    _, restored, norms = stored.to_numpy(stored.outputs[0])
    raw = predictions()
    assert (np.abs(restored - raw) <= np.spacing(np.abs(raw))).all()
    np.testing.assert_array_equal(norms, np.linalg.norm(raw.astype(np.float64), axis=1))
    column = next(stored.batches(10)).column(stored.schema.names[-2])
    assert column[0].as_py() == pytest.approx(
        (predictions() if make is one_output else predictions(width=3, seed=1))[0], rel=1e-6
    )


def test_raw_is_rounded_once_to_the_stored_dtype(workshop: Workshop) -> None:
    raw = np.array([[300, 300, 300, 300], [1, 2, 3, 4]], np.float16)
    stored = read(workshop.run_array(raw, "npy", output={"dtype": "float16"}), raw=True)
    _, restored, norms = stored.to_numpy()
    assert restored.dtype == np.float16
    np.testing.assert_array_equal(restored[0], raw[0])
    assert norms[0] == 600


def test_raw_leaves_null_vectors_null(workshop: Workshop) -> None:
    stored = read(with_null_rows(workshop, "parquet"), raw=True)
    assert pa.Table.from_batches(stored.batches())["vector"].null_count == 2


@pytest.mark.parametrize("form", FORMATS)
def test_null_vectors_are_nan(workshop: Workshop, form: str) -> None:
    stored = read(with_null_rows(workshop, form))
    _, vectors, norms = stored.to_numpy()
    assert np.flatnonzero(np.isnan(norms)).tolist() == [3, 130]
    assert np.isnan(vectors[[3, 130]]).all()
    assert not np.isnan(np.delete(vectors, [3, 130], axis=0)).any()
    assert np.isnan(stored.to_pandas()["vector"][130]).all()


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_null_vectors_are_null_in_batches(workshop: Workshop, form: str) -> None:
    table = pa.Table.from_batches(read(with_null_rows(workshop, form)).batches())
    assert table["vector"].null_count == table["norm"].null_count == 2


@pytest.mark.parametrize("form", FORMATS)
def test_several_key_columns_are_tuples(workshop: Workshop, form: str) -> None:
    shops = pa.array([row % 7 for row in range(ROWS)])
    columns = {"shop": shops, "item": words(), "raw": lists(predictions())}
    spec = {"key": ["shop", "item"], "features": "raw"}
    keys, _, _ = read(workshop.run(columns, form, input=spec)).to_numpy()
    assert keys.dtype == object
    assert keys[8] == (1, "item 8")
    assert len(keys) == ROWS


@pytest.mark.parametrize("form", FORMATS)
def test_null_keys_are_none(workshop: Workshop, form: str) -> None:
    columns = {"id": pa.array([1, None, 3]), "raw": lists(predictions(3))}
    spec = {"key": "id", "features": "raw"}
    keys, _, _ = read(workshop.run(columns, form, input=spec)).to_numpy()
    assert keys.tolist() == [1, None, 3]


@pytest.mark.parametrize("form", FORMATS)
def test_frames_have_a_row_for_each_row(workshop: Workshop, form: str) -> None:
    frame = read(one_output(workshop, form)).to_pandas()
    assert frame.columns.tolist() == ["id", "label", "vector", "norm"]
    assert frame["label"].tolist() == list(range(ROWS))
    assert frame["vector"][7].shape == (5,)
    raw = predictions().astype(np.float64)
    pd.testing.assert_series_equal(
        frame["norm"], pd.Series(np.linalg.norm(raw, axis=1), name="norm"), check_exact=True
    )


def test_frames_hold_arrays_of_higher_rank(workshop: Workshop) -> None:
    raw = predictions(width=12).reshape(-1, 3, 4)
    frame = read(workshop.run_array(raw, "parquet")).to_pandas()
    assert frame.columns.tolist() == ["row", "vector", "norm"]
    assert frame["vector"][0].shape == (3, 4)
    assert frame["norm"][0].shape == (3,)
    assert len(frame) == ROWS


@pytest.mark.parametrize("form", ["arrow", "npy"])
@pytest.mark.parametrize("make", [one_output, two_outputs], ids=["one output", "two outputs"])
def test_batches_are_the_same_whichever_format_was_written(
    workshop: Workshop, make: Callable[[Workshop, str], Path], form: str
) -> None:
    parquet, other = read(make(workshop, "parquet")), read(make(workshop, form))
    assert other.schema.equals(parquet.schema, check_metadata=True)
    batches = list(other.batches(50))
    assert all(batch.schema.equals(other.schema, check_metadata=True) for batch in batches)
    assert pa.Table.from_batches(batches).equals(pa.Table.from_batches(parquet.batches(50)))


@pytest.mark.parametrize("form", FORMATS)
def test_batches_are_cut_within_parts(workshop: Workshop, form: str) -> None:
    stored = read(one_output(workshop, form))
    assert [batch.num_rows for batch in stored.batches(100)] == [100, 28, 100, 28, 44]
    assert sum(batch.num_rows for batch in stored.batches()) == len(stored) == stored.rows == ROWS


def test_higher_ranks_carry_their_shape(workshop: Workshop) -> None:
    raw = predictions(width=12).reshape(-1, 3, 4)
    schema = read(workshop.run_array(raw, "npy")).schema
    assert schema.field("vector").type == pa.list_(pa.float32(), 12)
    assert schema.field("vector").metadata == {b"shape": b"[3, 4]"}


def test_batches_of_no_rows_are_refused(workshop: Workshop) -> None:
    with pytest.raises(JobError, match=r"`batch_rows` must be at least 1\. Received: 0"):
        read(one_output(workshop, "parquet")).batches(0)


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_run_reads_as_empty(workshop: Workshop, form: str) -> None:
    columns = {"id": words(0), "raw": lists(predictions(0))}
    stored = read(workshop.run(columns, form, input={"key": "id", "features": "raw"}))
    keys, vectors, norms = stored.to_numpy()
    assert (len(stored), keys.shape, norms.shape) == (0, (0,), (0,))
    assert vectors.shape == (0, 5)
    assert list(stored.batches()) == []
    assert stored.to_pandas().columns.tolist() == ["id", "vector", "norm"]


def test_the_vectors_directory_will_do(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_output(workshop, "parquet")
    assert read(path / "vectors").rows == ROWS
    monkeypatch.chdir(path / "vectors")
    assert read(".").rows == ROWS


def test_the_manifest_is_at_hand(workshop: Workshop) -> None:
    stored = read(str(one_output(workshop, "parquet")))
    assert isinstance(stored, StoredVectors)
    assert stored.manifest["rows"]["out"] == ROWS
    assert Path(stored.path) == workshop.path / "parquet"


def missing(path: Path) -> Path:
    return path / "nowhere"


def a_file(path: Path) -> Path:
    (path / "file.parquet").write_bytes(b"PAR1")
    return path / "file.parquet"


def empty(path: Path) -> Path:
    return path


def foreign(path: Path) -> Path:
    (path / "notes.txt").write_text("mine")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "does not exist"),
        (a_file, "is a file"),
        (empty, "does not contain a run.*an empty directory"),
        (foreign, r"does not contain a run.*notes\.txt"),
    ],
    ids=["missing", "file", "empty", "foreign"],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read(make(tmp_path))


def unfinished(workshop: Workshop) -> Path:
    raw = predictions()
    raw[200] = np.nan
    columns = {"id": words(), "raw": lists(raw)}
    spec = {"key": "id", "features": "raw"}
    with pytest.raises(BadRows):
        workshop.run(columns, "parquet", input=spec, normalize={"max_bad_fraction": 0})
    return workshop.path / "parquet"


def test_an_unfinished_run_says_how_to_finish_it(workshop: Workshop) -> None:
    path = unfinished(workshop)
    with pytest.raises(InputError, match=r"unfinished run: 3 of 3 parts finished\. Run the same"):
        read(path)


def test_a_run_under_way_says_so(workshop: Workshop) -> None:
    path = unfinished(workshop)
    with (
        Storage(path).lock(),
        pytest.raises(InputError, match="still running; wait for it to finish"),
    ):
        read(path)


def test_a_copy_without_its_end_mark_is_refused(workshop: Workshop) -> None:
    path = one_output(workshop, "parquet")
    (path / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="lacks `_SUCCESS`"):
        read(path)


def test_an_altered_manifest_is_damage(workshop: Workshop) -> None:
    path = one_output(workshop, "parquet") / "_manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"out":300', b'"out":301'))
    with pytest.raises(Damaged, match="checksum does not match"):
        read(path.parent)


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("parquet", "vectors/part-000001.parquet"),
        ("arrow", "vectors/part-000001.arrow"),
        ("npy", "norms/part-000001.npy"),
        ("npy", "keys/part-000001.parquet"),
    ],
)
def test_a_missing_file_is_damage(workshop: Workshop, form: str, file: str) -> None:
    path = one_output(workshop, form)
    (path / file).unlink()
    with pytest.raises(Damaged, match=f"`{file}` of `.*` is missing"):
        read(path).to_numpy()


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_with_other_rows_is_damage(workshop: Workshop, form: str) -> None:
    vectors = one_output(workshop, form) / "vectors"
    first, *_, last = sorted(vectors.iterdir())
    shutil.copy(first, last)
    with pytest.raises(Damaged, match=f"`vectors/{last.name}` has 128 rows; the manifest has 44"):
        read(vectors).to_numpy()
