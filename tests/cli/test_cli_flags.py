from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchnorm_tool.cli.flags import JOB_FLAGS, MODEL_FLAGS, seconds_of
from batchnorm_tool.errors import JobError
from batchnorm_tool.job import Job
from tests.command_line import DIGITS, ENCODER, invoke

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


FLAGS: dict[str, tuple[list[str], str, Any]] = {
    "--norm": (["l1"], "normalize.norm", "l1"),
    "--p": (["3", "--norm", "lp"], "normalize.p", 3.0),
    "--axis": (["all"], "normalize.axis", "all"),
    "--key": (["id"], "input.key", "id"),
    "--passthrough": (["label", "--passthrough", "no"], "input.passthrough", ["label", "no"]),
    "--invalid": (["drop"], "input.invalid", "drop"),
    "--zero": (["fail"], "normalize.zero", "fail"),
    "--nonfinite": (["nullify"], "normalize.nonfinite", "nullify"),
    "--max-bad-fraction": (["0.00001"], "normalize.max_bad_fraction", 1e-5),
    "--format": (["npy"], "output.format", "npy"),
    "--dtype": (["float16"], "output.dtype", "float16"),
    "--part-rows": (["4096"], "output.part_rows", 4096),
    "--workers": (["3"], "engine.workers", 3),
    "--features": (["a", "--features", "b"], "input.features", ["a", "b"]),
    "--deduplicate": ([], "input.deduplicate", True),
    "--layer": (["1e5"], "model.layer", "1e5"),
    "--outputs": (["one"], "model.outputs", ["one"]),
    "--backend": (["auto"], "model.backend", "auto"),
    "--batch-size": (["128"], "model.batch_size", 128),
    "--devices": (["cpu"], "engine.devices", "cpu"),
    "--engine": (["local"], "engine.kind", "local"),
    "--mixed-bits": ([], "engine.mixed_bits", True),
    "--set": (["engine.threads=2"], "engine.threads", 2),
}


def test_the_table_has_every_flag_of_a_job() -> None:
    flags = {name for name, *_ in (*JOB_FLAGS, *MODEL_FLAGS)}
    assert flags | {"--mixed-bits", "--set"} == set(FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_sets_its_key(flag: str, out: Path) -> None:
    values, key, expected = FLAGS[flag]
    result = invoke("run", ENCODER, DIGITS, out, flag, *values, "--print-config", "--json")
    assert result.exit_code == 0, result.stderr
    section, name = key.split(".")
    assert json.loads(result.stdout)[section][name] == expected


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--axis", "-1", -1),
        ("--batch-size", "auto", "auto"),
        ("--part-rows", "auto", "auto"),
        ("--devices", "[0, 1]", [0, 1]),
        ("--devices", "0,1", [0, 1]),
        ("--devices", "cpu, cpu", ["cpu", "cpu"]),
        ("--features", "pixels", "pixels"),
        ("--features", "a, b,c", ["a", "b", "c"]),
        ("--key", "no,b", ["no", "b"]),
        ("--passthrough", "a,b", ["a", "b"]),
        ("--outputs", "a,b", ["a", "b"]),
        ("--key", '"a,b"', "a,b"),
        ("--key", 'a, "b,""c"""', ["a", 'b,"c"']),
        ("--key", '"a\nb",c', ["a\nb", "c"]),
        ("--key", 'in"ch', 'in"ch'),
    ],
)
def test_flags_take_words_and_numbers(flag: str, value: str, expected: object, out: Path) -> None:
    result = invoke("run", ENCODER, DIGITS, out, flag, value, "--print-config", "--json")
    key = next(key for name, key, _ in (*JOB_FLAGS, *MODEL_FLAGS) if name == flag)
    section, name = key.split(".")
    assert json.loads(result.stdout)[section][name] == expected


@pytest.mark.parametrize("flag", ["--features", "--key", "--passthrough", "--outputs"])
@pytest.mark.parametrize("text", ["", "a,", ",", "a,,b", '"a', "a\nb", " "], ids=repr)
def test_what_is_no_list_of_names_is_refused(flag: str, text: str, out: Path) -> None:
    result = invoke("run", ENCODER, DIGITS, out, flag, text, "--print-config")
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': Expected names separated by commas" in result.stderr


def test_column_is_what_normalize_calls_features(out: Path) -> None:
    result = invoke("normalize", "in", out, "--column", "prediction", "--print-config", "--json")
    document = json.loads(result.stdout)
    assert (document["input"]["features"], document["model"]) == ("prediction", None)


def test_set_wins_over_a_flag(out: Path) -> None:
    flags = ["--set", "normalize.norm=max", "--norm", "l1", "--print-config", "--json"]
    result = invoke("run", ENCODER, DIGITS, out, *flags)
    assert json.loads(result.stdout)["normalize"]["norm"] == "max"


def test_flags_win_over_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("input: {path: a}\noutput: {path: b}\nnormalize: {norm: l1}\n")
    result = invoke("run", job, "--norm", "max", "--print-config", "--json")
    assert json.loads(result.stdout)["normalize"]["norm"] == "max"


def test_print_config_loads_back(tmp_path: Path) -> None:
    printed = invoke("run", ENCODER, DIGITS, tmp_path / "a ${b}", "--norm", "l1", "--print-config")
    (tmp_path / "job.yaml").write_text(printed.stdout)
    job = Job.load(tmp_path / "job.yaml")
    assert job.output.path == str(tmp_path / "a ${b}")
    assert job.normalize.norm == "l1"
    assert job.to_dict() == yaml.safe_load(printed.stdout.replace("$${", "${"))


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 0), ("30s", 30), ("10m", 600), ("2h", 7_200), ("1.5", 1.5)]
)
def test_times_to_wait(text: str | None, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "nan", "inf", "5d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="`--wait` must be a time"):
        seconds_of(text)
