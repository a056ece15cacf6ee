"""The model as a function from named arrays to named arrays.

TensorFlow is imported when a model is loaded, by the modules of this package alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from batchnorm_tool.predictor.batch_size import choose_batch_size
from batchnorm_tool.predictor.batches import (
    Device,
    LoadedModel,
    ModelPredictor,
    OutputChoice,
    choose_outputs,
    every_output,
)
from batchnorm_tool.predictor.placement import independent_batch_size

if TYPE_CHECKING:
    from batchnorm_tool.chunk import Field
    from batchnorm_tool.job import Engine, Model
    from batchnorm_tool.predictor.tensorflow_setup import TensorFlowSetup

__all__ = [
    "IdentityPredictor",
    "ModelPredictor",
    "Predictor",
    "choose_batch_size",
    "describe_model",
    "independent_batch_size",
    "load_predictor",
    "wrap_model",
]


class Predictor(Protocol):
    """What the pipeline needs to know of a model."""

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The arrays that it takes."""

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The arrays that it gives, in this order."""

    @property
    def batch_size(self) -> int | None:
        """Rows in one call of the model; ``None`` before it is fixed."""

    @property
    def device(self) -> Device:
        """Where it computes."""

    @property
    def threads(self) -> int:
        """Threads within one operation; part of the bits."""

    def with_batch_size(self, batch_size: int) -> Self:
        """The same model with the batch size fixed.

        Raises:
            ModelError: The model has a batch size of its own, and it is another.
        """

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict any number of rows; may be called from several threads at once.

        Args:
            features: An array ``[n, *shape]`` for each input, by name.

        Returns:
            An array ``[n, *shape]`` for each output, by name, float32 where the model computes in
            float16 or bfloat16, and ``[n, 1]`` where it gives one number for a row.
        """


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
    def outputs(self) -> tuple[Field, ...]:
        """The inputs, one number for a row being a vector of one."""
        return tuple(replace(field, shape=field.shape or (1,)) for field in self.inputs)

    def with_batch_size(self, batch_size: int) -> Self:
        """The same; the batch size changes nothing here."""
        return replace(self, batch_size=batch_size)

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The features themselves, ``[n]`` as ``[n, 1]``."""
        return {
            name: array[:, np.newaxis] if array.ndim == 1 else array
            for name, array in features.items()
        }


def load_predictor(model: Model, path: str, engine: Engine) -> Predictor:
    """Load an admitted model.

    Args:
        model: What to take of it: ``layer``, ``signature``, ``outputs``; and ``trust``.
        path: The private copy that the gate admitted.
        engine: ``devices`` and ``threads``.

    Returns:
        The model without a batch size: see `choose_batch_size` and `Predictor.with_batch_size`.

    Raises:
        ModelError: It does not load, or has no such layer, signature or output.
        JobError: A GPU is asked for, and there is none.
    """
    from batchnorm_tool.predictor.tensorflow_setup import start_tensorflow

    setup = start_tensorflow(engine.devices, engine.threads)
    return _predictor(_load(model, path, partial(choose_outputs, chosen=model.outputs)), setup)


def describe_model(
    model: Model, path: str, engine: Engine
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Load an admitted model to see what it takes and all that it gives.

    Args:
        model: As for `load_predictor`; ``outputs`` is not looked at.
        path: The private copy that the gate admitted.
        engine: ``devices`` and ``threads``.

    Returns:
        Its inputs and its outputs, the latter as `Predictor.predict` would give them.

    Raises:
        ModelError: It does not load, or has no such layer or signature.
        JobError: A GPU is asked for, and there is none.
    """
    from batchnorm_tool.predictor.tensorflow_setup import start_tensorflow

    setup = start_tensorflow(engine.devices, engine.threads)
    loaded = ModelPredictor(_load(model, path, every_output), setup.device, setup.threads)
    return loaded.inputs, loaded.outputs


def wrap_model(model: Any, outputs: Sequence[str] | None = None) -> Predictor:
    """A model that is in memory already as a predictor.

    Args:
        model: A ``keras.Model``, built.
        outputs: Names of the outputs to take; default: the only one.

    Raises:
        ModelError: It is not built, or has several outputs and none is chosen.
    """
    from batchnorm_tool.predictor.keras_model import KerasModel
    from batchnorm_tool.predictor.tensorflow_setup import running_tensorflow

    setup = running_tensorflow()
    return _predictor(KerasModel.of(model, partial(choose_outputs, chosen=outputs)), setup)


def _load(model: Model, path: str, choose: OutputChoice) -> LoadedModel:
    from batchnorm_tool.predictor.loading import quiet_libraries

    with quiet_libraries():
        if Path(path).is_dir():
            from batchnorm_tool.predictor.saved_model import load_saved_model

            return load_saved_model(model, path, choose)
        from batchnorm_tool.predictor.keras_model import load_keras_model

        return load_keras_model(model, path, choose)


def _predictor(loaded: LoadedModel, setup: TensorFlowSetup) -> Predictor:
    """The model, its batch size fixed already where one is built into it."""
    predictor = ModelPredictor(loaded, setup.device, setup.threads)
    own = loaded.own_batch_size
    return predictor if own is None else predictor.with_batch_size(own)
