"""Rows with the same features are predicted once where a job asks for it, and all else is equal."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from keras import layers

from batchnorm_tool import verify
from batchnorm_tool.commands.run import execute
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.errors import JobError, WorkFailed
from batchnorm_tool.job import Job
from batchnorm_tool.models import placement
from batchnorm_tool.models.batching import ModelPredictor
from batchnorm_tool.pipeline.part_output import PARTS_PATH, read_records
from batchnorm_tool.pipeline.worker import Worker
from batchnorm_tool.storage import open_storage
from tests.command_line import invoke
from tests.commands.plain_script import vector_column
from tests.kill_points import tree

pytestmark = pytest.mark.usefixtures("tensorflow")

BATCH, PART_ROWS, ROWS, KINDS = 48, 96, 1000, 600
NULL, FAILING, BAD_KINDS = range(10), range(10, 20), 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tensorflow: None) -> Path:
    """Takes numbers, ids below 10 and words; gives a vector and two halves."""
    keras.utils.set_random_seed(0)
    x, ids = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="ids")
    word = keras.Input((), dtype="string", name="word")
    numbers = layers.StringLookup(vocabulary=["red", "green"])(word)
    parts = [x, layers.Embedding(10, 3)(ids), layers.Embedding(3, 2)(numbers)]
    hidden = layers.Dense(32, "relu")(layers.Concatenate()(parts))
    halves = layers.Reshape((2, 4), name="halves")(layers.Dense(8)(hidden))
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.Model([x, ids, word], [layers.Dense(5, name="flat")(hidden), halves]).save(path)
    return path


def chosen_kinds() -> np.ndarray:
    """Which kind of features each row has: every kind once, 400 rows again, in any order."""
    generator = np.random.default_rng(1)
    return generator.permutation([*range(KINDS), *generator.integers(0, KINDS, ROWS - KINDS)])


COUNTS = {
    "predicted": KINDS - BAD_KINDS,
    "reused": int((chosen_kinds() >= BAD_KINDS).sum()) - (KINDS - BAD_KINDS),
}


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Callable[..., RunResult]:
    """Runs over three files, 40 % of whose rows repeat; sections of the job as keywords."""
    generator, kinds = np.random.default_rng(0), chosen_kinds()
    x = generator.normal(size=(KINDS, 4)).astype(np.float32)
    ids = generator.integers(0, 10, KINDS)
    words = np.array(["red", "green", "blue"])[generator.integers(0, 3, KINDS)]
    x[NULL], ids[FAILING] = np.nan, 10
    columns = {"x": vector_column(x[kinds]), "ids": ids[kinds], "word": words[kinds]}
    table = pa.table({"id": np.arange(ROWS), **columns})
    (tmp_path / "in").mkdir()
    for number, (first, stop) in enumerate(((0, 130), (130, 700), (700, ROWS))):
        path = tmp_path / "in" / f"{number}.parquet"
        pq.write_table(table.slice(first, stop - first), path, row_group_size=70)

    def start(*, deduplicate: bool, **sections: dict[str, Any]) -> RunResult:
        source = {"path": "in", "key": "id", "invalid": "quarantine", "deduplicate": deduplicate}
        chosen = {"path": str(model), "batch_size": BATCH, "outputs": ["flat", "halves"]}
        data = {
            "input": {**source, **sections.get("input", {})},
            "model": {**chosen, **sections.get("model", {})},
            "normalize": {"max_bad_fraction": 1.0, "outputs": {"halves": {"norm": "l1"}}},
            "output": {"path": "out", "part_rows": PART_ROWS, **sections.get("output", {})},
            "engine": {"devices": ["cpu"], "workers": 2, **sections.get("engine", {})},
        }
        return run(Job.from_dict(data, tmp_path))

    return start


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows that the model predicts in the work, call by call."""
    counts: list[int] = []
    real = ModelPredictor.predict

    def predict(self: ModelPredictor, features: Any) -> Any:
        found = real(self, features)
        if threading.current_thread().name.startswith("part") and self.batch_size == BATCH:
            counts.append(len(features["x"]))
        return found

    monkeypatch.setattr(ModelPredictor, "predict", predict)
    return counts


@dataclass(frozen=True)
class Left:
    """What a run leaves: files, its manifest but for counts and the key, and records of parts."""

    files: dict[str, bytes]
    manifest: dict[str, Any]
    records: list[dict[str, Any]]


def left(result: RunResult, *, remove: bool = False) -> Left:
    files, manifest = tree(Path(result.path)), dict(result.manifest)
    del files["_manifest.json"], files["_SUCCESS"], manifest["checksum"]
    manifest["rows"] = uncounted(result.rows)
    records = list[dict[str, Any]]()
    if files.pop(PARTS_PATH, None):  # where rows are in quarantine
        manifest["files"] = [file for file in manifest["files"] if file["path"] != PARTS_PATH]
        kept = [record.to_dict() for record in read_records(open_storage(result.path))]
        records = [{**record, "counts": uncounted(record["counts"])} for record in kept]
    source = manifest["job"]["input"]
    manifest["job"] = {**manifest["job"], "input": {**source, "deduplicate": None}}
    if remove:
        shutil.rmtree(result.path)
    return Left(files, manifest, records)


def uncounted(rows: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in rows.items() if name not in COUNTS}


