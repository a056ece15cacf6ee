"""The model as a function from named arrays to named arrays.

TensorFlow is imported when a model is loaded, by the modules of this package alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import plural
from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import conversion, security
from batchnorm_tool.models.backends.loading import NeedsKeras2Error
from batchnorm_tool.models.batching import (
    ModelFacts,
    ModelPredictor,
    OutputChoice,
    Predictor,
    choose_outputs,
)
from batchnorm_tool.models.conversion import ConversionRequest

T = TypeVar("T")


def on_good_rows(
    model: Predictor,
    sample: dict[str, np.ndarray],
    use: Callable[[dict[str, np.ndarray]], T],
    otherwise: dict[str, np.ndarray] | None,
) -> T:
    """Return what ``use`` makes of a sample, or of those of its rows on which the model runs."""
    try:
        return use(sample)
    except ModelFailed as error:
        failing = model.failing_rows(sample)
        rows = len(next(iter(sample.values())))
        good = [row for row in range(rows) if row not in failing]
        if good:
            otherwise = {name: array[good] for name, array in sample.items()}
        elif otherwise is None:
            raise ModelError(
                f"The model fails on each of the first {plural(rows, 'row')}: {error}. Check that "
                "the features match the model's training data, and that model.predict() works for "
                "them."
            ) from error
    return use(otherwise)


def load_predictor(
    model: Model, path: str, engine: Engine, report: security.ModelReport | None = None
) -> ModelPredictor:
    """Load an admitted model, without a batch size unless one is built into it.

    Args:
        model: Of its back ends another than TensorFlow computes where the model cache has what the
            model was converted to.
        path: The private copy.
        engine: Devices and threads.
        report: What the gate said of it, by which the cache knows it.

    Raises:
        NeedsKeras2Error: It is of Keras 2, and must be converted first: see `load_or_convert`.
    """
    found = None
    if report is not None and report.kind != "onnx":
        found = conversion.find_converted(ConversionRequest(model, report.content, engine))
    if found is None:
        choose = partial(choose_outputs, chosen=model.outputs)
        return _with_own_batch_size(_load(model, path, engine, choose, report))
    from batchnorm_tool.models.backends.onnx_graph import GRAPH, converted_predictor

    assert found.entry.facts is not None  # noqa: S101  (an entry without a cause has one)
    loaded = converted_predictor(found.read(GRAPH), found.entry.facts, engine.threads)
    return _with_own_batch_size(loaded)


def describe_model(
    model: Model, path: str, engine: Engine, report: security.ModelReport | None = None
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Load an admitted model, and return its inputs and all outputs that it can give."""
    found: ModelPredictor | ModelFacts | None
    try:
        found = _load(model, path, engine, lambda names: range(len(names)), report)
    except NeedsKeras2Error:
        content = None if report is None else report.content
        found = conversion.describe_legacy(ConversionRequest(model, content, engine))
        if found is None:
            raise
    return found.inputs, found.outputs


def wrap_model(model: Any, outputs: Sequence[str] | None = None) -> Predictor:
    """Return a built ``keras.Model`` as a predictor of some outputs; default: of the only one."""
    from batchnorm_tool.models.backends import running_tensorflow
    from batchnorm_tool.models.backends.keras import KerasModel

    setup = running_tensorflow()
    wrapped = KerasModel.of(model, partial(choose_outputs, chosen=outputs))
    return _with_own_batch_size(ModelPredictor(wrapped, *setup))


def _load(
    model: Model,
    path: str,
    engine: Engine,
    choose: OutputChoice,
    report: security.ModelReport | None = None,
) -> ModelPredictor:
    if path.endswith(security.ONNX_SUFFIX):
        from batchnorm_tool.models.backends.onnx_graph import load_onnx_file

        return load_onnx_file(model, path, engine, choose)
    from batchnorm_tool.models.backends import start_tensorflow
    from batchnorm_tool.models.backends.loading import load_errors, quiet_libraries

    exported = None if report is None else conversion.find_exported(model, report)
    setup = start_tensorflow(engine.devices, engine.threads)
    with quiet_libraries(), load_errors(model, path):
        if exported is not None:
            from batchnorm_tool.models.backends.legacy import load_exported

            loaded = load_exported(exported.path, model, choose, exported.entry.proof)
        elif Path(path).is_dir():
            from batchnorm_tool.models.backends.saved_model import load_saved_model

            loaded = load_saved_model(model, path, choose)
        else:
            from batchnorm_tool.models.backends.keras import load_keras_model

            loaded = load_keras_model(model, path, choose)
    return ModelPredictor(loaded, *setup, pads=model.batch_dependent == "refuse")


def _with_own_batch_size(predictor: ModelPredictor) -> ModelPredictor:
    """Return the model, its batch size fixed already where one is built into it."""
    own = predictor.model.own_batch_size
    return predictor if own is None else replace(predictor, pads=True).with_batch_size(own)
