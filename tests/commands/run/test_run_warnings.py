"""What only the rows can tell, found by workers, is said in the manifest and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchnorm_tool import Job, run
from batchnorm_tool.commands.run.run import RunResult

ROWS = 1000
UNEVEN = 2**53 + 1  # float64 cannot hold it


def run_over(folder: Path, rows: list[int], part_rows: int = 300) -> RunResult:
    """Normalize whole numbers, which are too large in these rows; warnings are errors here."""
    array = np.ones((ROWS, 2), np.int64)
    array[rows, 1] = UNEVEN
    np.save(folder / "in.npy", array)
    data = {
        "input": {"path": "in.npy"},
        "output": {"path": "out", "part_rows": part_rows},
        "engine": {"workers": 3},
    }
    return run(Job.from_dict(data, folder), fresh=True)


@pytest.mark.parametrize("rows", [[0], [700], [0, 350, 351, 999]], ids=["planned", "late", "often"])
def test_rounded_integers_are_said_once_wherever_they_lie(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: list[int]
) -> None:
    (warning,) = run_over(tmp_path, rows).warnings
    assert warning.startswith("The column `data` contains integers beyond 9007199254740992")
    assert capfd.readouterr().err == ""


def test_the_warning_does_not_depend_on_how_rows_are_cut(tmp_path: Path) -> None:
    found = {run_over(tmp_path, [700], part_rows).warnings for part_rows in (100, 300, 1000)}
    assert len(found) == 1


def test_numbers_that_fit_are_not_warned_of(tmp_path: Path) -> None:
    assert run_over(tmp_path, []).warnings == ()
