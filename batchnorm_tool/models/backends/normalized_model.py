"""A model with the normalization at the end of its graph, as every format is written from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError, warn
from batchnorm_tool.models.backends import place_name
from batchnorm_tool.models.backends.keras import KerasModel, named_parts, overrides, packed
from batchnorm_tool.models.backends.normalization_graph import normalize_tensor
from batchnorm_tool.models.batching import LoadedModel
from batchnorm_tool.norms.norm import Anything
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec

RAW, EDGES, VECTORS = "raw", "edges", "vectors"
# Layers and operations of Keras, and our layer; `Normalize` is `keras.ops.normalize`.
_NORMALIZING = ("UnitNormalization", "VectorNormalization", "Normalize", "Softmax")
_NO_IDENTIFIER = re.compile(r"[^A-Za-z0-9_]")
_PASSING = ("Cast", "Dropout", "Flatten", "Identity", "Reshape")
_NARROW = ("bfloat16", "float16")


@dataclass(frozen=True)
class GraphOutput:
    """How one output is normalized in the graph.

    Attributes:
        name: The output's; "" where it stands for every output.
        axis: ``-1``, or ``"all"``: the whole output of a row is one vector.
        dtype: Of the vectors; default: float32, or float64 where the model computes in it.
        shape: Of one row of the raw output, where that has to be so.
    """

    name: str
    normalization: Normalization
    axis: int | str = -1
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def like(cls, spec: OutputSpec) -> Self:
        """Return how what is stored so is normalized."""
        way, shape = spec.normalization, spec.predicted_shape
        return cls(spec.name, way, spec.axis, spec.float_dtype, shape)

    def vectors(self, raw: Anything) -> Anything:
        """Return predictions ``[n, ...]`` as the vectors that are normalized, a row for each."""
        width = raw[0].size if self.axis == "all" or raw.ndim == 1 else raw.shape[-1]
        return raw.reshape(-1, width)


@dataclass(frozen=True)
class NormalizedModel:
    """A model whose outputs are normalized.

    Attributes:
        inputs: What it takes, by the original's names.
        outputs: Names of what it gives: each output, followed by its norms where they are kept.
        call: From tensors, in the order of ``inputs``, to tensors by the names of ``outputs``.
        raw: Likewise, to what it normalizes.
        keras: It as a ``keras.Model``.
        batch_size: The batch size that is built into it, if one is.
        metadata: What is to be known of it in its file.
    """

    inputs: tuple[Field, ...]
    outputs: tuple[str, ...]
    call: Callable[..., dict[str, Any]]
    raw: Callable[..., dict[str, Any]]
    keras: Any
    batch_size: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def export(self, directory: str) -> None:
        """Write a SavedModel whose signature has these names, ``_`` for what it cannot have.

        Raises:
            ModelError: Names of inputs differ in nothing else.
        """
        import keras
        import tensorflow as tf

        names = [identifier(each.name) for each in self.inputs]
        if len({*names}) < len(names) or any(name.startswith("_") for name in names):
            raise ModelError(
                "A SavedModel has inputs of distinct names that begin with a letter or a digit. "
                f"Received: {', '.join(each.name for each in self.inputs)}. Rename them."
            )
        archive = keras.export.ExportArchive()
        archive.track(self.keras)
        signature = [
            tf.TensorSpec((self.batch_size, *each.shape), each.dtype, name)
            for each, name in zip(self.inputs, names, strict=True)
        ]
        archive.add_endpoint("serve", self.call, input_signature=signature)
        archive.write_out(directory, verbose=False)


def identifier(name: str) -> str:
    """Return an input's name as a SavedModel's signature has it."""
    return _NO_IDENTIFIER.sub("_", name)


def normalize_model(
    model: LoadedModel, outputs: Sequence[GraphOutput], *, keep_norm: bool
) -> NormalizedModel:
    """Return a model around another, which keeps its weights, inputs and names.

    It gives a dictionary where that one does, and where there is more than one output.

    Raises:
        JobError: An output has the name that norms would get, or is to be quantized.
        ModelError: It has no graph that can be continued.
    """
    import keras

    if not isinstance(model, KerasModel):
        raise ModelError(
            "A SavedModel, a model of Keras 2 and a graph of another runtime cannot be continued. "
            "Bake the model as Keras 3 saves it, with model.save('model.keras')."
        )
    if overrides(model.model, "predict") or overrides(model.model, "predict_step"):
        raise ModelError(
            "The model's class defines predict() or predict_step() itself, as Python code, "
            "which is no part of a graph. Save the model that it calls."
        )

    def chosen(result: Any) -> dict[str, Any]:
        parts = [part for _, part in named_parts(result)]
        places = zip(model.outputs, model.chosen, strict=True)
        return {field.name: parts[place] for field, place in places}

    def raw(*given: Any) -> dict[str, Any]:
        nest = packed(model.structure, given, model.inputs)
        return chosen(model.model(nest, training=False))

    size = model.own_batch_size
    taken = packed(model.structure, _keras_inputs(model.inputs, size), model.inputs)
    result = model.model(taken)
    tensors = chosen(result)
    for name, tensor in tensors.items():
        if (layer := _normalizing_layer(tensor)) is not None:
            warn(f"`{name}` is normalized already, by {layer}, at the end of the model.")
    found = _normalized_tensors(tensors, outputs, keep_norm=keep_norm)
    is_alone = len(found) == 1 and not isinstance(result, Mapping)
    made = keras.Model(taken, _renamed(taken, *found.items()) if is_alone else found)

    def call(*given: Any) -> dict[str, Any]:
        results = made(packed(model.structure, given, model.inputs), training=False)
        return dict(zip(found, [results], strict=True)) if is_alone else results

    return NormalizedModel(model.inputs, tuple(found), call, raw, made, size)


def probe(
    model: NormalizedModel,
    outputs: Sequence[GraphOutput],
    fields: Sequence[Field],
    *,
    keep_norm: bool,
) -> NormalizedModel:
    """Return a model that shows what a normalized one computes within; see `commands.bake.parity`.

    It also gives the raw outputs, as ``raw_0000`` and so on. It takes rows in the place of raw
    predictions, as ``edges_0000``, and gives what becomes of them as ``vectors_0000`` (and
    ``vectors_0000_norm``). The ``fields`` are the original's outputs, in the order of ``outputs``.
    """
    import keras

    taken = len(model.inputs)
    inputs = (*model.inputs, *(_edge_field(place, field) for place, field in enumerate(fields)))
    fed = [replace(each, name=place_name(VECTORS, n)) for n, each in enumerate(outputs)]

    def call(*given: Any) -> dict[str, Any]:
        raw = model.raw(*given[:taken])
        rows = {each.name: row for each, row in zip(fed, given[taken:], strict=True)}
        shown = (_widened(raw[each.name]) for each in outputs)
        return {
            **_normalized_tensors(raw, outputs, keep_norm=keep_norm),
            **{place_name(RAW, place): tensor for place, tensor in enumerate(shown)},
            **_normalized_tensors(rows, fed, keep_norm=keep_norm),
        }

    flat = _keras_inputs(inputs, model.batch_size)
    found = call(*flat)
    made = keras.Model(flat, found)
    return NormalizedModel(inputs, tuple(found), call, model.raw, made, model.batch_size)


def _edge_field(place: int, field: Field) -> Field:
    dtype = field.dtype if "float" in field.dtype else "float32"
    return Field(place_name(EDGES, place), field.shape, dtype)


def _keras_inputs(fields: Sequence[Field], size: int | None) -> list[Any]:
    import keras

    names = [each.name.replace("/", "_") for each in fields]  # Keras takes no slash
    ends = zip(fields, names, strict=True)
    return [keras.Input(each.shape, size, each.dtype, name=name) for each, name in ends]


def _widened(tensor: Any) -> Any:
    """Return a tensor as every runtime gives it out."""
    from keras import ops

    return ops.cast(tensor, "float32") if ops.dtype(tensor) in _NARROW else tensor


def _renamed(inputs: Any, named: tuple[str, Any]) -> Any:
    """Name a model's only output: as its operation is called, unless another one is."""
    import keras

    name, tensor = named
    used = {operation.name for operation in keras.Model(inputs, tensor).operations}
    free = f"{name}_normalized" if name in used else name
    return keras.layers.Identity(name=free, dtype=tensor.dtype)(tensor)


