"""Every place where a command takes a path, given every kind of path that does not serve."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command_line import DIGITS, ENCODER, PREDICTIONS, invoke

CONTROLS = "a\n\x1b[31mb\x9b\u202e"


def empty(folder: Path) -> Path:
    (folder / "empty").touch()
    return folder / "empty"


def link(folder: Path, target: str) -> Path:
    (folder / "link").symlink_to(target)
    return folder / "link"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def odd_bytes(folder: Path) -> Path:
    path = os.fsdecode(os.fsencode(folder) + b"/a\xff")
    Path(path).touch()
    return Path(path)


def directory(folder: Path) -> Path:
    (folder / "directory").mkdir()
    (folder / "directory" / "notes.txt").touch()
    return folder / "directory"


PATHS: dict[str, Callable[[Path], Path]] = {
    "missing": lambda folder: folder / "missing",
    "empty": empty,
    "directory": directory,
    "below a file": lambda folder: empty(folder) / "below",
    "link to nothing": lambda folder: link(folder, "nothing"),
    "link to itself": lambda folder: link(folder, "link"),
    "FIFO": fifo,
    "device": lambda folder: Path("/dev/zero"),
    "unreadable": lambda folder: Path("/proc/self/clear_refs"),
    "control characters": lambda folder: folder / CONTROLS,
    "long name": lambda folder: folder / ("n" * 300),
    "long path": lambda folder: folder.joinpath(*["n" * 200] * 30),
    "odd bytes": odd_bytes,
    "NUL": lambda folder: folder / "a\0b",
    "below nothing": lambda folder: Path("/proc/no/such/place"),
}
# Where something is read.
READ: dict[str, tuple[str, ...]] = {
    "run JOB": ("run", "{}"),
    "run MODEL": ("run", "{}", DIGITS, "out"),
    "run IN": ("run", ENCODER, "{}", "out"),
    "normalize": ("normalize", "{}", "out", "--column", "prediction"),
    "compare": ("compare", "{}"),
    "compare --queries": ("compare", PREDICTIONS, "--column", "prediction", "--queries", "{}"),
    "compare --relevance": (
        *("compare", PREDICTIONS, "--column", "prediction", "--key", "id"),
        *("--queries", PREDICTIONS, "--relevance", "{}"),
    ),
    "diff A": ("diff", "{}", PREDICTIONS, "--key", "id"),
    "diff B": ("diff", PREDICTIONS, "{}", "--key", "id", "--column", "prediction"),
    "refresh": ("refresh", "{}"),
    "accept": ("accept", "{}", "1"),
    "rollback": ("rollback", "{}"),
    "release": ("release", "{}"),
    "history": ("history", "{}"),
    "verify": ("verify", "{}"),
    "check": ("check", ENCODER, "--against", "{}"),
    "show": ("show", "{}"),
}
# Where something is written, by a command that is right otherwise.
WRITTEN: dict[str, tuple[str, ...]] = {
    "normalize OUT": ("normalize", PREDICTIONS, "{}", "--column", "prediction"),
    "compare -o": ("compare", PREDICTIONS, "--column", "prediction", "--sample", "9", "-o", "{}"),
    "diff -o": ("diff", PREDICTIONS, PREDICTIONS, "--key", "id", "-o", "{}"),
    "show --html": ("show", "FINISHED/run", "--html", "{}"),
    "refresh --metrics-file": ("refresh", "FINISHED/job.yaml", "--metrics-file", "{}"),
    "accept --metrics-file": ("accept", "FINISHED/store", "1", "--metrics-file", "{}"),
    "history --html": ("history", "FINISHED/store", "--html", "{}"),
}
_DIRECTORIES = ("normalize OUT", "compare -o", "diff -o")
# Nothing is wrong with these.
_FINE = {
    *((place, kind) for kind in ("missing", "control characters") for place in WRITTEN),
    *((place, "directory") for place in ("compare -o", "diff -o")),
    *((place, "odd bytes") for place in WRITTEN if place not in _DIRECTORIES),
    *((place, "empty") for place in WRITTEN if place not in _DIRECTORIES),
    *((place, "link to nothing") for place in WRITTEN if place not in _DIRECTORIES),
    *((place, "link to itself") for place in WRITTEN if place not in _DIRECTORIES),
    *((place, kind) for kind in ("FIFO", "device") for place in WRITTEN if "html" in place),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a store, and the job of it."""
    folder = tmp_path_factory.mktemp("finished")
    assert invoke("normalize", PREDICTIONS, folder / "run", "--column", "prediction").exit_code == 0
    lines = [
        f"input: {{path: {PREDICTIONS}, key: id, features: prediction}}",
        "store: {path: store}",
    ]
    (folder / "job.yaml").write_text("\n".join(lines))
    assert invoke("refresh", folder / "job.yaml").exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """End a test that waits for the other end of a FIFO, or for the end of a device."""

    def fail(*_: object) -> None:
        pytest.fail("it reads on and on")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check(
    arguments: tuple[str, ...], path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    result = invoke(*(argument.replace("{}", str(path)) for argument in arguments))
    assert result.exit_code in (2, 4), result.output
    assert result.stdout == ""
    assert re.match(r"(\[\w+\] )?error: ", result.stderr)
    assert len(result.stderr.splitlines()) == 1
    assert not set("\x1b\x9b\u202e") & set(result.stderr)
    assert "Unexpected error" not in result.stderr, "foreseen where it arises"
    assert "Traceback" not in result.stderr
    assert f"{path}"[:8] in result.stderr or "NUL" in result.stderr
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("place", READ)
def test_a_path_that_cannot_be_read_is_refused(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(READ[place], PATHS[kind](tmp_path), tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("place", WRITTEN)
def test_a_path_that_cannot_be_written_is_refused(
    place: str, kind: str, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PATHS[kind](tmp_path)
    arguments = tuple(one.replace("FINISHED", str(finished)) for one in WRITTEN[place])
    if (place, kind) not in _FINE:
        check(arguments, path, tmp_path, monkeypatch)
