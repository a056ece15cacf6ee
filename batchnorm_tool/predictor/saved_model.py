"""SavedModel directories as predictors: one signature, called with keyword inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.errors import ModelError
from batchnorm_tool.predictor.loading import LOAD_FAILURES
from batchnorm_tool.predictor.tensors import check_output, field_of, run_errors

if TYPE_CHECKING:
    from batchnorm_tool.chunk import Field
    from batchnorm_tool.job import Model
    from batchnorm_tool.predictor.batches import OutputChoice, Step

_DEFAULT_SIGNATURE = "serving_default"
_SLOTS = (
    "It carries the optimizer of Keras 2, which only tf.compat.v1.saved_model.load can read. Load "
    "it in Keras 2 (package tf_keras) with compile=False, and export it again without optimizer."
)


def load_saved_model(model: Model, path: str, choose: OutputChoice) -> SavedModel:
    """Load a SavedModel directory that the gate admitted.

    Args:
        model: ``signature`` is read; ``layer`` must not be set.
        path: The private copy.
        choose: Which outputs to take.

    Raises:
        ModelError: It does not load, or has no such signature or output.
    """
    import tensorflow as tf

    if model.layer is not None:
        raise ModelError(
            f"{model.path}: `model.layer` works for .keras and .h5 files; a SavedModel has no "
            "layers any more. Choose with `model.signature` and `model.outputs`."
        )
    try:
        loaded = tf.saved_model.load(path)
    except (*LOAD_FAILURES, tf.errors.OpError) as error:
        raise ModelError(_explain(model.path, error)) from error
    signature = _signature(model, loaded)
    # Both come in another order in every process.
    specs = sorted(signature.structured_input_signature[1].items())
    inputs = [field_of(name, spec) for name, spec in specs]
    names = sorted(signature.structured_outputs)
    chosen = [names[place] for place in choose(names)]
    outputs = [field_of(name, signature.structured_outputs[name]) for name in chosen]
    return SavedModel(loaded, signature, tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class SavedModel:
    """A SavedModel in memory.

    Attributes:
        loaded: The whole of it: the signature lives no longer than it.
        signature: The function to call.
        inputs: The arrays that it takes.
        outputs: The chosen outputs.
    """

    loaded: Any
    signature: Any
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @property
    def own_batch_size(self) -> int | None:
        """The batch size that is built into the signature, if one is."""
        specs = self.signature.structured_input_signature[1].values()
        return min({spec.shape[0] for spec in specs} - {None}, default=None)

    @property
    def embedding_sizes(self) -> dict[str, int]:
        """None: its layers are not known any more."""
        return {}

    def compile(self, batch_size: int) -> Step:
        """A step over batches of one size; the graph is compiled already."""
        import tensorflow as tf

        def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            with run_errors():
                tensors = {
                    field.name: tf.constant(array, tf.as_dtype(field.dtype))
                    for field, array in zip(self.inputs, arrays, strict=True)
                }
                results = self.signature(**tensors)
                found = [results[field.name].numpy() for field in self.outputs]
            for field, result in zip(self.outputs, found, strict=True):
                check_output(field.name, result.shape, batch_size)
            return found

        return step


def _signature(model: Model, loaded: Any) -> Any:
    signatures = dict(loaded.signatures)
    wanted = model.signature or _DEFAULT_SIGNATURE
    if wanted not in signatures:
        listed = ", ".join(signatures) or "none at all"
        raise ModelError(
            f"{model.path}: has no signature `{wanted}`. Received: {listed}. Choose one with "
            "`model.signature`, or export the model with model.export()."
        )
    return signatures[wanted]


def _explain(path: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "add_slot" in said:
        meaning = _SLOTS
    elif "not registered" in said or "Op type" in said:
        meaning = (
            "It needs an operation that this TensorFlow lacks. Install the package that adds it."
        )
    elif "variables" in said or "checkpoint" in said:
        meaning = "Its variables are missing or damaged. Copy the whole directory again."
    else:
        meaning = "Check that tf.saved_model.load(path) works, and export the model again."
    return f"{path}: does not load. {meaning} TensorFlow says: {type(error).__name__}: {said[:400]}"
