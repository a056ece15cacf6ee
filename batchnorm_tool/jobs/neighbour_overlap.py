"""How many of a row's nearest neighbours stay the same from one set of vectors to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.comparison.agreement import overlap
from batchnorm_tool.comparison.neighbours import ArrayBase, Queries, neighbours
from batchnorm_tool.comparison.resampling import bootstrap
from batchnorm_tool.comparison.similarity import Metric
from batchnorm_tool.errors import InputError
from batchnorm_tool.jobs.pairing import Pairs, Sample
from batchnorm_tool.norms import Norm

if TYPE_CHECKING:
    from batchnorm_tool.comparison.neighbours import Base
    from batchnorm_tool.jobs.key_join import Join
    from batchnorm_tool.norms import Anything
    from batchnorm_tool.predictions import Predictions

METRIC = Metric.COSINE
"""Whatever norm a set is served with, its raw vectors have these neighbours by direction."""

_NONE = Norm("none")
# What a search in memory looks at first; more of them make it no faster.
_PROBED_ROWS = 4096


@dataclass(frozen=True)
class Search:
    """Which neighbours are looked for.

    Attributes:
        ks: How many of them, ascending.
        sample: Of how many rows.
        seed: Of the sample, and of the intervals.
    """

    ks: tuple[int, ...]
    sample: int
    seed: int


def check_depth(search: Search, *sets: Predictions) -> None:
    """Refuse to look for more neighbours than a set has.

    Raises:
        InputError: It has too few rows.
    """
    most = search.ks[-1]
    for side in sets:
        if search.sample and most >= side.rows:
            msg = (
                f"{side.path}: has {side.rows:,} rows, and `k` asks for the {most:,} nearest of "
                f"the others. Expected: `k` of at most {max(0, side.rows - 1):,}. "
                f"Received: {most:,}. Ask for fewer with `k`, or for none with `sample` 0."
            )
            raise InputError(msg)


def draw(join: Join, pairs: Pairs, search: Search) -> Sample:
    """Draw common rows whose neighbours are looked for.

    Args:
        join: The common rows.
        pairs: B's vectors; only rows that are finite there are drawn. About A nothing is known yet.
        search: How many, and the seed.
    """
    common = join.common
    candidates = common[np.isfinite(pairs.norms[join.partners[common]])]
    size = min(search.sample, len(candidates))
    chosen = np.random.default_rng(search.seed).choice(candidates, size, replace=False)
    return Sample(np.sort(chosen), np.empty((size, pairs.vectors.shape[1])))


@dataclass(frozen=True)
class StreamedBase:
    """A set that is read anew whenever its rows are asked for, as a base for `neighbours`.

    Attributes:
        predictions: The set.
        probe: Rows of it, spread evenly.
    """

    predictions: Predictions
    probe: Sample

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.predictions.rows

    def blocks(self) -> Iterator[Anything]:
        """The rows in order."""
        return (batch.vectors for batch in self.predictions.batches())

    def sample(self, rows: int) -> Anything:  # noqa: ARG002  (a hint)
        """Some rows, spread evenly."""
        return self.probe.vectors


def evenly_spread(predictions: Predictions) -> Sample:
    """Rows of a set at equal distances, about 4,096 of them."""
    step = -(-predictions.rows // _PROBED_ROWS)
    rows = np.arange(0, predictions.rows, max(1, step))
    return Sample(rows, np.empty((len(rows), predictions.width), predictions.dtype))


@dataclass(frozen=True)
class Overlap:
    """Overlap of neighbours.

    Attributes:
        queries: Rows whose neighbours were looked for.
        by_k: ``value``, ``low`` and ``high`` for each number of neighbours; ``None`` without
            queries.
    """

    queries: int
    by_k: dict[str, dict[str, float]] | None


def measure_overlap(base: Base, sample: Sample, pairs: Pairs, search: Search) -> Overlap:
    """Measure how many nearest neighbours a row has in common within A and within B.

    Args:
        base: All rows of A.
        sample: The rows that are asked for; those that are not finite are left out.
        pairs: Which row of A is which of B, and all rows of B.
        search: How many neighbours.
    """
    is_finite = np.isfinite(sample.vectors).all(axis=1)
    rows, queries, most = sample.rows[is_finite], sample.vectors[is_finite], search.ks[-1]
    if not len(rows):
        return Overlap(0, None)
    partners, other = pairs.partners[rows], ArrayBase(pairs.vectors)
    of_a = neighbours(Queries.of(queries, rows), base, [_NONE], METRIC, most)
    asked = Queries.of(pairs.vectors[partners], partners)
    of_b = neighbours(asked, other, [_NONE], METRIC, most)
    found, expected = _as_rows_of_b(of_a[_NONE.label], pairs), of_b[_NONE.label]
    shares = np.column_stack([overlap(found, expected, k) for k in search.ks])
    low, high = bootstrap(shares, search.seed)
    figures = zip(shares.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    by_k = {
        str(k): dict(zip(("value", "low", "high"), each, strict=True))
        for k, each in zip(search.ks, figures, strict=True)
    }
    return Overlap(len(rows), by_k)


def _as_rows_of_b(rows: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Rows of A as those of B; one that B lacks gets a number that no row of B has."""
    partners = pairs.partners[rows]
    gone = len(pairs.vectors) + rows
    return np.where(rows < 0, -1, np.where(partners < 0, gone, partners))
