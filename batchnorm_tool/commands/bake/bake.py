"""Writing a copy of a model that normalizes its outputs itself."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from batchnorm_tool import models
from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.bake.parity import Parity, Subject
from batchnorm_tool.commands.run.prepare import proof_rows
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import FRESH, JobError, ModelError, OutputError, warn
from batchnorm_tool.job import Engine, Input, Job, Model, Output
from batchnorm_tool.models import conversion, security
from batchnorm_tool.models.backends.export import BakeFormat, bake_format
from batchnorm_tool.models.backends.normalization_graph import checked_axis
from batchnorm_tool.models.backends.normalized_model import (
    GraphOutput,
    NormalizedModel,
    normalize_model,
    probe,
)
from batchnorm_tool.models.batching import ModelPredictor
from batchnorm_tool.models.conversion import ConversionRequest
from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Norm, row_norms, widen
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.files import check_directory, sync_directory, sync_path, write_errors
from batchnorm_tool.storage.local import exchange

SPACE = "batchnorm_tool.space"
"""The key of the space's id in a file's metadata."""
REPORT = ".parity.json"
"""The file that tells how far files are from the norm after prediction has their name and this."""

_ASIDE = ".baking"
_NEAR = 1e-3  # of 1, as a model of float16 leaves it
# All that a directory may hold that is replaced.
_WRITTEN = {
    *("model.keras", "saved_model", "model.onnx", "openvino", "model.tflite"),
    *("assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables"),
    *("model.bin", "model.xml"),
}


@dataclass(frozen=True)
class Baked:
    """What `bake` wrote.

    Attributes:
        files: The path of each format's file or directory.
        parity: How far each is from the norm after prediction; also in ``OUT.parity.json``.
    """

    files: dict[str, Path]
    parity: tuple[Parity, ...]

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data."""
        files = {name: str(path) for name, path in self.files.items()}
        return {"files": files, "parity": [each.to_dict() for each in self.parity]}


@dataclass(frozen=True)
class BakeRequest:
    """What to bake, and how.

    Attributes:
        model: The model, its layer and its outputs.
        formats: Names of formats, at least one.
        outputs: How outputs are normalized: one for all of them, or each by its name.
        keep_norm: Also give the norms, as ``<output>_norm``.
        space: Id of the vector space that the outputs belong to, for the files' metadata.
        fresh: Replace what is at ``out``.
        engine: Where the model is loaded.
        rows: Input whose rows parity is measured on; default: rows made up.
    """

    model: Model
    out: Path
    outputs: tuple[GraphOutput, ...]
    formats: tuple[str, ...] = ("keras",)
    keep_norm: bool = False
    space: str | None = None
    fresh: bool = False
    engine: Engine = field(default_factory=Engine)
    rows: str | None = None


