"""One chunk through the model and its norms: predict, normalize, measure, mark what is bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from batchnorm_tool.chunk import INPUT_REASONS, Chunk, Reason
from batchnorm_tool.errors import ModelFailed, warn
from batchnorm_tool.job import Job
from batchnorm_tool.models.batching import Predictor, check_shape
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline.output_schema import Normalized
from batchnorm_tool.pipeline.repeats import Predicted
from batchnorm_tool.pipeline.timing import StageTimings

ACTIONS = ("keep", "nullify", "drop", "quarantine", "fail")
KEEP, NULLIFY, DROP, QUARANTINE, FAIL = range(len(ACTIONS))


@dataclass(frozen=True)
class Scored:
    """A chunk after prediction and normalization.

    Attributes:
        chunk: The rows that went in, their faults as far as they are known before normalization.
        predictions: Raw predictions by output, ``[n, *shape]``.
        faults: ``uint8[n]``, a `Reason` for each row, the predictions' reasons included.
        statistics: Statistics of each output over the rows whose input was good.
        causes: What the model says of the rows on which it failed.
    """

    chunk: Chunk
    predictions: Mapping[str, np.ndarray]
    results: Mapping[str, Normalized]
    faults: np.ndarray
    statistics: dict[str, VectorStats]
    causes: Mapping[int, str] = field(default_factory=dict)

    @property
    def clipped(self) -> int:
        """Good rows with a component beyond the scale that was fitted."""
        found = (result.clipped for result in self.results.values())
        clipped = [rows for rows in found if rows is not None]
        return int(np.count_nonzero(np.any(clipped, axis=0) & (self.faults == Reason.GOOD)))

    def reason(self, row: int) -> str:
        """Say why a row of the chunk is bad, with what the model says of it where it failed."""
        label = Reason(self.faults[row]).label
        return f"{label} ({self.causes[row]})" if row in self.causes else label


def score_chunk(
    chunk: Chunk,
    predicted: Predicted,
    layouts: Sequence[OutputSpec],
    timings: StageTimings | None = None,
) -> Scored:
    """Normalize and measure what was predicted for the rows of a chunk."""
    timings = timings or StageTimings()
    predictions, failing = predicted
    chunk, causes = _with_failing(chunk, failing)
    faults = chunk.faults.copy()
    good_input = chunk.faults == Reason.GOOD
    results, statistics = {}, {}
    for output in layouts:
        with timings.stage("normalize"):
            vectors = kept_vectors(predictions[output.name], output)
            unit, lengths, clipped = output.normalization.divide(vectors, output.float_dtype)
            if not _surely_good(lengths, output.norm):
                # Integers do not tell what was not finite.
                _mark_faults(faults, vectors, lengths, unit if unit.dtype.kind == "f" else vectors)
        with timings.stage("statistics"):
            statistics[output.name] = _measure(vectors, lengths, output, good_input)
        results[output.name] = Normalized(
            unit.reshape(chunk.rows, output.vectors * unit.shape[1]),
            lengths.reshape(chunk.rows, output.vectors),
            np.array(clipped.reshape(-1, output.vectors).any(axis=1)) if clipped.any() else None,
        )
    return Scored(chunk, predictions, results, faults, statistics, causes)


def kept_vectors(predicted: np.ndarray, output: OutputSpec) -> np.ndarray:
    """Return what is kept of predictions ``[n, ...]`` before they are divided: ``[n * v, k]``."""
    check_shape(output.name, predicted, output.predicted_shape)
    vectors = predicted.reshape(len(predicted) * output.vectors, output.predicted_width)
    return vectors if output.normalization.keeps_all else output.normalization.kept(vectors)


def _with_failing(chunk: Chunk, failing: Mapping[int, str]) -> tuple[Chunk, Mapping[int, str]]:
    """Return the chunk with failing rows marked, and what the model says of them."""
    if not failing:
        return chunk, {}
    failed = np.isin(np.arange(chunk.rows), list(failing))
    faults = chunk.faults.copy()
    faults[failed & (faults == Reason.GOOD)] = Reason.MODEL_FAILURE
    causes = {row: said for row, said in failing.items() if faults[row] == Reason.MODEL_FAILURE}
    return replace(chunk, faults=faults), causes


def predict_rows(
    predictor: Predictor, layouts: Sequence[OutputSpec], features: Mapping[str, np.ndarray]
) -> Predicted:
    """Predict rows; where the model fails on one, the predictions of a good one stand in."""
    try:
        return predictor.predict(features), {}
    except ModelFailed:
        failing = predictor.failing_rows(features)
    rows = np.arange(len(next(iter(features.values()))))
    failed = np.isin(rows, list(failing))
    if failed.all():
        dtypes = {output.name: output.dtype for output in predictor.outputs}
        shapes = {output.name: (len(rows), *output.predicted_shape) for output in layouts}
        return {name: np.zeros(shapes[name], dtypes[name]) for name in shapes}, failing
    # A good row stands in for each of those, so that all others keep their places, and their bits.
    places = np.where(failed, np.argmin(failed), rows)
    return predictor.predict({name: array[places] for name, array in features.items()}), failing


def warn_of_negative_ids(
    chunk: Chunk, predictor: Predictor, columns: Mapping[str, Sequence[str]]
) -> None:
    """Warn of numbers below 0 that an Embedding layer silently counts from its end."""
    for name, size in predictor.embedding_sizes.items():
        if (chunk.features[name] < 0).any():
            meaning = (
                "which the model may count from the end of its lookup table: -1 is the last row."
                if size is None
                else f"which the model's Embedding layer of {size} rows counts from its end: -1 is "
                "its last row."
            )
            listed = "`, `".join(columns[name])
            warn(f"The column `{listed}` holds negative numbers, {meaning}")


def _measure(
    vectors: np.ndarray, lengths: np.ndarray, output: OutputSpec, good_rows: np.ndarray
) -> VectorStats:
    """Measure the vectors of good rows: filler in the place of a bad input does not count."""
    # Only then: it copies all vectors, and nearly always there is nothing to leave out.
    if not good_rows.all():
        chosen = np.repeat(good_rows, output.vectors)
        vectors, lengths = vectors[chosen], lengths[chosen]
    return VectorStats.of(
        vectors, rows=int(good_rows.sum()), in_use=output.norm, in_use_norms=lengths
    )


def _surely_good(lengths: np.ndarray, norm: Norm) -> bool:
    """Tell whether the lengths alone tell that every row is finite and not zero."""
    # A row that was divided by such a length has components of at most 1, and not all of them 0.
    return norm.name != "none" and bool(np.isfinite(lengths).all() and lengths.all())


def _mark_faults(
    faults: np.ndarray, vectors: np.ndarray, lengths: np.ndarray, unit: np.ndarray
) -> None:
    """Mark in ``faults`` the rows of which a vector is not finite, overflows, or is zero."""
    # A row has one reason. What was wrong with its input comes first, then what cannot be
    # published; a zero vector, which may be kept, says nothing of the row's other vectors and
    # outputs.
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


POLICIES: dict[Reason, tuple[str, str]] = {
    **dict.fromkeys(INPUT_REASONS, ("input", "invalid")),
    Reason.NONFINITE_PREDICTION: ("normalize", "nonfinite"),
    Reason.NORM_OVERFLOW: ("normalize", "nonfinite"),
    Reason.ZERO_VECTOR: ("normalize", "zero"),
}
"""The key of a job that says what becomes of a row that is bad for a reason."""


def policy_for(job: Job, reason: Reason) -> str:
    """Return what ``job`` says becomes of a row that is bad for a reason."""
    section, key = POLICIES[reason]
    return str(getattr(getattr(job, section), key))


@dataclass(frozen=True)
class Policies:
    """What happens to a row for each `Reason`: ``uint8[len(Reason)]`` of places in `ACTIONS`."""

    actions: np.ndarray

    @classmethod
    def of(cls, job: Job) -> Policies:
        """Return the policies that ``job`` declares."""
        names = {Reason.GOOD: "keep"} | {reason: policy_for(job, reason) for reason in POLICIES}
        return cls(np.array([ACTIONS.index(names[reason]) for reason in Reason], np.uint8))

    @property
    def bad(self) -> np.ndarray:
        """Which reasons make a row bad: ``bool[len(Reason)]``; all but a zero vector kept."""
        bad = np.ones(len(Reason), bool)
        bad[Reason.GOOD] = False
        bad[Reason.ZERO_VECTOR] = self.actions[Reason.ZERO_VECTOR] != KEEP
        return bad
