"""The safety gate: a private copy of a model is examined and admitted before Keras sees it.

Nothing here imports TensorFlow or Keras, and nothing in the file is executed.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models.security import archive, directory, keras_allowlist
from batchnorm_tool.models.security.directory import ModelDirectory, ModelKind, is_model
from batchnorm_tool.models.security.keras_allowlist import ModelFinding
from batchnorm_tool.models.signature import ModelInterface, keras_interface
from batchnorm_tool.storage import checked_json

__all__ = ["ModelCopy", "ModelReport", "admit", "check", "examine", "examine_copy", "is_model"]

_MAX_FINDINGS = 10_000
_SHOWN_FINDINGS = 8
ONNX_SUFFIX = ".onnx"
_SUFFIXES = {"keras": ".keras", "h5": ".h5", "saved_model": "", "onnx": ONNX_SUFFIX}
_INDEX = "variables/variables.index"
# By SHA-256 of a private copy: the same bytes are examined once, for the plan, and then loaded.
_EXAMINED: dict[str, "ModelReport"] = {}
_MOST_EXAMINED = 16


@dataclass(frozen=True)
class ModelReport:
    """What a model file is, as far as can be told without running anything in it.

    Attributes:
        path: The path that was given.
        kind: By content, not by suffix.
        sha256: SHA-256 of the file's bytes; of a directory: over its sorted paths and contents.
        content: SHA-256 over architecture (without compile settings) and weights: the same model
            saved twice has the same. Of a SavedModel: over its files without the fingerprint; an
            export of the same model made again has another, because TensorFlow numbers functions.
            Of an ONNX model: over its graph, weights and versions of operations.
        findings: Dangers first, then warnings.
        classes: Names under which Keras looks up the custom classes and functions that it needs.
        keras_version: What wrote it, as far as it says.
        interface: What it takes and gives, as far as its file tells.
        needs_keras_2: What it names that Keras 3 does not have.
    """

    path: str
    kind: ModelKind
    sha256: str
    content: str
    findings: tuple[ModelFinding, ...]
    classes: tuple[str, ...] = ()
    keras_version: str = "unknown"
    interface: ModelInterface | None = None
    needs_keras_2: str | None = None

    @property
    def is_of_keras_2(self) -> bool:
        """Whether Keras 2 wrote it, as far as it says: Keras 3 may be unable to load it."""
        return self.needs_keras_2 is not None or self.keras_version.startswith(("1.", "2."))

    @property
    def dangers(self) -> tuple[ModelFinding, ...]:
        """The findings for which the gate stays shut, unless the job trusts them."""
        return tuple(finding for finding in self.findings if finding.severity == "refuse")


@dataclass(frozen=True)
class ModelCopy:
    """A private copy of a model, which nobody else can change, and what the gate found in it.

    The suffix of ``path`` is that of the content.
    """

    path: str
    report: ModelReport


def check(model: Model, report: ModelReport) -> None:
    """Let a job load what was examined, or refuse it."""
    if model.sha256 is not None and model.sha256 != report.sha256:
        raise ModelError(
            f"{report.path}: not the model given by `model.sha256`. Expected {model.sha256}. "
            f"Received: {report.sha256}. Use the right file, or change `model.sha256`."
        )
    if isinstance(model.trust, str):
        if model.trust != f"sha256:{report.sha256}":
            raise ModelError(
                f"{report.path}: not the file given by `model.trust`. Expected {model.trust}. "
                f"Received: sha256:{report.sha256}. Inspect the file again before you trust it."
            )
        return
    trusted = [] if model.trust is None else list(model.trust.classes)
    # Keras is given the classes that the job names.
    refused = [
        finding
        for finding in report.dangers
        if not (finding.custom and any(map(finding.custom.is_named_by, trusted)))
    ]
    if refused:
        raise ModelError(_refusal(report, refused, trusted))


@contextlib.contextmanager
def examine_copy(path: str) -> Iterator[ModelCopy]:
    """Copy a model to a private place, and examine the copy: what is reported is what lies there.

    The copy may be dangerous to load.
    """
    with tempfile.TemporaryDirectory(prefix="batchnorm_tool-") as place:
        copied = _copy(path, Path(place, "model"))
        report = report_of(copied, path)
        final = copied.rename(copied.with_suffix(_SUFFIXES[report.kind]))
        yield ModelCopy(str(final), report)


def examined(path: str) -> ModelReport:
    """Return what a model is: of a file by a private copy, which need not be examined again.

    See `examine` for the rest.
    """
    if Path(path).is_dir():
        return examine(path)
    with examine_copy(path) as copied:
        return copied.report


def report_of(copied: Path, path: str) -> ModelReport:
    """Examine a private copy of ``path``, unless this process has examined the same bytes."""
    if copied.is_dir():  # what was examined takes the graph's place in the copy
        return examine(str(copied), path, private=True)
    with copied.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    report = _EXAMINED.get(digest) or examine(str(copied), path, private=True)
    if len(_EXAMINED) >= _MOST_EXAMINED:
        _EXAMINED.clear()
    _EXAMINED[digest] = report
    return replace(report, path=path)


@contextlib.contextmanager
def admit(model: Model) -> Iterator[ModelCopy]:
    """Copy a model to a private place, examine the copy, and let it pass or refuse it.

    The copy may be loaded.
    """
    with examine_copy(model.path) as copied:
        check(model, copied.report)
        yield copied


def _copy(path: str, target: Path) -> Path:
    """Copy a model, so that the copy holds nothing but files of its own."""
    kind = directory.model_kind(path, path)
    try:
        if kind == "saved_model":
            ModelDirectory.of(path, path).copy(target)
        else:
            directory.check_room(path, Path(path).stat().st_size, target)
            shutil.copyfile(path, target)
    except (OSError, shutil.Error) as error:
        directory.check_space_left(path, error)
        raise ModelError(
            f"{path}: the model cannot be copied to {target.parent} ({error}). Check its "
            "permissions and the space in the temporary directory (TMPDIR)."
        ) from error
    return target


def _refusal(report: ModelReport, refused: list[ModelFinding], trusted: list[str]) -> str:
    shown = [f"{finding.what} (in {finding.where})" for finding in refused[:_SHOWN_FINDINGS]]
    more = len(refused) - len(shown)
    listed = "; ".join(shown) + (f"; and {more} more" if more else "")
    packages = {name: name.partition(".")[0] for name in trusted}
    steps = [
        *(
            f"`model.trust.classes` lists {name}, which cannot be imported."
            for name, package in packages.items()
            if package not in sys.modules and find_spec(package) is None
        ),
        *_next_steps(report, refused),
    ]
    return f"{report.path}: refused by the safety gate. It contains {listed}. {' '.join(steps)}"


def _next_steps(report: ModelReport, refused: list[ModelFinding]) -> Iterator[str]:
    custom = [item.custom for item in refused if item.custom and item.custom.kind == "class"]
    names = {f"{item.module or 'my_package.layers'}.{item.name}" for item in custom}
    # No class that is installed has a name that messages would cut.
    if len(custom) == len(refused) and all(keras_allowlist.short(name) == name for name in names):
        listed = ", ".join(sorted(names)[:_SHOWN_FINDINGS])
        yield (
            f"If these classes are installed, list them: `model.trust: {{classes: [{listed}]}}`."
        )
    yield (
        "If you trust the source of this file, allow exactly this file with `model.trust: "
        f"sha256:{report.sha256}` in the job file, or with `--set "
        f"model.trust=sha256:{report.sha256}`."
    )


def examine(path: str, shown: str | None = None, *, private: bool = False) -> ModelReport:
    """Examine a ``.keras``, ``.h5`` or ``.onnx`` file or a SavedModel, running nothing in it.

    Args:
        path: Where it is.
        shown: How messages and the report call it; default: its path.
        private: It is a private copy: of a SavedModel, what was examined takes the graph's place.

    Returns:
        What it is, and what speaks against loading it. A report is no permission: see `admit`.
    """
    shown = shown or path
    kind = directory.model_kind(path, shown)
    try:
        if kind == "saved_model":
            return _examine_saved_model(path, shown, private=private)
        if kind == "onnx":
            return _examine_onnx(path, shown)
        read = archive.read_keras_archive if kind == "keras" else archive.read_hdf5
        stored = read(path, shown)
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(directory.unreadable(shown, error)) from error
    config = keras_allowlist.without_compile_settings(stored.config)
    why = keras_allowlist.unloadable(config)
    if why is not None:
        raise ModelError(f"{shown}: {why}")
    findings = _keras_findings(config, stored.weights)
    # Before what Keras wrote is stripped. A file of Keras 2 may have other names once it is loaded.
    is_told = stored.keras_version.startswith("3.")
    interface = keras_interface(config) if is_told else None
    architecture = json.dumps(keras_allowlist.canonical_architecture(config), sort_keys=True)
    weights = stored.weights.digest.hexdigest()
    return ModelReport(
        path=shown,
        kind=kind,
        sha256=digest,
        content=checked_json.sha256({"architecture": architecture, "weights": weights}),
        findings=_sorted(findings),
        classes=tuple(sorted({item.custom.registered for item in findings if item.custom})),
        keras_version=stored.keras_version,
        interface=interface,
        needs_keras_2=keras_allowlist.name_of_keras_2(config),
    )


def _keras_findings(config: object, weights: archive.Weights) -> list[ModelFinding]:
    found = keras_allowlist.check_architecture(config, weights.bytes)
    findings = [*weights.dangers, *islice(found, _MAX_FINDINGS + 1 - len(weights.dangers))]
    if len(findings) > _MAX_FINDINGS:
        more = f"more than {_MAX_FINDINGS:,} findings"
        findings[_MAX_FINDINGS:] = [ModelFinding("refuse", more, "the file")]
    return findings


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
                f"again as a binary {directory.GRAPH}."
            )
    with files.open(directory.GRAPH) as file:
        content = file.read(directory.MAX_GRAPH_BYTES)
    try:
        graph = ExaminedGraph(content)
    except ValueError as error:
        raise ModelError(
            f"{shown}: its {directory.GRAPH} is damaged: {error}. Copy or export the model again."
        ) from error
    _check_whole(files, graph.assets, restores=graph.restores)
    hashes = {name: files.sha256(name) for name in files.entries}
    lasting = {name: digest for name, digest in hashes.items() if name != "fingerprint.pb"}
    if private:
        Path(path, directory.GRAPH).write_bytes(graph.content(Path(path)))
    return ModelReport(
        path=shown,
        kind="saved_model",
        sha256=checked_json.sha256(hashes),
        content=checked_json.sha256(lasting),
        findings=_sorted(
            ModelFinding("refuse", what, f"{where} of {directory.GRAPH}")
            for what, where in graph.dangers
        ),
        interface=graph.interface,
    )


def _examine_onnx(path: str, shown: str) -> ModelReport:
    from batchnorm_tool.models.security.onnx_graph import ExaminedOnnx

    content = Path(path).read_bytes()
    try:
        graph = ExaminedOnnx(content)
    except ValueError as error:
        raise ModelError(
            f"{shown}: the ONNX model is damaged: {error}. Copy it again from its source, or "
            "export it again."
        ) from error
    return ModelReport(
        path=shown,
        kind="onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        content=graph.content,
        findings=_sorted(graph.findings)[:_MAX_FINDINGS],
        interface=graph.interface,
    )


def _check_whole(files: ModelDirectory, assets: list[str], *, restores: bool) -> None:
    """Refuse a directory that lacks files which its graph reads."""
    again = "Copy the whole directory again from its source."
    stored = [name for name in files.entries if name.startswith("variables/variables")]
    whole = _INDEX in stored or not any(".data-" in name for name in stored)
    if restores and not (whole and {*stored} - {_INDEX}):
        raise ModelError(
            f"{files.shown}: its variables are missing or damaged. Expected {_INDEX} and "
            f"variables/variables.data-*. Received: {', '.join(stored) or 'neither'}. {again}"
        )
    for name in assets:
        if name not in files.entries:
            raise ModelError(f"{files.shown}: its asset {name} is missing. {again}")
