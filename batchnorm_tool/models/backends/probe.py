"""A model that shows what a normalized one computes within: the probe of `commands.bake.parity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from batchnorm_tool.chunk import Field
from batchnorm_tool.models.backends import place_name
from batchnorm_tool.models.backends.normalized_model import (
    GraphOutput,
    NormalizedModel,
    normalized_tensors,
)

RAW, EDGES, VECTORS = "raw", "edges", "vectors"
_NARROW = ("bfloat16", "float16")


def probe(
    model: NormalizedModel,
    outputs: Sequence[GraphOutput],
    fields: Sequence[Field],
    *,
    keep_norm: bool,
) -> NormalizedModel:
    """Return a model that takes and gives more than a normalized one.

    Args:
        model: The normalized model.
        outputs: How each of its outputs is normalized.
        fields: The outputs of the original, in the same order.
        keep_norm: Whether the model gives norms.

    Returns:
        A model with the same outputs, and the raw ones as ``raw_0000`` and so on. It takes rows in
        the place of raw predictions, too, as ``edges_0000``, and gives what becomes of them as
        ``vectors_0000`` (and ``vectors_0000_norm``).
    """
    import keras

    taken = len(model.inputs)
    edges = tuple(_edge_field(place, field) for place, field in enumerate(fields))
    fed = [replace(each, name=place_name(VECTORS, n)) for n, each in enumerate(outputs)]

    def call(*given: Any) -> dict[str, Any]:
        raw = model.raw(*given[:taken])
        rows = {each.name: row for each, row in zip(fed, given[taken:], strict=True)}
        shown = (_widened(raw[each.name]) for each in outputs)
        return {
            **normalized_tensors(raw, outputs, keep_norm=keep_norm),
            **{place_name(RAW, place): tensor for place, tensor in enumerate(shown)},
            **normalized_tensors(rows, fed, keep_norm=keep_norm),
        }

    inputs, size = (*model.inputs, *edges), model.batch_size
    names = [each.name.replace("/", "_") for each in inputs]  # Keras takes no slash
    ends = zip(inputs, names, strict=True)
    flat = [keras.Input(each.shape, size, each.dtype, name=name) for each, name in ends]
    found = call(*flat)
    made = keras.Model(flat, found)
    return NormalizedModel(inputs, tuple(found), call, model.raw, made, size)


def _edge_field(place: int, field: Field) -> Field:
    dtype = field.dtype if "float" in field.dtype else "float32"
    return Field(place_name(EDGES, place), field.shape, dtype)


def _widened(tensor: Any) -> Any:
    """Return a tensor as every runtime gives it out."""
    from keras import ops

    return ops.cast(tensor, "float32") if ops.dtype(tensor) in _NARROW else tensor
