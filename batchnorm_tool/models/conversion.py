"""Which converted model computes, under ``model.backend: onnxruntime`` or ``auto``.

A process of its own imports TensorFlow, converts the model, compares it with the original on the
user's rows and leaves it in the model cache; this one only looks there.
"""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from batchnorm_tool import environment
from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError, WorkFailed
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import batching, cache
from batchnorm_tool.models.backends.loading import KERAS_2, KerasError
from batchnorm_tool.models.cache import CachedModel, ConvertedModel, Key, ModelCache
from batchnorm_tool.models.security import ModelReport

T = TypeVar("T")
# From the model's inputs to rows of the user's input.
Sample = Callable[[Sequence[Field]], Mapping[str, np.ndarray]]
_CONVERTERS = ("tf2onnx", "onnx", "onnxruntime")
_LEGACY = "tf_keras"
_VERSIONED = (*_CONVERTERS, "tensorflow", "keras", "batchnorm-tool")
# As in `engines.processes`: the parent's path, so that whatever it can import is found.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from batchnorm_tool.models import serve_conversion; serve_conversion(int(sys.argv[2]))"
)
_LAST_WORDS = 400
# Of TensorFlow's speed: what timing varies by, and the seconds that its import takes.
_ENOUGH = 0.95
_GPU = Path("/dev/nvidia0")


@dataclass(frozen=True)
class ConversionRequest:
    """What the other process is asked for: a model, its key in the cache, and rows to prove it.

    A ``legacy`` one is exported by tf_keras; what is not to be kept is only described.
    """

    model: Model
    engine: Engine
    content: str | None
    key: Key
    sample: Sample
    legacy: bool = False
    keep: bool = True


def load_or_convert(
    load: Callable[[], T],
    request: Callable[[], ConversionRequest],
    stage: AbstractContextManager[None] | None = None,
) -> T:
    """Load a model by calling ``load``; one of Keras 2 that fails is converted by tf_keras first.

    Args:
        load: Raises `KerasError` for such a one.
        request: Gives the conversion to ask for: see `legacy_request`.
        stage: Is open while it is converted.
    """
    try:
        return load()
    except KerasError:
        if find_spec(_LEGACY) is None:
            raise
        with stage or nullcontext():
            _ask(request())
    return load()


def describe_legacy(model: Model, content: str | None, engine: Engine) -> ConvertedModel | None:
    """Have tf_keras describe a model of Keras 2; ``None`` where it is not installed."""
    if content is None or find_spec(_LEGACY) is None:
        return None
    request = legacy_request(model, content, engine, batching.filler)
    return _ask(replace(request, keep=False))


def legacy_request(
    model: Model, content: str | None, engine: Engine, sample: Sample
) -> ConversionRequest:
    """Return what tf_keras is asked for: an export of a model, proved on rows."""
    wanted = model.model_copy(update={"backend": "tensorflow"})
    key = _legacy_key(model, content)
    return ConversionRequest(wanted, engine, content, key, sample, legacy=True)


def find_exported(model: Model, report: ModelReport | None) -> CachedModel | None:
    """Return what tf_keras exported a model of Keras 2 as, if it did.

    Raises:
        KerasError: It did not, and nothing else can load it.
    """
    if report is None or not report.is_of_keras_2:
        return None
    found = ModelCache.of_user().find(_legacy_key(model, report.content))
    if found is None and report.needs_keras_2 is not None:
        raise KerasError(
            f"{model.path}: does not load. {KERAS_2} It names {report.needs_keras_2}, which Keras "
            "3 does not have."
        )
    return found


def _legacy_key(model: Model, content: str | None) -> Key:
    return {
        "content": content,
        "layer": model.layer,
        "code": _code(model),
        "versions": environment.versions((_LEGACY, "tensorflow", "batchnorm-tool")),
    }


def ensure_converted(model: Model, content: str | None, engine: Engine, sample: Sample) -> None:
    """Have a model converted, if another back end is to compute it, unless that was tried before.

    Raises:
        BatchnormToolError: The model or the rows cannot be loaded at all, by TensorFlow neither.
    """
    if model.backend == "tensorflow" or _unfit(model, engine):
        return
    key = _key(model, content, engine)
    if ModelCache.of_user().find(key) is None:
        _ask(ConversionRequest(model, engine, content, key, sample))


