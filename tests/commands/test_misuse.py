"""What new users do first, and what they should be told."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from batchnorm_tool import BadRows, InputError, Job, JobError, read, refresh, run, score, show
from tests.command_line import ENCODER

pytestmark = pytest.mark.usefixtures("tensorflow")


def test_a_path_is_no_job() -> None:
    with pytest.raises(JobError, match=r"takes a Job.*Job\.load"):
        run("job.yaml")  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"`refresh` takes a Job.*Job\.load"):
        refresh("job.yaml")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [None, "x.parquet", Path("x.parquet")], ids=str)
def test_a_path_is_no_data(data: object) -> None:
    with pytest.raises(InputError, match="rows in memory"):
        score(ENCODER, data)


def test_halves_are_shown_with_their_range(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.5, -2], [3, 4]], np.float16))
    (column,) = show(tmp_path / "x.npy").facts["columns"]
    assert (column["min"], column["max"]) == (-2.0, 4.0)


def test_what_a_notebook_echoes_is_short(tmp_path: Path) -> None:
    source = ENCODER.replace("encoder.keras", "predictions.parquet")
    run(Job.from_dict({"input": {"path": source}, "output": {"path": str(tmp_path / "out")}}))
    assert len(repr(read(tmp_path / "out"))) < 300
    assert len(repr(show(tmp_path / "out"))) < 300


def test_an_index_out_of_range_is_a_bad_row_that_is_named(tmp_path: Path) -> None:
    inputs = keras.Input((1,), dtype="int32", name="data")
    vectors = keras.layers.Flatten()(keras.layers.Embedding(10, 4)(inputs))
    keras.Model(inputs, vectors).save(tmp_path / "lookup.keras")
    ids = np.arange(600, dtype=np.int32)[:, None] % 10
    ids[500] = 99
    np.save(tmp_path / "ids.npy", ids)
    data = {
        "input": {"path": "ids.npy"},
        "model": {"path": "lookup.keras", "batch_size": 64},
        "output": {"path": "out", "part_rows": 64},
    }
    with pytest.raises(BadRows) as caught:
        run(Job.from_dict(data, tmp_path))
    assert "99 is not in [0, 10)" in caught.value.message
    assert f"{tmp_path / 'ids.npy'}, row 500, key 500: model_failure" in caught.value.message


@keras.saving.register_keras_serializable("tests")
class Forwarding(keras.Model):
    """Hands whatever it is told on to Keras's own `predict`."""

    def call(self, inputs: object) -> object:
        return inputs

    def predict(self, data: object, **options: object) -> object:
        return super().predict(data, **options)


def test_a_forwarding_predict_is_told_to_be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Forwarding()
    model(np.ones((1, 3), np.float32))
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    score(model, np.ones((4, 3), np.float32), batch_size=2)
    assert printed.getvalue() == ""
