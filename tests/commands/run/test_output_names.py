"""Outputs are named by the model, and their names become columns and directories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchnorm_tool import Job, JobError, OutputError, run, verify
from batchnorm_tool.commands.run.run import RunResult
from tests.commands.workshop import predictions


def run_with(folder: Path, names: list[str], form: str) -> RunResult:
    """Two outputs of these names, written as ``form``."""
    np.save(folder / "in.npy", predictions(20))
    data = {
        "input": {"path": "in.npy", "features": dict.fromkeys(names, "data")},
        "output": {"path": "out", "format": form},
    }
    return run(Job.from_dict(data, folder))


@pytest.mark.parametrize(
    "name",
    [
        "_state", "_stats", "_quarantine", "_manifest.json", "_SUCCESS", "keys", ".", "..",
        "a/b", "a\0b", "n" * 251,
    ],
)  # fmt: skip
def test_a_name_that_can_be_no_directory_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(OutputError) as refused:
        run_with(tmp_path, [name, "other"], "npy")
    assert repr(name) in refused.value.message or repr(f"{name}_norm") in refused.value.message
    assert "Write Parquet" in refused.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["npy", "parquet", "arrow"])
def test_two_outputs_that_would_share_a_name_are_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(JobError, match=r"would be named `a_norm`\. .* from `model\.outputs`"):
        run_with(tmp_path, ["a", "a_norm"], form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_columns_may_have_such_names(tmp_path: Path, form: str) -> None:
    assert verify(run_with(tmp_path, ["_state", "keys"], form).path).rows == 20


def test_one_output_may_have_such_a_name(tmp_path: Path) -> None:
    """Its arrays lie in `vectors` and `norms`, whatever it is called."""
    assert verify(run_with(tmp_path, ["keys"], "npy").path).rows == 20


@pytest.mark.parametrize("name", ["serving:0", "größe", "two words", "norms", "vectors", "a%2Fb"])
def test_other_names_can_be_directories(tmp_path: Path, name: str) -> None:
    assert verify(run_with(tmp_path, [name, "other"], "npy").path).rows == 20
