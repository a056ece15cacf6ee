"""Writing a copy of a model that normalizes its outputs itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from batchnorm_tool import models
from batchnorm_tool.chunk import Field
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import FRESH, JobError, ModelError, OutputError
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import conversion, security
from batchnorm_tool.models.backends.normalized_model import GraphOutput, NormalizedModel
from batchnorm_tool.models.batching import LoadedModel
from batchnorm_tool.models.conversion import ConversionRequest
from batchnorm_tool.models.export import BakeFormat, bake_format
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.storage.files import check_directory, sync_directory, write_errors

SPACE = "batchnorm_tool.space"
"""The key of the space's id in a file's metadata."""

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
    """

    files: dict[str, Path]

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data."""
        return {"files": {name: str(path) for name, path in self.files.items()}}


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
    """

    model: Model
    out: Path
    outputs: tuple[GraphOutput, ...]
    formats: tuple[str, ...] = ("keras",)
    keep_norm: bool = False
    space: str | None = None
    fresh: bool = False
    engine: Engine = field(default_factory=Engine)


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
    fresh: bool = False,
) -> Baked:
    """Write a copy of a model whose outputs are normalized in its graph.

    The graph is of plain operations, without code or classes of this package: the file loads where
    it is not installed, in Keras's safe mode. Vectors are float32, whatever a model of narrower
    floats computes in; a row of zeros stays zeros.

    Args:
        model: A ``.keras`` or ``.h5`` file that Keras 3 loads; it is examined before, as in `run`.
        out: The file to write, or the SavedModel directory; of several formats, a new directory.
        norm: As `normalize` takes it; default: ``"l2"``.
        axis: ``-1`` (each vector along the last axis, the default) or ``"all"`` (a row's whole
            output).
        p: The order of ``"lp"``; ``"lp:3"`` says it, too.
        layer: Use the output of this inner layer.
        outputs: Names of the outputs that the copy gives, normalized; default: the only one.
        keep_norm: Also give the norms, ``[n, 1]`` for vectors ``[n, d]``, as ``<output>_norm``.
        to: Names of formats: of ``"keras"`` and ``"savedmodel"``.
        like: A finished run, a store, or its contract: norm, axis, layer, outputs, what is kept of
            a vector, and dtype are those that made its vectors, and its space id is written into
            the file. ``layer`` and ``outputs`` may still say what this model calls them.
        fresh: Replace what is at ``out``.

    Returns:
        The files.

    Raises:
        JobError: There is no such norm, axis or format, a format's packages are missing, or
            arguments contradict one another.
        ModelError: The model is refused, does not load, or cannot be continued.
        OutputError: ``out`` exists, or cannot be written to.

    Example:
        >>> import tempfile
        >>> place = tempfile.mkdtemp()
        >>> baked = bake("data_samples/digits_encoder.keras", f"{place}/unit.keras")
        >>> baked.files["keras"].name
        'unit.keras'
    """
    chosen = None if outputs is None else [*outputs]
    wanted = Model(path=os.fspath(model), layer=layer, outputs=chosen)
    if like is None:
        plan = Normalization(Norm.parse("l2" if norm is None else norm, p))
        asked: tuple[GraphOutput, ...] = (GraphOutput("", plan, _checked_axis(axis)),)
        request = BakeRequest(wanted, Path(out), asked)
    else:
        if (norm, axis, p) != (None, None, None):
            raise JobError("`like` says norm, axis and p. Leave these out, or leave `like` out.")
        request = _request_like(os.fspath(like), wanted, Path(out))
    return bake_model(replace(request, formats=tuple(to), keep_norm=keep_norm, fresh=fresh))


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
    with _loaded(request.model, request.engine) as loaded:
        asked = _asked(request, loaded.outputs)
        made = loaded.normalized(asked, keep_norm=request.keep_norm)
        if request.space is not None:
            made = replace(made, metadata={SPACE: request.space})
        return Baked(_written(request, formats, made))


def _checked_axis(axis: int | str | None) -> int | str:
    if axis not in (None, -1, "-1", "all"):
        raise JobError(f"`axis` must be -1 or all. Received: {axis!r}.")
    return "all" if axis == "all" else -1


def _request_like(path: str, model: Model, out: Path) -> BakeRequest:
    """Return a request for what made the vectors of a run or a store."""
    contract = Contract.load(path)
    made_by, same = contract.model, dict[str, object]()
    if made_by is not None and model.layer is None:
        names = [output.name for output in contract.outputs]
        same = {"layer": made_by.layer, "outputs": model.outputs or names}
    asked = tuple(
        GraphOutput(each.name, each.normalization, each.axis, each.float_dtype, each.shape)
        for each in contract.outputs
    )
    return BakeRequest(model.model_copy(update=same), out, asked, space=contract.space)


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
def _loaded(model: Model, engine: Engine) -> Iterator[LoadedModel]:
    """Load a model that the gate admits; of its outputs, those that were chosen."""
    with security.admit(model) as admitted:
        request = ConversionRequest(model, admitted.report.content, engine)
        load = partial(models.load_predictor, model, admitted.path, engine, admitted.report)
        yield conversion.load_or_convert(load, request).model


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


def _written(
    request: BakeRequest, formats: Mapping[str, BakeFormat], model: NormalizedModel
) -> dict[str, Path]:
    """Write every format aside, examine it, and let all of them appear at once."""
    out = request.out
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            staged = aside / "staged"
            staged.mkdir()
            for form in formats.values():
                form.write(model, staged / form.file)
                if form.is_admitted:
                    path = str(staged / form.file)
                    security.check(Model(path=path), security.examine(path))
            if len(formats) == 1:
                (form,) = formats.values()
                staged = staged / form.file
            _publish(staged, out, aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return {name: out / form.file if len(formats) > 1 else out for name, form in formats.items()}


def _publish(staged: Path, out: Path, aside: Path) -> None:
    """Sync what was written, and let it take its place."""
    files = [staged, *staged.rglob("*")]
    for path in files:
        if path.is_file():
            with path.open("rb") as opened:
                os.fsync(opened)
        else:
            sync_directory(path)
    if out.is_dir() and not out.is_symlink():
        out.rename(aside / "replaced")  # a directory takes the place of none that holds files
    staged.replace(out)
    sync_directory(out.parent)
