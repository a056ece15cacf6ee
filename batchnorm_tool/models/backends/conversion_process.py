"""The process that converts a model: it loads it with TensorFlow, and fills the model cache."""

import os
import pickle
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from batchnorm_tool import environment, models
from batchnorm_tool.errors import BatchnormToolError, ModelError, ModelFailed, explained
from batchnorm_tool.job import Model
from batchnorm_tool.models import batching, conversion, security
from batchnorm_tool.models.backends import legacy, onnx_conversion, onnx_graph, start_tensorflow
from batchnorm_tool.models.backends.loading import quiet_libraries
from batchnorm_tool.models.batching import ModelFacts, ModelPredictor, Rows
from batchnorm_tool.models.cache import CacheEntry, ModelCache
from batchnorm_tool.models.conversion import ConversionRequest

_TRIED_AT_ONCE = 32


def serve_conversion(descriptor: int) -> None:
    """Convert a model as the request on standard input asks; the main function of a process.

    Nothing is answered where the cache has an entry now, else the error; or what was only to be
    described.
    """
    environment.end_with_parent()
    environment.quiet_libraries()
    answer: BaseException | ModelFacts | None
    try:
        answer = _convert(pickle.load(sys.stdin.buffer))  # noqa: S301  (our own bytes)
    except Exception as error:  # noqa: BLE001  (it is raised where the conversion was asked for)
        answer = error if isinstance(error, BatchnormToolError) else explained(error)
    with os.fdopen(descriptor, "wb") as answers:
        answers.write(pickle.dumps(answer))
    os._exit(0)  # TensorFlow takes its time to tidy up


def _convert(request: ConversionRequest) -> ModelFacts | None:
    """Convert a model and keep what it became, or why it did not; returns what is only asked."""
    model = request.model.model_copy(update={"backend": "tensorflow"})
    with security.admit(model) as admitted, tempfile.TemporaryDirectory() as place:
        if admitted.report.content != request.content:
            raise ModelError(f"{model.path}: the model file changes. Run again once it does not.")
        if request.purpose == "convert":
            entry = _to_onnx(request, model, admitted, Path(place))
        else:
            found = _export(request, model, admitted.path, Path(place))
            if request.purpose == "describe":
                return found
            entry = CacheEntry("saved_model", request.key, model.path, facts=found)
        ModelCache.of_user().keep(entry, partial(shutil.copytree, place, dirs_exist_ok=True))
    return None


def _to_onnx(
    request: ConversionRequest, model: Model, admitted: security.ModelCopy, place: Path
) -> CacheEntry:
    load = partial(models.load_predictor, model, admitted.path, request.engine, admitted.report)
    loaded = conversion.load_or_convert(load, replace(request, model=model))
    entry = CacheEntry("onnx", request.key, model.path, rows=request.proof_rows)
    try:
        rows = _good_rows(loaded, request.sample(loaded.inputs))
        content, facts = onnx_conversion.convert(loaded, rows)
        facts, speeds = onnx_conversion.measure(loaded, content, facts, rows)
    except ModelFailed:
        raise  # by its rows, which others do not have
    except ModelError as error:
        return replace(entry, kind="none", cause=error.message)
    (place / onnx_graph.GRAPH).write_bytes(content)
    return replace(entry, facts=facts, speeds=speeds)


def _good_rows(model: ModelPredictor, rows: Rows) -> Rows:
    """Return the rows on which a model runs, or one that is made up."""
    sized = model if model.batch_size else model.with_batch_size(_TRIED_AT_ONCE)

    def run(rows: Rows) -> Rows:
        sized.predict(rows)
        return rows

    return models.on_good_rows(model, dict(rows), run, batching.filler(model.inputs))


def _export(request: ConversionRequest, model: Model, path: str, place: Path) -> ModelFacts:
    """Have tf_keras load a model of Keras 2 and export it, or only describe it."""
    setup = start_tensorflow("cpu", request.engine.threads)
    with quiet_libraries():
        original = ModelPredictor(legacy.load_legacy_model(model, path), *setup)
        if request.purpose == "describe":
            return ModelFacts(*original.model.ends)
        return legacy.export_proved(original, model, place, request.sample(original.inputs))
