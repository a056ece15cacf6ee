"""Whatever a data file holds: rows, or an error of ours that names it; and the process lives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.command_line import python
from tests.fuzz.damaged_files import FORMS

_COUNT = os.environ.get("FUZZ_EXAMPLES", "12")


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_gives_rows_or_an_error_of_ours(tmp_path: Path, form: str) -> None:
    done = python("-m", "tests.fuzz.damaged_files", str(tmp_path), form, "90", _COUNT)
    seeds, *_ = done.stdout.splitlines()[-1:] or ["none"]
    assert done.returncode == 0, f"died of {form}, seed {seeds}: {done.stderr[-500:]}"
    wrong = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert wrong == []
    assert len(done.stdout.splitlines()) == int(_COUNT)
