"""Every error that batchnorm_tool raises on purpose.

::

    BatchnormToolError            the root; never raised itself
    ├── Refused                   cannot be done as asked; nothing was written (exit code 2)
    │   ├── JobError              the job file, a flag or an argument is wrong
    │   ├── InputError            an input file or its schema does not fit
    │   ├── ModelError            the model file was refused, or does not load
    │   └── OutputError           the output directory cannot take this result
    ├── WorkFailed                failed during the work; running it again resumes (exit code 1)
    │   └── TargetFailed          a refresh is published, and a target beside it is not up to date
    ├── Held                      a refresh waits for a person: nothing was published (exit code 3)
    ├── Interrupted               a signal stopped the work; running it again resumes (130 or 143)
    ├── BadRows                   the data broke a row policy; running it again will not help (4)
    ├── Damaged                   `verify` or `read` found damage (exit code 4)
    └── Busy                      another run holds the output (exit code 5)

Each carries one message that says what happened, where (file, column, row), what was expected,
what was received, and what to do next. All of them survive pickling, so that they can travel back
from another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BatchnormToolError(Exception):
    """The root of this tree: catch it to catch every failure that this package foresees."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """What happened, where, what was expected and received, and the next step."""
        return str(self.args[0])


class Refused(BatchnormToolError):
    """Cannot be done as asked; nothing was written."""

    exit_code = 2


class JobError(Refused):
    """The job file, a flag or an argument is wrong."""


class InputError(Refused):
    """An input file cannot be read, or its schema does not fit the model or the job."""


class ModelError(Refused):
    """The model file was refused by the safety gate, does not load, or has no such output."""


class OutputError(Refused):
    """The output directory holds something else, or cannot be written."""


class WorkFailed(BatchnormToolError):
    """The work failed half way; what is finished is kept, and running it again resumes."""

    exit_code = 1


class TargetFailed(WorkFailed):
    """The store holds the new version, and the next run brings the target up to date.

    Attributes:
        night: The night's report, as plain data.
    """

    def __init__(self, message: str, night: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.args = (message, night)
        self.night = night


class Held(BatchnormToolError):
    """The gate refused, the space is new, or the store is on hold: nothing was published.

    Attributes:
        night: The night's report, as plain data.
    """

    exit_code = 3

    def __init__(self, message: str, night: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.args = (message, night)
        self.night = night


class Interrupted(BatchnormToolError):
    """A signal stopped the work; what is finished is kept, and running it again resumes."""

    exit_code = 130


class BadRows(BatchnormToolError):
    """The data broke a row policy: nothing was published, and another try will not help."""

    exit_code = 4


class Damaged(BatchnormToolError):
    """A finished result is not what its manifest says it is."""

    exit_code = 4


class Busy(BatchnormToolError):
    """Another run holds the output."""

    exit_code = 5
