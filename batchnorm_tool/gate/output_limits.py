"""What the gate holds a candidate's rows against: limits of the job, and an audit before them.

The limits are on bad rows, and on the distribution of the new vectors against that of the live
version. The audit is of what must hold of every refresh that is published, whatever the job says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnorm_tool.chunk import python_values
from batchnorm_tool.comparison.drift import Gaussian, frechet_distance, population_stability_index
from batchnorm_tool.display import percent, plural
from batchnorm_tool.gate import findings
from batchnorm_tool.gate.findings import SHOWN_ROWS, FaultyRow, Finding, MeasuredRow, Scope
from batchnorm_tool.gate.input_limits import CHANCE
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.job.refresh_sections import OutputGate
from batchnorm_tool.norms.histogram import moments, reduced
from batchnorm_tool.norms.norm import Float64s, row_norms, widen
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.stats import MIDDLE_QUANTILES, finite_or_none

FRECHET_WIDTH = 256
"""Dimensions that the Fréchet distance takes into account: those with the largest variance in the
live version. A covariance of more costs seconds and needs more rows than a sample has."""
_LEAST_DEVIATION = 0.1
"""A dimension that varies less than this share of a typical one is measured by this share instead,
so that a shift of one that hardly varies, or not at all, counts only where it is large enough to
matter beside the others."""
# The largest of a million simulated samples of 200 rows was 57, of 1,000 rows 41.
_PSI_CHANCE = 60.0
# Of nine values that chance makes alike, one is hardly ever more than twice the largest of the
# others: never in 200 refreshes of any kind in tests/gate/test_false_alarms.py.
_DRAWS = 8
_MARGIN = 2.0


@dataclass(frozen=True)
class Vectors:
    """Good rows of one set: the changed ones, all of the new version, or the live version.

    Attributes:
        unit: float[n, d], the vectors of a random sample of the rows, finite.
        sample_norms: float64[n], the norms of the same rows.
        norms: float64[m], the norms of all rows, or of a larger sample of them.
        keys: The key columns of the sample's ``n`` rows.
    """

    unit: npt.NDArray[Any]
    sample_norms: Float64s
    norms: Float64s
    keys: pa.Table

    @cached_property
    def wide(self) -> Float64s:
        """The sample's vectors as float64[n, d]."""
        return widen(self.unit)

    @cached_property
    def _moments(self) -> tuple[Float64s, Float64s]:
        x = self.wide
        if not len(x):
            return moments(x, np.float64(0), np.float64(0))
        return moments(x, reduced(np.minimum, x), reduced(np.maximum, x))

    @property
    def mean(self) -> Float64s:
        """float64[d], the mean vector; zeros without rows."""
        return self._moments[0]

    @property
    def deviations(self) -> Float64s:
        """float64[d], the standard deviation of each dimension."""
        return np.sqrt(self._moments[1] / max(len(self.unit), 1))

    @property
    def spread(self) -> float:
        """The root mean square distance of the vectors from their mean."""
        return math.sqrt(float(np.sum(self.deviations**2)))

    def split(self, rows: int, norms: int, generator: np.random.Generator) -> tuple[Vectors, ...]:
        """Draw so many rows and norms at random; return all others first, then those drawn."""
        order, norm_order = (generator.permutation(len(x)) for x in (self.unit, self.norms))
        return tuple(
            Vectors(self.unit[here], self.sample_norms[here], self.norms[there], self.keys[:0])
            for here, there in (
                (order[rows:], norm_order[norms:]),
                (order[:rows], norm_order[:norms]),
            )
        )

    def worst(self, badness: Float64s, values: Float64s) -> tuple[MeasuredRow, ...]:
        """Name the sample's rows with the most ``badness``, ties in its order, and their values."""
        rows = np.argsort(-badness, kind="stable")[:SHOWN_ROWS]
        return tuple(_measured_rows(self.keys.take(pa.array(rows)), values[rows]))


