"""Two sets of vectors side by side: one in memory, the other one streamed past it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.comparison.drift import Gaussian, pair_cosines
from batchnorm_tool.comparison.norm_survey import NormSurvey, measured
from batchnorm_tool.norms import L2, MAX, Anything, Float64s, row_blocks, widen

if TYPE_CHECKING:
    from batchnorm_tool.predictions import PredictionBatch, Predictions

Int64s = np.ndarray


class MeasuredSet:
    """What is known of a set once all of its batches came by.

    Args:
        rows: How many rows it has.
        width: Dimensions of a vector.

    Attributes:
        gaussian: Fitted to the finite vectors.
        norms: ``float64[rows]``, L2 norms; not finite where the vector is missing or not finite.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.gaussian = Gaussian.of(np.zeros((0, width)))
        self.norms = np.full(rows, np.nan)
        self._missing = np.zeros(rows, bool)
        self._peaks = np.full(rows, np.nan)

    def add(self, batch: PredictionBatch) -> None:
        """Take in the next batch."""
        place = slice(batch.first_row, batch.first_row + batch.rows)
        lengths = measured(batch.vectors, [L2])
        self.norms[place], self._peaks[place] = lengths[L2.label], lengths[MAX.label]
        self._missing[place] = batch.missing
        finite = np.isfinite(self.norms[place])
        vectors = batch.vectors if finite.all() else batch.vectors[finite]
        self.gaussian += Gaussian.of(widen(vectors))

    @property
    def finite(self) -> np.ndarray:
        """Which rows have a finite vector, ``bool[rows]``."""
        return np.isfinite(self.norms)

    @property
    def survey(self) -> NormSurvey:
        """Counts of rows, and the statistics of their L2 norms."""
        lengths = {L2.label: self.norms, MAX.label: self._peaks}
        return NormSurvey.of(lengths, self._missing)


def load(predictions: Predictions) -> tuple[Anything, MeasuredSet]:
    """Load all vectors in their own dtype ``[n, d]``, and measure them."""
    vectors = np.empty((predictions.rows, predictions.width), predictions.dtype)
    found = MeasuredSet(*vectors.shape)
    for batch in predictions.batches():
        vectors[batch.first_row : batch.first_row + batch.rows] = batch.vectors
        found.add(batch)
    return vectors, found


@dataclass(frozen=True)
class Sample:
    """Rows of a streamed set that are picked up as they come by.

    Attributes:
        rows: ``int64[m]``, ascending.
        vectors: Their vectors ``[m, d]``.
    """

    rows: Int64s
    vectors: Anything

    def add(self, batch: PredictionBatch) -> None:
        """Pick up what is in a batch."""
        start, stop = np.searchsorted(self.rows, [batch.first_row, batch.first_row + batch.rows])
        self.vectors[start:stop] = batch.vectors[self.rows[start:stop] - batch.first_row]


@dataclass
class Pairs:
    """Rows of a streamed set, each held against its partner in memory.

    Attributes:
        partners: ``int64[n]``, the row in ``vectors`` of each; -1 for none.
        vectors: ``[m, d]``, the set in memory.
        norms: ``float64[m]``, its L2 norms.
        cosines: ``float64[n]``; NaN where there is no partner, or no direction on one side.
        identical: Pairs that are equal bit for bit, once both are float64.
    """

    partners: Int64s
    vectors: Anything
    norms: Float64s
    identical: int = 0
    cosines: Float64s = field(init=False)

    def __post_init__(self) -> None:
        self.cosines = np.full(len(self.partners), np.nan)

    def add(self, batch: PredictionBatch, norms: Float64s) -> None:
        """Compare the rows of the next batch, whose L2 norms are ``float64[n]``."""
        partners = self.partners[batch.first_row : batch.first_row + batch.rows]
        usable = (partners >= 0) & np.isfinite(norms)
        usable[usable] = np.isfinite(self.norms[partners[usable]])
        rows = np.flatnonzero(usable)
        for block in row_blocks(len(rows), batch.vectors.shape[1]):
            some = rows[block]
            one, other = widen(batch.vectors[some]), widen(self.vectors[partners[some]])
            equal = (one.view(np.int64) == other.view(np.int64)).all(axis=1)
            cosines = pair_cosines(one, other, norms[some], self.norms[partners[some]])
            cosines[equal & (norms[some] > 0)] = 1.0  # exactly, whatever rounding says
            self.cosines[batch.first_row + some] = cosines
            self.identical += int(np.count_nonzero(equal))


def stream(predictions: Predictions, pairs: Pairs, *samples: Sample) -> MeasuredSet:
    """Let all batches of a set come by, and hold each row against its partner."""
    found = MeasuredSet(predictions.rows, predictions.width)
    for batch in predictions.batches():
        found.add(batch)
        for sample in samples:
            sample.add(batch)
        pairs.add(batch, found.norms[batch.first_row : batch.first_row + batch.rows])
    return found
