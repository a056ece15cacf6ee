"""A model with the normalization at the end of its graph, as every format is written from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import JobError, ModelError
from batchnorm_tool.models.backends.normalization_graph import normalize_tensor
from batchnorm_tool.norms.normalization import Normalization

# Layers and operations of Keras, and our layer; `Normalize` is `keras.ops.normalize`.
_NORMALIZING = ("UnitNormalization", "VectorNormalization", "Normalize", "Softmax")
_NO_IDENTIFIER = re.compile(r"[^A-Za-z0-9_]")
_PASSING = ("Cast", "Dropout", "Flatten", "Identity", "Reshape")


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


def normalizing_layer(tensor: Any) -> str | None:
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


def output_names(outputs: Sequence[GraphOutput], *, keep_norm: bool) -> tuple[str, ...]:
    """Return the names of outputs, each followed by that of its norms, where these are kept.

    Raises:
        JobError: An output has the name that norms would get, or is to be quantized.
    """
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


def normalized_tensors(
    tensors: Mapping[str, Any], outputs: Sequence[GraphOutput], *, keep_norm: bool
) -> dict[str, Any]:
    """Normalize the outputs of a model, one number for a row being a vector of one.

    Args:
        tensors: The raw outputs ``[n, ...]``, by name.
        outputs: Those to normalize.
        keep_norm: Also return the norms of each; see `output_names`.
    """
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
    return dict(zip(output_names(outputs, keep_norm=keep_norm), found, strict=True))
