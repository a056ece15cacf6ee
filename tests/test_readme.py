"""The README is true: its blocks run, its outputs are real, and every command and name is in it.

A fenced block is treated by its language:

- ``sh``: ``batchnorm-tool`` commands, all of which are run; ``# exit code 4`` after one says so.
- ``console``: as ``sh``, each after ``$``, with what it prints. Commands of other programs
  (``make``, ``pip``) are not run.
- ``python``: run, each block by itself; a value in a comment beside an expression is compared.
  ``python not-run`` is only compiled.
- ``bash``: a script, run. ``yaml``: a job file, loaded. ``cpp``: compiled and run.
- ``text``: neither run nor compared.

All of them run in order, in one process, in a copy of what a fresh clone holds.

    python tests/test_readme.py --update     put what commands print into the ``console`` blocks
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tokenize
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from click.testing import CliRunner

import batchnorm_tool
from batchnorm_tool.cli import cli
from batchnorm_tool.job import Input, Job, Normalize, job_schema
from batchnorm_tool.norms import NORM_NAMES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
# Where the README's reader has the project.
HOME = "/home/you/batchnorm_tool"
PROGRAM = "batchnorm-tool"
# What click leaves of a terminal of 80 columns.
HELP_WIDTH = 78

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT_CODE = re.compile(r"#.*exit code (\d+)")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_BAR = re.compile(r" *[█▏▎▍▌▋▊▉]+ *")
# Other numbers on another machine (`auto` measures it), with another library, or every time.
_VARIES = re.compile(r"[\d,]+(?= rows/s)|\b(?:parts|files|bytes|seconds) +[\d.,e-]+")
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows it in the same line, its text, its first line."""

    language: str
    mark: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "console", "python", "bash") and self.mark != "not-run"


def blocks(text: str) -> list[Block]:
    return [
        Block(found[1], found[2].strip(), found[3], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    """The shell commands in a ``sh`` or ``console`` block; some go over several lines."""
    if block.language == "console":
        return _COMMAND.findall(block.text)
    if block.language == "sh":
        return block.text.replace("\\\n", " ").splitlines()
    return []


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command sets, and its words."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    variables = dict(word.split("=", 1) for word in words if _ASSIGNMENT.match(word))
    return variables, words[len(variables) :]


def is_ours(command: str) -> bool:
    return words_of(command)[1][:1] == [PROGRAM]


# Running a block, in the process that `perform` starts.


def run_command(command: str) -> str:
    """Run one command in this process; returns what it printed."""
    variables, (program, *arguments) = words_of(command)
    assert program == PROGRAM, f"only {PROGRAM} is run here: {command}"
    # The runner would have a width of its own, which is no terminal's.
    settings = {"prog_name": PROGRAM, "terminal_width": HELP_WIDTH}
    result = CliRunner().invoke(cli, arguments, env=variables, **settings)
    expected = _EXIT_CODE.search(command)
    assert result.exit_code == int(expected[1] if expected else 0), result.output
    printed = result.output if result.exit_code else result.stdout
    return printed.replace(str(Path.cwd()), HOME)


def run_sh(block: Block) -> None:
    for command in commands(block):
        run_command(command)


def run_console(block: Block) -> str:
    """The block as it should be."""
    shown = []
    for command in commands(block):
        shown.append(f"$ {command}\n")
        shown += [run_command(command)] if is_ours(command) else []
    return "".join(shown)


def run_python(block: Block) -> None:
    """Run a block; expressions with a comment beside them must have the value that it says."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(block.text).readline)
        if token.type == tokenize.COMMENT
    }
    names: dict[str, Any] = {"__name__": "readme"}
    for statement in ast.parse(block.text).body:
        source = ast.unparse(statement)
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), "README.md", "exec"), names)  # noqa: S102
            continue
        value = eval(source, names)  # noqa: S307
        said = comments.get(statement.end_lineno or 0)
        assert said is None or value is None or repr(value) == said, f"{source} is {value!r}"


def run_bash(block: Block) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block.text],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr


RUNNERS = {"sh": run_sh, "console": run_console, "python": run_python, "bash": run_bash}


def perform_here() -> None:
    """Run all blocks in the current directory; print their results as JSON."""
    results: dict[int, dict[str, str | None]] = {}
    for block in blocks(README.read_text()):
        if not block.runs:
            continue
        printed, failure = None, None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                printed = RUNNERS[block.language](block)
        except Exception:  # noqa: BLE001  (told to the test of this block)
            failure = traceback.format_exc()
        results[block.line] = {"printed": printed, "failure": failure}
    sys.stdout.write(json.dumps(results))


def perform(directory: Path) -> dict[int, dict[str, str | None]]:
    """Run all blocks in a process of its own, in a copy of configs and samples."""
    for name in ("configs", "data_samples"):
        shutil.copytree(ROOT / name, directory / name)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SCORING_")},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(directory / "huggingface"),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--perform"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(line): result for line, result in json.loads(done.stdout).items()}


def update() -> None:
    """Put what the commands print into the README, leaving alone what only differs in numbers."""
    with tempfile.TemporaryDirectory() as directory:
        results = perform(Path(directory).resolve())
    text = README.read_text()
    for block in blocks(text):
        result = results.get(block.line, {})
        if result.get("failure"):
            sys.stderr.write(f"README.md, line {block.line}: {result['failure']}\n")
        printed = result.get("printed")
        if printed is not None and not agree(block.text, printed):
            fence = f"```{block.language}{block.mark and ' ' + block.mark}\n"
            text = text.replace(f"{fence}{block.text}```\n", f"{fence}{printed}```\n")
    README.write_text(text)


def agree(shown: str, printed: str) -> bool:
    """Whether two outputs are the same but for speed, low digits, and rows at a bar's edge."""
    one, other = (_BAR.sub(" bar ", _VARIES.sub("varies", text)) for text in (shown, printed))
    same_words = _NUMBER.sub("#", one).split() == _NUMBER.sub("#", other).split()
    return same_words and all(map(_alike, _NUMBER.findall(one), _NUMBER.findall(other)))


def _alike(one: str, other: str) -> bool:
    first, second = (float(number.replace(",", "")) for number in (one, other))
    if "." in one:
        return math.isclose(first, second, rel_tol=1e-3)
    return abs(first - second) <= 2 or first == second


# The tests.

TEXT = README.read_text()
BLOCKS = blocks(TEXT)
COMMANDS = [command for block in BLOCKS for command in commands(block) if is_ours(command)]
SECTIONS = ("input", "model", "normalize", "output", "engine")


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
        assert block.text == printed, "python tests/test_readme.py --update"


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
    words = re.findall("`[^`\n]+`", _FENCE.sub("", TEXT))
    assert re.search(rf"\b{name}\b", "".join([*code, *words]))


def test_every_flag_that_is_named_exists() -> None:
    flags = {flag for name in cli.commands for flag in flags_of(name)}
    assert set(_FLAG.findall(TEXT)) - flags == {"--version", "--update"}


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


def test_every_file_that_is_named_exists() -> None:
    linked = re.findall(r"\]\(([^):]+)\)", TEXT)
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


if __name__ == "__main__":
    if "--perform" in sys.argv:
        perform_here()
    else:
        update()
