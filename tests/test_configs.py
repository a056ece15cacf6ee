from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, read, refresh, run, verify

pytestmark = pytest.mark.usefixtures("tensorflow")

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.name for path in CONFIGS.iterdir())


def load(name: str, out: Path) -> Job:
    return Job.load(CONFIGS / name, [f"output.path={out}"])


def test_there_are_examples() -> None:
    assert NAMES == [
        "nightly.yaml",
        "npy.yaml",
        "quickstart.yaml",
        "refresh.yaml",
        "several_inputs.yaml",
        "wide_table.yaml",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_runs_and_verifies(tmp_path: Path, name: str) -> None:
    result = run(load(name, tmp_path / "out"))
    assert result.rows["in"] == result.rows["out"] == 1797
    assert result.warnings == ()
    assert verify(result.path, keys=True).rows == 1797


@pytest.mark.parametrize("name", NAMES)
def test_every_example_writes_where_git_does_not_look(name: str) -> None:
    job = Job.load(CONFIGS / name)
    written = [job.store.path, *(target.path for target in job.publish)] if job.store else []
    places = written or [job.output.path]
    assert {Path(place).parent for place in places} == {CONFIGS.parent / "runs"}


def test_the_example_of_a_store_refreshes_it(tmp_path: Path) -> None:
    targets = [f"publish=[{{to: changes, path: {tmp_path / 'changes'}}}]"]
    job = Job.load(CONFIGS / "refresh.yaml", [f"store.path={tmp_path / 'digits.lance'}", *targets])
    assert refresh(job).rows["live"] == 1797
    assert refresh(job).state == "nothing to do"
    assert verify(tmp_path / "digits.lance").rows == 1797


def test_the_quickstart_keeps_keys_and_labels(tmp_path: Path, samples: Path) -> None:
    frame = read(run(load("quickstart.yaml", tmp_path / "out")).path).to_pandas()
    digits = pq.read_table(samples / "digits.parquet").to_pandas()
    assert list(frame) == ["id", "label", "vector", "norm"]
    assert frame["id"].tolist() == digits["id"].tolist()
    assert frame["label"].tolist() == digits["label"].tolist()
    lengths = np.linalg.norm(np.stack(frame["vector"].to_list()).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_the_nightly_job_takes_its_places_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, samples: Path
) -> None:
    monkeypatch.setenv("SCORING_INPUT", str(samples / "bad_rows.parquet"))
    monkeypatch.setenv("SCORING_NIGHT", "2025-01-31")
    monkeypatch.setenv("SCORING_MAX_BAD_FRACTION", "0.5")
    job = Job.load(CONFIGS / "nightly.yaml")
    assert job.input.path == str(samples / "bad_rows.parquet")
    assert job.output.path.endswith("runs/nightly-2025-01-31")
    assert job.normalize.max_bad_fraction == 0.5
