from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm_tool.cli import signals
from tests.command_line import ENCODER, PREDICTIONS, ROOT

# Python runs it before the program: a signal, or several, when a module is looked for.
HOOK = """
import os, signal, sys, time
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["WHERE"]:
            for number in os.environ["NUMBERS"].split():
                os.kill(os.getpid(), int(number))
                time.sleep(float(os.environ["PAUSE"]))
sys.meta_path.insert(0, Hook())
"""
NORMALIZE = ("normalize", PREDICTIONS, "out", "--column", "prediction", "--quiet")
# What is imported first, by the command line, by the job, by what the job does, and at the end.
MODULES = (
    *("batchnorm_tool.cli.app", "click", "click.core", "batchnorm_tool.cli.flags"),
    *(
        "batchnorm_tool.cli.output",
        "yaml",
        "pydantic",
        "pydantic_core",
        "batchnorm_tool.job.refresh_sections",
    ),
    *("numpy", "numpy.linalg", "pyarrow.lib", "pyarrow.parquet", "batchnorm_tool.commands.run.run"),
    *("batchnorm_tool.engines.local", "batchnorm_tool.pipeline.timing"),
)


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    return folder


def signalled(
    hook: Path, where: str, *arguments: str, numbers: str = "2", pause: float = 0
) -> subprocess.CompletedProcess[str]:
    """A command that gets signals where a module is imported."""
    path = os.pathsep.join([str(hook), str(ROOT)])
    wanted = {"PYTHONPATH": path, "WHERE": where, "NUMBERS": numbers, "PAUSE": str(pause)}
    return subprocess.run(
        [sys.executable, "-m", "batchnorm_tool", *arguments],
        cwd=hook.parent,
        env={**os.environ, **wanted},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("where", MODULES)
def test_an_interrupt_at_the_start_ends_it_with_130(hook: Path, where: str) -> None:
    done = signalled(hook, where, *NORMALIZE)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("error: Interrupted.")
    assert len(done.stderr.splitlines()) == 1
    assert not (hook.parent / "out" / "vectors").exists()


@pytest.mark.parametrize(
    ("numbers", "pause", "code"),
    [("15", 0, 143), ("2 2", 0, 130), ("2 2", 0.6, 130), ("15 2", 0, 143)],
    ids=["SIGTERM", "twice at once", "twice", "SIGTERM, then SIGINT"],
)
@pytest.mark.parametrize("where", ["click", "pyarrow.lib"])
def test_other_signals_and_several(
    hook: Path, where: str, numbers: str, pause: float, code: int
) -> None:
    done = signalled(hook, where, *NORMALIZE, numbers=numbers, pause=pause)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {'Interrupted' if code == 130 else 'Terminated'}.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("where", ["tensorflow.python", "h5py"])
def test_an_interrupt_while_tensorflow_is_imported(
    hook: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What another test kept of the model would spare the import.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = signalled(hook, where, "show", ENCODER)
    assert done.returncode == 130
    assert "error: Interrupted." in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_with_json_is_a_document(hook: Path) -> None:
    done = signalled(hook, "pyarrow.lib", *NORMALIZE, "--json")
    assert done.returncode == 130
    assert '"error": "Interrupted"' in done.stdout


def test_a_signal_that_is_ignored_from_the_start_stays_ignored(hook: Path) -> None:
    """As for a command that a shell script puts into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = signalled(hook, "pyarrow.lib", *NORMALIZE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_after_the_work_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signals.end_at_once)
    try:
        stops = signals.StopSignals()
        stops.begin()
        assert signal.getsignal(signal.SIGINT) == stops._handle
        stops.end()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_an_import_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that swallows everything, as some of the libraries do."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    done = True\n"
        "except BaseException:\n    done = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stops = signals.StopSignals()
    stops.begin()
    try:
        with pytest.raises(signals.Stopped) as caught:
            import_and_wait("swallows")
    finally:
        stops.end()
    assert (caught.value.exit_code, stops.received) == (130, signal.SIGINT)
    assert sys.modules["swallows"].done


# A call that lets other threads run, and returns to Python after many minutes.
IN_A_LIBRARY = """
import hashlib, os, sys, threading
from batchnorm_tool.cli import signals
signals._GRACE_SECONDS = 0.3
signals.handle_early()
signals.StopSignals().begin()
threading.Timer(0.5, os.kill, [os.getpid(), int(sys.argv[1])]).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(("number", "code"), [("2", 130), ("15", 143)])
def test_a_library_that_does_not_return_is_waited_for_some_seconds(number: str, code: int) -> None:
    command = [sys.executable, "-c", IN_A_LIBRARY, number]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    said = f"error: {'Interrupted' if code == 130 else 'Terminated'}.\n"
    assert (done.returncode, done.stderr) == (code, said)


def import_and_wait(name: str) -> None:
    __import__(name)
    signal.sigtimedwait([], 30)
    pytest.fail("no interrupt came")
