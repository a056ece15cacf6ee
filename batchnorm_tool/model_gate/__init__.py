"""The safety gate: a private copy of a model is examined and admitted before Keras sees it.

Nothing here imports TensorFlow or Keras, and nothing in the file is executed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from batchnorm_tool.errors import ModelError
from batchnorm_tool.model_gate.report import Finding, ModelReport, examine, model_files, model_kind

if TYPE_CHECKING:
    from batchnorm_tool.job import Model

__all__ = ["AdmittedModel", "Finding", "ModelReport", "admit", "examine"]

_SHOWN_FINDINGS = 8
_SUFFIXES = {"keras": ".keras", "h5": ".h5", "saved_model": ""}
_LAST_WORD = re.compile(r"[^.>]*$")


@dataclass
class AdmittedModel:
    """A model that may be loaded: a private copy that nobody else can change.

    Attributes:
        path: The copy; its suffix is that of its content.
        report: What the gate found in it.
    """

    path: str
    report: ModelReport
    _directory: tempfile.TemporaryDirectory[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the copy."""
        self._directory.cleanup()


def admit(model: Model) -> AdmittedModel:
    """Copy a model to a private place, examine the copy, and let it pass or refuse it.

    Args:
        model: The job's model: ``path``, ``sha256`` and ``trust`` are read.

    Returns:
        The admitted copy. Use it as a context manager, or call its ``close``.

    Raises:
        ModelError: Unreadable, not the pinned file, or dangerous and not trusted.
    """
    directory = tempfile.TemporaryDirectory(prefix="batchnorm_tool-")
    try:
        copied = _copy(model.path, Path(directory.name, "model"))
        report = examine(str(copied), model.path)
        _check_pin(model, report)
        _check_trust(model, report)
        final = copied.rename(copied.with_suffix(_SUFFIXES[report.kind]))
    except BaseException:
        directory.cleanup()
        raise
    return AdmittedModel(str(final), report, directory)


def _copy(path: str, target: Path) -> Path:
    """Copy a model; links are followed, so that the copy holds nothing but files of its own."""
    kind = model_kind(path, path)
    try:
        if kind == "saved_model":
            _check_tree(path)
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
    except (OSError, shutil.Error) as error:
        raise ModelError(
            f"{path}: the model cannot be copied to {target.parent} ({error}). Check its "
            "permissions and the space in the temporary directory (TMPDIR)."
        ) from error
    return target


def _check_tree(path: str) -> None:
    for name in model_files(path, path):
        if not Path(path, name).is_file():
            raise ModelError(f"{path}: `{name}` in it is not a file. Export the model again.")


def _check_pin(model: Model, report: ModelReport) -> None:
    if model.sha256 is not None and model.sha256 != report.sha256:
        raise ModelError(
            f"{report.path}: not the model that `model.sha256` asks for. Expected {model.sha256}. "
            f"Received: {report.sha256}. Give the right file, or change `model.sha256`."
        )


def _check_trust(model: Model, report: ModelReport) -> None:
    if isinstance(model.trust, str):
        if model.trust != f"sha256:{report.sha256}":
            raise ModelError(
                f"{report.path}: not the file that `model.trust` names. Expected {model.trust}. "
                f"Received: sha256:{report.sha256}. Look at the file again before you trust it."
            )
        return
    trusted = [] if model.trust is None else list(model.trust.classes)
    refused = [finding for finding in report.dangers if not _is_trusted(finding, trusted)]
    if refused:
        raise ModelError(_refusal(report, refused))


def _is_trusted(finding: Finding, trusted: list[str]) -> bool:
    """Whether a finding is a custom class that the job names: Keras is given that one for it."""
    if finding.custom is None:
        return False
    return _last_word(finding.custom) in {_last_word(name) for name in trusted}


def _last_word(name: str) -> str:
    """The class in ``my_package.layers.Class`` or ``my_package>Class``."""
    found = _LAST_WORD.search(name)
    return found[0] if found else name


def _refusal(report: ModelReport, refused: list[Finding]) -> str:
    shown = [f"{finding.what} (in {finding.where})" for finding in refused[:_SHOWN_FINDINGS]]
    more = len(refused) - len(shown)
    listed = "; ".join(shown) + (f"; and {more} more" if more else "")
    return f"{report.path}: refused by the safety gate. It holds {listed}. " + " ".join(
        _next_steps(report, refused)
    )


def _next_steps(report: ModelReport, refused: list[Finding]) -> Iterator[str]:
    custom = sorted({_last_word(finding.custom) for finding in refused if finding.custom})
    if custom and all(finding.custom for finding in refused):
        listed = ", ".join(f"my_package.layers.{name}" for name in custom)
        yield (
            "If these classes are installed here, name them: "
            f"`model.trust: {{classes: [{listed}]}}`."
        )
    yield (
        "If you know where this file comes from, let exactly this file pass with "
        f"`model.trust: sha256:{report.sha256}`."
    )
