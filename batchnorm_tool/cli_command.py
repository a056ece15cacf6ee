"""What surrounds every command: signals, exit codes, and what is said when it fails."""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from batchnorm_tool.errors import BatchnormToolError, Held, Interrupted, JobError, TargetFailed
from batchnorm_tool.terminal import Terminal

if TYPE_CHECKING:
    from types import FrameType

EPILOG = (
    "Exit codes: 0 done; 1 failed, running it again resumes; 2 cannot be done as asked; "
    "3 waits for a person; 4 the data broke a row policy, or damage was found; 5 busy; "
    "130 and 143 interrupted, running it again resumes."
)


def seconds_of(text: str | None) -> float:
    """Seconds from ``30s``, ``10m``, ``2h`` or a plain number."""
    if text is None:
        return 0.0
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        msg = f"`--wait` must be a time such as 30s, 10m or 2h. Received: {text}."
        raise JobError(msg)
    return seconds


# What click knows how to end by itself.
_CLICKS_OWN = (SystemExit, click.ClickException, click.exceptions.Exit)


class Command:
    """What surrounds every command: signals turn into errors, errors into words and exit codes."""

    def __init__(
        self, options: dict[str, Any], *, keeps: bool = True, run_id: str | None = None
    ) -> None:
        self._debug, self._keeps = options["debug"], keeps
        self._terminal = Terminal(
            as_json=options["as_json"],
            quiet=options["quiet"],
            json_logs=options["log_format"] == "json",
            run_id=run_id,
        )

    def __enter__(self) -> Terminal:
        self._before = signal.signal(signal.SIGTERM, _terminated)
        return self._terminal

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if error is None or isinstance(error, _CLICKS_OWN):
            return
        if self._debug:
            traceback.print_exception(error)
        sys.exit(self._report(error))

    def _report(self, error: BaseException) -> int:
        """Say what went wrong; returns the exit code."""
        if isinstance(error, BrokenPipeError):
            # A reader such as `head` has seen enough, and the work is done.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted("Interrupted. What is finished is kept: the same command resumes.")
        if isinstance(error, Interrupted) and not self._keeps:
            error = type(error)("Interrupted. Nothing was written.")
        if isinstance(error, Held | TargetFailed) and error.night is not None:
            self._terminal.night_failed(_name(error), error.message, error.exit_code, error.night)
            return error.exit_code
        if isinstance(error, BatchnormToolError):
            self._terminal.failed(_name(error), error.message, error.exit_code)
            return error.exit_code
        message = (
            f"Something unforeseen went wrong: {_name(error)}: {error}. What is finished is kept. "
            "`--debug` shows where; please report it."
        )
        self._terminal.failed(_name(error), message, 1)
        return 1


def _name(error: BaseException) -> str:
    return type(error).__name__.lstrip("_")


class _Terminated(Interrupted):
    """SIGTERM."""

    exit_code = 143


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    msg = "Terminated. What is finished is kept: the same command resumes."
    raise _Terminated(msg)
