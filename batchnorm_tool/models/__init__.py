"""The model as a function from named arrays to named arrays.

TensorFlow is imported when a model is loaded, by the modules of this package alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from batchnorm_tool.chunk import Field
from batchnorm_tool.display import plural
from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.models.batching import (
    Device,
    LoadedModel,
    ModelPredictor,
    OutputChoice,
    Predictor,
    choose_outputs,
    every_output,
    filler,
)
from batchnorm_tool.models.placement import (
    choose_batch_size,
    examine,
    independent_batch_size,
    repeated,
)

if TYPE_CHECKING:
    from batchnorm_tool.job import Engine, Model
    from batchnorm_tool.models.backends.tensorflow import TensorFlowSetup

__all__ = [
    "IdentityPredictor",
    "ModelPredictor",
    "Predictor",
    "choose_batch_size",
    "describe_model",
    "examine",
    "filler",
    "independent_batch_size",
    "load_predictor",
    "on_good_rows",
    "repeated",
    "wrap_model",
]

T = TypeVar("T")


@dataclass(frozen=True)
class IdentityPredictor:
    """The predictor of predictions that are stored already: it returns what it gets.

    Example:
        >>> IdentityPredictor().predict({"vector": np.ones(2, "float32")})["vector"].shape
        (2, 1)
    """

    inputs: tuple[Field, ...] = ()
    batch_size: int | None = None
    device: Device = "cpu"
    threads: int = 1

    @property
    def embedding_sizes(self) -> Mapping[str, int | None]:
        """None."""
        return {}

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The inputs, one number for a row being a vector of one."""
        return tuple(replace(field, shape=field.shape or (1,)) for field in self.inputs)

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same; the batch size changes nothing here."""
        return replace(self, batch_size=batch_size)

    def failing_rows(self, features: Mapping[str, np.ndarray]) -> dict[int, str]:  # noqa: ARG002
        """Return none: nothing is computed."""
        return {}

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the features themselves, ``[n]`` as ``[n, 1]``."""
        return {
            name: array[:, np.newaxis] if array.ndim == 1 else array
            for name, array in features.items()
        }


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
        if not good and otherwise is None:
            raise ModelError(
                f"The model fails on each of the first {plural(rows, 'row')}: {error}. Check that "
                "the features match the model's training data, and that model.predict() works for "
                "them."
            ) from error
    if not good and otherwise is not None:
        return use(otherwise)
    return use({name: array[good] for name, array in sample.items()})


def load_predictor(model: Model, path: str, engine: Engine) -> Predictor:
    """Load an admitted model.

    Returns:
        The model without a batch size: see `choose_batch_size` and `Predictor.with_batch_size`.
    """
    from batchnorm_tool.models.backends.tensorflow import start_tensorflow

    setup = start_tensorflow(engine.devices, engine.threads)
    loaded = _load(model, path, partial(choose_outputs, chosen=model.outputs))
    return _predictor(loaded, setup, pads=model.batch_dependent == "refuse")


def describe_model(
    model: Model, path: str, engine: Engine
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Load an admitted model to see what it takes and all that it gives.

    Returns:
        Its inputs and its outputs, the latter as `Predictor.predict` would give them.
    """
    from batchnorm_tool.models.backends.tensorflow import start_tensorflow

    setup = start_tensorflow(engine.devices, engine.threads)
    loaded = ModelPredictor(_load(model, path, every_output), setup.device, setup.threads)
    return loaded.inputs, loaded.outputs


def wrap_model(model: Any, outputs: Sequence[str] | None = None) -> Predictor:
    """Return a model that is in memory already as a predictor.

    Args:
        model: A ``keras.Model``, built.
        outputs: Names of the outputs to take; default: the only one.
    """
    from batchnorm_tool.models.backends.keras import KerasModel
    from batchnorm_tool.models.backends.tensorflow import running_tensorflow

    setup = running_tensorflow()
    return _predictor(KerasModel.of(model, partial(choose_outputs, chosen=outputs)), setup)


def _load(model: Model, path: str, choose: OutputChoice) -> LoadedModel:
    from batchnorm_tool.models.backends.loading import load_errors, quiet_libraries

    with quiet_libraries(), load_errors(model, path):
        if Path(path).is_dir():
            from batchnorm_tool.models.backends.saved_model import load_saved_model

            return load_saved_model(model, path, choose)
        from batchnorm_tool.models.backends.keras import load_keras_model

        return load_keras_model(model, path, choose)


def _predictor(loaded: LoadedModel, setup: TensorFlowSetup, *, pads: bool = True) -> Predictor:
    """Return the model, its batch size fixed already where one is built into it."""
    own = loaded.own_batch_size
    predictor = ModelPredictor(loaded, setup.device, setup.threads, pads=pads or own is not None)
    return predictor if own is None else predictor.with_batch_size(own)
