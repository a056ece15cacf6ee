"""The normalization for models in memory, in training too; importing this module imports Keras."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm_tool.models.backends.keras import KerasModel
from batchnorm_tool.models.backends.normalized_model import GraphOutput, normalize_model
from batchnorm_tool.models.backends.vector_normalization import VectorNormalization
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization

if TYPE_CHECKING:
    import keras

__all__ = ["VectorNormalization", "normalized"]


def normalized(
    model: keras.Model, norm: str = "l2", *, keep_norm: bool = False, p: float | None = None
) -> keras.Model:
    """Return a model whose outputs are normalized in the graph: `bake`, in memory.

    Args:
        model: A built model; the result shares its weights, and trains them.
        norm: As `normalize` takes it.
        keep_norm: Also give each output's norms, as ``<output>_norm``.
        p: The order of ``"lp"``.

    Returns:
        A model with the same inputs, of plain Keras operations: it loads without this package.
        One output is a tensor, float32 (float64 where the model computes in it); several, and
        norms, come in a dictionary by their names.

    Raises:
        JobError: There is no such norm, or an output is called as norms would be.
        ModelError: The model is not built, or defines in Python code how it predicts.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> tower = keras.Sequential([keras.Input((2,)), keras.layers.Identity(name="embedding")])
        >>> found = normalized(tower, keep_norm=True).predict(np.float32([[3, 4]]), verbose=0)
        >>> found["embedding"], found["embedding_norm"]
        (array([[0.6, 0.8]], dtype=float32), array([[5.]], dtype=float32))
    """
    normalization = Normalization(Norm.parse(norm, p))
    built = KerasModel.of(model, lambda names: range(len(names)))
    outputs = [GraphOutput(field.name, normalization) for field in built.outputs]
    return normalize_model(built, outputs, keep_norm=keep_norm).keras
