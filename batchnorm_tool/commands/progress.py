"""How far the work is: told to nobody, in plain lines, or as a bar on a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from batchnorm_tool.display import percent

if TYPE_CHECKING:
    from rich import progress

_PLAIN_SECONDS = 5.0
_STAGE_SECONDS = 1.0
_MINUTE, _HOUR = 60, 3600


class Progress(Protocol):
    """The receiver of a run's progress; called from several threads."""

    def work(self, rows: int, done: int) -> contextlib.AbstractContextManager[None]:
        """Begin work over ``rows`` rows, ``done`` of which are done already."""

    def advance(self, rows: int) -> None:
        """Count so many more rows as done."""

    def stage(self, what: str, *, slow: bool = False) -> contextlib.AbstractContextManager[None]:
        """Say what goes on while no row is worked on, such as ``"loading TensorFlow"``.

        ``slow`` is what takes seconds for certain: in plain lines it is said at once.
        """


class SilentProgress:
    """Progress that nobody sees."""

    @contextlib.contextmanager
    def work(self, rows: int, done: int) -> Iterator[None]:  # noqa: ARG002
        """Begin work; nothing is said."""
        yield

    def advance(self, rows: int) -> None:
        """Count nothing."""

    @contextlib.contextmanager
    def stage(self, what: str, *, slow: bool = False) -> Iterator[None]:  # noqa: ARG002
        """Begin a stage; nothing is said."""
        yield


class PlainProgress:
    """A plain line every few seconds, for logs.

    Args:
        write: Takes a line; by default it goes to standard error.
        seconds: Time between two lines.
        stage_seconds: How long a stage takes before it is worth a line.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        seconds: float = _PLAIN_SECONDS,
        stage_seconds: float = _STAGE_SECONDS,
    ) -> None:
        self._write = write or _to_standard_error
        self._seconds, self._stage_seconds = seconds, stage_seconds
        self._lock = threading.Lock()
        self._rows = self._done = self._begun_with = 0
        self._started = self._said = 0.0

    @contextlib.contextmanager
    def work(self, rows: int, done: int) -> Iterator[None]:
        """Begin work over ``rows`` rows, ``done`` of which are done already."""
        self._rows, self._done, self._begun_with = rows, done, done
        self._started = self._said = time.monotonic()
        yield

    def advance(self, rows: int) -> None:
        """Count so many more rows as done; print it if the last line is some seconds old."""
        with self._lock:
            self._done += rows
            now = time.monotonic()
            if now - self._said >= self._seconds:
                self._said = now
                self._write(self._line(now))

    @contextlib.contextmanager
    def stage(self, what: str, *, slow: bool = False) -> Iterator[None]:
        """Print a line about a stage if it takes longer than a second."""
        # An import of TensorFlow holds standard error back, and a line of this timer with it.
        timer = threading.Timer(self._stage_seconds, self._write, [f"{what} …"])
        timer.daemon = True
        if slow:
            self._write(f"{what} …")
        else:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _line(self, now: float) -> str:
        rate = _rate(self._done - self._begun_with, now - self._started)
        left = format_duration((self._rows - self._done) / rate)
        return (
            f"{self._done:,} of {self._rows:,} rows "
            f"({percent(self._done / self._rows, 0)}), {rate:,.0f} rows/s, {left} left"
        )


def _to_standard_error(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()


class ProgressBar:
    """A bar on a terminal, drawn by rich."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done, self._started = 0, 0.0
        self._bar: progress.Progress | None = None
        self._stages: list[str] = []

    @contextlib.contextmanager
    def work(self, rows: int, done: int) -> Iterator[None]:
        """Begin work over ``rows`` rows, ``done`` of which are done already."""
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        self._done, self._started = 0, time.monotonic()
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self._bar = bar
            bar.add_task("rows", total=rows, completed=done, rate="")
            yield

    def advance(self, rows: int) -> None:
        """Count so many more rows as done."""
        with self._lock:
            self._done += rows
            if self._bar is not None:
                rate = _rate(self._done, time.monotonic() - self._started)
                (task,) = self._bar.task_ids
                self._bar.update(task, advance=rows, rate=f"{rate:,.0f} rows/s")

    @contextlib.contextmanager
    def stage(self, what: str, *, slow: bool = False) -> Iterator[None]:  # noqa: ARG002
        """Show a stage in a line that goes with it."""
        # Without rich: whatever draws beside an import of TensorFlow stands still, and comes late.
        self._stages.append(f"{what} …")
        _show_for_now(self._stages[-1])
        try:
            yield
        finally:
            _show_for_now(" " * len(self._stages.pop()))
            for outer in self._stages[-1:]:
                _show_for_now(outer)


def loading_model(
    progress: Progress, *, tensorflow: bool = True
) -> contextlib.AbstractContextManager[None]:
    """Begin the stage in which a model is loaded, and first of all TensorFlow, if it needs that."""
    slow = tensorflow and "tensorflow" not in sys.modules
    return progress.stage("loading TensorFlow" if slow else "loading the model", slow=slow)


def _show_for_now(text: str) -> None:
    """Write a text over which whatever comes next is written."""
    _to_standard_error(f"\r{text}", end="\r")


def _rate(rows: int, seconds: float) -> float:
    """Return rows per second, above zero also where no row or no time has gone by."""
    return max(rows, 1) / max(seconds, 1e-9)


def format_duration(seconds: float) -> str:
    """Return a duration as a person says it, such as ``2 min 5 s``."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
