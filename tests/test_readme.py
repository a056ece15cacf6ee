"""The README is true: its blocks run, its outputs are real, and every command and name is in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest

import batchnorm_tool
from batchnorm_tool.cli.app import cli
from batchnorm_tool.job import Input, Job, Normalize, job_schema
from batchnorm_tool.norms.norm import NORM_NAMES
from tests.readme_blocks import (
    PROGRAM,
    README,
    ROOT,
    Block,
    agree,
    blocks,
    commands,
    is_ours,
    perform,
    prose,
    words_of,
)

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

TEXT = README.read_text()
BLOCKS = blocks(TEXT)
COMMANDS = [command for block in BLOCKS for command in commands(block) if is_ours(command)]
SECTIONS = ("input", "model", "normalize", "output", "engine", "store", "gate", "publish")


def of(*languages: str) -> list[Any]:
    """Parameters: the blocks in these languages."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return [pytest.param(block, id=f"line {block.line}") for block in chosen]


def the_block(language: str, word: str) -> Block:
    [block] = [block for block in BLOCKS if block.language == language and word in block.text]
    return block


@dataclass(frozen=True)
class Performed:
    directory: Path
    results: dict[int, dict[str, str | None]]


@pytest.fixture(scope="module")
def performed(tmp_path_factory: pytest.TempPathFactory) -> Performed:
    directory = tmp_path_factory.mktemp("readme").resolve()
    return Performed(directory, perform(directory))


@pytest.mark.parametrize("block", of("sh", "console", "python", "bash"))
def test_every_block_runs(performed: Performed, block: Block) -> None:
    if not block.runs:
        compile(block.text, "README.md", "exec")
        return
    failure = performed.results[block.line]["failure"]
    assert failure is None, failure


@pytest.mark.parametrize("block", of("console"))
def test_what_is_shown_is_what_commands_print(performed: Performed, block: Block) -> None:
    printed = performed.results[block.line]["printed"]
    assert printed is not None
    if not agree(block.text, printed):
        assert block.text == printed, "python tests/readme_blocks.py --update"


