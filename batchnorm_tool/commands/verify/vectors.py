"""The check of stored vectors: finite, of unit length, and as many as were counted."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason, fitting_rows, numbered
from batchnorm_tool.commands.verify.findings import Findings, Place
from batchnorm_tool.display import plural
from batchnorm_tool.formats import format_named
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.norms.norm import row_norms, widen
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.readers.run import StoredPart, StoredRun

# Vectors in memory at a time, as float64.
_BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CheckedRows:
    """Rows of one output that have a vector, by their numbers in the batch, ``int[m]``.

    Norms are as stored, lengths as measured, with their errors, ``float64[m, v]`` each; ``finite``
    rows, ``bool[m]``, are so in vectors and norms.
    """

    output: OutputSpec
    dtype: np.dtype
    rows: np.ndarray
    norms: np.ndarray
    lengths: np.ndarray
    errors: np.ndarray
    finite: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch, output: OutputSpec, null: np.ndarray) -> Self:
        """Measure the rows of a batch, but for those of ``null``, ``bool[n]``."""
        rows = np.flatnonzero(~null)
        stored = output_schema.decoded_rows(batch[output.vector_column], output)[rows]
        norms = rows_of(batch[output.norm_column]).reshape(len(null), -1)[rows]
        finite = np.isfinite(stored).all(axis=1) & np.isfinite(norms).all(axis=1)
        count = len(rows) * output.vectors
        vectors = widen(stored).reshape(count, output.width)
        if output.norm.name == "none":
            lengths = np.abs(vectors).max(axis=1, initial=0)
        else:
            lengths = row_norms(vectors, output.norm)
        shape = (len(rows), output.vectors)
        lengths = lengths.reshape(count)
        with np.errstate(invalid="ignore"):
            errors = output.normalization.length_errors(vectors, lengths, norms.reshape(count))
        measured = lengths.reshape(shape), errors.reshape(shape)
        return cls(output, stored.dtype, rows, norms, *measured, finite)

    @property
    def zero(self) -> np.ndarray:
        """``bool[m, v]``: the vector was all zeros."""
        return (self.lengths if self.output.norm.name == "none" else self.norms) == 0

    def rows_with(self, vectors: np.ndarray) -> np.ndarray:
        """Return numbers of the rows in which any of ``bool[m, v]`` is true."""
        return self.rows[vectors.any(axis=1)]


def length_tolerance(way: Normalization, width: int, dtype: np.dtype) -> float:
    """Return how far from 1 the measured length of a stored unit vector may be."""
    # A component is rounded once to the stored dtype. That changes it by at most its own size times
    # the unit roundoff `u`, so that the whole vector, in any norm, changes by at most `u`, however
    # wide it is. Below the smallest normal number it is by at most half the smallest subnormal `s`
    # instead, and `width` such errors have the norm of `width` ones times `s/2`. The length before
    # and the one measured here are sums of `width` terms in float64, each off by at most about
    # `width` of its roundoffs (Higham, Accuracy and Stability of Numerical Algorithms, section
    # 3.1); powers and roots add a few hundred more for `lp`.
    stored = np.finfo(dtype)
    roundoff = float(stored.eps) / 2
    ones = float(row_norms(np.ones((1, width)), way.norm)[0, 0])
    floor = ones * (float(stored.smallest_subnormal) + way.rounding_step) / 2
    return roundoff + floor + (2 * width + 1024) * float(np.finfo(np.float64).eps) / 2


def check_vectors(checked: CheckedRows, place: Place, *, keeps_nonfinite: bool = False) -> None:
    """Report the rows whose vectors or norms are not what they must be, or what policy kept."""
    if not keeps_nonfinite:
        place.report(checked.rows[~checked.finite], "a vector or norm is not finite.")
    finite = np.isfinite(checked.norms)
    place.report(checked.rows_with(finite & (checked.norms < 0)), "a norm is negative.")
    output = checked.output
    if output.norm.name == "none":
        wrong = checked.rows_with(checked.norms != 1)
        place.report(wrong, "a norm is not 1, although the job's norm is `none`.")
        return
    tolerance = length_tolerance(output.normalization, output.width, checked.dtype)
    with np.errstate(invalid="ignore"):
        off = checked.errors > tolerance
    place.report(
        checked.rows_with(off & np.isfinite(checked.lengths)),
        f"a vector does not have length 1 under {output.norm.label} (within {tolerance:.2g}), or "
        "is not zero where its norm is 0.",
    )


@dataclass
class VectorCheck:
    """A check of every stored row of a run, batch by batch, of which it counts the ``vectors``."""

    run: StoredRun
    findings: Findings
    vectors: int = 0
    _null: int = 0
    _zero: int = 0
    _nonfinite: int = 0
    _norms: dict[str, NormStats] = field(default_factory=lambda: defaultdict(NormStats))

    def __post_init__(self) -> None:
        rows, reasons = self.run.manifest.rows, self.run.manifest.reasons
        policies = self.run.manifest.job.normalize
        kept = (Reason.NONFINITE_PREDICTION, Reason.NORM_OVERFLOW)
        overflow = sum(reasons.get(reason.label, 0) for reason in kept)
        self._is_table = format_named(self.run.manifest.job.output.format).is_table
        self._expected_null = rows.nullified
        self._expected_nonfinite = overflow if policies.nonfinite == "keep" else 0
        self._expected_zero = rows.zero if policies.zero == "keep" else 0

    def check_part(self, part: StoredPart) -> None:
        """Look at all rows of a part."""
        names = [n for o in self.run.outputs for n in (o.vector_column, o.norm_column)]
        width = sum(output.vectors * output.width for output in self.run.outputs)
        batch_rows = fitting_rows(8 * width, _BATCH_BYTES)
        for first, batch in numbered(self.run.read_part(part, names, batch_rows)):
            self._check_rows(batch, part, first)

    def _check_rows(self, batch: pa.RecordBatch, part: StoredPart, first: int) -> None:
        zero = np.zeros(batch.num_rows, bool)
        nonfinite = np.zeros(batch.num_rows, bool)
        for output in self.run.outputs:
            null = self._null_rows(batch, output)
            place = Place(self.findings, self.run.file_of(part, output.vector_column), first)
            checked = CheckedRows.of(batch, output, null)
            check_vectors(checked, place, keeps_nonfinite=bool(self._expected_nonfinite))
            zero[checked.rows] |= checked.zero.any(axis=1)
            nonfinite[checked.rows] |= ~checked.finite
            self._norms[output.name] += NormStats.of(checked.norms)
            self.vectors += checked.norms.size
        self._null += int(null.sum())
        self._nonfinite += int(nonfinite.sum())
        self._zero += int((zero & ~nonfinite).sum())

    def _null_rows(self, batch: pa.RecordBatch, output: OutputSpec) -> np.ndarray:
        """Find rows without a vector: null, or in NPY nothing but NaN where policy made some so."""
        vectors = batch[output.vector_column]
        if self._is_table or not self._expected_null:
            return np.asarray(vectors.is_null().to_numpy(zero_copy_only=False))
        blank = np.isnan(rows_of(vectors)).all(axis=1)
        norms = rows_of(batch[output.norm_column]).reshape(len(blank), -1)
        return np.asarray(blank & np.isnan(norms).all(axis=1))

    def conclude(self) -> None:
        """Compare what was counted with the manifest, once all parts have been looked at."""
        null, nonfinite = self._expected_null, self._expected_nonfinite
        if not self._is_table and null and nonfinite:
            # A kept row of nothing but NaN looks like a nullified one there.
            found = self._null + self._nonfinite
            self.findings.add_count("without a vector stored", found, null + nonfinite)
        else:
            self.findings.add_count("without a vector stored", self._null, null)
            if nonfinite:
                self.findings.add_count("that are not finite stored", self._nonfinite, nonfinite)
        # Under `none` a zero cannot be told from what a narrower stored dtype rounded to zero, and
        # bits have none.
        unnormed = [output for output in self.run.outputs if output.norm.name == "none"]
        has_bits = any(output.normalization.dtype == "binary" for output in unnormed)
        if not unnormed or (self._zero < self._expected_zero and not has_bits):
            self.findings.add_count("with a zero vector stored", self._zero, self._expected_zero)
        for output in self.run.outputs:
            self._compare_norms(output)

    def _compare_norms(self, output: OutputSpec) -> None:
        """Compare the stored norms with the manifest's statistics of them."""
        described = self.run.manifest.statistics.get(output.name)
        norms = None if described is None else described.norms.get(output.norm.label)
        if norms is None:
            return
        stored = self._norms[output.name]
        rows = self.run.manifest.rows
        is_all = rows.rows_in == rows.rows_out and not rows.nullified
        if not (_same(stored, norms) if is_all else _within(stored, norms)):
            self.findings.add(
                f"The stored norms of `{output.name}` do not match the "
                f"manifest: {_described(stored)}; the manifest has {_described(norms)}."
            )


def _same(stored: NormStats, described: NormStats) -> bool:
    """Tell whether all that does not depend on the order of adding up is the same."""
    names = ("count", "zero", "nonfinite", "min", "max", "histogram")
    return all(getattr(stored, name) == getattr(described, name) for name in names)


def _within(stored: NormStats, described: NormStats) -> bool:
    """Tell whether these may be some of those."""
    if not stored.count:
        return True
    low, high = described.min, described.max
    if low is None or high is None or stored.min is None or stored.max is None:
        return False
    return stored.count <= described.count and low <= stored.min <= stored.max <= high


def _described(norms: NormStats) -> str:
    if norms.min is None or norms.max is None or math.isnan(norms.min):
        return plural(norms.count, "norm")
    return f"{plural(norms.count, 'norm')} from {norms.min:.6g} to {norms.max:.6g}"
