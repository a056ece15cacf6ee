"""Contracts made by hand: features, raw predictions, and what is to become of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchnorm_tool.contract import Canary, Contract, ContractFeature, ContractModel
from batchnorm_tool.norms.norm import L2
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec

UNIT = Normalization(L2)
MODEL = ContractModel("encoder.keras", 64 * "a")


def contract_of(
    features: Mapping[str, np.ndarray],
    raw: Mapping[str, np.ndarray],
    done: Normalization = UNIT,
    columns: Mapping[str, tuple[str, ...]] | None = None,
    **fields: Any,
) -> Contract:
    """A contract whose canaries are these rows, each with its raw predictions ``[n, *shape]``."""
    axis, dtype = fields.pop("axis", -1), fields.pop("dtype", "float32")
    inputs = tuple(
        ContractFeature(
            name,
            (columns or {}).get(name, (name,)),
            "string" if array.dtype == object else array.dtype.name,
            array.shape[1:],
        )
        for name, array in features.items()
    )
    outputs = tuple(
        OutputSpec(name, array.shape[1:], axis, done, float_dtype=dtype)
        for name, array in raw.items()
    )
    stored = {output.name: output.apply(raw[output.name]) for output in outputs}
    norms = {output.name: norms_of(raw[output.name], output) for output in outputs}
    canaries = tuple(
        Canary(*({n: a[row, ...] for n, a in part.items()} for part in (features, stored, norms)))
        for row in range(len(next(iter(raw.values()))))
    )
    return Contract(
        **{"space": 64 * "5", "model": MODEL, **fields},
        features=inputs,
        outputs=outputs,
        canaries=canaries,
    )


def norms_of(raw: np.ndarray, output: OutputSpec) -> np.ndarray:
    """Norms [n], or [n, v] where a row has several vectors."""
    _, norms = output.normalization.apply(raw.reshape(-1, output.predicted_width))
    return norms.reshape(len(raw), -1) if output.norm_per_vector else norms[:, 0]
