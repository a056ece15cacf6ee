"""Models of Keras 2 that Keras 3 does not load: tf_keras loads and exports them as SavedModels.

It does so in a process of its own; afterwards the SavedModel is all that is needed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.errors import BatchnormToolError, ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import backends, proof, security
from batchnorm_tool.models.backends.loading import check_stateless, inner_layer_model, load_stored
from batchnorm_tool.models.backends.saved_model import load_saved_model
from batchnorm_tool.models.batching import (
    BackendRecord,
    LoadedModel,
    ModelFacts,
    ModelPredictor,
    OutputChoice,
    Step,
)
from batchnorm_tool.models.security.directory import GRAPH
from batchnorm_tool.models.security.graph_allowlist import ExaminedGraph

EXPORTED = "saved_model"


@dataclass(frozen=True)
class LegacyModel(LoadedModel):
    """A model of Keras 2 in memory, with all of its outputs: the reference of what it exports."""

    model: Any

    def compile(self, batch_size: int) -> Step:
        """Return a step through the model's own ``predict``."""
        import tensorflow as tf

        def step(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            given = {
                field.name: tf.constant(array, field.dtype)
                for field, array in zip(self.inputs, arrays, strict=True)
            }
            with backends.run_errors():
                found = self.model.predict(given, batch_size=batch_size, verbose=0)
            return [np.asarray(array) for array in tf.nest.flatten(found)]

        return step

    def export(self, directory: Path) -> None:
        """Write what ``predict`` runs as a SavedModel in a directory, all under its own name."""
        import tensorflow as tf
        import tf_keras

        size = self.own_batch_size

        def serve(given: dict[str, Any]) -> dict[str, Any]:
            found = tf.nest.flatten(self.model.predict_step((given,)))
            return {field.name: each for field, each in zip(self.outputs, found, strict=True)}

        archive = tf_keras.export.ExportArchive()
        archive.track(self.model)
        specs = {
            field.name: tf.TensorSpec((size, *field.shape), field.dtype, field.name)
            for field in self.inputs
        }
        archive.add_endpoint("serving_default", serve, input_signature=[specs])
        archive.write_out(str(directory / EXPORTED))


def load_legacy_model(model: Model, path: str) -> LegacyModel:
    """Load a ``.keras`` or ``.h5`` file that the gate admitted.

    Raises:
        ModelError: tf_keras does not load it either.
    """
    import tf_keras

    try:
        loaded = load_stored(model, path, tf_keras)
        if model.layer is not None:
            loaded = inner_layer_model(loaded, model.layer, tf_keras)
        return _described(loaded)
    except BatchnormToolError:
        raise
    except Exception as error:
        raise ModelError(
            f"{model.path}: does not load. It was written by Keras 2, and neither Keras 3 nor "
            "tf_keras reads it. Load it with the version that wrote it, and export it as a "
            f"SavedModel. tf_keras says: {type(error).__name__}: {backends.quoted(error)}"
        ) from error


def load_exported(
    place: Path, model: Model, choose: OutputChoice, record: BackendRecord | None = None
) -> LoadedModel:
    """Load what a model was exported as; what the gate says of that graph counts as well.

    Args:
        place: Where `LegacyModel.export` wrote it.
        model: The model of Keras 2.
        choose: Of its outputs.
        record: How it proved itself, once it did.
    """
    plain = model.model_copy(update={"layer": None, "signature": None})
    with security.examine_copy(str(place / EXPORTED)) as copied:
        if not isinstance(model.trust, str):
            security.check(Model(path=model.path), copied.report)
        return load_saved_model(plain, copied.path, choose, record)


def export_proved(
    original: ModelPredictor, model: Model, place: Path, rows: Mapping[str, np.ndarray]
) -> ModelFacts:
    """Export a model into a directory, and describe it once both predict the same.

    Raises:
        ModelError: They do not.
    """
    assert isinstance(original.model, LegacyModel)  # noqa: S101  (for the type checker)
    original.model.export(place)
    loaded = load_exported(place, model, lambda names: range(len(names)))
    difference = proof.largest_difference(original, replace(original, model=loaded), rows)
    # What the gate keeps is the same in every export; the file has random numbers beside it.
    graph = ExaminedGraph((place / EXPORTED / GRAPH).read_bytes()).content(Path())
    digest = hashlib.sha256(graph).hexdigest()
    record = BackendRecord("tensorflow", digest, difference, independent=False, batch_size=None)
    return ModelFacts(*loaded.ends, backend=record)


def _described(model: Any) -> LegacyModel:
    """Return a model with its fields, named as Keras 3 names them: after layers, or by keys."""
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"A {type(model).__name__} of Keras 2 is defined by Python code. Export it as a "
            "SavedModel where it was created."
        )
    layers = model._flatten_layers(include_self=False)  # noqa: SLF001  no public way
    check_stateless(layer for layer in layers if hasattr(layer, "reset_states"))
    keyed = isinstance(model.output, dict)
    outputs = sorted(model.output) if keyed else model.output_names
    sizes = {tensor.shape[0] for tensor in model.inputs} - {None}
    return LegacyModel(
        inputs=tuple(map(backends.field_of, model.input_names, model.inputs)),
        outputs=tuple(map(backends.field_of, outputs, model.outputs)),
        embedding_sizes=_embedding_sizes(model),
        own_batch_size=min(sizes, default=None),
        model=model,
    )


def _embedding_sizes(model: Any) -> dict[str, int | None]:
    """Return the rows of the Embedding layers that inputs, floats too, go straight into."""
    import tf_keras

    return {
        name: layer.input_dim
        for layer in model.layers
        if isinstance(layer, tf_keras.layers.Embedding)
        for node in layer.inbound_nodes
        for tensor, name in zip(model.inputs, model.input_names, strict=True)
        if tensor is node.keras_inputs[0]
    }
