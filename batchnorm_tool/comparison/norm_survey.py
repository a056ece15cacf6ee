"""The norms of all stored predictions, measured block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Float64s, Norm, row_norms, wide_blocks
from batchnorm_tool.norms.stats import QUANTILES, NormStats

_NONE = Norm("none")
# Unit vectors of float32 are within 1e-6 of length 1, those that a float16 model made within 1e-3.
UNIT_TOLERANCE = 1e-3
BARS = 40
# Closer together than an axis could tell apart.
_ALIKE = 1e-6


class Provenance(TypedDict, total=False):
    """What made vectors; of a lone part of a run, ``space``, ``output`` and ``norm`` are known.

    ``model`` is a path, ``None`` where predictions were stored already; ``model_sha256`` is of its
    architecture and weights; ``made_of`` is all that the space, whose id is ``space``, is made of.
    """

    space: str
    model: str | None
    model_sha256: str | None
    output: str
    norm: str
    versions: Mapping[str, object]
    made_of: Mapping[str, object]


class SourceFacts(TypedDict):
    """What is known of stored vectors without reading rows."""

    path: str
    kind: Literal["run", "store", "data"]
    rows: int
    width: int
    dtype: str
    key: list[str]
    column: str | list[str]
    provenance: Provenance | None


class SetFacts(SourceFacts):
    """What is known of stored vectors, with the rows that have no direction."""

    zero: int
    nonfinite: int
    missing: int


@dataclass(frozen=True)
class NormSurvey:
    """Norms of rows, under every norm.

    ``missing`` rows have a null or ragged vector, and count as not finite in ``norms``, too;
    ``nonfinite`` are other rows with NaN or inf in them, ``unit`` those of length 1, to a
    thousandth, by the label of each norm.
    """

    rows: int
    missing: int
    nonfinite: int
    zero: int
    norms: Mapping[str, NormStats]
    unit: Mapping[str, int]

    @classmethod
    def of(cls, lengths: Mapping[str, Float64s], missing: np.ndarray) -> NormSurvey:
        """Measure rows by what `measured` says; ``missing`` ones, ``bool[n]``, are NaN there."""
        peaks = lengths[MAX.label]
        unusable, null = int(np.count_nonzero(~np.isfinite(peaks))), int(np.count_nonzero(missing))
        return cls(
            rows=len(peaks),
            missing=null,
            nonfinite=unusable - null,
            zero=len(peaks) - int(np.count_nonzero(peaks)),
            norms={label: NormStats.of(values) for label, values in lengths.items()},
            unit={
                label: int(np.count_nonzero(np.abs(values - 1) <= UNIT_TOLERANCE))
                for label, values in lengths.items()
            },
        )

    def __add__(self, other: NormSurvey) -> NormSurvey:
        return NormSurvey(
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            nonfinite=self.nonfinite + other.nonfinite,
            zero=self.zero + other.zero,
            norms={label: norms + other.norms[label] for label, norms in self.norms.items()},
            unit={label: count + other.unit[label] for label, count in self.unit.items()},
        )


def norms_to_measure(compared: Sequence[Norm]) -> tuple[Norm, ...]:
    """Return L1, L2 and max, which every comparison shows, and what else is compared; each once."""
    return tuple(dict.fromkeys([L1, L2, MAX, *compared]))


def measured(vectors: Anything, norms: Sequence[Norm]) -> dict[str, Float64s]:
    """Return the norms of rows ``[n, d]``: ``float64[n]`` by label; MAX is always among them.

    ``none`` gives ones, what rows are divided by; NaN where a row is not finite.
    """
    wanted = dict.fromkeys([*norms, MAX])
    lengths = {norm: np.empty(len(vectors)) for norm in wanted}
    for block, x64 in wide_blocks(vectors):
        for norm, values in lengths.items():
            values[block] = row_norms(x64, norm)[:, 0]
    if _NONE in lengths:
        lengths[_NONE][~np.isfinite(lengths[MAX])] = np.nan
    return {norm.label: values for norm, values in lengths.items()}


class Distribution(TypedDict):
    """Numbers that are finite: how many, and where they lie; ``None`` where there is none.

    ``quantiles`` are those of `stats.QUANTILES`, each the number of rank ``ceil(q * count)``;
    ``histogram`` has low edge, high edge and count of each of 40 bars, all but the last without
    their high edge; where all numbers agree to six digits, one bar around them.
    """

    count: int
    mean: float | None
    min: float | None
    max: float | None
    quantiles: dict[str, float | None]
    histogram: list[list[float]]


def describe(values: Float64s, most: float = math.inf) -> Distribution:
    """Describe those numbers of ``float64[n]`` that are finite; no bar reaches beyond ``most``."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        none = dict.fromkeys(map(str, QUANTILES))
        return Distribution(count=0, mean=None, min=None, max=None, quantiles=none, histogram=[])
    ranks = np.maximum(np.ceil(np.array(QUANTILES) * len(finite)).astype(int), 1) - 1
    return {
        "count": len(finite),
        "mean": _mean(finite),
        "min": float(finite[0]),
        "max": float(finite[-1]),
        "quantiles": dict(zip(map(str, QUANTILES), finite[ranks].tolist(), strict=True)),
        "histogram": _bars(finite, most),
    }


def _mean(ascending: Float64s) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.mean(ascending)
        if not np.isfinite(mean):  # the sum is beyond float64, the mean is not
            mean = np.sum(ascending / len(ascending))
    return float(np.clip(mean, ascending[0], ascending[-1]))


def _bars(ascending: Float64s, most: float) -> list[list[float]]:
    low, high = float(ascending[0]), float(ascending[-1])
    size = max(abs(low), abs(high))
    if not high / 2 - low / 2 > _ALIKE * size / 2:
        half = size / 2 or 0.5
        return [[low - half, min(high + half, most), len(ascending)]]
    places = np.linspace(0.0, 1.0, BARS + 1)
    edges = low * (1 - places) + high * places  # their difference may be beyond float64
    below = np.searchsorted(ascending, edges)
    below[-1] = len(ascending)
    bars = zip(edges[:-1].tolist(), edges[1:].tolist(), np.diff(below).tolist(), strict=True)
    return [list(bar) for bar in bars]
