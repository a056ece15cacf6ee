from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import __version__, read
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from tests.command_line import (
    BAD_ROWS,
    COMMANDS,
    DIGITS,
    ENCODER,
    HEAVY,
    ROOT,
    invoke,
    on_a_terminal,
    python,
    stored,
)

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_run_says_what_came_of_it(out: Path) -> None:
    result = stored(out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.match(r"Done\. 1,797 rows in, 1,797 out, 0 bad, [\d,]+ rows/s\n", result.stdout)
    assert re.search(r"l2 +5\.275 +7\.152 +8\.477 +9\.445 +10\.54 +12\.48 +14\.98", result.stdout)
    assert f"{out}/vectors" in result.stdout
    assert f"batchnorm-tool verify {out}" in result.stdout


def test_the_job_file_that_a_shorthand_amounts_to_gives_the_same(tmp_path: Path, out: Path) -> None:
    flags = ["--key", "id", "--norm", "lp", "--p", 3, "--batch-size", 256, "--part-rows", 1024]
    result = invoke("run", ENCODER, DIGITS, out, *flags)
    assert result.exit_code == 0, result.stderr
    text = textwrap.dedent(result.stdout.partition("Equivalent job file:\n")[2])
    (tmp_path / "job.yaml").write_text(text)
    again = invoke("run", tmp_path / "job.yaml")
    assert again.stdout.startswith("Up to date: ")
    other = invoke("run", tmp_path / "job.yaml", "--set", f"output.path={tmp_path / 'other'}")
    assert other.exit_code == 0, other.stderr
    assert "job file" not in other.stdout
    for name in ("part-000000.parquet", "part-000001.parquet"):
        one, two = (folder / "vectors" / name for folder in (out, tmp_path / "other"))
        assert one.read_bytes() == two.read_bytes()


def test_bad_rows_are_counted_and_named(out: Path) -> None:
    flags = ["--key", "id", "--invalid", "quarantine", "--max-bad-fraction", 1]
    result = invoke("run", ENCODER, BAD_ROWS, out, *flags, "--batch-size", 32)
    assert result.exit_code == 0, result.stderr
    assert "19 rows in, 11 out, 8 bad (42.11 %)" in result.stdout
    assert "nonfinite_feature 3" in result.stdout
    assert f"row 1 (key 1) is row 1 of {BAD_ROWS}: null_feature" in result.stdout
    assert f"{out}/_quarantine" in result.stdout


def test_warnings_go_to_standard_error(tmp_path: Path, out: Path) -> None:
    table = pa.table({"x": fixed_size_list(np.float32([[0.6, 0.8]] * 3))})
    pq.write_table(table, tmp_path / "a.parquet")
    result = invoke("normalize", tmp_path / "a.parquet", out)
    assert result.stderr.startswith("warning: The predictions of `vector` already have unit length")
    assert "unit length" not in result.stdout


def test_quiet_prints_nothing(out: Path) -> None:
    result = stored(out, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (out / "_SUCCESS").is_file()


def test_quiet_still_prints_errors() -> None:
    result = invoke("verify", "nowhere", "--quiet")
    assert result.stderr.startswith("error: `nowhere`")


def test_a_dry_run_prints_the_plan_and_writes_nothing(out: Path) -> None:
    flags = ["--key", "id", "--batch-size", 256, "--part-rows", 512, "--dry-run"]
    result = invoke("run", ENCODER, DIGITS, out, *flags)
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["rows", "1,797"] in lines
    assert ["parts", "4"] in lines
    assert ["features", "pixels:", "pixels"] in lines
    assert ["bytes", "expected", "244,392"] in lines
    assert not out.exists()


def test_limit_takes_the_first_rows(out: Path) -> None:
    assert stored(out, "--limit", 10).exit_code == 0
    assert read(out).to_numpy()[0].tolist() == list(range(10))


def test_another_job_in_the_same_place_needs_fresh(out: Path) -> None:
    stored(out, "--norm", "l1")
    refused = stored(out, "--norm", "l2")
    assert refused.exit_code == 2
    assert "`--fresh`" in refused.stderr
    assert stored(out, "--norm", "l2", "--fresh").exit_code == 0
    assert read(out).manifest["outputs"][0]["norm"] == "l2"


@pytest.mark.parametrize("kind", ["bar", "plain", "none", "auto"])
def test_progress_leaves_standard_output_alone(out: Path, kind: str) -> None:
    result = stored(out, "--progress", kind, "--json")
    assert json.loads(result.stdout)["rows_done"] == 1797


# -- show ----------------------------------------------------------------------------------------


def test_show_of_a_run_writes_a_page(out: Path, tmp_path: Path) -> None:
    stored(out)
    result = invoke("show", out, "--html", tmp_path / "run.html")
    assert result.stdout.startswith("A finished run. 1,797 rows in")
    assert f"page     {tmp_path / 'run.html'}" in re.sub(" {2,}", "     ", result.stdout)
    assert "<svg" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_show_of_an_unfinished_run(out: Path) -> None:
    assert invoke("run", ENCODER, BAD_ROWS, out, "--part-rows", 8, "--batch-size", 8).exit_code == 4
    result = invoke("show", out)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.startswith("An unfinished run, stopped by bad rows: fix the input")
    assert ["parts", "1", "of", "3"] in lines
    assert ["bad", "rows", "8"] in lines


def test_show_of_data_and_models() -> None:
    data = [line.split() for line in invoke("show", DIGITS).stdout.splitlines()]
    assert data[0] == ["Data,", "parquet,", "1,797", "rows"]
    assert ["likely", "key", "id"] in data
    assert ["likely", "features", "pixels"] in data
    assert ["label", "int64,", "0", "to", "9"] in data
    model = [line.split() for line in invoke("show", ENCODER).stdout.splitlines()]
    assert model[0] == ["A", "model,", "keras"]
    assert ["input", "pixels:", "64", "float32"] in model
    assert ["output", "embedding:", "32", "float32"] in model


# -- start-up ------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from batchnorm_tool.cli.app import cli
for name in ["", *cli.commands]:
    try:
        cli.main([*name.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0
print("LOADED", *{name.partition(".")[0] for name in sys.modules})
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    usage, _, loaded = done.stdout.partition("LOADED")
    assert usage.count("Usage:") == 1 + len(COMMANDS)
    assert "click" in loaded.split()
    assert HEAVY.isdisjoint(loaded.split())


def test_a_finished_job_needs_no_tensorflow(out: Path) -> None:
    arguments = ["run", ENCODER, DIGITS, str(out), "--key", "id", "--batch-size", "256"]
    assert invoke(*arguments).exit_code == 0
    program = f"""
import sys
from batchnorm_tool.cli.app import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit:
    print("LOADED", *{{name.partition(".")[0] for name in sys.modules}})
import pyarrow
print(type(pyarrow.table({{"x": [1]}}).to_pandas()).__name__)
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    said, _, loaded = done.stdout.partition("LOADED")
    assert said.splitlines() == [
        f"Up to date: `{out}` already holds this result",
        "  1,797 rows; use `--fresh` to recompute",
    ]
    assert "pyarrow" in loaded.split()
    assert {"tensorflow", "keras", "pandas"}.isdisjoint(loaded.split())
    assert loaded.endswith("\nDataFrame\n")


def test_a_terminal_has_bold_words_unless_told_otherwise() -> None:
    assert "\x1b[1mData, \x1b[0m" in on_a_terminal("show", DIGITS, NO_COLOR="")
    assert "\x1b" not in on_a_terminal("show", DIGITS, NO_COLOR="1")


def test_an_output_of_another_encoding_is_no_failure(out: Path) -> None:
    stored(out)
    done = python("-m", "batchnorm_tool", "show", str(out), PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"9\.000  \?{20}", done.stdout)


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "batchnorm_tool", "show", DIGITS]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_flags(command: str) -> None:
    text = invoke(command, "-h").stdout
    for flag in ("--json", "--quiet", "--debug", "--log-format", "--help"):
        assert flag in text


def test_help_names_the_exit_codes() -> None:
    text = " ".join(invoke("--help").stdout.split())
    assert "Exit codes: 0 done; 1 failed, run again to resume; 2 refused" in text
    assert "it has nothing to do with the BatchNormalization layer" in text


def test_the_package_is_a_program() -> None:
    done = python("-m", "batchnorm_tool", "--version")
    assert done.stdout == f"batchnorm-tool, version {__version__}\n"


def test_schema_describes_every_section() -> None:
    schema = json.loads(invoke("schema").stdout)
    sections = {"input", "model", "normalize", "output", "contract", "engine", "store", "gate"}
    assert set(schema["properties"]) == sections | {"publish"}