def bake(  # noqa: PLR0913  (each is a flag of the command)
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    norm: str | None = None,
    *,
    axis: int | str | None = None,
    p: float | None = None,
    layer: str | None = None,
    outputs: Sequence[str] | None = None,
    keep_norm: bool = False,
    to: Sequence[str] = ("keras",),
    like: str | os.PathLike[str] | None = None,
    rows: str | os.PathLike[str] | None = None,
    check: bool = False,
    fresh: bool = False,
) -> Baked:
    """Write a copy of a model whose outputs are normalized in its graph.

    The graph is of plain operations, without code or classes of this package: the file loads where
    it is not installed, in Keras's safe mode. Vectors are float32, whatever a model of narrower
    floats computes in; a row of zeros stays zeros.

    Each file is run in a process without this package, and compared with the norm after prediction
    (`Parity`). What is beyond the bound is not written.

    Args:
        model: A ``.keras`` or ``.h5`` file that Keras 3 loads; it is examined before, as in `run`.
        out: The file to write, or the directory of a SavedModel or of OpenVINO; of several formats,
            a new directory.
        norm: As `normalize` takes it; default: ``"l2"``.
        axis: ``-1`` (each vector along the last axis, the default) or ``"all"`` (a row's whole
            output).
        p: The order of ``"lp"``; ``"lp:3"`` says it, too.
        layer: Use the output of this inner layer.
        outputs: Names of the outputs that the copy gives, normalized; default: the only one.
        keep_norm: Also give the norms, ``[n, 1]`` for vectors ``[n, d]``, as ``<output>_norm``.
        to: Names of formats: of ``"keras"``, ``"savedmodel"``, ``"onnx"``, ``"openvino"`` and
            ``"litert"``.
        like: A finished run, a store, or its contract: norm, axis, layer, outputs, what is kept of
            a vector, and dtype are those that made its vectors, and its space id is written into
            the file. ``layer`` and ``outputs`` may still say what this model calls them.
        rows: Input of the model, as `run` reads it: parity is measured on its first rows. Default:
            rows that are made up.
        check: Write nothing, and compare what is at ``out``, of any of these formats, with the
            model.
        fresh: Replace what is at ``out``.

    Returns:
        The files, and how far they are from the norm after prediction.

    Raises:
        JobError: There is no such norm, axis or format, a format's packages are missing, or
            arguments contradict one another.
        ModelError: The model is refused, does not load, cannot be continued or converted, or a file
            is beyond its bound.
        OutputError: ``out`` exists, or cannot be written to.

    Example:
        >>> import tempfile
        >>> place = tempfile.mkdtemp()
        >>> baked = bake("data_samples/digits_encoder.keras", f"{place}/unit.keras")
        >>> baked.files["keras"].name, baked.parity[0].ulp < 3
        ('unit.keras', True)
    """
    chosen = [outputs] if isinstance(outputs, str) else [*(outputs or [])] or None
    wanted = Model(path=os.fspath(model), layer=layer, outputs=chosen)
    if like is None:
        normalization = Normalization(Norm.parse("l2" if norm is None else norm, p))
        asked: tuple[GraphOutput, ...] = (GraphOutput("", normalization, checked_axis(axis)),)
        request = BakeRequest(wanted, Path(out), asked)
    else:
        if (norm, axis, p) != (None, None, None):
            raise JobError("`like` says norm, axis and p. Leave these out, or leave `like` out.")
        request = _request_like(os.fspath(like), wanted, Path(out))
    given = None if rows is None else os.fspath(rows)
    formats = (to,) if isinstance(to, str) else tuple(to)
    request = replace(request, formats=formats, keep_norm=keep_norm, fresh=fresh, rows=given)
    return check_model(request) if check else bake_model(request)


def bake_model(request: BakeRequest) -> Baked:
    """Write a copy of a model with the normalization in its graph.

    Raises:
        JobError: A format does not exist, or its packages are missing.
        ModelError: The model is refused, does not load, or cannot be continued.
        OutputError: ``out`` exists, or cannot be written to.
    """
    formats = {name: bake_format(name) for name in request.formats}
    if not formats:
        raise JobError("`to` names no format. Expected one or more, such as keras.")
    _check_out(request, [*formats.values()])
    with _loaded(request.model, request.engine) as original:
        fields, subject = original.model.outputs, _subject(request, original)
        made = normalize_model(original.model, subject.outputs, keep_norm=request.keep_norm)
        for text in unit_length_warnings(subject.outputs, subject.reference):
            warn(text)
        if request.space is not None:
            made = replace(made, metadata={SPACE: request.space})
        beside = probe(made, subject.outputs, fields, keep_norm=request.keep_norm)
        with _staged(request.out) as aside:
            files = _written(request, formats, made, aside / "staged")
            for name, path in files.items():
                if formats[name].is_admitted:
                    security.check(Model(path=str(path)), security.examine(str(path)))
            probes = _written(request, formats, beside, aside / "probes")
            parity = subject.prove(files, probes, beside.inputs[len(made.inputs) :])
            _check_parity(request, parity)
            staged = aside / "staged" if len(files) > 1 else files[request.formats[0]]
            report = aside / "parity.json"
            report.write_text(json.dumps([each.to_dict() for each in parity], indent=2) + "\n")
            _publish(staged, request.out)
            _publish(report, request.out.with_name(f"{request.out.name}{REPORT}"))
    places = {name: request.out / form.file for name, form in formats.items()}
    return Baked(places if len(places) > 1 else {request.formats[0]: request.out}, tuple(parity))


