"""What a stored model is, and what speaks against loading it, told without running anything in it.

Nothing here imports TensorFlow or Keras.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from batchnorm_tool.errors import ModelError
from batchnorm_tool.models.security.archive import StoredModel, read_hdf5, read_keras_archive
from batchnorm_tool.models.security.directory import (
    GRAPH,
    HEAD_BYTES,
    MAX_GRAPH_BYTES,
    ModelDirectory,
    foreign_file,
    foreign_folder,
)
from batchnorm_tool.models.security.keras_allowlist import (
    ModelFinding,
    canonical_architecture,
    check_architecture,
    unloadable,
    without_compile_settings,
)
from batchnorm_tool.storage.checked_json import sha256 as sha256_of_data

if TYPE_CHECKING:
    from batchnorm_tool.models.security.graph_allowlist import ExaminedGraph

ModelKind = Literal["keras", "h5", "saved_model"]

_MAX_FINDINGS = 10_000
_SUFFIXES = (".keras", ".h5")
_INDEX = "variables/variables.index"


@dataclass(frozen=True)
class ModelReport:
    """What a model file is, as far as can be told without running anything in it.

    Attributes:
        path: The path that was given.
        kind: ``"keras"``, ``"h5"`` or ``"saved_model"``, by content.
        sha256: SHA-256 of the file's bytes; of a directory: over its sorted paths and contents.
        content: SHA-256 over architecture (without compile settings) and weights: the same model
            saved twice has the same. Of a SavedModel: over its files without the fingerprint; an
            export of the same model made again has another, because TensorFlow numbers functions.
        findings: Dangers first, then warnings.
        classes: Names under which Keras looks up the custom classes and functions that it needs.
        keras_version: What wrote it, as far as it says.
    """

    path: str
    kind: ModelKind
    sha256: str
    content: str
    findings: tuple[ModelFinding, ...]
    classes: tuple[str, ...]
    keras_version: str = "unknown"

    @property
    def dangers(self) -> tuple[ModelFinding, ...]:
        """The findings for which the gate stays shut, unless the job trusts them."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")


def examine(path: str, shown: str | None = None, *, private: bool = False) -> ModelReport:
    """Examine a model file or SavedModel directory without running anything in it.

    Args:
        path: A ``.keras`` file, an ``.h5`` file or a SavedModel directory; the content counts, not
            the suffix.
        shown: How messages and the report call it; default: its path.
        private: It is a private copy: of a SavedModel, what was examined takes the graph's place.

    Returns:
        What it is, and what speaks against loading it. A report is no permission: see
        `batchnorm_tool.models.security.admit`.
    """
    shown = shown or path
    kind = model_kind(path, shown)
    try:
        if kind == "saved_model":
            return _examine_saved_model(path, shown, private=private)
        stored = read_keras_archive(path, shown) if kind == "keras" else read_hdf5(path, shown)
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(_unreadable(shown, error)) from error
    return _keras_report(ModelReport(shown, kind, digest, "", (), ()), stored)


def _keras_report(report: ModelReport, stored: StoredModel) -> ModelReport:
    """Return the report completed by what is stored."""
    config = without_compile_settings(stored.config)
    why = unloadable(config)
    if why is not None:
        raise ModelError(f"{report.path}: {why}")
    findings = [ModelFinding("refuse", what, where) for what, where in stored.dangers]
    for finding in check_architecture(config, stored.weights_bytes):
        if len(findings) == _MAX_FINDINGS:
            findings.append(
                ModelFinding("refuse", f"more than {_MAX_FINDINGS:,} findings", "the file")
            )
            break
        findings.append(finding)
    content = {"architecture": json.dumps(canonical_architecture(config), sort_keys=True)}
    return replace(
        report,
        content=sha256_of_data({**content, "weights": stored.weights_sha256}),
        findings=_sorted(findings),
        classes=tuple(sorted({item.custom.registered for item in findings if item.custom})),
        keras_version=stored.keras_version,
    )


