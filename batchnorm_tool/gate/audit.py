"""What must hold of every refresh that is published, whatever the job says."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnorm_tool.display import plural
from batchnorm_tool.gate.findings import SHOWN_ROWS, Finding, MeasuredRow
from batchnorm_tool.gate.output_limits import key_to_json
from batchnorm_tool.norms.norm import Float64s, Norm, row_norms, widen
from batchnorm_tool.norms.stats import finite_or_none


@dataclass(frozen=True)
class AuditFacts:
    """Rows of the version that would be published, counted where they are stored.

    Attributes:
        mode: How the input is read.
        rows_in: Rows of the input.
        live: Rows of the dataset after the refresh.
        quarantined: Rows of the index after the refresh that are not in the dataset.
        before: Rows of the index before the refresh, quarantined ones included; 0 on a first load.
        new: Rows of the input whose key the index before the refresh did not have.
        gone: Rows of the index before the refresh that are not in the one after it.
        distinct_keys: Different keys among all rows of the index after the refresh.
    """

    mode: Literal["full", "delta"]
    rows_in: int
    live: int
    quarantined: int
    before: int
    new: int
    gone: int
    distinct_keys: int


@dataclass
class RowAudit:
    """An audit of the staged rows, batch by batch.

    Attributes:
        norm: What they were normalized by.
        tolerance: How far from 1 a length may be, see `commands.verify.vectors`.
        rows: Rows looked at.
    """

    norm: Norm
    tolerance: float
    rows: int = 0
    _nonfinite: list[MeasuredRow] = field(default_factory=list)
    _wrong: list[MeasuredRow] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=lambda: {"finite": 0, "lengths": 0})

    def add(self, vectors: npt.NDArray[Any], norms: Float64s, keys: pa.Table) -> None:
        """Look at some rows.

        Args:
            vectors: float[n, d], as stored.
            norms: float64[n], as stored.
            keys: Their key columns.
        """
        wide = widen(vectors)
        finite = np.isfinite(wide).all(axis=1) & np.isfinite(norms)
        lengths, expected = self._lengths(wide, norms)
        with np.errstate(invalid="ignore"):
            # NaN is not within any tolerance, so that it is wrong without being asked for.
            right = (np.abs(lengths - expected) <= self.tolerance) & (norms >= 0)
        self.rows += len(norms)
        self._note("finite", self._nonfinite, ~finite, (keys, norms))
        self._note("lengths", self._wrong, finite & ~right, (keys, lengths))

    def _lengths(self, wide: Float64s, norms: Float64s) -> tuple[Float64s, Float64s]:
        """Return lengths as measured and as they should be."""
        ones = np.ones(len(norms))
        if self.norm.name == "none":  # vectors are predictions, and the norm beside them is 1
            return norms, ones
        return row_norms(wide, self.norm)[:, 0], np.where(norms == 0, 0.0, ones)

    def _note(
        self,
        name: str,
        rows: list[MeasuredRow],
        wrong: npt.NDArray[np.bool_],
        named: tuple[pa.Table, Float64s],
    ) -> None:
        self._counts[name] += int(wrong.sum())
        first = np.flatnonzero(wrong)[: SHOWN_ROWS - len(rows)]
        for key, value in zip(named[0].take(first).to_pylist(), named[1][first], strict=True):
            rows.append(MeasuredRow(key_to_json(key), finite_or_none(float(value))))

    def findings(self) -> Iterator[Finding]:
        """Say what was found of all rows so far."""
        yield _finding(
            "finite",
            self._counts["finite"],
            f"{self._counts['finite']:,} of {self.rows:,} staged rows contain NaN or inf.",
            self._nonfinite,
        )
        yield _finding(
            "lengths",
            self._counts["lengths"],
            f"{self._counts['lengths']:,} of {self.rows:,} staged vectors do not have length 1 "
            f"under {self.norm.label} (within {self.tolerance:.2g}), and are not zero with a norm "
            "of 0.",
            self._wrong,
        )


def audit(facts: AuditFacts, rows: RowAudit) -> list[Finding]:
    """Check what no setting turns off: counts, keys, lengths, and that everything is finite.

    Returns:
        A finding of scope ``"audit"`` for each check.
    """
    return [_counts(facts), _keys(facts), *rows.findings()]


def _counts(facts: AuditFacts) -> Finding:
    kept = facts.live + facts.quarantined
    if facts.mode == "full":
        expected, said = facts.rows_in, f"{plural(facts.rows_in, 'row')} in"
    else:
        expected = facts.before + facts.new - facts.gone
        said = f"{facts.before:,} before + {facts.new:,} new - {facts.gone:,} gone"
    sign = "=" if kept == expected else "is not"
    what = f"{said} {sign} {facts.live:,} live + {facts.quarantined:,} quarantined."
    return _finding("counts", abs(kept - expected), what)


def _keys(facts: AuditFacts) -> Finding:
    rows = facts.live + facts.quarantined
    what = f"{plural(facts.distinct_keys, 'distinct key')} in {plural(rows, 'row')}."
    return _finding("keys", abs(rows - facts.distinct_keys), what)


def _finding(check: str, wrong: int, what: str, rows: list[MeasuredRow] | None = None) -> Finding:
    passed = wrong == 0
    return Finding(f"audit.{check}", "audit", float(wrong), 0.0, passed, what, tuple(rows or ()))