@pytest.mark.parametrize(
    ("printed", "agrees"),
    [
        ("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", True),
        ("Done. 1,797 rows, 7 rows/s\n1.0001 ██ 426\n", True),
        ("Done. 1,790 rows, 99 rows/s\n1.0  ████ 425\n", False),
        ("Done. 1,797 rows, 99 rows/s\n1.1  ████ 425\n", False),
        ("Good. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", False),
        ("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425 5\n", False),
    ],
)
def test_outputs_are_compared_but_for_what_varies(printed: str, *, agrees: bool) -> None:
    assert agree("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", printed) is agrees


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_the_help_of_every_command_is_shown(name: str) -> None:
    arguments = [name] * bool(name) + ["--help"]
    printed = subprocess.run(
        [sys.executable, "-m", "batchnorm_tool", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    ).stdout
    shown = the_block("console", f"$ {PROGRAM} --help\n").text
    assert f"$ {' '.join([PROGRAM, *arguments])}\n{printed}" in shown


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_shown_at_work(name: str) -> None:
    assert [
        words for words in map(words_of, COMMANDS) if name in words[1] and "--help" not in words[1]
    ]


@pytest.mark.parametrize("name", batchnorm_tool.__all__)
def test_every_public_name_is_shown(name: str) -> None:
    code = [block.text for block in BLOCKS if block.language == "python"]
    words = re.findall("`[^`\n]+`", prose(TEXT))
    assert re.search(rf"\b{name}\b", "".join([*code, *words]))


def test_every_flag_that_is_named_exists() -> None:
    flags = {flag for name in cli.commands for flag in flags_of(name)}
    ours = re.sub("^Made by `python -m benchmarks.*$", "", TEXT, flags=re.MULTILINE)
    assert set(_FLAG.findall(ours)) - flags == {"--version", "--update"}


@pytest.mark.parametrize("command", [pytest.param(command, id=command) for command in COMMANDS])
def test_commands_are_shown_with_flags_of_their_own(command: str) -> None:
    words = words_of(command)[1]
    if words[1] in cli.commands:
        assert {word for word in words if word.startswith("--")} <= flags_of(words[1])


def flags_of(name: str) -> set[str]:
    return {"--help"} | {flag for one in cli.commands[name].params for flag in one.opts}


@pytest.mark.parametrize("block", of("yaml"))
def test_job_files_load(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(block.text)
    assert Job.load(path).output.path == str(tmp_path / "runs/digits")


def test_every_key_that_is_named_exists() -> None:
    named = re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)", TEXT)
    assert len(named) > 15
    properties = {name: job_schema()["$defs"][name.capitalize()]["properties"] for name in SECTIONS}
    assert [f"{section}.{key}" for section, key in named if key not in properties[section]] == []


@pytest.mark.parametrize(
    ("section", "key"), [(Input, "invalid"), (Normalize, "nonfinite"), (Normalize, "zero")]
)
def test_the_table_of_policies_is_whole(section: type[Input | Normalize], key: str) -> None:
    [row] = re.findall(rf"^\| `{section.__name__.lower()}\.{key}`.*$", TEXT, re.MULTILINE)
    _, _, _, default, others, _ = row.split("|")
    field = section.model_fields[key]
    assert re.findall("`(.*?)`", default) == [field.default]
    assert {field.default, *re.findall("`(.*?)`", others)} == set(get_args(field.annotation))


def test_the_table_of_norms_is_whole() -> None:
    table = TEXT.partition("| `normalize.norm` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(NORM_NAMES)


def test_the_table_of_exit_codes_is_whole() -> None:
    rows = dict(re.findall(r"^\| (\d[\d, ]*) \|([^|]*)\|", TEXT, re.MULTILINE))
    known = {name: getattr(batchnorm_tool, name) for name in batchnorm_tool.__all__}
    errors = {name: error for name, error in known.items() if hasattr(error, "exit_code")}
    codes = {name: code for code, names in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert codes.keys() == errors.keys() - {"BatchnormToolError"}
    for name, code in codes.items():
        assert code.startswith(str(errors[name].exit_code))


def test_the_first_screen_says_what_it_is_and_how_to_begin() -> None:
    first = TEXT.partition("\n## ")[0]
    assert "nothing" in TEXT[:400]
    assert "`BatchNormalization` layer" in TEXT[:400]
    for command in ("make quickstart", "make test", "pip install .", "uv tool install ."):
        assert command in first


def test_make_does_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert set(re.findall(r"[`$] ?make (\w+)", TEXT)) == targets - {"help", "clean"}
    recipe = re.findall(rf"^\t\$\(VENV\)/bin/({PROGRAM} .*)$", makefile, re.MULTILINE)
    assert recipe == commands(the_block("console", "verify runs/digits\n"))


def test_every_heading_that_is_linked_exists() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_every_file_that_is_named_exists() -> None:
    linked = re.findall(r"\]\(([^):#]+)\)", TEXT)
    house = re.findall(r"\b[a-z_]+(?:\.py|/)", the_block("text", "cli.py").text)
    assert len(linked) > 3
    assert len(house) > 15
    package = ROOT / "batchnorm_tool"
    places = [*(ROOT / name for name in linked), *(package / name for name in house)]
    assert [str(place) for place in places if not place.exists()] == []


@pytest.mark.needs("g++")
@pytest.mark.parametrize("block", of("cpp"))
def test_arrow_in_cpp_reads_the_result(performed: Performed, block: Block) -> None:
    (performed.directory / "read.cc").write_text(block.text)
    [libraries] = pa.get_library_dirs()
    names = ("arrow", "arrow_compute", "arrow_dataset", "parquet")
    linked = [str(path) for name in names for path in Path(libraries).glob(f"lib{name}.so.*")]
    include = f"-I{pa.get_include()}"
    compiler = ["g++", "-std=c++20", include, "read.cc", *linked, f"-Wl,-rpath,{libraries}"]
    subprocess.run([*compiler, "-o", "read"], cwd=performed.directory, check=True)
    done = subprocess.run(
        ["./read"], cwd=performed.directory, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1797 rows, vector: fixed_size_list<element: float>[32]\n", done.stderr
