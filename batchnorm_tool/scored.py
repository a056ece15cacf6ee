"""One chunk through the model and its norms: predict, normalize, measure, mark what is bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool import norms
from batchnorm_tool.chunk import Chunk, Reason
from batchnorm_tool.layout import Normalized, OutputLayout
from batchnorm_tool.stage_clock import StageClock
from batchnorm_tool.vector_stats import VectorStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchnorm_tool.predictor import Predictor


@dataclass(frozen=True)
class Scored:
    """A chunk after prediction and normalization.

    Attributes:
        chunk: The rows that went in.
        predictions: Raw predictions by output, ``[n, *shape]``.
        results: Unit vectors and norms by output.
        faults: ``uint8[n]``, a `Reason` for each row, the predictions' reasons included.
        statistics: Statistics of each output over the rows whose input was good.
    """

    chunk: Chunk
    predictions: Mapping[str, np.ndarray]
    results: Mapping[str, Normalized]
    faults: np.ndarray
    statistics: dict[str, VectorStats]


def score_chunk(
    chunk: Chunk,
    predictor: Predictor,
    layouts: Sequence[OutputLayout],
    dtype: np.dtype,
    clock: StageClock | None = None,
) -> Scored:
    """Predict, normalize and measure the rows of a chunk.

    Args:
        chunk: At least one row.
        predictor: The model.
        layouts: How each of its outputs is normalized.
        dtype: Floating-point dtype of the unit vectors.
        clock: Told how long each stage takes.
    """
    clock = clock or StageClock()
    with clock.stage("predict"):
        predictions = predictor.predict(chunk.features)
    faults = chunk.faults.copy()
    good_input = chunk.faults == Reason.GOOD
    results, statistics = {}, {}
    for output in layouts:
        with clock.stage("normalize"):
            vectors = predictions[output.name].reshape(chunk.rows * output.vectors, output.width)
            unit, lengths = _normalized(vectors, output.norm, dtype)
            if not _surely_good(lengths, output.norm):
                _mark_faults(faults, vectors, lengths, unit)
        with clock.stage("statistics"):
            statistics[output.name] = _measure(vectors, lengths, output, good_input)
        results[output.name] = Normalized(
            unit.reshape(chunk.rows, output.vectors * output.width),
            lengths.reshape(chunk.rows, output.vectors),
        )
    return Scored(chunk, predictions, results, faults, statistics)


def _normalized(
    vectors: np.ndarray, norm: norms.Norm, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The unit vectors ``dtype[n, d]`` and the lengths float64[n, 1]."""
    unit, lengths = np.empty(vectors.shape, dtype), np.empty((len(vectors), 1))
    for block in norms.row_blocks(*vectors.shape):
        x64 = norms.widen(vectors[block])
        lengths[block] = norms.row_norms(x64, norm)
        unit[block] = norms.unit_vectors(x64, lengths[block], norm, dtype)
    return unit, lengths


def _measure(
    vectors: np.ndarray, lengths: np.ndarray, output: OutputLayout, good_rows: np.ndarray
) -> VectorStats:
    """Statistics of the vectors of good rows: filler in the place of a bad input does not count."""
    if not good_rows.all():
        chosen = np.repeat(good_rows, output.vectors)
        vectors, lengths = vectors[chosen], lengths[chosen]
    return VectorStats.of(
        vectors, rows=int(good_rows.sum()), in_use=output.norm, in_use_norms=lengths
    )


def _surely_good(lengths: np.ndarray, norm: norms.Norm) -> bool:
    """Whether the lengths alone tell that every row is finite and not zero.

    A row that was divided by such a length has components of at most 1, and not all of them 0.
    """
    return norm.name != "none" and bool(np.isfinite(lengths).all() and lengths.all())


def _mark_faults(
    faults: np.ndarray, vectors: np.ndarray, lengths: np.ndarray, unit: np.ndarray
) -> None:
    """Mark in ``faults`` the rows of which a vector is not finite, overflows, or is zero.

    A row has one reason. What was wrong with its input comes first, then what cannot be published;
    a zero vector, which may be kept, says nothing of the row's other vectors and outputs.
    """
    stored = np.isfinite(lengths[:, 0]) & np.isfinite(unit).all(axis=1)
    zero = ~unit.any(axis=1)
    if stored.all() and not zero.any():
        return
    finite = np.isfinite(vectors).all(axis=1)
    marks = (
        (Reason.NONFINITE_PREDICTION, ~finite),
        (Reason.NORM_OVERFLOW, finite & ~stored),
        (Reason.ZERO_VECTOR, zero & ~vectors.any(axis=1)),
    )
    for reason, marked in marks:
        free = (faults == Reason.GOOD) | ((faults == Reason.ZERO_VECTOR) & (reason < faults))
        faults[free & marked.reshape(len(faults), -1).any(axis=1)] = reason
