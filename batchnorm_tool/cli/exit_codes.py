"""What surrounds every command: exit codes, and what is said when it fails or is stopped."""

import math
import signal
import sys
import traceback
from typing import Any

import click

from batchnorm_tool.cli.output import Terminal
from batchnorm_tool.cli.signals import StopSignals
from batchnorm_tool.errors import (
    BatchnormToolError,
    Held,
    Interrupted,
    JobError,
    TargetFailed,
    capture_warnings,
    explained,
)

EPILOG = (
    "Exit codes: 0 done; 1 failed, run again to resume; 2 refused, cannot be done as asked; 3 "
    "waiting for approval; 4 bad rows, or damaged files; 5 busy; 130 and 143 interrupted, run "
    "again to resume."
)


def seconds_of(text: str | None) -> float:
    """Return seconds from ``30s``, ``10m``, ``2h`` or a plain number."""
    if text is None:
        return 0.0
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise JobError(f"`--wait` must be a time such as 30s, 10m or 2h. Received: {text}.")
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
        self._signals = StopSignals()
        self._warnings = capture_warnings(self._terminal.warn)

    def __enter__(self) -> Terminal:
        self._warnings.__enter__()
        self._signals.begin()
        return self._terminal

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._signals.end()
        self._warnings.__exit__(None, None, None)
        if self._signals.received is None and (error is None or isinstance(error, _CLICKS_OWN)):
            return
        if self._debug and error is not None:
            self._terminal.print_traceback(traceback.format_exception(error))
        sys.exit(self._report(self._as_ours(error)))

    def _as_ours(self, error: BaseException | None) -> BatchnormToolError:
        """Say what the error means, whichever library it passed through on its way here."""
        if self._signals.received is not None:
            kind = _Terminated if self._signals.received == signal.SIGTERM else Interrupted
        elif isinstance(error, KeyboardInterrupt | Interrupted):
            kind = Interrupted
        elif isinstance(error, BatchnormToolError):
            return error
        else:
            return explained(error or RuntimeError())
        outcome = _KEPT if self._keeps else "Nothing was written."
        return kind(f"{kind.__name__.lstrip('_')}. {outcome}")

    def _report(self, error: BatchnormToolError) -> int:
        """Say what went wrong; returns the exit code."""
        name = type(error).__name__.lstrip("_")
        record = error.night if isinstance(error, Held | TargetFailed) else None
        self._terminal.print_error(name, error.message, error.exit_code, record)
        return error.exit_code


_KEPT = "Finished work is kept: run the same command again to resume."


class _Terminated(Interrupted):
    """SIGTERM."""

    exit_code = 143
