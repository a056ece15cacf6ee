from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchnorm_tool.pipeline.timing import STAGES, Profile
from tests.command_line import DIGITS, ENCODER, invoke

pytestmark = pytest.mark.usefixtures("tensorflow")
SHOWN = [*STAGES, "wait"]


def profile_of(**seconds: float) -> Profile:
    """Of two workers in 5 seconds; a stage took its seconds, half of them on a core."""
    totals = {stage: (seconds.get(stage, 0.0), seconds.get(stage, 0.0) / 2) for stage in STAGES}
    return Profile.of(5.0, 2, totals)


def test_a_prediction_counts_whole_and_other_stages_as_far_as_they_compute() -> None:
    profile = profile_of(predict=6.0, read=2.0, write=1.0)
    assert profile.stages == {
        "read": 1.0, "predict": 6.0, "normalize": 0.0, "statistics": 0.0, "write": 0.5, "wait": 2.5,
    }  # fmt: skip
    assert sum(profile.shares.values()) == pytest.approx(1)
    assert profile.shares["predict"] == 0.6


def test_a_clock_that_runs_ahead_leaves_no_negative_wait() -> None:
    assert profile_of(predict=10.5).stages["wait"] == 0


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("read", "Reading is"),
        ("predict", "Prediction is"),
        ("normalize", "Normalization is"),
        ("statistics", "Statistics are"),
        ("write", "Writing is"),
        ("wait", "Waiting is"),
    ],
)
def test_the_stage_that_takes_most_is_the_bottleneck(stage: str, words: str) -> None:
    took = {} if stage == "wait" else {stage: 9.0 if stage == "predict" else 19.0}
    assert profile_of(**took).bottleneck.startswith(f"{words} the bottleneck")


def test_the_command_shows_where_the_time_went(tmp_path: Path) -> None:
    flags = ["--key", "id", "--batch-size", 256, "--profile"]
    shown = invoke("run", ENCODER, DIGITS, tmp_path / "out", *flags)
    assert shown.exit_code == 0, shown.stderr
    table = shown.stdout.partition("where the time of ")[2].partition("Next steps")[0]
    assert [line.split()[0] for line in table.splitlines()[2:8]] == SHOWN
    assert " bottleneck" in table


def test_as_a_document_the_stages_come_to_the_time_of_the_workers(tmp_path: Path) -> None:
    flags = ["--key", "id", "--batch-size", 256, "--workers", 2, "--json"]
    [result, plain] = [
        json.loads(invoke("run", ENCODER, DIGITS, tmp_path / name, *flags, *more).stdout)
        for name, more in (("one", ["--profile"]), ("other", []))
    ]
    profile = result["profile"]
    assert list(profile["stages"]) == SHOWN
    assert all(profile["stages"][stage] > 0 for stage in STAGES)
    assert profile["workers"] == 2
    assert sum(profile["stages"].values()) >= 2 * profile["seconds"] * 0.999
    assert "profile" not in plain


def test_a_run_with_nothing_to_do_has_no_profile(tmp_path: Path) -> None:
    flags = ["--key", "id", "--batch-size", 256, "--json", "--profile"]
    invoke("run", ENCODER, DIGITS, tmp_path / "out", *flags)
    again = json.loads(invoke("run", ENCODER, DIGITS, tmp_path / "out", *flags).stdout)
    assert (again["status"], again["profile"]) == ("nothing to do", None)
