"""The proof of a converted model: its predictions against those of the original."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.models.batching import (
    LoadedModel,
    ModelPredictor,
    Predictor,
    Rows,
    Step,
    filler,
)

# Of a row's length. Runtimes that sum in another order differed by 6.5e-7 at most.
TOLERANCE = 1e-5
_MADE_UP_ROWS = 32
_REFERENCE_BATCH = 32  # that of `model.predict`
# What is left over behind the blocks of matrix products, of 4 to 24 rows, and beyond them.
_SIZES = (*range(1, 26), 32, 33, 100, 255, 256, 1000)
# One batch of so many times all rows.
_TIMES = 8
# The first is zero to TensorFlow; next to 1.2e-38 rounding in another order decides on zeros.
_TINY = (1e-42, 1e-30)
_EDGES = 3 + len(_TINY)


def _with_edge_rows(rows: Rows, model: LoadedModel) -> dict[str, np.ndarray]:
    """Return rows, and behind them rows that are made up, and such as a model may fail at."""
    random = np.random.default_rng(0)
    sizes = [model.embedding_sizes.get(field.name) for field in model.inputs]
    arrays = {field.name: rows[field.name] for field in model.inputs}
    return {
        name: np.concatenate([array, _edges(array, size, random)])
        for (name, array), size in zip(arrays.items(), sizes, strict=True)
    }


def made_up_rows(model: LoadedModel) -> dict[str, np.ndarray]:
    """Return rows for a model whose user has given none, the same each time."""
    rows = _with_edge_rows(filler(model.inputs), model)
    return {name: array[1 : 1 + _MADE_UP_ROWS] for name, array in rows.items()}


def _edges(array: np.ndarray, size: int | None, random: np.random.Generator) -> np.ndarray:
    shape = (_MADE_UP_ROWS, *array.shape[1:])
    first = array[0]
    made_up: np.ndarray
    edges: list[Any]
    if array.dtype.kind in "iu" or size is not None:
        # Ids, which older models take as floats.
        beyond = size if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        made_up, edges = random.integers(0, size or 2, shape), [0, -1, beyond]
        if array.dtype.kind == "u":
            edges = [edge % 2 ** min(63, 8 * array.itemsize) for edge in edges]
    elif array.dtype.kind in "OUS":
        made_up, edges = random.choice(array.reshape(-1), shape), ["", "Ünknown", "a b  c"]
    else:
        made_up, edges = random.normal(size=shape), [0 * first, -first, 10 * first, *_TINY]
    edges = [edges[place % len(edges)] for place in range(_EDGES)]  # as many for every input
    rows = [np.broadcast_to(np.asarray(edge, array.dtype), first.shape) for edge in edges]
    return np.concatenate([made_up.astype(array.dtype), np.stack(rows)])


def largest_difference(reference: ModelPredictor, other: ModelPredictor, rows: Rows) -> float:
    """Return the largest distance of a row from the reference, in parts of the row's length.

    Args:
        reference: The original.
        other: The converted model.
        rows: Good rows of the user, at least one; rows that are made up come behind them.

    Raises:
        ModelError: It is beyond the tolerance, or one fails on rows that the other takes.
    """
    rows = _with_edge_rows(rows, reference.model)
    size = reference.model.own_batch_size or _REFERENCE_BATCH
    failing, expected = _outcome(reference.with_batch_size(size), rows)
    otherwise, found = _outcome(other.with_batch_size(size), rows)
    if failing != otherwise:
        row = min(failing ^ otherwise)
        who = "the original" if row in failing else "the converted model"
        values = {name: array[row].reshape(-1)[:4].tolist() for name, array in rows.items()}
        raise ModelError(f"{who} alone fails on a row such as {values}")
    largest = max(farthest(expected[name], found[name]) for name in expected)
    if not largest <= TOLERANCE:
        raise ModelError(
            f"the converted model predicts otherwise: a row differs by {largest:.2g} of its "
            f"length, more than {TOLERANCE:g}"
        )
    return largest


def _outcome(predictor: Predictor, rows: Rows) -> tuple[set[int], dict[str, np.ndarray]]:
    """Return the rows on which a model fails, and what it predicts for the others."""
    try:
        return set(), predictor.predict(rows)
    except ModelFailed:
        failing = {*predictor.failing_rows(rows)}
    count = len(next(iter(rows.values())))
    good = [row for row in range(count) if row not in failing]
    return failing, predictor.predict({name: array[good] for name, array in rows.items()})


def farthest(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest distance of a row from another, in parts of the latter's length."""
    if expected.shape != found.shape:
        return np.inf
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (expected, found))
    with np.errstate(all="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
        lengths = np.linalg.norm(np.nan_to_num(a, nan=0, posinf=0, neginf=0), axis=1)
        distances = np.linalg.norm(apart, axis=1)
        # A row of zeros must stay one: its direction would be made of rounding.
        parts = np.where(distances == 0, 0, distances / lengths)
    return float(np.nan_to_num(parts, nan=np.inf).max(initial=0))


def is_independent(step: Step, arrays: Sequence[np.ndarray]) -> bool:
    """Tell whether bits stay the same in batches of any size, and at any place in them."""
    rows = len(arrays[0])
    expected = step(arrays)
    places = [(size, start) for size in _SIZES for start in (0, 5 % rows, rows // 2)]
    return all(
        whole[start : start + size].tobytes() == part.tobytes()
        for size, start in places
        for whole, part in zip(
            expected, step([array[start : start + size] for array in arrays]), strict=True
        )
    ) and all(
        (whole.tobytes() * _TIMES) == many.tobytes()
        for whole, many in zip(
            expected, step([np.concatenate([array] * _TIMES) for array in arrays]), strict=True
        )
    )
