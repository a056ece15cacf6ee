"""How one output of a model is normalized and stored, whatever its rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm_tool.errors import InputError
from batchnorm_tool.norms.norm import Anything, Norm
from batchnorm_tool.norms.normalization import Normalization


@dataclass(frozen=True)
class OutputSpec:
    """How one output of a model is normalized and stored.

    Attributes:
        predicted_shape: Shape of one row's prediction.
        axis: ``-1`` (each vector along the last axis) or ``"all"`` (the whole row).
        normalization: What becomes of each vector.
        vector_column: Name of the column of vectors, flat.
        float_dtype: The dtype of stored vectors that are not quantized.
    """

    name: str
    predicted_shape: tuple[int, ...]
    axis: int | str
    normalization: Normalization
    vector_column: str = "vector"
    norm_column: str = "norm"
    float_dtype: str = "float32"

    @property
    def norm(self) -> Norm:
        """What vectors are divided by."""
        return self.normalization.norm

    @property
    def dtype(self) -> str:
        """How components are stored: ``int8``, ``binary`` or a float dtype."""
        return self.normalization.dtype or self.float_dtype

    @property
    def metric(self) -> str:
        """The metric that the vectors are made for: ``cosine``, ``dot`` or ``hamming``."""
        if self.dtype == "binary":
            return "hamming"
        return "cosine" if self.norm.name == "l2" else "dot"

    @property
    def vectors(self) -> int:
        """Vectors in one row: 1, unless the rank is above 2 and ``axis`` is -1."""
        return math.prod(self.predicted_shape[:-1]) if self.axis == -1 else 1

    @property
    def norm_per_vector(self) -> bool:
        """Whether a row has a list of norms, rather than one."""
        return self.axis == -1 and len(self.predicted_shape) > 1

    @property
    def predicted_width(self) -> int:
        """Components of one vector of a prediction."""
        return math.prod(self.predicted_shape[-1:] if self.axis == -1 else self.predicted_shape)

    @property
    def width(self) -> int:
        """Components of one vector that are kept."""
        return self.normalization.kept_width(self.predicted_width)

    @property
    def stored_width(self) -> int:
        """Numbers of one stored vector: eight components in each byte of ``binary``."""
        return self.normalization.stored_width(self.predicted_width)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The dtype of stored vectors: uint8 of packed bits for ``binary``."""
        return self.normalization.stored_dtype(self.float_dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is kept of one row's prediction."""
        return self._shape_with(self.width)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of what is stored of one row."""
        return self._shape_with(self.stored_width)

    def _shape_with(self, width: int) -> tuple[int, ...]:
        """Return a row's shape with so many numbers in a vector: flat where a row is cut."""
        if width == self.predicted_width:
            return self.predicted_shape
        return (*self.predicted_shape[:-1], width) if self.axis == -1 else (width,)

    def apply(self, raw: Anything) -> Anything:
        """Return raw predictions ``[n, *predicted_shape]`` as they are stored."""
        array = np.asarray(raw)
        if array.shape[1:] != self.predicted_shape or not array.ndim:
            raise InputError(
                f"Raw predictions of the output `{self.name}` have the shape "
                f"{('rows', *self.predicted_shape)}. Received: {array.shape}. Give the model's "
                "output before any normalization."
            )
        flat = array.reshape(-1, self.predicted_width)
        stored, _ = self.normalization.apply(flat, self.float_dtype)
        return stored.reshape(len(array), *self.stored_shape)