def check_model(request: BakeRequest) -> Baked:
    """Compare a file that is there already with the original; see `bake`.

    Raises:
        ModelError: One is refused or does not load, or the file is beyond its bound.
    """
    with _loaded(request.model, request.engine) as original, _runnable(request.out) as (kind, path):
        runtime = "onnx" if original.backend else "keras"
        parity = _subject(request, original).compare(kind, path, runtime)
    if parity.fault is not None:
        raise ModelError(
            f"{request.out}: {parity.fault}. It is no copy of {request.model.path} with this norm. "
            "Compare it with the model that it was made of, or bake that again."
        )
    return Baked({kind: request.out}, (parity,))


@contextmanager
def _runnable(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the format of a file, and where it may be run from: a copy, if the gate knows it."""
    if path.suffix == ".tflite" or (path / "model.xml").is_file():
        yield "litert" if path.suffix == ".tflite" else "openvino", path
        return
    with security.admit(Model(path=str(path))) as admitted:
        kinds = {"saved_model": "savedmodel", "onnx": "onnx"}
        yield kinds.get(admitted.report.kind, "keras"), Path(admitted.path)


def _check_parity(request: BakeRequest, parity: Sequence[Parity]) -> None:
    for each in parity:
        if each.fault is not None:
            raise _unwritten(request, each.format, each.fault)


def _unwritten(request: BakeRequest, name: str, fault: str) -> ModelError:
    return ModelError(
        f"{request.model.path}: as {name}, {fault}. Nothing is written. Leave {name} out of `to`, "
        "or normalize after prediction, as `run` does."
    )


def _subject(request: BakeRequest, original: ModelPredictor) -> Subject:
    """Return what is compared: the original's raw predictions for the user's rows, or others."""
    rows: dict[str, np.ndarray] = {}
    if request.rows is not None:
        read = Input(path=request.rows)
        job = Job(input=read, model=request.model, output=Output(path=os.fspath(request.out)))
        rows = proof_rows(job, None, original.inputs)
    return Subject.of(original, _asked(request, original.model.outputs), rows)


def _request_like(path: str, model: Model, out: Path) -> BakeRequest:
    """Return a request for what made the vectors of a run or a store."""
    contract = Contract.load(path)
    made_by, same = contract.model, dict[str, object]()
    if made_by is not None and model.layer is None:
        names = [output.name for output in contract.outputs]
        same = {"layer": made_by.layer, "outputs": model.outputs or names}
    asked = tuple(map(GraphOutput.like, contract.outputs))
    return BakeRequest(model.model_copy(update=same), out, asked, space=contract.space)


def unit_length_warnings(
    outputs: Sequence[GraphOutput], raw: Mapping[str, Anything]
) -> Iterator[str]:
    """Say of which outputs every vector of the raw predictions ``[n, ...]`` has length 1."""
    for output in outputs:
        norm = _unit_norm(output.vectors(raw[output.name]))
        if norm is not None:
            same = norm == output.normalization.norm
            again = "changes nothing" if same else "divides it once more"
            yield (
                f"`{output.name}` is normalized already: the {norm.label} norm of each vector of "
                f"the sample is 1. Baking {output.normalization.norm.label} {again}."
            )


def _unit_norm(rows: Anything) -> Norm | None:
    """Return the norm by which all rows but zeros have length 1; ``None`` where there is none."""
    for norm in (L2, L1, MAX):
        lengths = row_norms(widen(rows), norm)
        lengths = lengths[lengths > 0]
        # Of one component it says nothing, nor of one row.
        if rows.shape[1] > 1 and len(lengths) > 1 and (np.abs(lengths - 1) < _NEAR).all():
            return norm
    return None


def _check_out(request: BakeRequest, formats: Sequence[BakeFormat]) -> None:
    """Refuse a place where nothing can be written, before the work."""
    out, model = request.out, Path(request.model.path)
    suffix = Path(formats[0].file).suffix
    if len(formats) == 1 and suffix and out.suffix != suffix:
        raise OutputError(
            f"`{out}` has another suffix than its format. Expected a name that ends in {suffix}. "
            f"Received: `{out.name}`."
        )
    check_directory(out.parent)
    if out.exists() and model.exists() and out.samefile(model):
        raise OutputError(f"`{out}` is the model itself. Choose another place for its copy.")
    if os.path.lexists(out) and not request.fresh:
        raise OutputError(
            f"`{out}` exists already. Choose another place, or replace it: `{FRESH}`."
        )
    others = sorted({path.name for path in out.iterdir()} - _WRITTEN) if out.is_dir() else []
    if others:
        raise OutputError(
            f"`{out}` holds what `bake` does not write, such as `{others[0]}`: it stays. "
            "Choose another place."
        )


@contextmanager
def _loaded(model: Model, engine: Engine) -> Iterator[ModelPredictor]:
    """Load a model that the gate admits; of its outputs, those that were chosen."""
    with security.admit(model) as admitted:
        request = ConversionRequest(model, admitted.report.content, engine)
        load = partial(models.load_predictor, model, admitted.path, engine, admitted.report)
        yield conversion.load_or_convert(load, request)


def _asked(request: BakeRequest, fields: Sequence[Field]) -> list[GraphOutput]:
    """Return how each output of the model is normalized."""
    named = {output.name: output for output in request.outputs}
    alone = request.outputs[0] if len(named) == 1 else None
    return [_checked(field, named.get(field.name) or alone, [*named]) for field in fields]


def _checked(field: Field, output: GraphOutput | None, names: Sequence[str]) -> GraphOutput:
    if output is None:
        raise JobError(
            f"The output `{field.name}` is none of the result's. Expected one of: "
            f"{', '.join(names)}. Choose with `outputs`."
        )
    if output.shape not in (None, field.shape or (1,)):
        raise ModelError(
            f"The model's output `{field.name}` does not fit. Expected the shape {output.shape} "
            f"for each row, as in the result. Received: {field.shape}. Choose another output or "
            "layer."
        )
    return replace(output, name=field.name)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yield a directory beside ``out``, which is removed again."""
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{glob.escape(out.name)}.*{_ASIDE}"):
            if not Storage(left).is_locked():  # of one that was killed
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(_ASIDE, f".{out.name}.", out.parent))
        with Storage(aside).lock():
            try:
                yield aside
            finally:
                shutil.rmtree(aside, ignore_errors=True)


def _written(
    request: BakeRequest, formats: Mapping[str, BakeFormat], model: NormalizedModel, directory: Path
) -> dict[str, Path]:
    """Write every format into a directory."""
    directory.mkdir()
    files = {name: directory / form.file for name, form in formats.items()}
    for name, form in formats.items():
        try:
            form.write(model, files[name])
        except ModelError as error:
            raise _unwritten(request, name, error.message.rstrip(".")) from error
    return files


def _publish(staged: Path, out: Path) -> None:
    """Sync what was written, and let it take its place."""
    for path in (staged, *staged.rglob("*")):
        sync_path(path)
    if out.is_dir() and not out.is_symlink():
        exchange(staged, out)  # a directory takes the place of none that holds files
    else:
        staged.replace(out)
    sync_directory(out.parent)
