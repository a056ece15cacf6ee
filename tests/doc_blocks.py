"""The fenced blocks of the pages (README.md, docs/, CONTRIBUTING.md): found, run, and renewed.

A fenced block is treated by its language:

- ``sh``: ``batchnorm-tool`` commands, all of which are run; ``# exit code 4`` after one says so.
- ``console``: as ``sh``, each after ``$``, with what it prints; a line ``…`` stands for the rest.
  Commands of other programs (``make``, ``pip``) are not run.
- ``python``: run, each block by itself; a value in a comment beside an expression is compared.
  ``python not-run`` is only compiled.
- ``bash``: a script, run. ``cpp``: compiled and run.
- ``yaml``: a job file, or sections of one beside those of `configs/refresh.yaml`; loaded.
- ``text``: neither run nor compared.

Blocks of a page run in order, all pages in one process. The README starts from what a fresh clone
holds, every other page from what ``make quickstart`` makes of that, whatever pages ran before.

    python -m tests.doc_blocks --update [PAGE …]     put what commands print into the pages
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from batchnorm_tool.cli.app import cli
from batchnorm_tool.job import job_schema
from tests.postgres import VARIABLE, started_server

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
KEYS_PAGE = ROOT / "docs" / "job-file.md"
KEYS_BEGIN, KEYS_END = "<!-- keys -->\n", "<!-- end -->\n"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
# Where the reader has the project.
HOME = "/home/you/batchnorm_tool"
PROGRAM = "batchnorm-tool"
# What click leaves of a terminal of 80 columns.
HELP_WIDTH = 78
THE_REST = "…\n"

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT_CODE = re.compile(r"#.*exit code (\d+)")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_BAR = re.compile(r" *[█▏▎▍▌▋▊▉]+ *")
# Other numbers on another machine (`auto` measures it), with another library, or every time.
_VARIES = re.compile(
    r"[\d,]+(?= rows/s)|\b(?:parts|files|bytes|seconds) +[\d.,e-]+"
    r"|\d+\.\d(?= s\b)|\d{4}-\d\d-\d\d \d\d:\d\d"
)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
_TYPES = {
    "string": ["text"],
    "integer": ["integer"],
    "number": ["number"],
    "boolean": ["`true`", "`false`"],
    "array": ["list"],
    "object": ["map"],
}
_COMMANDS_HEAD = """\
# Commands

What `--help` prints, on a terminal of 80 columns. Every command also runs as
`python -m batchnorm_tool`. The flags that set a key of the job are explained in
[Job file](job-file.md), the exit codes in the [README](../README.md#exit-codes).
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, what follows that in its line, its text, first line."""

    page: str
    language: str
    mark: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in RUNNERS and self.mark != "not-run"

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    """The path of a page below the project."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            name_of(page),
            found[1],
            found[2].strip(),
            found[3],
            text.count("\n", 0, found.start()) + 1,
        )
        for found in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """What stands between the blocks."""
    return _FENCE.sub("", text)


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


def commands_page() -> str:
    """`docs/commands.md` as it should be."""
    shown = [f"$ {PROGRAM} --help\n{help_of()}"]
    sections = [f"```console\n{shown[0]}```\n"]
    for name in cli.commands:
        printed = f"$ {PROGRAM} {name} --help\n{help_of(name)}"
        sections.append(f"## {name}\n\n```console\n{printed}```\n")
    return "\n".join([_COMMANDS_HEAD, *sections])


def help_of(*words: str) -> str:
    return run_command(shlex.join([PROGRAM, *words, "--help"]))


def keys_page() -> str:
    """`docs/job-file.md` with every key of a job, as the JSON Schema has them."""
    before, begin, rest = KEYS_PAGE.read_text().partition(KEYS_BEGIN)
    after = rest.partition(KEYS_END)[2]
    head = ["| Key | Values | Default | What it is |", "|---|---|---|---|"]
    rows = dict.fromkeys(_key_rows(job_schema(), "Job", ""))  # targets have keys in common
    table = "\n".join([*head, *rows])
    return f"{before}{begin}{table}\n{KEYS_END}{after}"


def _key_rows(schema: dict[str, Any], section: str, prefix: str) -> Iterator[str]:
    found = schema["$defs"].get(section, schema)
    variants = found.get("anyOf", [found])
    for name, key in (item for one in variants for item in one["properties"].items()):
        kinds = [key, *key.get("anyOf", [])]
        inner = [kind.get("items", kind).get("$ref") for kind in kinds]
        [*nested] = [reference.rpartition("/")[2] for reference in inner if reference]
        if nested and nested != ["Trust"]:
            yield from _key_rows(schema, nested[0], f"{prefix}{name}.")
        else:
            values = dict.fromkeys(value for kind in kinds for value in _values(kind))
            default = json.dumps(key["default"]) if key.get("default") is not None else ""
            cells = (f"`{prefix}{name}`", ", ".join(values), default.strip('"'), key["description"])
            yield "| {} |".format(" | ".join(cell.replace("|", "\\|") for cell in cells))