def _normalizing_layer(tensor: Any) -> str | None:
    """Return what a Keras graph ends in, if that normalizes, such as ``UnitNormalization``."""
    while (history := getattr(tensor, "_keras_history", None)) is not None:
        operation = history.operation
        kind = type(operation).__name__
        activation = getattr(operation, "activation", None)
        if kind in _NORMALIZING or getattr(activation, "__name__", "") == "softmax":
            return kind if kind in _NORMALIZING else "softmax"
        if hasattr(operation, "layers"):  # a model within the model
            tensor = operation.outputs[history.tensor_index]
        elif kind in _PASSING:
            (tensor,) = operation._inbound_nodes[history.node_index].input_tensors  # noqa: SLF001
        else:
            break
    return None


def _output_names(outputs: Sequence[GraphOutput], *, keep_norm: bool) -> tuple[str, ...]:
    """Return the names of outputs, each followed by that of its norms, where these are kept."""
    for output in outputs:
        if (quantized := output.normalization.dtype) is not None:
            raise JobError(
                f"`{output.name}` is stored as {quantized}, which no graph computes. Bake the norm "
                "without `normalize.dtype`, and quantize the vectors that the copy gives."
            )
    suffixes = ("", "_norm") if keep_norm else ("",)
    names = [f"{output.name}{suffix}" for output in outputs for suffix in suffixes]
    if len({*names}) < len(names):
        raise JobError(
            "Norms get the name <output>_norm, which another output has. Received: "
            f"{', '.join(output.name for output in outputs)}. Choose fewer, or leave out the norms."
        )
    return tuple(names)


def _normalized_tensors(
    tensors: Mapping[str, Any], outputs: Sequence[GraphOutput], *, keep_norm: bool
) -> dict[str, Any]:
    """Normalize raw outputs ``[n, ...]``, one number for a row being a vector of one."""
    from keras import ops

    found: list[Any] = []
    for output in outputs:
        x = tensors[output.name]
        if len(x.shape) == 1:
            x = ops.expand_dims(x, -1)
        if output.dtype == "float64":
            x = ops.cast(x, output.dtype)
        vectors, norms = normalize_tensor(x, output.normalization, output.axis)
        found.append(ops.cast(vectors, output.dtype) if output.dtype else vectors)
        found += [norms] if keep_norm else []
    return dict(zip(_output_names(outputs, keep_norm=keep_norm), found, strict=True))
