from __future__ import annotations

import numpy as np
import pytest

from batchnorm_tool.commands.bake.bake import unit_length_warnings
from batchnorm_tool.models.backends.normalized_model import GraphOutput
from batchnorm_tool.norms.norm import L1, L2, Norm
from batchnorm_tool.norms.normalization import Normalization

ROWS = np.random.default_rng(0).standard_normal((20, 3, 4))
L2_ROWS = ROWS / np.linalg.norm(ROWS, axis=-1, keepdims=True)
SOFTMAX = np.exp(ROWS) / np.exp(ROWS).sum(axis=-1, keepdims=True)


def said(rows: np.ndarray, norm: Norm = L2, axis: int | str = -1) -> list[str]:
    output = GraphOutput("y", Normalization(norm), axis)
    return list(unit_length_warnings([output], {"y": rows}))


def test_unit_vectors_are_named_with_their_norm() -> None:
    (of_l2,), (of_softmax,) = said(L2_ROWS.astype(np.float16)), said(SOFTMAX)
    assert of_l2.startswith("`y` is normalized already: the l2 norm of each vector")
    assert of_l2.endswith("Baking l2 changes nothing.")
    assert "the l1 norm of each vector" in of_softmax
    assert of_softmax.endswith("Baking l2 divides it once more.")
    assert "changes nothing" in said(SOFTMAX, L1)[0]


def test_zeros_do_not_count() -> None:
    rows = L2_ROWS.reshape(-1, 4).copy()
    rows[::2] = 0
    assert len(said(rows)) == 1


@pytest.mark.parametrize(
    ("rows", "axis"),
    [
        pytest.param(ROWS, -1, id="raw"),
        pytest.param(L2_ROWS, "all", id="another axis"),
        pytest.param(np.ones(20), -1, id="numbers"),
        pytest.param(np.zeros((20, 4)), -1, id="zeros"),
        pytest.param(np.append(L2_ROWS[0], [[1, 1, 0, 0]], axis=0), -1, id="all but one"),
    ],
)
def test_others_are_not(rows: np.ndarray, axis: int | str) -> None:
    assert said(rows, L2, axis) == []
