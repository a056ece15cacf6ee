from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage import Storage
from tests.command_line import BAD_ROWS, DIGITS, ENCODER, PREDICTIONS, invoke, stored

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


DOCUMENTS: dict[str, tuple[list[str], int, dict[str, object]]] = {
    "dry run": (["run", ENCODER, DIGITS, "out", "--dry-run"], 0, {"status": "planned"}),
    "config": (["run", ENCODER, DIGITS, "out", "--print-config"], 0, {}),
    "show data": (["show", DIGITS], 0, {"kind": "data", "rows": 1797}),
    "show model": (["show", ENCODER], 0, {"kind": "model", "format": "keras"}),
    "schema": (["schema"], 0, {"title": "batchnorm_tool job file"}),
    "no job file": (["run", "nothing.yaml"], 2, {"status": "failed", "error": "JobError"}),
    "two arguments": (["run", ENCODER, DIGITS], 2, {"status": "failed", "error": "JobError"}),
    "no input": (["normalize", "nothing", "out"], 2, {"status": "failed", "error": "InputError"}),
    "no model": (["run", "no.keras", DIGITS, "out"], 2, {"error": "ModelError", "exit_code": 2}),
    "no run": (["verify", DIGITS], 2, {"status": "failed", "error": "InputError"}),
    "no contract": (["check", ENCODER, "--against", DIGITS], 2, {"error": "InputError"}),
    "bad rows": (["run", ENCODER, BAD_ROWS, "out"], 4, {"error": "BadRows", "exit_code": 4}),
    "unknown flag": (["run", "a.yaml", "--nrom", "l1"], 2, {"error": "UsageError"}),
    "wrong value": (["run", "a.yaml", "--limit", "0"], 2, {"error": "UsageError"}),
    "no arguments": (["verify"], 2, {"error": "UsageError", "exit_code": 2}),
    "unknown command": (["rnu", "a.yaml"], 2, {"error": "UsageError"}),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_json_is_one_document_on_standard_output(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, exit_code, expected = DOCUMENTS[case]
    result = invoke(*arguments, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == exit_code
    assert {name: document[name] for name in expected} == expected
    if exit_code:
        assert document["message"] in result.stderr


def test_json_of_a_run_holds_its_manifest(out: Path) -> None:
    document = json.loads(stored(out, "--json").stdout)
    assert (document["status"], document["rows_done"]) == ("done", 1797)
    stored_manifest = json.loads((out / "_manifest.json").read_text())
    assert document["manifest"]["statistics"] == stored_manifest["statistics"]
    again = json.loads(stored(out, "--json").stdout)
    assert (again["status"], again["rows_done"]) == ("nothing to do", 0)
    for command in ("verify", "show"):
        assert json.loads(invoke(command, out, "--json").stdout)["path"] == str(out)


def test_json_logs_are_lines_of_json_on_standard_error() -> None:
    result = invoke("verify", "nowhere", "--log-format", "json")
    (line,) = map(json.loads, result.stderr.splitlines())
    assert (line["level"], line["error"], line["exit_code"]) == ("error", "InputError", 2)
    assert result.stdout == ""


# -- exit codes and errors -----------------------------------------------------------------------


def test_damage_inside_the_input_is_found_while_reading_or_before(
    tmp_path: Path, out: Path
) -> None:
    values = np.random.default_rng(0).normal(size=(5_000, 8)).astype(np.float32)
    path = tmp_path / "a.parquet"
    table = pa.table({"x": fixed_size_list(values)})
    pq.write_table(table, path, row_group_size=1_000, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(values[3_500].tobytes()[:4])] ^= 1
    path.write_bytes(data)
    before = invoke("normalize", path, out, "--check-input")
    assert (before.exit_code, out.exists()) == (2, False)
    assert "a.parquet" in before.stderr
    inside = invoke("normalize", path, out)
    assert inside.exit_code == 4
    assert "a.parquet, at or soon after row 3000: " in inside.stderr
    assert not (out / "vectors").exists()


def test_verify_finds_damage(out: Path) -> None:
    stored(out)
    sound = invoke("verify", out)
    assert (sound.exit_code, sound.stdout[:7]) == (0, "OK. All")
    part = out / "vectors" / "part-000000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    damaged = invoke("verify", out)
    assert damaged.exit_code == 4
    assert "vectors/part-000000.parquet" in damaged.stderr


def test_a_held_output_is_busy(out: Path) -> None:
    stored(out)
    with Storage(out).lock():
        result = stored(out, "--fresh")
    assert result.exit_code == 5
    assert str(out) in result.stderr
    assert stored(out, "--fresh").exit_code == 0


WRONG: dict[str, list[str]] = {
    "no job file": ["run", "nothing.yaml"],
    "a table as job file": ["run", DIGITS],
    "a directory as job file": ["run", "."],
    "two arguments": ["run", ENCODER, DIGITS],
    "unknown key": ["run", ENCODER, DIGITS, "out", "--set", "normalise.norm=l2"],
    "no value": ["run", ENCODER, DIGITS, "out", "--set", "normalize.norm"],
    "norm": ["run", ENCODER, DIGITS, "out", "--norm", "l3"],
    "norm no": ["run", ENCODER, DIGITS, "out", "--set", "normalize.norm=no"],
    "p": ["run", ENCODER, DIGITS, "out", "--norm", "lp", "--p", "nan"],
    "engine": ["run", ENCODER, DIGITS, "out", "--engine", "ray"],
    "gpu": ["run", ENCODER, DIGITS, "out", "--devices", "[7]"],
    "wait": ["run", ENCODER, DIGITS, "out", "--wait", "soon"],
    "no input": ["run", ENCODER, "nothing.parquet", "out"],
    "text as input": ["run", ENCODER, "text.parquet", "out"],
    "no such column": ["run", ENCODER, DIGITS, "out", "--key", "idd"],
    "table as model": ["run", DIGITS, DIGITS, "out"],
    "output is a file": ["run", ENCODER, DIGITS, "text.parquet"],
    "output holds other things": ["run", ENCODER, DIGITS, "."],
    "html of data": ["show", DIGITS, "--html", "page.html"],
    "html nowhere": ["show", "run", "--html", "no/such/folder/page.html"],
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_in_words(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.parquet").write_text("not a table")
    if "run" in WRONG[case][1:]:
        assert invoke("normalize", PREDICTIONS, "run", "--column", "prediction").exit_code == 0
    result = invoke(*WRONG[case])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr.strip()) > len("error: ") + 20
    debugged = invoke(*WRONG[case], "--debug")
    assert debugged.exit_code == 2
    assert "Traceback (most recent call last)" in debugged.stderr
    assert debugged.stderr.endswith(result.stderr)


def test_the_previous_signal_handler_comes_back(out: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stored(out)
    after_success = signal.getsignal(signal.SIGTERM)
    invoke("verify", "nowhere")
    after_failure = signal.signal(signal.SIGTERM, before)
    assert (after_success, after_failure) == (signal.SIG_IGN, signal.SIG_IGN)
