"""The normalization as a Keras layer, for training."""

from __future__ import annotations

from typing import Any

import keras

from batchnorm_tool.models.backends.normalization_graph import checked_axis, normalize_tensor
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization


@keras.saving.register_keras_serializable(package="batchnorm_tool")
class VectorNormalization(keras.layers.Layer):
    """Divide each vector by its norm, with a gradient that is finite everywhere.

    A vector of zeros stays zeros, and its gradient is zero. Under mixed precision it computes in
    float32, and returns the policy's dtype. It has no weights. A file with it loads where this
    package is installed, after ``import batchnorm_tool.layers``; what `bake` and `normalized` write
    loads anywhere.

    Args:
        norm: ``"none"``, ``"l1"``, ``"l2"`` or ``"cosine"``, ``"max"``, ``"lp"`` or ``"lp:3"``.
        axis: ``-1`` (each vector along the last axis) or ``"all"`` (all that belongs to one row).
        p: The order of ``"lp"``, 1 or more.
        **options: Those of every Keras layer, such as ``name`` and ``dtype``.

    Raises:
        JobError: There is no such norm or axis.

    Example:
        >>> import numpy as np
        >>> np.asarray(VectorNormalization()(np.float32([[3, 4], [0, 0]])))
        array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """

    # Where the file says that it is: there it stays, wherever it is defined.
    __module__ = "batchnorm_tool.layers"

    def __init__(
        self, norm: str = "l2", axis: int | str = -1, p: float | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._normalization = Normalization(Norm.parse(norm, p))
        self.axis = checked_axis(axis)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Normalize a tensor ``[..., d]``; the result has the same shape."""
        vectors, _ = normalize_tensor(inputs, self._normalization, self.axis)
        return keras.ops.cast(vectors, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what the constructor takes."""
        norm = self._normalization.norm
        return {**super().get_config(), "norm": norm.name, "axis": self.axis, "p": norm.p}