@pytest.mark.parametrize(
    ("form", "invalid"), [("parquet", "quarantine"), ("arrow", "nullify"), ("npy", "drop")]
)
def test_the_same_features_are_predicted_once_and_all_else_is_the_same(
    start: Callable[..., RunResult], asked: list[int], form: str, invalid: str
) -> None:
    sections = {"input": {"invalid": invalid}, "output": {"format": form}}
    without = start(deduplicate=False, **sections)
    assert sum(asked) == ROWS
    assert not {*COUNTS} & {*without.rows}
    asked.clear()
    expected = left(without, remove=True)
    result = start(deduplicate=True, **sections)
    assert COUNTS["predicted"] <= sum(asked) <= KINDS  # bad ones come on top
    assert {name: result.rows[name] for name in COUNTS} == COUNTS
    assert sum(COUNTS.values()) + int((chosen_kinds() < BAD_KINDS).sum()) == result.rows["in"]
    assert left(result) == expected
    assert verify(result.path).rows == result.rows["out"]


@pytest.mark.parametrize("first", [False, True])
def test_a_finished_result_is_the_same_whether_rows_were_predicted_once(
    start: Callable[..., RunResult], *, first: bool
) -> None:
    start(deduplicate=first)
    assert start(deduplicate=not first).nothing_to_do


@pytest.mark.parametrize("before", [True, False], ids=["same job", "job without"])
def test_a_stopped_run_goes_on_and_counts_the_same(
    start: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    whole = start(deduplicate=True)
    files, expected = tree(Path(whole.path)), left(whole, remove=True)
    hashed: list[int] = []
    with monkeypatch.context() as patched:
        real, real_hashes = Worker.process_part, execute.feature_hashes

        def process_part(self: Worker, number: int, *more: Any) -> Any:
            if number == 4:
                raise WorkFailed("stopped here")
            return real(self, number, *more)

        def hashes(features: Any, faults: np.ndarray) -> np.ndarray:
            hashed.append(len(faults))
            return real_hashes(features, faults)

        patched.setattr(execute, "feature_hashes", hashes)
        patched.setattr(Worker, "process_part", process_part)
        with pytest.raises(WorkFailed, match="stopped here"):
            start(deduplicate=before)
        patched.setattr(Worker, "process_part", real)
        result = start(deduplicate=True)
    assert result.parts_kept > 0
    assert sum(hashed) == ROWS  # once in the two attempts
    assert left(result) == expected
    if before:
        assert tree(Path(result.path)) == files
    else:  # in the parts that stayed, every row was predicted
        assert sum(result.rows[name] for name in COUNTS) == sum(COUNTS.values())
        assert 0 < result.rows["reused"] < COUNTS["reused"]


@pytest.mark.parametrize("helps", [True, False])
def test_what_only_has_to_be_published_needs_no_model(
    start: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, *, helps: bool
) -> None:
    def stopped(*_: object) -> None:
        raise WorkFailed("stopped here")

    monkeypatch.setattr(placement, "is_place_independent", lambda *_: helps)
    whole = start(deduplicate=True)
    files = tree(Path(whole.path))
    shutil.rmtree(whole.path)
    with monkeypatch.context() as patched:
        patched.setattr("batchnorm_tool.commands.run.run._publish", stopped)
        with pytest.raises(WorkFailed):
            start(deduplicate=True)
    monkeypatch.setattr(Preparation, "predictor", stopped)
    monkeypatch.setattr(execute, "feature_hashes", stopped)
    assert tree(Path(start(deduplicate=True).path)) == files


def test_several_processes_leave_the_same(start: Callable[..., RunResult]) -> None:
    expected = left(start(deduplicate=False), remove=True)
    result = start(deduplicate=True, engine={"devices": ["cpu", "cpu"]})
    assert {name: result.rows[name] for name in COUNTS} == COUNTS
    assert left(result) == expected


@pytest.mark.parametrize(
    ("fits", "advice"), [(36, "Set `model.batch_size: 36` to avoid this."), (0, "multiple of 48")]
)
def test_where_bits_depend_on_the_place_every_row_is_predicted(
    start: Callable[..., RunResult],
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
    advice: str,
) -> None:
    monkeypatch.setattr(
        placement, "is_place_independent", lambda _, __, batch_size: batch_size == fits
    )
    result = start(deduplicate=True)
    (warning,) = result.warnings
    assert "`input.deduplicate` has no effect: with a batch size of 48" in warning
    assert advice in warning
    assert sum(asked) == ROWS
    assert result.rows["reused"] == 0
    assert result.rows["predicted"] == sum(COUNTS.values())


def test_batches_that_a_job_accepts_stay_whole(
    start: Callable[..., RunResult], asked: list[int]
) -> None:
    result = start(deduplicate=True, model={"batch_dependent": "accept"})
    (warning,) = result.warnings
    assert "no effect with `model.batch_dependent: accept`" in warning
    assert result.rows["reused"] == 0
    assert sum(asked) >= ROWS - ROWS % BATCH  # the last batch is one of fewer rows


def test_the_command_says_how_many_rows_were_predicted(
    model: Path, tmp_path: Path, start: Callable[..., RunResult]
) -> None:
    flags = ("--deduplicate", "--outputs", "flat", "--invalid", "drop", "--max-bad-fraction", "1")
    done = invoke("run", model, tmp_path / "in", tmp_path / "out", *flags)
    assert done.exit_code == 0, done.stderr
    assert f"{COUNTS['predicted']} predicted, {COUNTS['reused']} reused" in done.stdout
    again = invoke("run", model, tmp_path / "in", tmp_path / "out", *flags, "--json")
    assert {**COUNTS, "in": ROWS}.items() <= json.loads(again.stdout)["manifest"]["rows"].items()
    assert f"{COUNTS['reused']} reused" in invoke("show", tmp_path / "out").stdout


def test_stored_predictions_are_not_deduplicated(tmp_path: Path) -> None:
    data = {"input": {"path": "in", "deduplicate": True}, "output": {"path": "out"}}
    with pytest.raises(JobError, match=r"`input.deduplicate` needs a model"):
        Job.from_dict(data, tmp_path)