def _measured_rows(keys: pa.Table, values: Float64s) -> Iterator[MeasuredRow]:
    for key, value in zip(keys_to_json(keys), values, strict=True):
        yield MeasuredRow(key, finite_or_none(float(value)))


def keys_to_json(keys: pa.Table) -> Iterator[findings.Key]:
    """Yield the keys of rows as JSON can hold them: numbers and text as they are, else as text."""
    for row in zip(*map(python_values, keys.columns), strict=True):
        held = (value if isinstance(value, bool | int | str) else str(value) for value in row)
        yield dict(zip(keys.column_names, held, strict=True))


@dataclass(frozen=True)
class BadCounts:
    """Bad rows of this refresh, by input or prediction.

    Of the ``changed_rows``, which went to the model or would have, and of all rows; there, those
    remembered from earlier refreshes are included. ``rows`` are some of the bad ones.
    """

    changed_rows: int
    changed_bad: int
    whole_rows: int
    whole_bad: int
    rows: tuple[FaultyRow, ...] = ()


def _judged(limits: OutputGate, live: Vectors, scope: Scope, current: Vectors) -> Iterator[Finding]:
    """Hold one scope against the live version."""
    few = _too_few(limits.min_rows, live, current)
    for measure in MEASURES:
        allowed = getattr(limits, measure.limit)
        if allowed is not None and few:
            yield findings.not_evaluated(f"gate.output.{measure.limit}", scope, allowed, few)
        elif allowed is not None:
            yield _measured_shift(measure, allowed, scope, live, current)


def _measured_shift(
    measure: Measure, allowed: float, scope: Scope, live: Vectors, current: Vectors
) -> Finding:
    measured = measure.shift(live, current)
    chance = 0.0 if measured <= allowed else measure.chance(live, current)
    most = max(allowed, chance)
    passed = measured <= most
    rows = () if passed else measure.worst(live, current)
    raised = ""
    if chance == most:
        raised = f" ({allowed:g}, raised to what chance gives for so few rows)"
    what = f"{measure.label}: {measured:.4g}; at most {most:.4g} allowed{raised}."
    return Finding(f"gate.output.{measure.limit}", scope, measured, most, passed, what, rows)


def _too_few(least: int, live: Vectors, current: Vectors) -> str:
    for vectors, of in ((current, ""), (live, " in the live version")):
        rows = min(len(vectors.unit), len(vectors.norms))
        if rows < max(least, 1):
            return f"{plural(rows, 'good row')}{of}, fewer than `gate.output.min_rows: {least}`"
    return ""


def evaluate_output(
    limits: OutputGate, changed: Vectors, whole: Vectors, live: Vectors | None, bad: BadCounts
) -> list[Finding]:
    """Judge the new vectors, over the good rows that changed and over all that would be published.

    A limit that is ``None`` has no finding. There is no live version on a first load and in a new
    space, where nothing can be compared and only absolute limits are judged.
    """
    # A distribution is judged from `limits.min_rows` rows on. Where a shift is beyond its limit, it
    # is held against what chance alone makes of as many rows of the live version, and passes where
    # that is more.
    found = list(_bad_findings(limits, bad))
    if live is not None:
        found += _judged(limits, live, "changed", changed)
        found += _judged(limits, live, "whole", whole)
    return found


def _bad_findings(limits: OutputGate, bad: BadCounts) -> Iterator[Finding]:
    allowed, name = limits.bad, "gate.output.bad"
    if allowed is None:
        return
    if bad.changed_rows < limits.min_rows:
        few = f"{plural(bad.changed_rows, 'changed row')}, fewer than `gate.output.min_rows`"
        yield findings.not_evaluated(name, "changed", allowed, f"{few}: {limits.min_rows}")
    else:
        # A share of less than one row would forbid what the limit allows in a larger refresh.
        at_least_one = max(allowed, 1 / bad.changed_rows) if allowed else allowed
        yield _bad("changed", (bad.changed_bad, bad.changed_rows), at_least_one, bad.rows)
    yield _bad("whole", (bad.whole_bad, bad.whole_rows), allowed, bad.rows)


