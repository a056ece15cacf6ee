from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from batchnorm_tool.cli import signals
from batchnorm_tool.commands import show
from batchnorm_tool.errors import BatchnormToolError, Held, JobError, Lines, explained
from tests.command_line import PREDICTIONS, ROOT, invoke

HOSTILE = "a\n\x1b[31merror: all is well\x9b2J\u202e\x00\udcff"


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/some/path")


def copied(error: BatchnormToolError) -> BatchnormToolError:
    """As it comes back from another process."""
    again: BatchnormToolError = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
    return again


# Whatever comes through from a library, and whether running it again may help.
FOREIGN: dict[str, tuple[BaseException, int, str]] = {
    "no space": (system_error(errno.ENOSPC), 1, "`/some/path`: No space left on device"),
    "quota": (system_error(errno.EDQUOT), 1, "Disk quota exceeded"),
    "input/output error": (system_error(errno.EIO), 1, "Input/output error"),
    "too many files": (system_error(errno.EMFILE), 1, "Too many open files"),
    "no memory": (system_error(errno.ENOMEM), 1, "Cannot allocate memory"),
    "connection": (ConnectionRefusedError(111, "Connection refused"), 1, "Connection refused"),
    "time-out": (TimeoutError("timed out"), 1, "timed out"),
    "memory": (MemoryError("unable to allocate 9 GiB"), 1, "unable to allocate 9 GiB. Lower"),
    "Arrow's memory": (pa.ArrowMemoryError("malloc of size 9 failed"), 1, "malloc of size 9"),
    "threads": (RuntimeError("can't start new thread"), 1, "can't start new thread. Lower"),
    "no rights": (system_error(errno.EACCES), 2, "Permission denied"),
    "gone": (system_error(errno.ENOENT), 2, "No such file or directory"),
    "no directory": (system_error(errno.ENOTDIR), 2, "Not a directory"),
    "directory": (system_error(errno.EISDIR), 2, "Is a directory"),
    "long name": (system_error(errno.ENAMETOOLONG), 2, "File name too long"),
    "loop": (system_error(errno.ELOOP), 2, "Too many levels of symbolic links"),
    "read-only": (system_error(errno.EROFS), 2, "Read-only file system"),
    "no number": (OSError("Corrupt snappy compressed data."), 2, "Corrupt snappy"),
    "recursion": (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
    "text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "codec can't"),
    "key": (KeyError("emb"), 2, "KeyError: 'emb'"),
    "nothing said": (AssertionError(), 2, "AssertionError: no details"),
    "Arrow": (pa.ArrowInvalid("no kernel\nfor these types"), 2, "no kernel for these types"),
    "Arrow, not done": (pa.ArrowNotImplementedError("no"), 2, "ArrowNotImplementedError"),
    "ZIP": (zipfile.BadZipFile("bad magic number"), 2, "bad magic number"),
    "YAML": (yaml.YAMLError("odd"), 2, "YAMLError: odd"),
    "Rust": (BaseException("called `Option::unwrap()`"), 2, "Option::unwrap"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_error_ends_by_whether_running_again_may_help(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, code, words = FOREIGN[case]

    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(show, "show", fail)
    result = invoke("show", "anything")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert "same command again to resume" in result.stderr or code == 2
    assert copied(explained(error)).exit_code == code
    document = invoke("show", "anything", "--json").stdout
    assert f'"exit_code": {code}' in document


def test_an_error_that_an_interrupt_became_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        try:
            os.kill(os.getpid(), signals.signal.SIGTERM)
            signals.signal.sigtimedwait([], 30)
        except KeyboardInterrupt as interrupt:
            raise ImportError("numpy failed to import") from interrupt

    monkeypatch.setattr(show, "show", fail)
    result = invoke("show", "anything")
    assert (result.exit_code, result.stderr[:18]) == (143, "error: Terminated.")


# -- what is written to a terminal ---------------------------------------------------------------


def test_data_cannot_begin_a_line_and_lists_of_ours_can() -> None:
    lines = Lines("Two are bad:", "  one", f"  {HOSTILE}")
    assert lines.split("\n")[:2] == ["Two are bad:", "  one"]
    assert len(lines.split("\n")) == 3
    again = copied(JobError(lines)).message
    assert (type(again), again) == (Lines, lines)


RAISED: dict[str, BaseException] = {
    "one line": JobError(f"`{HOSTILE}` is no column."),
    "several": JobError(Lines("Two are bad:", f"  {HOSTILE}")),
    "foreign": KeyError(HOSTILE),
    "held": Held(f"`{HOSTILE}` waits."),
}


@pytest.mark.parametrize(
    "flags", [(), ("--debug",), ("--log-format", "json"), ("--json",)], ids=str
)
@pytest.mark.parametrize("case", RAISED)
def test_no_control_character_of_data_is_written(
    case: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RAISED[case]

    monkeypatch.setattr(show, "show", fail)
    result = invoke("show", "anything", *flags)
    written = result.stdout + result.stderr
    assert not set(HOSTILE) & set(written) - set("[31merror: all is well2Ja\n")
    assert not any(line.strip() == "error: all is well" for line in written.splitlines())
    if not flags:
        assert len(result.stderr.splitlines()) == (2 if case == "several" else 1)


@pytest.mark.parametrize(
    "arguments",
    [(f"--{HOSTILE}",), (HOSTILE,), ("show", f"--{HOSTILE}"), ("show", "a", HOSTILE), ("show",)],
    ids=["flag", "command", "flag of a command", "argument", "none"],
)
def test_what_is_wrong_with_the_flags_holds_no_control_character(
    arguments: tuple[str, ...],
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert not set("\x1b\x9b\u202e\x00") & set(result.output)


def test_json_keeps_odd_characters_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "a\x9b\u202e\x7f.parquet"
    path.write_bytes(Path(PREDICTIONS).read_bytes())
    written = invoke("show", path, "--json").stdout
    assert "a\\u009b\\u202e\\u007f.parquet" in written
    assert not set("\x9b\u202e\x7f") & set(written)


SECRETS = {
    "uri": "s3://AKIA:s3cr3t@bucket/key",
    "unescaped": "postgresql://me:p@s3cr3t@host/db",
    "a fragment": "postgresql://me:p#s3cr3t@host/db",
    "a query": "postgresql://me:p?s3cr3t@host/db",
    "spaces": "s3://AKIA:my s3cr3t/x@bucket",
    "parameter": "s3://bucket/key?secret_key=s3cr3t",
    "conninfo": "host=db password='my s3cr3t' user=me",
}


@pytest.mark.parametrize(
    "flags", [(), ("--debug",), ("--log-format", "json"), ("--json",)], ids=str
)
@pytest.mark.parametrize("case", SECRETS)
@pytest.mark.parametrize("form", ["Cannot open `{}`: no.", "Received: '{}'."])
def test_a_secret_is_never_written(
    case: str, form: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise JobError(form.format(SECRETS[case]))

    monkeypatch.setattr(show, "show", fail)
    result = invoke("show", "anything", *flags)
    assert "s3cr3t" not in result.output
    assert "***" in result.output


# -- standard output and standard error ----------------------------------------------------------


def command(*arguments: str, end: str) -> subprocess.CompletedProcess[str]:
    words = " ".join([sys.executable, "-m", "batchnorm_tool", *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} {end}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("> /dev/full", 1, "error: Cannot write to standard output: No space left on device."),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("| true", 0, ""),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=str)
def test_an_output_that_nobody_reads(
    end: str, code: int, words: str, flags: tuple[str, ...]
) -> None:
    done = command("schema", *flags, end=end)
    assert done.returncode == code
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == (1 if words else 0)


def test_the_code_of_a_failure_stays_where_nobody_reads_it() -> None:
    assert command("show", "nothing", "--json", end="| true").returncode == 2
    assert command("show", "nothing", "--json", end="2> /dev/full").returncode == 2
