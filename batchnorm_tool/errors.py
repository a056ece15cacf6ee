"""Every error that batchnorm_tool raises on purpose.

::

    BatchnormToolError            the root; never raised itself
    ├── Refused                   cannot be done as asked; nothing is published (exit code 2)
    │   ├── JobError              the job file, a flag or an argument is wrong
    │   ├── InputError            an input file or its schema does not fit
    │   ├── ModelError            the model file was refused, or does not load
    │   │   └── ModelFailed       the model does not run on rows; one by one, they are bad rows
    │   └── OutputError           the output directory cannot take this result
    ├── WorkFailed                failed during the work; running it again resumes (exit code 1)
    │   └── TargetFailed          a refresh is published, and a target beside it is not up to date
    ├── Held                      a refresh waits for a person: nothing was published (exit code 3)
    ├── Interrupted               a signal stopped the work; running it again resumes (130 or 143)
    ├── BadRows                   the data broke a row policy; running it again will not help (4)
    ├── Damaged                   a file is damaged, input or result (exit code 4)
    ├── ContractBroken            an encoder does not do what a result's contract says (exit code 4)
    └── Busy                      another run holds the output (exit code 5)

Each carries one message that says what happened, where (file, column, row), what was expected,
what was received, and what to do next. All of them survive pickling, so that they can travel back
from another process.
"""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, Self

FRESH = "--fresh"
"""The flag that replaces a result."""
RECREATE = f"recreate the result with `{FRESH}`"
"""The next step where a result, or what a run has done of it, cannot be used."""

_RESUMES = "Finished work is kept: run the same command again to resume."
# What may be gone the next time, where other errors say that a path is no good.
_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETXTBSY,
}
_collector: ContextVar[Callable[[str], object] | None] = ContextVar("collector", default=None)


class Lines(str):
    r"""A message of several lines; the line breaks within each are data, and begin no line.

    Example:
        >>> print(Lines("Two are bad:", "  a", "  b\nerror: c").replace("\ufffd", "?"))
        Two are bad:
          a
          b?error: c
    """

    __slots__ = ()

    def __new__(cls, *lines: str) -> Self:
        """Join lines."""
        return super().__new__(cls, "\n".join(line.replace("\n", "\ufffd") for line in lines))

    def __reduce__(self) -> tuple[type[Lines], tuple[str, ...]]:
        return Lines, tuple(self.split("\n"))


class BatchnormToolError(Exception):
    """The root of this tree: catch it to catch every failure that this package foresees."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])  # the only one, but for those that carry a result

    @property
    def message(self) -> str:
        """What happened, where, what was expected and received, and the next step."""
        text: str = self.args[0]
        return text


class Refused(BatchnormToolError):
    """Cannot be done as asked, and running it again will not help; nothing is published."""

    exit_code = 2


class JobError(Refused):
    """The job file, a flag or an argument is wrong."""


class InputError(Refused):
    """An input file cannot be read, or its schema does not fit the model or the job."""


class ModelError(Refused):
    """The model file was refused by the safety gate, does not load, or has no such output."""


class ModelFailed(ModelError):
    """The model does not run on some rows, as its text, the model's own words, says.

    Where a row does so alone, it is a bad row, and the others go on.
    """

    @property
    def message(self) -> str:
        """The same in a sentence."""
        return (
            f"The model fails on rows of the input: {self}. Check that the features match the "
            "model's training data."
        )


class OutputError(Refused):
    """The output directory holds something else, or cannot be written."""


class WorkFailed(BatchnormToolError):
    """The work failed half way; what is finished is kept, and running it again resumes."""


class _Result(Protocol):
    """What a refresh came to, whichever type it has there."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""


class TargetFailed(WorkFailed):
    """The store holds the new version, and the next run brings the target up to date.

    Attributes:
        result: What the refresh came to.
        exit_code: 1; 2 where running it again will not help before a person has fixed the cause.
    """

    def __init__(self, message: str, result: _Result | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.args = (message, result, exit_code)
        self.result = result
        self.exit_code = exit_code

    @property
    def night(self) -> dict[str, Any] | None:
        """The refresh's report, as plain data."""
        return None if self.result is None else self.result.to_dict()


class Held(BatchnormToolError):
    """The gate refused, the space is new, or the store is on hold: nothing was published.

    Attributes:
        result: What the refresh came to.
    """

    exit_code = 3

    def __init__(self, message: str, result: _Result | None = None) -> None:
        super().__init__(message)
        self.args = (message, result)
        self.result = result

    @property
    def night(self) -> dict[str, Any] | None:
        """The refresh's report, as plain data."""
        return None if self.result is None else self.result.to_dict()


class Interrupted(BatchnormToolError):
    """A signal stopped the work; what is finished is kept, and running it again resumes."""

    exit_code = 130


class BadRows(BatchnormToolError):
    """The data broke a row policy: nothing was published, and another try will not help."""

    exit_code = 4


class Damaged(BatchnormToolError):
    """A finished result is not what its manifest says, or an input is damaged deep inside."""

    exit_code = 4


class ContractBroken(BatchnormToolError):
    """An encoder does not do what the contract of a result says; the message says what it does."""

    exit_code = 4


class Busy(BatchnormToolError):
    """Another run holds the output."""

    exit_code = 5


def is_transient(error: OSError) -> bool:
    """Tell whether running the same again may help, once space, memory or a network is there."""
    return error.errno in _TRANSIENT or isinstance(error, ConnectionError | TimeoutError)


def explained(error: BaseException) -> BatchnormToolError:
    """Say what an error of a library or of the system means, where nothing nearer to it says so.

    Returns:
        `WorkFailed` where running it again may help, else `Refused`.
    """
    said = " ".join(str(error).split()) or "no details"
    if isinstance(error, MemoryError):
        return WorkFailed(
            f"Memory ran out: {said}. Lower `model.batch_size` or `engine.workers`, or free some "
            f"memory. {_RESUMES}"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return WorkFailed(f"{said}. Lower `engine.workers`, or raise `ulimit -u`. {_RESUMES}")
    if isinstance(error, OSError):
        return _explained_by_system(error, said)
    if isinstance(error, ValueError) and "null byte" in said:
        return Refused("A path contains a NUL character. Use another path.")
    if isinstance(error, RecursionError):
        return Refused("The content is nested too deeply. Use fewer levels.")
    return Refused(
        f"Unexpected error: {type(error).__name__}: {said}. Running again will not help. "
        "`--debug` shows where it arose; please report it."
    )


def _explained_by_system(error: OSError, said: str) -> BatchnormToolError:
    place = "" if error.filename is None else f"`{error.filename}`: "
    said = error.strerror or said
    if is_transient(error):
        return WorkFailed(f"{place}{said}. Fix the cause. {_RESUMES}")
    return Refused(f"{place}{said}. Expected a path that this user may access. Use another path.")


class InputWarning(UserWarning):
    """Something about an input that is worth knowing, and no reason to stop."""


def warn(text: str) -> None:
    """Tell whoever collects warnings in this thread, or raise an `InputWarning`."""
    tell = _collector.get()
    if tell is None:
        warnings.warn(text, InputWarning, stacklevel=3)
    else:
        tell(text)


@contextlib.contextmanager
def capture_warnings(tell: Callable[[str], object]) -> Iterator[None]:
    """Give each warning of this thread to ``tell`` instead.

    Example:
        >>> texts = []
        >>> with capture_warnings(texts.append):
        ...     warn("the file is empty")
        >>> texts
        ['the file is empty']
    """
    token = _collector.set(tell)
    try:
        yield
    finally:
        _collector.reset(token)
