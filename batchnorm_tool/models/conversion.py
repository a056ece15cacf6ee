"""Which converted model computes, under ``model.backend: onnxruntime`` or ``auto``.

A process of its own imports TensorFlow, converts the model, compares it with the original on the
user's rows and leaves it in the model cache; this one only looks there.
"""

import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache as cache_results
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

from batchnorm_tool import environment
from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import (
    InputError,
    JobError,
    ModelError,
    ModelFailed,
    Refused,
    WorkFailed,
    warn,
)
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import batching, cache
from batchnorm_tool.models.backends.loading import KERAS_2, NeedsKeras2Error
from batchnorm_tool.models.batching import ModelFacts, Rows
from batchnorm_tool.models.cache import CachedModel, Key, ModelCache
from batchnorm_tool.models.security import ModelReport

T = TypeVar("T")
# From the model's inputs to rows of the user's input.
Sample = Callable[[Sequence[Field]], Rows]
PROOF_ROWS = 1024
_CONVERTERS = ("tf2onnx", "onnx", "onnxruntime")
_LEGACY = "tf_keras"
_VERSIONED = (*_CONVERTERS, "tensorflow", "keras", "batchnorm-tool")
# As in `engines.processes`: the parent's path, so that whatever it can import is found.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from batchnorm_tool.models.backends.conversion_process import serve_conversion; "
    "serve_conversion(int(sys.argv[2]))"
)
_LAST_WORDS = 400
_GONE = "the converted model is no longer in the model cache (run again to convert it)"
# What TensorFlow would refuse, too.
_LASTING = (JobError, InputError, ModelError)
# Of TensorFlow's speed: what timing varies by, and the seconds that its import takes.
_ENOUGH = 0.95
_GPU = Path("/dev/nvidia0")


@dataclass(frozen=True)
class ConversionRequest:
    """What the other process is asked for: to convert a model, and to prove it on rows.

    A model of Keras 2 is exported by tf_keras, or only described. ``rows``: how many there are.
    """

    model: Model
    content: str | None
    engine: Engine
    sample: Sample = batching.filler
    purpose: Literal["convert", "export", "describe"] = "convert"
    rows: int = 0

    @property
    def proof_rows(self) -> int:
        """How many rows prove it."""
        return min(self.rows, PROOF_ROWS)

    @property
    def key(self) -> Key:
        """All that a converted model and its proof depend on."""
        model, engine = self.model, self.engine
        trust = model.trust
        classes = [] if trust is None or isinstance(trust, str) else trust.classes
        code = {name: _code_sha256(name.partition(".")[0]) for name in sorted(classes)}
        shared: Key = {"content": self.content, "layer": model.layer, "code": code}
        if self.purpose != "convert":
            versions = environment.versions((_LEGACY, "tensorflow", "batchnorm-tool"))
            return {**shared, "versions": versions}
        return {
            **shared,
            "signature": model.signature,
            "outputs": model.outputs,
            # Whether the two were timed on different devices.
            "gpu": engine.device == "auto" and _GPU.exists(),
            "threads": engine.threads,
            "cpu": environment.cpu(),
            "versions": environment.versions(_VERSIONED),
        }


def load_or_convert(
    load: Callable[[], T],
    request: ConversionRequest,
    stage: AbstractContextManager[None] | None = None,
) -> T:
    """Load a model by calling ``load``; what it finds missing or damaged is converted first.

    Args:
        load: Raises `NeedsKeras2Error` for a model of Keras 2, which tf_keras converts.
        request: The model, and the rows to prove it on.
        stage: Is open while it is converted.
    """
    try:
        return load()
    except FileNotFoundError:
        ensure_converted(request)  # what was converted is damaged, and removed
    except NeedsKeras2Error:
        if find_spec(_LEGACY) is None:
            raise
        with stage or nullcontext():
            _ask(replace(request, purpose="export"))
    return load()


def describe_legacy(request: ConversionRequest) -> ModelFacts | None:
    """Have tf_keras describe a model of Keras 2; ``None`` where it is not installed."""
    if request.content is None or find_spec(_LEGACY) is None:
        return None
    return _ask(replace(request, purpose="describe"))


def find_exported(model: Model, report: ModelReport) -> CachedModel | None:
    """Return what tf_keras exported a model of Keras 2 as, if it did.

    Raises:
        NeedsKeras2Error: It did not, and nothing else can load it.
    """
    if not report.is_of_keras_2:
        return None
    request = ConversionRequest(model, report.content, Engine(), purpose="export")
    found = ModelCache.of_user().find(request.key)
    if found is None and report.needs_keras_2 is not None:
        raise NeedsKeras2Error(
            f"{model.path}: does not load. {KERAS_2} It names {report.needs_keras_2}, which Keras "
            "3 does not have."
        )
    return found