def _sorted(findings: Iterable[ModelFinding]) -> tuple[ModelFinding, ...]:
    """Return each finding once, the dangers first, otherwise in the order of the file."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.severity))


def _examine_saved_model(path: str, shown: str, *, private: bool) -> ModelReport:
    # It needs protobuf, whose import other models need not pay for.
    from batchnorm_tool.models.security.graph_allowlist import ExaminedGraph

    files = ModelDirectory.of(path, shown)
    for name in ("saved_model.pbtxt", "saved_model.cpb"):
        if name in files.entries:
            raise ModelError(
                f"{shown}: contains {name}, a graph format that is not supported. Save the model "
                f"again as a binary {GRAPH}."
            )
    with files.open(GRAPH) as file:
        content = file.read(MAX_GRAPH_BYTES)
    try:
        graph = ExaminedGraph(content)
    except ValueError as error:
        raise ModelError(
            f"{shown}: its {GRAPH} is damaged: {error}. Copy or export the model again."
        ) from error
    _check_whole(graph, files)
    hashes = {name: files.sha256(name) for name in files.entries}
    lasting = {name: digest for name, digest in hashes.items() if name != "fingerprint.pb"}
    if private:
        Path(path, GRAPH).write_bytes(graph.content(Path(path)))
    findings = [
        ModelFinding("refuse", what, f"{where} of {GRAPH}") for what, where in graph.dangers
    ]
    return ModelReport(
        *(shown, "saved_model", sha256_of_data(hashes), sha256_of_data(lasting)),
        findings=_sorted(findings),
        classes=(),
    )


def _check_whole(graph: ExaminedGraph, files: ModelDirectory) -> None:
    """Refuse a directory that lacks files which its graph reads."""
    again = "Copy the whole directory again from its source."
    stored = [name for name in files.entries if name.startswith("variables/variables")]
    whole = _INDEX in stored or not any(".data-" in name for name in stored)
    if graph.restores and not (whole and {*stored} - {_INDEX}):
        raise ModelError(
            f"{files.shown}: its variables are missing or damaged. Expected {_INDEX} and "
            f"variables/variables.data-*. Received: {', '.join(stored) or 'neither'}. {again}"
        )
    for name in graph.assets:
        if name not in files.entries:
            raise ModelError(f"{files.shown}: its asset {name} is missing. {again}")


def model_kind(path: str, shown: str) -> ModelKind:
    """Return what a path is, by its content."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return _directory_kind(path, shown)
        if not stat.S_ISREG(mode):
            raise ModelError(f"{shown}: not a file or directory. Use a saved model.")
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ModelError(_unreadable(shown, error)) from error
    if head.startswith(b"PK\x03\x04"):
        return "keras"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    raise ModelError(f"{shown}: {foreign_file(Path(shown), head) or _unknown_words(head)}")


def is_model(path: str) -> bool:
    """Tell whether a path is a model, or what another program takes for one, rather than data."""
    place = Path(path)
    if place.is_dir():
        return (place / GRAPH).is_file() or foreign_folder(place) is not None
    if not place.is_file():
        return place.suffix in _SUFFIXES
    head = b""
    with contextlib.suppress(OSError), place.open("rb") as file:  # whoever reads it says why not
        head = file.read(HEAD_BYTES)
    is_archive = head.startswith((b"\x89HDF", b"PK")) and place.suffix != ".npz"
    is_empty = not head and place.suffix in _SUFFIXES
    return is_archive or is_empty or foreign_file(place, head) is not None


def _directory_kind(path: str, shown: str) -> ModelKind:
    if Path(path, GRAPH).is_file():
        return "saved_model"
    words = foreign_folder(Path(path))
    if words is not None:
        raise ModelError(f"{shown}: {words}")
    names = sorted(item.name for item in Path(path).iterdir())
    raise ModelError(
        f"{shown}: a directory without {GRAPH}. Expected a SavedModel, as model.export() writes "
        f"it. Received: {', '.join(names[:5]) or 'an empty directory'}."
    )


def _unknown_words(head: bytes) -> str:
    if not head:
        return "an empty file. Copy the model again from its source."
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the model. Fetch the model with `git lfs pull`, and try again."
        )
    return (
        "not a Keras model. Expected a .keras archive, an .h5 file or a SavedModel directory. "
        f"Received: a file that begins with {head[:8]!r}. Save the model with "
        "model.save('model.keras')."
    )


def _unreadable(shown: str, error: OSError) -> str:
    return (
        f"{shown}: the model cannot be read ({error.strerror or error}). Check `model.path` and "
        "the file's permissions."
    )
