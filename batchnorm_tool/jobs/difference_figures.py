"""The figures of a difference between two sets of predictions, as one document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool import __version__
from batchnorm_tool.comparison.distribution import describe
from batchnorm_tool.comparison.drift import (
    centroid_shift,
    dimension_shift,
    frechet_distance,
    kolmogorov_smirnov_distance,
    population_stability_index,
)
from batchnorm_tool.comparison.movement import verdict_of
from batchnorm_tool.jobs.key_join import Join, join_keys, plain_keys
from batchnorm_tool.jobs.neighbour_overlap import (
    METRIC,
    Search,
    StreamedBase,
    draw,
    evenly_spread,
    measure_overlap,
)
from batchnorm_tool.jobs.pairing import MeasuredSet, Pairs, load, stream
from batchnorm_tool.jobs.vector_spaces import compare_spaces
from batchnorm_tool.norms import L2
from batchnorm_tool.stats_json import finite_or_none

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s
    from batchnorm_tool.predictions import Predictions

# Keys of rows that only one set has.
_EXAMPLES = 5
# Rows, and dimensions, that changed most.
_WORST = 10


@dataclass(frozen=True)
class Compared:
    """The rows that were compared.

    Attributes:
        join: All rows.
        rows: ``int64[n]``, their numbers in A, ascending.
        cosines: ``float64[n]``; NaN where a vector is zero.
        a_norms: ``float64[n]``, L2 norms in A.
        b_norms: ``float64[n]``, L2 norms in B.
    """

    join: Join
    rows: np.ndarray
    cosines: Float64s
    a_norms: Float64s
    b_norms: Float64s

    @classmethod
    def of(cls, join: Join, pairs: Pairs, a: MeasuredSet) -> Compared:
        """Pick the common rows that are finite on both sides."""
        common = join.common
        is_finite = a.finite[common] & np.isfinite(pairs.norms[join.partners[common]])
        rows = common[is_finite]
        b_norms = pairs.norms[join.partners[rows]]
        return cls(join, rows, pairs.cosines[rows], a.norms[rows], b_norms)

    def worst(self) -> list[dict[str, Any]]:
        """The rows that turned most, as plain data; none that did not turn at all."""
        order = np.argsort(self.cosines, kind="stable")[:_WORST]  # NaN last
        chosen = order[self.cosines[order] < 1]
        keys = plain_keys(self.join.a_keys, self.rows[chosen])
        return [
            {"key": key, "cosine": float(cosine), "norm_a": float(a), "norm_b": float(b)}
            for key, cosine, a, b in zip(
                keys,
                self.cosines[chosen],
                self.a_norms[chosen],
                self.b_norms[chosen],
                strict=True,
            )
        ]

    def ratios(self) -> Float64s:
        """Lengths in B over lengths in A, where that is not zero."""
        is_long = self.a_norms > 0
        with np.errstate(over="ignore"):
            return np.asarray(self.b_norms[is_long] / self.a_norms[is_long])


def compare_sets(a: Predictions, b: Predictions, search: Search) -> tuple[dict[str, Any], Compared]:
    """Hold two sets of vectors of equal width against each other.

    Args:
        a: What was before; streamed three to four times.
        b: What is now; held in memory.
        search: Which neighbours are looked for.

    Returns:
        The document of a difference, and the rows that were compared.

    Raises:
        InputError: A key is null or occurs twice, no row is in both, or a file cannot be read.
        Damaged: A file of a run is missing, or cannot be read.
    """
    join = join_keys(a, b)
    vectors, b_set = load(b)
    pairs = Pairs(join.partners, vectors, b_set.norms)
    sample = draw(join, pairs, search)
    probe = evenly_spread(a)
    a_set = stream(a, pairs, sample, probe)
    compared = Compared.of(join, pairs, a_set)
    found = measure_overlap(StreamedBase(a, probe), sample, pairs, search)
    spaces = compare_spaces(a, b)
    document: dict[str, Any] = {
        "kind": "diff",
        "version": __version__,
        "a": _facts(a, a_set),
        "b": _facts(b, b_set),
        "same_space": spaces.same,
        **_rows(join, compared, pairs.identical),
        "cosine": describe(compared.cosines, most=1.0),
        "worst": compared.worst(),
        "norm_ratio": describe(compared.ratios()),
        **_drift(a_set, b_set),
        "overlap": found.by_k,
        "sample": found.queries,
        "k": list(search.ks),
        "seed": search.seed,
        "metric": str(METRIC),
    }
    document["verdict"] = verdict_of(document, spaces.words)
    document["warnings"] = [*_joined_by_number(a, b), *_warnings(document, compared)]
    return document, compared


def _rows(join: Join, compared: Compared, identical: int) -> dict[str, Any]:
    added, removed = join.added, join.removed
    return {
        "rows": {
            "a": join.a_keys.num_rows,
            "b": join.b_keys.num_rows,
            "common": len(join.common),
            "added": len(added),
            "removed": len(removed),
            "compared": len(compared.rows),
            "identical": identical,
        },
        "examples": {
            "added": plain_keys(join.b_keys, added[:_EXAMPLES]),
            "removed": plain_keys(join.a_keys, removed[:_EXAMPLES]),
        },
    }


def _facts(predictions: Predictions, measured: MeasuredSet) -> dict[str, Any]:
    survey = measured.survey
    counts = {"zero": survey.zero, "nonfinite": survey.nonfinite, "missing": survey.missing}
    return {**predictions.facts(), **counts}


def _drift(a: MeasuredSet, b: MeasuredSet) -> dict[str, Any]:
    """How the two sets differ as distributions; nothing where one has no finite vector."""
    norms = [side.survey.norms[L2.label].to_dict() for side in (a, b)]
    lengths = [side.norms[side.finite] for side in (a, b)]
    if not all(map(len, lengths)):
        return {
            "norms": {"a": norms[0], "b": norms[1], "psi": None, "ks": None},
            "centroid": {"shift": None, "relative": None, "cosine": None},
            "dimensions": {"shift": [], "largest": []},
            "frechet": None,
        }
    centroid = centroid_shift(a.gaussian, b.gaussian)
    return {
        "norms": {
            "a": norms[0],
            "b": norms[1],
            "psi": population_stability_index(*lengths),
            "ks": kolmogorov_smirnov_distance(*lengths),
        },
        "centroid": {name: finite_or_none(value) for name, value in vars(centroid).items()},
        "dimensions": _dimensions(dimension_shift(a.gaussian, b.gaussian)),
        "frechet": finite_or_none(frechet_distance(a.gaussian, b.gaussian)),
    }


def _dimensions(shift: Float64s) -> dict[str, Any]:
    order = np.argsort(-np.abs(shift), kind="stable")[:_WORST]  # NaN last
    largest = [
        {"dimension": int(at), "shift": float(shift[at])}
        for at in order
        if math.isfinite(shift[at])
    ]
    return {"shift": [finite_or_none(value) for value in shift.tolist()], "largest": largest}


def _joined_by_number(a: Predictions, b: Predictions) -> Iterator[str]:
    """Tell of rows that have no key, where a column that both have may be one."""
    shared = [name for name in a.columns if name in b.columns]
    if shared and not (a.key or b.key):
        listed = ", ".join(f"`{name}`" for name in shared)
        yield f"Rows are joined by their number. If one of {listed} names a row, name it as `key`."


def _warnings(document: Mapping[str, Any], compared: Compared) -> Iterator[str]:
    rows = document["rows"]
    lost = rows["common"] - rows["compared"]
    if lost:
        yield (
            f"{lost:,} common rows are not compared: on one side at least, the vector is missing "
            "or holds NaN or infinity."
        )
    directionless = int(np.count_nonzero(np.isnan(compared.cosines)))
    if directionless:
        yield f"{directionless:,} compared rows have no cosine: a vector is zero on one side."
    sides = document["a"], document["b"]
    norms = [side["provenance"]["norm"] for side in sides if side["kind"] == "run"]
    if len(set(norms)) > 1:
        yield (
            f"A was normalized by {norms[0]} and B by {norms[1]}; what is compared are their raw "
            "predictions, which no norm changes."
        )
    if document["same_space"] is False:
        yield (
            "Cosines between two vector spaces mean little: read the overlap of neighbours, which "
            "is taken within each set."
        )
