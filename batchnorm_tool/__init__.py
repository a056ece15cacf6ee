"""Feed a large table through a Keras model and write normalized vectors beside their norms.

It normalizes **rows**, one vector for each row; it has nothing to do with the layer
``BatchNormalization``. Importing this package imports no TensorFlow, and a model is loaded only
when one has to run.
"""

from __future__ import annotations

import importlib

from batchnorm_tool._version import __version__

# As in `typing`, whose import a signal would interrupt before it finds a handler.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from batchnorm_tool.commands.bake.bake import Baked, bake
    from batchnorm_tool.commands.check import check
    from batchnorm_tool.commands.compare.compare import Comparison, compare
    from batchnorm_tool.commands.compare.diff import Difference, diff
    from batchnorm_tool.commands.refresh.decisions import accept, history, release, rollback
    from batchnorm_tool.commands.refresh.record import RefreshResult
    from batchnorm_tool.commands.refresh.refresh import refresh
    from batchnorm_tool.commands.run.run import RunResult, run
    from batchnorm_tool.commands.run.score import Result, score
    from batchnorm_tool.commands.show import show
    from batchnorm_tool.commands.verify.verify import verify
    from batchnorm_tool.contract import Contract
    from batchnorm_tool.errors import (
        BadRows,
        BatchnormToolError,
        Busy,
        ContractBroken,
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
    from batchnorm_tool.layers import normalized
    from batchnorm_tool.norms.array import normalize
    from batchnorm_tool.norms.stats import NormStats
    from batchnorm_tool.readers.vectors import read

    Night = RefreshResult

# Which module defines each public name; a name that is not here is a class of `errors`.
_NAMES = {
    "commands.bake.bake": ("Baked", "bake"),
    "commands.check": ("check",),
    "commands.compare.compare": ("Comparison", "compare"),
    "commands.compare.diff": ("Difference", "diff"),
    "commands.refresh.decisions": ("accept", "history", "release", "rollback"),
    "commands.refresh.record": ("RefreshResult",),
    "commands.refresh.refresh": ("refresh",),
    "commands.run.run": ("RunResult", "run"),
    "commands.run.score": ("Result", "score"),
    "commands.show": ("show",),
    "commands.verify.verify": ("verify",),
    "contract": ("Contract",),
    "job": ("Job",),
    "layers": ("normalized",),
    "norms.array": ("normalize",),
    "norms.stats": ("NormStats",),
    "readers.vectors": ("read",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

# Former names, which stay for one version.
_ALIASES = {"Night": "RefreshResult"}

__all__ = [
    "BadRows",
    "Baked",
    "BatchnormToolError",
    "Busy",
    "Comparison",
    "Contract",
    "ContractBroken",
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
    "RefreshResult",
    "Refused",
    "Result",
    "RunResult",
    "TargetFailed",
    "WorkFailed",
    "__version__",
    "accept",
    "bake",
    "check",
    "compare",
    "diff",
    "history",
    "normalize",
    "normalized",
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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    defined = _ALIASES.get(name, name)
    home = _HOMES.get(defined, "errors")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), defined)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
