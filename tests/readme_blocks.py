"""The fenced blocks of the README: found, run, and renewed.

A fenced block is treated by its language:

- ``sh``: ``batchnorm-tool`` commands, all of which are run; ``# exit code 4`` after one says so.
- ``console``: as ``sh``, each after ``$``, with what it prints. Commands of other programs
  (``make``, ``pip``) are not run.
- ``python``: run, each block by itself; a value in a comment beside an expression is compared.
  ``python not-run`` is only compiled.
- ``bash``: a script, run. ``yaml``: a job file, loaded. ``cpp``: compiled and run.
- ``text``: neither run nor compared.

All of them run in order, in one process, in a copy of what a fresh clone holds.

    python tests/readme_blocks.py --update     put what commands print into the ``console`` blocks
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
from typing import Any

from click.testing import CliRunner

from batchnorm_tool.cli.app import cli

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
_VARIES = re.compile(
    r"[\d,]+(?= rows/s)|\b(?:parts|files|bytes|seconds) +[\d.,e-]+"
    r"|\d+\.\d(?= s\b)|\d{4}-\d\d-\d\d \d\d:\d\d"
)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)


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


if __name__ == "__main__":
    if "--perform" in sys.argv:
        perform_here()
    else:
        update()
