"""The fate of bad rows: what the job's policies make of each reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.chunk import INPUT_REASONS, Reason

if TYPE_CHECKING:
    from batchnorm_tool.job import Job

ACTIONS = ("keep", "nullify", "drop", "quarantine", "fail")
KEEP, NULLIFY, DROP, QUARANTINE, FAIL = range(len(ACTIONS))


@dataclass(frozen=True)
class Policies:
    """What happens to a row for each `Reason`.

    Attributes:
        actions: ``uint8[len(Reason)]``: for each reason, an index into `ACTIONS`.
    """

    actions: np.ndarray

    @classmethod
    def of(cls, job: Job) -> Policies:
        """The policies that ``job`` declares."""
        names: dict[Reason, str] = dict.fromkeys(INPUT_REASONS, job.input.invalid)
        names[Reason.GOOD] = "keep"
        names[Reason.NONFINITE_PREDICTION] = job.normalize.nonfinite
        names[Reason.NORM_OVERFLOW] = job.normalize.nonfinite
        names[Reason.ZERO_VECTOR] = job.normalize.zero
        return cls(np.array([ACTIONS.index(names[reason]) for reason in Reason], np.uint8))

    def judge(self, faults: np.ndarray) -> np.ndarray:
        """The action for each row: ``uint8[n]`` from reasons ``uint8[n]``."""
        return self.actions[faults]

    @property
    def bad(self) -> np.ndarray:
        """Which reasons make a row bad: ``bool[len(Reason)]``; all but a zero vector kept."""
        bad = np.ones(len(Reason), bool)
        bad[Reason.GOOD] = False
        bad[Reason.ZERO_VECTOR] = self.actions[Reason.ZERO_VECTOR] != KEEP
        return bad
