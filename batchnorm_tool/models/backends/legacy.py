"""Models of Keras 2 that Keras 3 does not load: tf_keras loads and exports them as SavedModels.

It does so in a process of its own; afterwards the SavedModel is all that is needed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import BatchnormToolError, ModelError
from batchnorm_tool.job import Model
from batchnorm_tool.models import backends, proof, security
from batchnorm_tool.models.backends.loading import load_stored
from batchnorm_tool.models.backends.saved_model import load_saved_model
from batchnorm_tool.models.batching import (
    BackendRecord,
    LoadedModel,
    ModelPredictor,
    OutputChoice,
    Step,
)
from batchnorm_tool.models.cache import CacheEntry, ConvertedModel
from batchnorm_tool.models.security.directory import GRAPH
from batchnorm_tool.models.security.graph_allowlist import ExaminedGraph

EXPORTED = "saved_model"
_BATCH_SIZE = 32  # that of `model.predict`
_MOST_SAID = 400


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

    def export(self, directory: str) -> None:
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
        archive.write_out(str(Path(directory, EXPORTED)))


def load_legacy_model(model: Model, path: str) -> LegacyModel:
    """Load a ``.keras`` or ``.h5`` file that the gate admitted.

    Raises:
        ModelError: tf_keras does not load it either.
    """
    import tf_keras

    try:
        loaded = load_stored(model, path, tf_keras)
        return _described(loaded if model.layer is None else _up_to(loaded, model.layer))
    except BatchnormToolError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:_MOST_SAID]
        raise ModelError(
            f"{model.path}: does not load. It was written by Keras 2, and neither Keras 3 nor "
            "tf_keras reads it. Load it with the version that wrote it, and export it as a "
            f"SavedModel. tf_keras says: {type(error).__name__}: {said}"
        ) from error


def load_exported(
    place: Path, model: Model, choose: OutputChoice, entry: CacheEntry | None = None
) -> LoadedModel:
    """Load what a model was exported as; what the gate says of that graph counts as well.

    Args:
        place: Where `LegacyModel.export` wrote it.
        model: The model of Keras 2.
        choose: Of its outputs.
        entry: Of the model cache, once it proved itself.
    """
    plain = model.model_copy(update={"layer": None, "signature": None})
    record = None if entry is None else _record(place, entry)
    with security.examine_copy(str(place / EXPORTED)) as copied:
        if not isinstance(model.trust, str):
            copied.check(Model(path=model.path))
        return load_saved_model(plain, copied.path, choose, record)


def prove(
    original: ModelPredictor, exported: ModelPredictor, rows: Mapping[str, np.ndarray]
) -> ConvertedModel:
    """Compare the predictions of both, and describe what was exported.

    Raises:
        ModelError: They differ.
    """
    size = original.model.own_batch_size or _BATCH_SIZE
    difference = proof.largest_difference(
        original.with_batch_size(size),
        exported.with_batch_size(size),
        proof.with_edge_rows(rows, original.inputs, original.embedding_sizes),
    )
    return replace(described(exported.model), largest_difference=difference)


def described(model: LoadedModel) -> ConvertedModel:
    """Describe a model that nothing is proved of."""
    return ConvertedModel(
        inputs=model.inputs,
        outputs=model.outputs,
        embedding_sizes={},
        own_batch_size=model.own_batch_size,
        batch_size=None,
        independent=False,
        largest_difference=0.0,
        speeds={},
    )


def _record(place: Path, entry: CacheEntry) -> BackendRecord:
    """Return how an exported model proved itself."""
    assert entry.conversion is not None  # noqa: S101  (an entry of this kind has one)
    # What the gate keeps is the same in every export; the file has random numbers beside it.
    graph = ExaminedGraph((place / EXPORTED / GRAPH).read_bytes()).content(Path())
    return BackendRecord(
        name="tensorflow",
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        largest_difference=entry.conversion.largest_difference,
        independent=False,
        batch_size=None,
    )


def _up_to(model: Any, name: str) -> Any:
    """Return the part of a model that leads to a layer's output, with the inputs that it needs."""
    import tf_keras

    names = [layer.name for layer in model.layers]
    if name not in names:
        raise ModelError(
            f"The model has no layer `{name}` (`model.layer`). Expected one of: {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        )
    output = model.get_layer(name).output
    seen, waiting = set(), [output] if hasattr(output, "node") else list(output)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += tensor.node.keras_inputs
    return tf_keras.Model([each for each in model.inputs if id(each) in seen], output)


def _described(model: Any) -> LegacyModel:
    """Return a model with its fields, named as Keras 3 names them: after layers, or by keys."""
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"A {type(model).__name__} of Keras 2 is defined by Python code. Export it as a "
            "SavedModel where it was created."
        )
    for layer in model._flatten_layers(include_self=False):  # noqa: SLF001  no public way
        if getattr(layer, "stateful", False) is True and hasattr(layer, "reset_states"):
            raise ModelError(
                f"The model keeps state from call to call: its layer `{layer.name}` has "
                "stateful=True. Rebuild it with stateful=False, and save that."
            )
    keyed = isinstance(model.output, dict)
    outputs = sorted(model.output) if keyed else model.output_names
    inputs = zip(model.input_names, model.inputs, strict=True)
    sizes = {tensor.shape[0] for tensor in model.inputs} - {None}
    return LegacyModel(
        inputs=tuple(backends.field_of(*each) for each in inputs),
        outputs=tuple(
            backends.field_of(*each) for each in zip(outputs, model.outputs, strict=True)
        ),
        embedding_sizes=_embedding_sizes(model),
        own_batch_size=min(sizes, default=None),
        model=model,
    )


def _embedding_sizes(model: Any) -> dict[str, int]:
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