def _bad(
    scope: Scope, counts: tuple[int, int], allowed: float, rows: tuple[FaultyRow, ...]
) -> Finding:
    share = counts[0] / max(counts[1], 1)
    what = (
        f"{counts[0]:,} bad of {plural(counts[1], 'row')} ({percent(share, 4)}); at "
        f"most {percent(allowed, 4)} allowed."
    )
    passed = share <= allowed
    shown = () if passed else rows[:SHOWN_ROWS]
    return Finding("gate.output.bad", scope, share, allowed, passed, what, shown)


@dataclass(frozen=True)
class Measure:
    """One way to say how far a set moved.

    The ``shift`` of the new set from the live one is inf where it is beyond any number; ``worst``
    gives the rows of the new set that contribute most, ``exact_chance`` what chance alone makes of
    as many rows, where that is known without draws.
    """

    limit: str
    label: str
    shift: Callable[[Vectors, Vectors], float]
    worst: Callable[[Vectors, Vectors], tuple[MeasuredRow, ...]]
    exact_chance: Callable[[Vectors, Vectors], float] | None = None

    def chance(self, live: Vectors, current: Vectors) -> float:
        """Return the shift that chance alone may make of as many rows as the new.

        Where it is not known: twice the largest among eight draws of as many rows from the live
        version, each held against all its other rows.
        """
        if self.exact_chance is not None:
            return self.exact_chance(live, current)
        # The same rows give the same draws, and the same decision, every time.
        generator = np.random.default_rng(0)
        rows = min(len(current.unit), len(live.unit) // 2)
        norms = min(len(current.norms), len(live.norms) // 2)
        draws = (live.split(rows, norms, generator) for _ in range(_DRAWS))
        return _MARGIN * max(self.shift(rest, drawn) for rest, drawn in draws)


def norm_psi(live: Vectors, current: Vectors) -> float:
    """Return the population stability index of the norms."""
    return population_stability_index(live.norms, current.norms)


def psi_chance(live: Vectors, current: Vectors) -> float:
    """Return the population stability index that chance makes once in a million."""
    # Under chance the index times the rows is about chi-square with nine degrees of freedom, whose
    # quantile at one in a million is 45; with 200 rows its tail is longer.
    return _PSI_CHANCE * (1 / len(live.norms) + 1 / len(current.norms))


def norm_quantiles(live: Vectors, current: Vectors) -> float:
    """Return the largest relative shift of a quantile of the norms."""
    # A quantile below a quarter of the live version's median is measured against that quarter:
    # norms near zero are no scale.
    before, after = (np.quantile(vectors.norms, MIDDLE_QUANTILES) for vectors in (live, current))
    return float(np.max(_ratio(np.abs(after - before), _norm_scale(before))))


def _norm_scale(quantiles: Float64s) -> Float64s:
    return np.maximum(quantiles, quantiles[len(quantiles) // 2] / 4)


def quantile_chance(live: Vectors, current: Vectors) -> float:
    """Return the relative shift of a quantile that chance makes once in a million."""
    # A sample's quantile lies between those quantiles of all values whose shares are the ends of
    # Wilson's interval ("Probable inference, the law of succession, and statistical inference",
    # 1927). Unlike draws, this sees a gap between the norms into which a quantile rarely falls.
    rows = 1 / (1 / len(live.norms) + 1 / len(current.norms))
    shares, z2 = np.array(MIDDLE_QUANTILES), CHANCE**2 / rows
    middle = shares + z2 / 2
    half = np.sqrt(z2 * (shares * (1 - shares) + z2 / 4))
    here = np.quantile(live.norms, MIDDLE_QUANTILES)
    ends = np.quantile(live.norms, np.stack([middle - half, middle + half]) / (1 + z2))
    return float(np.max(_ratio(np.abs(ends - here), _norm_scale(here))))


def centroid_shift(live: Vectors, current: Vectors) -> float:
    """Return how far the mean vector moved, relative to the live version's spread."""
    # Over the spread: lengths have no unit, and what is far in one space is near in another.
    moved = np.linalg.norm(current.mean - live.mean)
    return float(_ratio(moved, np.float64(live.spread)))


def dimension_shift(live: Vectors, current: Vectors) -> float:
    """Return the largest shift of a dimension's mean, in its standard deviations."""
    return float(np.max(np.abs(_dimension_shifts(live, current)), initial=0.0))


def _dimension_shifts(live: Vectors, current: Vectors) -> Float64s:
    typical = live.spread / math.sqrt(max(len(live.mean), 1))
    scale = np.maximum(live.deviations, _LEAST_DEVIATION * typical)
    return _ratio(current.mean - live.mean, scale)


def frechet(live: Vectors, current: Vectors) -> float:
    """Return the Fréchet distance over the live version's total variance.

    Both are taken over the `FRECHET_WIDTH` dimensions that vary most in the live version.
    """
    # Chosen by the live version alone: both are then measured in the same dimensions.
    widest = np.sort(np.argsort(-live.deviations, kind="stable")[:FRECHET_WIDTH])
    # `take` copies rows in C order at once: an index, and a copy of that, took 20 ms more.
    one, other = (Gaussian.of(each.wide.take(widest, axis=1)) for each in (live, current))
    distance = np.float64(frechet_distance(one, other))
    return float(_ratio(distance, np.trace(one.covariance)))


def _ratio(part: Any, whole: Any) -> Any:
    """Return a part of a whole, 0 of nothing if it is 0 itself, else inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part == 0, 0.0, part / whole)


def _extreme_norms(live: Vectors, current: Vectors) -> tuple[MeasuredRow, ...]:
    middle = np.median(live.norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.abs(np.log(current.sample_norms / middle))
    return current.worst(np.nan_to_num(factors, nan=math.inf), current.sample_norms)


def _farthest_along(live: Vectors, current: Vectors) -> tuple[MeasuredRow, ...]:
    direction = current.mean - live.mean
    length = np.linalg.norm(direction) * (live.spread or 1.0)
    along = (current.wide - live.mean) @ direction / (length or 1.0)
    return current.worst(along, along)


def _farthest_in_dimension(live: Vectors, current: Vectors) -> tuple[MeasuredRow, ...]:
    shifts = _dimension_shifts(live, current)
    dimension = int(np.argmax(np.abs(shifts)))
    values = current.wide[:, dimension]
    return current.worst(values * np.sign(shifts[dimension]), values)


def _farthest_away(live: Vectors, current: Vectors) -> tuple[MeasuredRow, ...]:
    distances = np.linalg.norm(current.wide - live.mean, axis=1) / (live.spread or 1.0)
    return current.worst(distances, distances)


MEASURES = (
    Measure(
        "norm_psi", "Population stability index of the norms", norm_psi, _extreme_norms, psi_chance
    ),
    Measure(
        "norm_quantiles",
        "Largest relative shift of the norms' quantiles",
        norm_quantiles,
        _extreme_norms,
        quantile_chance,
    ),
    Measure(
        "centroid_shift",
        "Shift of the centroid relative to the spread",
        centroid_shift,
        _farthest_along,
    ),
    Measure(
        "dimension_shift",
        "Largest shift of a dimension in standard deviations",
        dimension_shift,
        _farthest_in_dimension,
    ),
    Measure("frechet", "Fréchet distance relative to the total variance", frechet, _farthest_away),
)
"""Every measure, in the order of the limits."""


@dataclass(frozen=True)
class AuditFacts:
    """Rows of the version that would be published, counted where they are stored.

    Attributes:
        rows: Of the refresh: ``live`` and ``quarantined`` are those of the index after it.
        before: Rows of the index before the refresh, quarantined ones included; 0 on a first load.
        gone: Rows of the index before the refresh that are not in the one after it.
        distinct_keys: Different keys among all rows of the index after the refresh.
    """

    mode: Literal["full", "delta"]
    rows: RefreshRows
    before: int
    gone: int
    distinct_keys: int


@dataclass
class _WrongRows:
    """Rows of which something does not hold: how many, and the first of them."""

    count: int = 0
    first: list[MeasuredRow] = field(default_factory=list)

    def add(self, wrong: npt.NDArray[np.bool_], keys: pa.Table, values: Float64s) -> None:
        self.count += int(wrong.sum())
        rows = np.flatnonzero(wrong)[: SHOWN_ROWS - len(self.first)]
        self.first += _measured_rows(keys.take(rows), values[rows])


@dataclass
class RowAudit:
    """An audit of the staged rows, batch by batch, that were normalized in one way.

    Their lengths may be as far from 1 as ``tolerance``, see `commands.verify.vectors`.
    """

    way: Normalization
    tolerance: float
    _rows: int = 0
    _nonfinite: _WrongRows = field(default_factory=_WrongRows)
    _lengths: _WrongRows = field(default_factory=_WrongRows)

    def add(self, vectors: npt.NDArray[Any], norms: Float64s, keys: pa.Table) -> None:
        """Look at some rows: decoded vectors float[n, d], norms float64[n], the key columns."""
        wide = widen(vectors)
        finite = np.isfinite(wide).all(axis=1) & np.isfinite(norms)
        with np.errstate(invalid="ignore"):
            lengths, errors = self._measured(vectors, wide, norms)
            # NaN is not within any tolerance, so that it is wrong without being asked for.
            right = (errors <= self.tolerance) & (norms >= 0)
        self._rows += len(norms)
        self._nonfinite.add(~finite, keys, norms)
        self._lengths.add(finite & ~right, keys, lengths)

    def _measured(
        self, vectors: npt.NDArray[Any], wide: Float64s, norms: Float64s
    ) -> tuple[Float64s, Float64s]:
        """Return lengths as measured, and how far they are from what they should be."""
        if self.way.norm.name == "none":  # vectors are predictions, and the norm beside them is 1
            return norms, np.abs(norms - 1)
        lengths = row_norms(wide, self.way.norm)[:, 0]
        return lengths, self.way.length_errors(vectors, lengths, norms)

    def findings(self) -> Iterator[Finding]:
        """Say what was found of all rows so far."""
        of = f"of {self._rows:,} staged"
        what = f"{self._nonfinite.count:,} {of} rows contain NaN or inf."
        yield _audited("finite", self._nonfinite.count, what, self._nonfinite.first)
        norm = self.way.norm.label
        what = (
            f"{self._lengths.count:,} {of} vectors do not have length 1 under {norm} "
            f"(within {self.tolerance:.2g}), and are not zero with a norm of 0."
        )
        yield _audited("lengths", self._lengths.count, what, self._lengths.first)


def audit(facts: AuditFacts, rows: RowAudit) -> list[Finding]:
    """Check what no setting turns off: counts, keys, lengths, and that everything is finite."""
    return [_audited_counts(facts), _audited_keys(facts), *rows.findings()]


def _audited_counts(facts: AuditFacts) -> Finding:
    rows = facts.rows
    if facts.mode == "full":
        expected, said = rows.rows_in, f"{plural(rows.rows_in, 'row')} in"
    else:
        expected = facts.before + rows.new - facts.gone
        said = f"{facts.before:,} before + {rows.new:,} new - {facts.gone:,} gone"
    kept = rows.live + rows.quarantined
    sign = "=" if kept == expected else "is not"
    what = f"{said} {sign} {rows.live:,} live + {rows.quarantined:,} quarantined."
    return _audited("counts", abs(kept - expected), what)


def _audited_keys(facts: AuditFacts) -> Finding:
    rows = facts.rows.live + facts.rows.quarantined
    what = f"{plural(facts.distinct_keys, 'distinct key')} in {plural(rows, 'row')}."
    return _audited("keys", abs(rows - facts.distinct_keys), what)


def _audited(check: str, wrong: int, what: str, rows: Iterable[MeasuredRow] = ()) -> Finding:
    return Finding(f"audit.{check}", "audit", float(wrong), 0.0, wrong == 0, what, tuple(rows))
