"""The safety gate: a private copy of a model is examined and admitted before Keras sees it.

Nothing here imports TensorFlow or Keras, and nothing in the file is executed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchnorm_tool.errors import ModelError
from batchnorm_tool.models.security.directory import ModelDirectory, check_room
from batchnorm_tool.models.security.keras_allowlist import ModelFinding
from batchnorm_tool.models.security.report import ModelReport, examine, is_model, model_kind

if TYPE_CHECKING:
    from batchnorm_tool.job import Model

__all__ = [
    "ModelCopy",
    "ModelFinding",
    "ModelReport",
    "admit",
    "examine",
    "examine_copy",
    "is_model",
]

_SHOWN_FINDINGS = 8
_SUFFIXES = {"keras": ".keras", "h5": ".h5", "saved_model": ""}


@dataclass
class ModelCopy:
    """A private copy of a model, which nobody else can change, and what the gate found in it.

    Attributes:
        path: The copy; its suffix is that of its content.
        report: What the gate found in it.
    """

    path: str
    report: ModelReport
    _directory: tempfile.TemporaryDirectory[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, model: Model) -> None:
        """Let a job load it, or refuse it."""
        _check_pin(model, self.report)
        _check_trust(model, self.report)

    def close(self) -> None:
        """Remove the copy."""
        self._directory.cleanup()


def examine_copy(path: str) -> ModelCopy:
    """Copy a model to a private place, and examine the copy: what is reported is what lies there.

    Returns:
        The copy, which may be dangerous to load. Use it as a context manager, or call its
        ``close``.
    """
    directory = tempfile.TemporaryDirectory(prefix="batchnorm_tool-")
    try:
        copied = _copy(path, Path(directory.name, "model"))
        report = examine(str(copied), path, private=True)
        final = copied.rename(copied.with_suffix(_SUFFIXES[report.kind]))
    except BaseException:
        directory.cleanup()
        raise
    return ModelCopy(str(final), report, directory)


def admit(model: Model) -> ModelCopy:
    """Copy a model to a private place, examine the copy, and let it pass or refuse it.

    Returns:
        The copy, which may be loaded. Use it as a context manager, or call its ``close``.
    """
    copied = examine_copy(model.path)
    try:
        copied.check(model)
    except BaseException:
        copied.close()
        raise
    return copied


def _copy(path: str, target: Path) -> Path:
    """Copy a model, so that the copy holds nothing but files of its own."""
    kind = model_kind(path, path)
    try:
        if kind == "saved_model":
            ModelDirectory.of(path, path).copy(target)
        else:
            check_room(path, Path(path).stat().st_size, target)
            shutil.copyfile(path, target)
    except (OSError, shutil.Error) as error:
        raise ModelError(
            f"{path}: the model cannot be copied to {target.parent} ({error}). Check its "
            "permissions and the space in the temporary directory (TMPDIR)."
        ) from error
    return target


def _check_pin(model: Model, report: ModelReport) -> None:
    if model.sha256 is not None and model.sha256 != report.sha256:
        raise ModelError(
            f"{report.path}: not the model given by `model.sha256`. Expected {model.sha256}. "
            f"Received: {report.sha256}. Use the right file, or change `model.sha256`."
        )


def _check_trust(model: Model, report: ModelReport) -> None:
    if isinstance(model.trust, str):
        if model.trust != f"sha256:{report.sha256}":
            raise ModelError(
                f"{report.path}: not the file given by `model.trust`. Expected {model.trust}. "
                f"Received: sha256:{report.sha256}. Inspect the file again before you trust it."
            )
        return
    trusted = [] if model.trust is None else list(model.trust.classes)
    refused = [finding for finding in report.dangers if not _is_trusted(finding, trusted)]
    if refused:
        packages = {name: name.partition(".")[0] for name in trusted}
        absent = [
            name
            for name, package in packages.items()
            if package not in sys.modules and find_spec(package) is None
        ]
        raise ModelError(_refusal(report, refused, absent))


def _is_trusted(finding: ModelFinding, trusted: list[str]) -> bool:
    """Tell whether a finding is a custom class that the job names: Keras is given that one."""
    custom = finding.custom
    return custom is not None and any(custom.is_named_by(name) for name in trusted)


def _refusal(report: ModelReport, refused: list[ModelFinding], absent: list[str]) -> str:
    shown = [f"{finding.what} (in {finding.where})" for finding in refused[:_SHOWN_FINDINGS]]
    more = len(refused) - len(shown)
    listed = "; ".join(shown) + (f"; and {more} more" if more else "")
    steps = [
        *(f"`model.trust.classes` lists {name}, which cannot be imported." for name in absent),
        *_next_steps(report, refused),
    ]
    return f"{report.path}: refused by the safety gate. It contains {listed}. {' '.join(steps)}"


def _next_steps(report: ModelReport, refused: list[ModelFinding]) -> Iterator[str]:
    custom = [item.custom for item in refused if item.custom and item.custom.kind == "class"]
    if len(custom) == len(refused):
        names = {f"{item.module or 'my_package.layers'}.{item.name}" for item in custom}
        listed = ", ".join(sorted(names)[:_SHOWN_FINDINGS])
        yield (
            f"If these classes are installed, list them: `model.trust: {{classes: [{listed}]}}`."
        )
    yield (
        "If you trust the source of this file, allow exactly this file with `model.trust: "
        f"sha256:{report.sha256}` in the job file, or with `--set "
        f"model.trust=sha256:{report.sha256}`."
    )
