"""What raw predictions tell of a norm that a model has in it already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from batchnorm_tool.models.backends.normalized_model import GraphOutput
from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Norm, row_norms, widen

_NEAR = 1e-3  # of 1, as a model of float16 leaves it


def unit_length_warnings(
    outputs: Sequence[GraphOutput], raw: Mapping[str, Anything]
) -> Iterator[str]:
    """Say of which outputs every vector has length 1 as it is predicted.

    Args:
        outputs: How each output is normalized.
        raw: Predictions ``[n, ...]`` by their names.
    """
    for output in outputs:
        array = raw[output.name]
        width = array[0].size if output.axis == "all" or array.ndim == 1 else array.shape[-1]
        norm = _unit_norm(array.reshape(-1, width))
        if norm is not None:
            same = norm == output.normalization.norm
            again = "changes nothing" if same else "divides it once more"
            yield (
                f"`{output.name}` is normalized already: the {norm.label} norm of each vector of "
                f"the sample is 1. Baking {output.normalization.norm.label} {again}."
            )


def _unit_norm(rows: Anything) -> Norm | None:
    """Return the norm by which all rows but zeros have length 1; ``None`` where there is none."""
    for norm in (L2, L1, MAX):
        lengths = row_norms(widen(rows), norm)
        lengths = lengths[lengths > 0]
        # Of one component it says nothing, nor of one row.
        if rows.shape[1] > 1 and len(lengths) > 1 and (np.abs(lengths - 1) < _NEAR).all():
            return norm
    return None