def ensure_converted(request: ConversionRequest) -> None:
    """Have a model converted, if another back end is to compute it, unless that was tried before.

    Under ``auto``, what may not happen again is only warned of: TensorFlow computes then.

    Raises:
        BatchnormToolError: The model or the rows cannot be loaded at all, by TensorFlow neither.
    """
    if request.model.backend == "tensorflow" or _unfit(request) or _missing(_CONVERTERS):
        return
    found = ModelCache.of_user().find(request.key, whole=False)
    # A proof on few rows, as with `--limit`, is good for as many.
    if found and (found.entry.cause or found.entry.rows >= request.proof_rows):
        return
    try:
        _ask(request)
    except (OSError, Refused, WorkFailed) as error:
        lasting = isinstance(error, _LASTING) and not isinstance(error, ModelFailed)
        if request.model.backend != "auto" or lasting:
            raise
        warn(f"`model.backend: auto` computes with TensorFlow: {error}")


def find_converted(request: ConversionRequest) -> CachedModel | None:
    """Return what a model was converted to; ``None`` where TensorFlow is to compute it.

    Raises:
        JobError: An extra is missing, or the job cannot be computed by the back end that it names.
        ModelError: The model cannot be converted, or not faithfully.
    """
    found, why = _found(request)
    if why is None or request.model.backend == "auto":
        return found
    kind = JobError if _unfit(request) else ModelError
    raise kind(
        f"{request.model.path}: onnxruntime is to compute it (`model.backend`, or the choice of "
        f"`auto` when the result was begun), but {why}. Fix that, or set it to tensorflow."
    )


def fallback_warnings(request: ConversionRequest) -> Iterator[str]:
    """Say why TensorFlow computes under ``auto``, unless it does not."""
    why = _found(request)[1] if request.model.backend == "auto" else None
    if why and why != _GONE:  # which was warned of
        yield f"`model.backend: auto` computes with TensorFlow: {why}."


def _found(request: ConversionRequest) -> tuple[CachedModel | None, str | None]:
    """Return what computes instead of TensorFlow, or why nothing can, where that is asked."""
    if request.model.backend == "tensorflow":
        return None, None
    why = _unfit(request)
    found = None if why else ModelCache.of_user().find(request.key, whole=False)
    if found is None:
        return None, why or _missing(_CONVERTERS) or _GONE
    if found.entry.cause is not None:
        return None, found.entry.cause
    speeds = found.entry.speeds or {}
    is_slow = speeds.get("onnxruntime", 1.0) < _ENOUGH * speeds.get("tensorflow", 0.0)
    if is_slow and request.model.backend == "auto":
        return None, "it was the faster one when the model was converted"
    return found, None


def _unfit(request: ConversionRequest) -> str | None:
    """Return what speaks against another back end, whatever the model is."""
    if missing := _missing(("onnxruntime",)):
        return missing
    if request.model.batch_dependent == "accept":
        return "`model.batch_dependent` is accept: TensorFlow alone is asked for its own batches"
    if request.engine.device == "gpu":
        return "`engine.devices` asks for a GPU, and onnxruntime computes on the CPU here"
    return None


def _missing(names: Sequence[str]) -> str | None:
    install = "`pip install 'batchnorm-tool[onnxruntime]'`"
    missing = (name for name in names if find_spec(name) is None)
    return next((f"{name} is not installed (install it with {install})" for name in missing), None)


@cache_results
def _code_sha256(package: str) -> str | None:
    """Hash the Python files of a package, which a trusted class is in, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folders = spec.submodule_search_locations or ()
    files = [path for folder in folders for path in Path(folder).rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files or [Path(spec.origin)]):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _ask(request: ConversionRequest) -> ModelFacts | None:
    """Have another process convert a model; returns when it has left an entry in the cache."""
    path = json.dumps([*map(str, sys.path)])
    # The order of sets decides on names in the graph, and so on its hash.
    ordered = {**cache.inherited(), "PYTHONHASHSEED": "0"}
    if request.purpose != "convert":
        ordered["TF_USE_LEGACY_KERAS"] = "1"  # for classes of the user's that build on `tf.keras`
    with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM, path, str(answers.fileno())],
            input=pickle.dumps(request),
            stdout=log,
            stderr=log,
            pass_fds=[answers.fileno()],
            env=ordered,
            check=False,
        )
        answers.seek(0)
        log.seek(0)
        answer = pickle.load(answers) if done.returncode == 0 else None  # noqa: S301  (our own)
        said = log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
    if isinstance(answer, BaseException):
        raise answer
    if done.returncode == 0:
        found: ModelFacts | None = answer
        return found
    raise WorkFailed(
        f"{request.model.path}: the process that converts the model ended with exit code "
        f"{done.returncode}{said and f' ({said})'}. Run again, or set `model.backend` to "
        "tensorflow."
    )
