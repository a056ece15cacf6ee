"""Feed a large table through a Keras model and write normalized vectors beside their norms.

It normalizes **rows**, one vector for each row; it has nothing to do with the layer
``BatchNormalization``. Importing this package imports no TensorFlow, and a model is loaded only
when one has to run.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# As in `typing`, whose import a signal would interrupt before it finds a handler.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from batchnorm_tool.array_normalization import normalize
    from batchnorm_tool.errors import (
        BadRows,
        BatchnormToolError,
        Busy,
        Damaged,
        Held,
        InputError,
        Interrupted,
        JobError,
        ModelError,
        ModelFailed,
        OutputError,
        Refused,
        TargetFailed,
        WorkFailed,
    )
    from batchnorm_tool.job import Job
    from batchnorm_tool.jobs.comparing import Comparison, compare
    from batchnorm_tool.jobs.deciding import accept, release, rollback
    from batchnorm_tool.jobs.diffing import Difference, diff
    from batchnorm_tool.jobs.looking_back import history
    from batchnorm_tool.jobs.night import Night
    from batchnorm_tool.jobs.reading import read
    from batchnorm_tool.jobs.refreshing import refresh
    from batchnorm_tool.jobs.scoring import RunResult, run
    from batchnorm_tool.jobs.scoring_in_memory import Result, score
    from batchnorm_tool.jobs.showing import show
    from batchnorm_tool.jobs.verifying import verify
    from batchnorm_tool.stats import NormStats

_HOMES = {
    "BadRows": "errors",
    "BatchnormToolError": "errors",
    "Busy": "errors",
    "Comparison": "jobs.comparing",
    "Damaged": "errors",
    "Difference": "jobs.diffing",
    "Held": "errors",
    "InputError": "errors",
    "Interrupted": "errors",
    "Job": "job",
    "JobError": "errors",
    "ModelError": "errors",
    "ModelFailed": "errors",
    "Night": "jobs.night",
    "NormStats": "stats",
    "OutputError": "errors",
    "Refused": "errors",
    "Result": "jobs.scoring_in_memory",
    "RunResult": "jobs.scoring",
    "TargetFailed": "errors",
    "WorkFailed": "errors",
    "accept": "jobs.deciding",
    "compare": "jobs.comparing",
    "diff": "jobs.diffing",
    "history": "jobs.looking_back",
    "normalize": "array_normalization",
    "read": "jobs.reading",
    "refresh": "jobs.refreshing",
    "release": "jobs.deciding",
    "rollback": "jobs.deciding",
    "run": "jobs.scoring",
    "score": "jobs.scoring_in_memory",
    "show": "jobs.showing",
    "verify": "jobs.verifying",
}

__all__ = [
    "BadRows",
    "BatchnormToolError",
    "Busy",
    "Comparison",
    "Damaged",
    "Difference",
    "Held",
    "InputError",
    "Interrupted",
    "Job",
    "JobError",
    "ModelError",
    "ModelFailed",
    "Night",
    "NormStats",
    "OutputError",
    "Refused",
    "Result",
    "RunResult",
    "TargetFailed",
    "WorkFailed",
    "__version__",
    "accept",
    "compare",
    "diff",
    "history",
    "normalize",
    "read",
    "refresh",
    "release",
    "rollback",
    "run",
    "score",
    "show",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