def _values(kind: dict[str, Any]) -> list[str]:
    """The values that a schema allows, in words; a variable of the environment may always stand."""
    if "enum" in kind or "const" in kind:
        return [f"`{value}`" for value in kind.get("enum", [kind.get("const")])]
    if kind.get("pattern", "").startswith(r"^\$"):
        return []
    return _TYPES.get(kind.get("type", ""), [])


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
    before = _COMMAND.split(block.text)[2::2]
    for command, said in zip(commands(block), before, strict=True):
        shown.append(f"$ {command}\n")
        shown += [_as_much(run_command(command), said)] if is_ours(command) else []
    return "".join(shown)


def _as_much(printed: str, shown: str) -> str:
    """What was printed, and no more lines of it than are shown before the line ``…``."""
    if not shown.endswith(THE_REST):
        return printed
    lines = shown.removeprefix("\n").count("\n") - 1
    return "".join(printed.splitlines(keepends=True)[:lines]) + THE_REST


def run_python(block: Block) -> None:
    """Run a block; expressions with a comment beside them must have the value that it says."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(block.text).readline)
        if token.type == tokenize.COMMENT
    }
    names: dict[str, Any] = {"__name__": "page"}
    for statement in ast.parse(block.text).body:
        source = ast.unparse(statement)
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), block.page, "exec"), names)  # noqa: S102
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


def run_page(page: Path) -> dict[int, dict[str, str | None]]:
    """Run the blocks of a page in the current directory; results by line."""
    results: dict[int, dict[str, str | None]] = {}
    for block in blocks(page):
        if not block.runs:
            continue
        printed, failure = None, None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                printed = RUNNERS[block.language](block)
        except Exception:  # noqa: BLE001  (told to the test of this block)
            failure = traceback.format_exc()
        results[block.line] = {"printed": printed, "failure": failure}
    return results


def perform_here(pages: list[Path]) -> None:
    """Run the pages, each from where its reader starts; print results as JSON."""
    made, quickstart = Path("runs"), Path("quickstart")
    run_command(f"{PROGRAM} run configs/quickstart.yaml")
    made.rename(quickstart)
    results = {}
    for page in pages:
        shutil.rmtree(made, ignore_errors=True)
        if page != README:
            shutil.copytree(quickstart, made)
        results[name_of(page)] = run_page(page)
    sys.stdout.write(json.dumps(results))


def perform(directory: Path, pages: list[Path]) -> dict[str, dict[str, str | None]]:
    """Run pages in a process of its own, in a copy of a fresh clone; results by `Block.id`."""
    for name in ("configs", "data_samples"):
        shutil.copytree(ROOT / name, directory / name)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SCORING_")},
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(directory / "huggingface"),
    }
    with started_server() as connection_string:
        done = subprocess.run(
            [sys.executable, "-m", "tests.doc_blocks", "--perform", *map(name_of, pages)],
            cwd=directory,
            env=environment | {VARIABLE: connection_string},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return {
        f"{page}:{line}": result
        for page, results in json.loads(done.stdout).items()
        for line, result in results.items()
    }


def update(pages: list[Path]) -> None:
    """Put what commands print into pages, leaving alone what only differs in numbers."""
    COMMANDS_PAGE.write_text(commands_page())
    KEYS_PAGE.write_text(keys_page())
    with tempfile.TemporaryDirectory() as directory:
        results = perform(Path(directory).resolve(), pages)
    for page in pages:
        page.write_text(_renewed(page, results))


def _renewed(page: Path, results: dict[str, dict[str, str | None]]) -> str:
    text = page.read_text()
    for block in blocks(page):
        result = results.get(block.id, {})
        if result.get("failure"):
            sys.stderr.write(f"{block.id}: {result['failure']}\n")
        printed = result.get("printed")
        if printed is not None and not agree(block.text, printed):
            fence = f"```{block.language}{block.mark and ' ' + block.mark}\n"
            text = text.replace(f"{fence}{block.text}```\n", f"{fence}{printed}```\n")
    return text


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


if __name__ == "__main__":
    mode, *names = sys.argv[1:]
    chosen = [ROOT / name for name in names] or PAGES
    {"--perform": perform_here, "--update": update}[mode](chosen)
