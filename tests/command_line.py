"""The command line as tests use it: in this process, in another one, and on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from batchnorm_tool.cli import app

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(app.cli.commands)
HEAVY = {"tensorflow", "keras", "h5py", "numpy", "pandas", "pyarrow", "pydantic", "yaml", "rich"}
ENCODER = str(ROOT / "data_samples" / "digits_encoder.keras")
DIGITS = str(ROOT / "data_samples" / "digits.parquet")
BAD_ROWS = str(ROOT / "data_samples" / "bad_rows.parquet")
PREDICTIONS = str(ROOT / "data_samples" / "digits_predictions.parquet")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app.cli, [str(argument) for argument in arguments])


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command shows to a person at a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "batchnorm_tool", *arguments]
    settings = {**os.environ, "TERM": "xterm", **environment}
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=settings):
        os.close(theirs)
        shown = b""
        # Linux ends a terminal that nobody writes to any more with EIO.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    return shown.decode()


def stored(out: Path, *flags: object) -> Result:
    """Normalize the stored predictions: a job that needs no model."""
    return invoke("normalize", PREDICTIONS, out, "--key", "id", "--passthrough", "label", *flags)
