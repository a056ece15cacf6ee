"""How far one set of vectors lies from another: pair by pair, and as two distributions.

Everything is computed in float64. What is measured of a set (`Gaussian`) merges, so that a set
larger than memory is measured block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from batchnorm_tool.comparison.norm_survey import Distribution, SetFacts
from batchnorm_tool.comparison.verdict import VerdictEntry, headline_k
from batchnorm_tool.display import percent, plural
from batchnorm_tool.norms.histogram import merged_moments, moments, reduced
from batchnorm_tool.norms.norm import L2, Float64s, row_blocks, row_norms, unit_vectors

PSI_BINS = 10
"""Bins of the population stability index: the deciles of the first set."""
EMPTY_SHARE = 1e-4
"""The share that stands for an empty bin, whose logarithm would be infinite."""
# Vectors that were stored in float32, or as unit vector and norm, differ by a few of its roundings
# (6e-8); those of float16 by 5e-4, whose square is what a cosine loses.
_ROUNDING = 1e-6
_NORM_ROUNDING = 1e-3


def pair_cosines(a64: Float64s, b64: Float64s, a_norms: Float64s, b_norms: Float64s) -> Float64s:
    """Return the cosine of each pair of vectors, from -1 to 1; NaN where one is zero.

    Vectors are float64[n, d], finite, C order; the norms are their L2 norms float64[n].
    """
    one = unit_vectors(a64, a_norms[:, np.newaxis], L2, np.float64)
    other = unit_vectors(b64, b_norms[:, np.newaxis], L2, np.float64)
    # Of unit vectors, not products over norms: a product of two large vectors overflows, and of
    # small ones vanishes.
    cosines = np.clip(np.einsum("ij,ij->i", one, other), -1.0, 1.0)
    return np.where((a_norms > 0) & (b_norms > 0), cosines, np.nan)


def population_stability_index(expected: Float64s, actual: Float64s) -> float:
    """Return how far a distribution moved: sum of (q - p) ln(q / p) over bins, 0 or more.

    Both are float64[n], finite, not empty; an empty bin counts as a share of `EMPTY_SHARE`.
    """
    # The bins are the deciles of `expected`, fewer where many of its values are equal; p and q are
    # the shares of the two sets in each. Siddiqi, "Credit Risk Scorecards" (2006), chapter 10, who
    # reads below 0.1 as no change, up to 0.25 as a small one, and above as a large one.
    inner = np.arange(1, PSI_BINS) / PSI_BINS
    # Equal edges would make empty bins, whose assumed share counts as a difference.
    edges = np.unique(np.quantile(expected, inner))
    p, q = (_shares(values, edges) for values in (expected, actual))
    return float(np.sum((q - p) * np.log(q / p)))


def _shares(values: Float64s, edges: Float64s) -> Float64s:
    """Return the share of the values in each bin (edge, next edge], none of them zero."""
    # A value on an edge belongs to the bin below it, in both sets: the deciles of a set are values
    # of its own.
    bins = np.searchsorted(edges, values, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return np.maximum(counts / len(values), EMPTY_SHARE)


def kolmogorov_smirnov_distance(one: Float64s, other: Float64s) -> float:
    """Return the largest distance between two empirical distribution functions, 0 to 1.

    The two-sample statistic: Smirnov, "Table for estimating the goodness of fit of empirical
    distributions" (1948). Both are float64[n], finite, not empty.
    """
    one, other = np.sort(one), np.sort(other)
    everything = np.concatenate((one, other))
    # At every value of both: a step function is farthest from another where one of them steps.
    below_one = np.searchsorted(one, everything, side="right") / len(one)
    below_other = np.searchsorted(other, everything, side="right") / len(other)
    return float(np.abs(below_one - below_other).max())


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that fits a set of vectors, and merges with that of another set.

    Its ``scatter``, float64[d, d], is the sum of the outer products of the deviations from the
    mean, float64[d], which is zeros where there are no vectors.
    """

    count: int
    mean: Float64s
    scatter: Float64s

    @classmethod
    def of(cls, x64: Float64s) -> Gaussian:
        """Fit one set, float64[n, d], C order, finite."""
        width = x64.shape[1]
        if not len(x64):
            return cls(0, np.zeros(width), np.zeros((width, width)))
        mean, _ = moments(x64, reduced(np.minimum, x64), reduced(np.maximum, x64))
        scatter = np.zeros((width, width))
        with np.errstate(over="ignore", invalid="ignore"):
            # In blocks that one core does alone, unless vectors are wide: OpenBLAS took 0.5 s with
            # two threads, of which other work held one, for what takes 3 ms (16,384 x 64).
            for block in row_blocks(*x64.shape):
                deviations = x64[block] - mean
                scatter += deviations.T @ deviations
        return cls(len(x64), mean, scatter)

    def __add__(self, other: Gaussian) -> Gaussian:
        # The update of `histogram.merged_moments`, of all products instead of the squares.
        if not (self.count and other.count):
            return self if self.count else other
        total = self.count + other.count
        mean, _ = merged_moments(
            (self.count, self.mean, np.zeros_like(self.mean)),
            (other.count, other.mean, np.zeros_like(other.mean)),
        )
        with np.errstate(over="ignore", invalid="ignore"):
            difference = other.mean - self.mean
            between = np.outer(difference, difference) * (self.count * (other.count / total))
            return Gaussian(total, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float64s:
        """The unbiased estimate float64[d, d], as `numpy.cov` has it; zeros below two vectors."""
        return self.scatter / max(self.count - 1, 1)

    @property
    def deviations(self) -> Float64s:
        """The standard deviation of each dimension, float64[d]."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def spread(self) -> float:
        """The root mean square distance of the vectors from their mean; 0 without vectors."""
        return math.sqrt(np.trace(self.scatter) / max(self.count, 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return the Fréchet distance of two normal distributions, squared, as FID reports it.

    It is 0 or more; inf where float64 cannot hold it.
    """
    # |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), eq. 4 of Dowson and Landau, "The Fréchet distance
    # between multivariate normal distributions" (1982). The trace of the root is the sum of the
    # singular values of C1^½ C2^½: unlike square roots of the eigenvalues of C1 C2, they keep their
    # digits where a covariance has directions without any variance.
    with np.errstate(over="ignore", invalid="ignore"):
        means = float(np.sum((one.mean - other.mean) ** 2))
        traces = float(np.trace(one.covariance) + np.trace(other.covariance))
        if not math.isfinite(means + traces):
            return math.inf
        roots = _root(one.covariance) @ _root(other.covariance)
        # Of two equal distributions the difference is rounding, of either sign.
        return max(0.0, means + traces - 2 * float(np.linalg.norm(roots, "nuc")))


def _root(covariance: Float64s) -> Float64s:
    """Return the symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # A covariance has no negative eigenvalue; where one is 0, rounding may make it -1e-17.
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def dimension_shift(one: Gaussian, other: Gaussian) -> Float64s:
    """Return how far the mean of each dimension moved, in standard deviations of ``one``.

    It is float64[d], signed; NaN where ``one`` does not vary and ``other`` has another mean.
    """
    difference = other.mean - one.mean
    with np.errstate(all="ignore"):
        shift = difference / one.deviations
    return np.where(difference == 0, 0.0, np.where(np.isfinite(shift), shift, np.nan))


def centroid_shift(one: Gaussian, other: Gaussian) -> dict[str, float]:
    """Return how far the mean of ``other`` lies from that of ``one``.

    ``shift`` is their distance, ``relative`` the same over the first set's spread, NaN where that
    is 0 and the means differ; ``cosine`` is that of the two means, NaN where one of them is zero.
    """
    means = np.stack((one.mean, other.mean, other.mean - one.mean))
    *lengths, shift = row_norms(means, L2)
    (cosine,) = pair_cosines(means[:1], means[1:2], *lengths)
    moved = float(shift[0])
    relative = moved / one.spread if one.spread else (math.nan if moved else 0.0)
    return {"shift": moved, "relative": relative, "cosine": float(cosine)}


class RowFigures(TypedDict):
    """How many rows two sets have, and the keys of some that only one has."""

    rows: dict[str, int]
    examples: dict[str, list[Any]]


class NormFigures(TypedDict):
    """How the norms of two sets are distributed."""

    a: dict[str, Any]
    b: dict[str, Any]
    psi: float | None
    ks: float | None


class DriftFigures(TypedDict):
    """How two sets differ as distributions; ``None`` where one has no finite vector."""

    norms: NormFigures
    centroid: dict[str, float | None]
    dimensions: dict[str, list[Any]]
    frechet: float | None


class TurnedRow(TypedDict):
    """A row whose vector turned, or is zero on one side and has no cosine, and its lengths."""

    key: object
    cosine: float | None
    norm_a: float
    norm_b: float


class DifferenceFigures(RowFigures, DriftFigures):
    """A difference without its verdict."""

    kind: Literal["diff"]
    version: str
    a: SetFacts
    b: SetFacts
    same_space: bool | None
    cosine: Distribution
    worst: list[TurnedRow]
    norm_ratio: Distribution
    overlap: dict[str, dict[str, float]] | None
    sample: int
    k: list[int]
    seed: int
    metric: str


class DifferenceDocument(DifferenceFigures):
    """A difference, as it is written to ``diff.json``."""

    verdict: VerdictEntry
    warnings: list[str]
    seconds: float


def verdict_of(document: DifferenceFigures, space_words: str) -> VerdictEntry:
    """Sum up a difference, whose kind is ``"same"``, ``"moved"`` or ``"other space"``."""
    if document["same_space"] is False and not _mostly_identical(document["rows"]):
        words = f"The sets are in two vector spaces. {_neighbours(document)}".strip()
        return {"kind": "other space", "words": words, "reason": space_words}
    rows = document["rows"]
    same = _same_words(document)
    only = [
        f"{plural(rows[name], 'row')} only in {side}"
        for side, name in (("B", "added"), ("A", "removed"))
        if rows[name]
    ]
    pieces = [same or _moved_words(document), _sentence(only)]
    return {
        "kind": "same" if same and rows["compared"] == rows["common"] else "moved",
        "words": " ".join(piece for piece in pieces if piece),
        "reason": "" if rows["identical"] == rows["common"] else _sentence(_figures(document)),
    }


def _same_words(document: DifferenceFigures) -> str:
    """Return how equal the rows that were compared are; empty where they are not."""
    rows = document["rows"]
    if not rows["compared"]:
        return ""
    which = plural(rows["common"], "common row")
    if lost := rows["common"] - rows["compared"]:
        which += f" except {lost:,}, where a vector is missing or not finite"
    if rows["identical"] == rows["compared"]:
        return f"Identical vectors, bit for bit, in {which}."
    return f"Identical vectors, up to rounding, in {which}." if _within_rounding(document) else ""


def _moved_words(document: DifferenceFigures) -> str:
    if not document["rows"]["compared"]:
        return "No row can be compared: in every pair a vector is missing or not finite."
    if _is_aligned(document):
        middle = document["norm_ratio"]["quantiles"]["0.5"]
        return (
            "The vectors kept their directions, but not their lengths: median ratio of B to "
            f"A {middle:.4g}."
        )
    rows = document["rows"]
    if _mostly_identical(rows):
        changed = rows["compared"] - rows["identical"]
        return (
            f"{changed:,} of {plural(rows['compared'], 'common row')} changed, the others are "
            f"identical bit for bit. {_neighbours(document)}".strip()
        )
    return f"The vectors moved. {_neighbours(document)}".strip()


def _mostly_identical(rows: Mapping[str, int]) -> bool:
    return 2 * rows["identical"] > rows["compared"]


def _within_rounding(document: DifferenceFigures) -> bool:
    low, high = document["norm_ratio"]["min"], document["norm_ratio"]["max"]
    if not _is_aligned(document) or low is None or high is None:
        return False
    return low >= 1 - _NORM_ROUNDING and high <= 1 + _NORM_ROUNDING


def _is_aligned(document: DifferenceFigures) -> bool:
    """Tell whether every row that was compared kept its direction, or stayed zero."""
    cosine, rows = document["cosine"], document["rows"]
    is_whole = rows["compared"] == cosine["count"] + rows["zero"]  # else one side alone is zero
    return is_whole and cosine["min"] is not None and cosine["min"] >= 1 - _ROUNDING


def _neighbours(document: DifferenceFigures) -> str:
    if not (overlap := document["overlap"]):
        return ""
    k = headline_k([*map(int, overlap)])
    share = overlap[str(k)]["value"]
    # Not all and not none are never rounded to all or none.
    shown = percent(min(max(share, 0.001), 0.999)) if 0 < share < 1 else percent(share, 0)
    return f"{shown} of a row's {k} nearest neighbours stayed."


def _figures(document: DifferenceFigures) -> Iterator[str]:
    cosine, ratio, norms = document["cosine"], document["norm_ratio"], document["norms"]
    if cosine["count"]:
        middle, least = cosine["quantiles"]["0.5"], cosine["min"]
        yield f"Cosine per pair: median {middle:.6f}, lowest {least:.6f}"
    if ratio["count"]:
        yield f"length ratio of B to A: median {ratio['quantiles']['0.5']:.4g}"
    if norms["psi"] is not None:
        yield f"PSI of the norms {norms['psi']:.3f}"


def _sentence(pieces: Iterable[str]) -> str:
    text = "; ".join(pieces)
    return f"{text}." if text else ""
