"""What SIGINT and SIGTERM do at each moment of a command.

- Before the command's work begins they end the process at once: there is nothing to tidy up.
- During the work they raise `Stopped`, which no ``except Exception`` of a library takes; never
  within an import, which would leave half a module behind, or swallow it: there they wait until it
  is over. A second signal ends the process at once; what is left is what SIGKILL leaves. So does a
  first one after some seconds: Python's handlers wait while the main thread is in a library.
- After it they are ignored: the exit code is decided.

A signal that whoever began this process has told it to ignore stays ignored. This is imported
before all else, and so imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

STOPS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
# `timeout` sends its signal twice at once, and so do a terminal and a wrapper together.
_TWICE_SECONDS = 0.5
_RETRY_SECONDS = 0.01
# For what is under way to end by itself: a call of a model may take hours.
_GRACE_SECONDS = 10.0


def end_at_once(number: int, frame: FrameType | None = None) -> None:  # noqa: ARG001
    """End the process with the exit code of a signal; the handler before the work begins."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {STOPS[signal.Signals(number)]}.\n".encode())
    os._exit(128 + number)


def handle_early() -> None:
    """Let signals end the process at once, until the work begins."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_at_once)


class Stopped(KeyboardInterrupt):
    """A signal stopped the work.

    Attributes:
        exit_code: 130 or 143.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopSignals:
    """The handler while a command works.

    Attributes:
        received: The first signal that came, if any.
    """

    def __init__(self) -> None:
        import threading

        self.received: int | None = None
        self._since, self._over = 0.0, threading.Event()
        self._before = {
            number: handler
            for number in STOPS
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def begin(self) -> None:
        """Let signals raise `Stopped` from here on."""
        import threading

        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # The system's handler writes there at once, whatever the main thread does.
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=[reader], daemon=True).start()
        for number in self._before:
            signal.signal(number, self._handle)

    def end(self) -> None:
        """Let signals do what they did before; where that was the end, nothing."""
        self._over.set()
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if before is end_at_once else before)
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _watch(self, reader: int) -> None:
        """End the process some seconds after the first signal, unless the command is over."""
        while (received := os.read(reader, 1)) and received[0] not in self._before:
            pass
        if received and not self._over.wait(_GRACE_SECONDS):
            end_at_once(received[0])
        os.close(reader)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._over.is_set():
            return
        if self.received is None:
            self.received, self._since = number, now
        elif number != signal.SIGALRM:
            if now - self._since > _TWICE_SECONDS:
                end_at_once(number)
            return
        if not _may_raise(frame):
            signal.signal(signal.SIGALRM, self._handle)
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
        raise Stopped(self.received)


def _may_raise(frame: FrameType | None) -> bool:
    """Tell whether no import is under way, nor what begins and ends a command."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return False
        if frame.f_code.co_qualname in ("_ExitCodes.__enter__", "_ExitCodes.__exit__"):
            return False
        frame = frame.f_back
    return True