def find_converted(model: Model, content: str | None, engine: Engine) -> CachedModel | None:
    """Return what a model was converted to; ``None`` where TensorFlow is to compute it.

    Raises:
        JobError: An extra is missing, or the job cannot be computed by the back end that it names.
        ModelError: The model cannot be converted, or not faithfully.
    """
    if model.backend == "tensorflow":
        return None
    unfit = _unfit(model, engine)
    found = None if unfit else ModelCache.of_user().find(_key(model, content, engine))
    why = unfit or _refusal(found)
    if why is None:
        return found if model.backend == "onnxruntime" or _is_fast_enough(found) else None
    if model.backend == "auto":
        return None
    kind = JobError if unfit else ModelError
    raise kind(
        f"{model.path}: `model.backend` is onnxruntime, but {why}. Fix that, or set it to "
        "tensorflow, or to auto, which takes TensorFlow where it must."
    )


def fallback_warnings(model: Model, content: str | None, engine: Engine) -> Iterator[str]:
    """Say why TensorFlow computes under ``auto``, unless it does not, or is faster."""
    if model.backend != "auto":
        return
    unfit = _unfit(model, engine)
    found = None if unfit else ModelCache.of_user().find(_key(model, content, engine))
    why = unfit or (_refusal(found) if found else None)
    if why:
        yield f"`model.backend: auto` computes with TensorFlow: {why}."


def _unfit(model: Model, engine: Engine) -> str | None:
    """Return what speaks against another back end, whatever the model is."""
    missing = [name for name in _CONVERTERS if find_spec(name) is None]
    if missing:
        install = "`pip install 'batchnorm-tool[onnxruntime]'`"
        return f"{missing[0]} is not installed (install it with {install})"
    if model.batch_dependent == "accept":
        return "`model.batch_dependent` is accept: TensorFlow alone is asked for its own batches"
    if engine.device == "gpu":
        return "`engine.devices` asks for a GPU, and onnxruntime computes on the CPU here"
    return None


def _refusal(found: CachedModel | None) -> str | None:
    if found is None:
        return "the converted model is no longer in the model cache (run again to convert it)"
    return found.entry.cause


def _is_fast_enough(found: CachedModel | None) -> bool:
    speeds = found.entry.conversion.speeds if found and found.entry.conversion else {}
    return speeds.get("onnxruntime", 1.0) >= _ENOUGH * speeds.get("tensorflow", 0.0)


def _key(model: Model, content: str | None, engine: Engine) -> Key:
    """Return all that a converted model and its proof depend on."""
    return {
        "content": content,
        "layer": model.layer,
        "signature": model.signature,
        "outputs": model.outputs,
        "code": _code(model),
        # Whether the two were timed on different devices.
        "gpu": engine.device == "auto" and _GPU.exists(),
        "threads": engine.threads,
        "cpu": environment.cpu(),
        "versions": environment.versions(_VERSIONED),
    }


def _code(model: Model) -> dict[str, str | None]:
    """Return hashes of the code of the classes that a job trusts."""
    trust = model.trust
    classes = [] if trust is None or isinstance(trust, str) else trust.classes
    return {name: _code_sha256(name.partition(".")[0]) for name in sorted(classes)}


def _code_sha256(package: str) -> str | None:
    """Hash the Python files of a package, which a trusted class is in, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folders = spec.submodule_search_locations
    files = [p for folder in folders for p in Path(folder).rglob("*.py")] if folders else []
    digest = hashlib.sha256()
    for path in sorted(files or [Path(spec.origin)]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _ask(request: ConversionRequest) -> ConvertedModel | None:
    """Have another process convert a model; returns when it has left an entry in the cache."""
    with tempfile.TemporaryFile() as log:
        answer, code = _answered(request, log)
        if isinstance(answer, BaseException):
            raise answer
        if code == 0 or request.model.backend == "auto":
            return answer
        log.seek(0)
        said = log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
    raise WorkFailed(
        f"{request.model.path}: the process that converts the model ended with exit code {code}"
        f"{said and f' ({said})'}. Run again, or set `model.backend` to tensorflow."
    )


def _answered(
    request: ConversionRequest, log: IO[bytes]
) -> tuple[BaseException | ConvertedModel | None, int]:
    """Start the process; returns what it could not do, or what it describes, and its exit code."""
    reader, writer = os.pipe()
    path = json.dumps([*map(str, sys.path)])
    # The order of sets decides on names in the graph, and so on its hash.
    ordered = {**cache.inherited(), "PYTHONHASHSEED": "0"}
    if request.legacy:
        ordered["TF_USE_LEGACY_KERAS"] = "1"  # for classes of the user's that build on `tf.keras`
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, path, str(writer)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=[writer],
        env=ordered,
    )
    try:
        os.close(writer)  # or the end of the process would go unnoticed
        with os.fdopen(reader, "rb") as answers:
            process.communicate(pickle.dumps(request))
            said = answers.read()
    finally:
        process.kill()  # harmless where it has ended
        process.wait()
    return pickle.loads(said) if said else None, process.returncode  # noqa: S301  (our own bytes)
