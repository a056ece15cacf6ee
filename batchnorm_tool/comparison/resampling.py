"""How sure a mean over queries is: bootstrap intervals, a randomization test, Holm's correction.

Queries are resampled, never their neighbours: a query is what was drawn from those to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s

RESAMPLES = 2_000
CONFIDENCE = 0.95
FLIPS = 10_000

# 8 MiB of float64: the draws of a block of resamples, whatever the number of queries.
_BLOCK_VALUES = 1 << 20
# A sum of 10,000 terms is off by less than this, relative to the sum of their sizes.
_ROUNDING = 1e-12


def bootstrap(values: Float64s, seed: int) -> tuple[Float64s, Float64s]:
    """Put an interval around the mean of each column.

    The percentile bootstrap: 2.5 % and 97.5 % of the means of 2,000 samples of rows, drawn with
    replacement (Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 7(1),
    1979). All columns share their samples. Memory is bounded, whatever the number of rows.

    Args:
        values: float64[q, m], a row for each query and a column for each metric, all finite: leave
            out queries that are not judged. ``q`` at least 1.
        seed: Of the samples. Equal arguments give equal intervals; not promised: equal last bits
            on another machine.

    Returns:
        Low ends float64[m] and high ends float64[m]. Both are the value itself for a single query.

    Example:
        >>> low, high = bootstrap(np.array([[0.0, 7.0], [1.0, 7.0]]), seed=0)
        >>> low, high
        (array([0., 7.]), array([1., 7.]))
    """
    draws = np.random.default_rng(seed)
    queries = len(values)
    means = [
        _counts(draws.integers(queries, size=(size, queries))) @ values / queries
        for size in _blocks(RESAMPLES, queries)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high


def _counts(drawn: np.ndarray) -> Float64s:
    """How often each query was drawn: float64[b, q] of int64[b, q]."""
    size, queries = drawn.shape
    places = drawn + np.arange(0, size * queries, queries)[:, None]
    counts = np.bincount(places.reshape(-1), minlength=size * queries)
    return counts.reshape(size, queries).astype(np.float64)


def paired_randomization(differences: Float64s, seed: int) -> Float64s:
    """Test whether the mean difference of each column could be chance, two-sided.

    Fisher's randomization test with 10,000 random choices of signs (Smucker, Allan and Carterette,
    A Comparison of Statistical Significance Tests for Information Retrieval Evaluation, CIKM 2007).
    If both rankings were equally good, each query's difference could as well have the other sign.
    The p-value is (1 + hits) / (1 + flips), which counts the signs that were observed (Phipson and
    Smyth, Permutation P-values Should Never Be Zero, Statistical Applications in Genetics and
    Molecular Biology 9(1), 2010).

    Args:
        differences: float64[q, m], a row for each query and a column for each metric, all finite.
        seed: Of the signs, which all columns share. Equal arguments give equal p-values.

    Returns:
        p-values float64[m], above 0 and at most 1; 1 where every difference is 0.

    Example:
        >>> paired_randomization(np.array([[0.0], [0.0]]), seed=0)
        array([1.])
    """
    draws = np.random.default_rng(seed)
    queries = len(differences)
    totals = differences.sum(axis=0)
    # What equals the observed sum but for rounding is as extreme as that.
    least = np.abs(totals) - _ROUNDING * np.abs(differences).sum(axis=0)
    hits = np.zeros(differences.shape[1], np.int64)
    for size in _blocks(FLIPS, queries):
        flipped = draws.integers(2, size=(size, queries), dtype=np.int8).astype(np.float64)
        sums = totals - 2 * (flipped @ differences)
        hits += np.count_nonzero(np.abs(sums) >= least, axis=0)
    return (1 + hits) / (1 + FLIPS)


def _blocks(total: int, queries: int) -> Iterator[int]:
    """Sizes of blocks of draws that add up to ``total``."""
    most = max(1, _BLOCK_VALUES // max(1, queries))
    for start in range(0, total, most):
        yield min(most, total - start)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that an error among them stays as rare as for one.

    The step-down procedure of Holm, A Simple Sequentially Rejective Multiple Test Procedure,
    Scandinavian Journal of Statistics 6(2), 1979: the smallest of m times m, the next times m - 1,
    and so on, none below the one before it and none above 1. The tests may depend on each other.

    Args:
        p: p-values, 0 to 1.

    Returns:
        Adjusted p-values in the order of ``p``: reject what is at most the level wanted.

    Example:
        >>> holm([0.5, 0.01, 0.03])
        [0.5, 0.03, 0.06]
    """
    adjusted = [0.0] * len(p)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = least
    return adjusted
