"""Documents of diffs, made from random predictions in the format of the job."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from batchnorm_tool.norms.stats import NormStats
from tests.report.comparison_documents import facts, predictions


def _figures(values: np.ndarray, bars: int = 40) -> dict[str, Any]:
    counts, edges = np.histogram(values, bars)
    shares = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {share: float(np.quantile(values, float(share))) for share in shares},
        "histogram": [
            [float(low), float(high), int(amount)]
            for (low, high), amount in zip(itertools.pairwise(edges), counts, strict=True)
        ],
    }


def difference(width: int = 64) -> dict[str, Any]:
    """A diff of two nights of which the second has other vectors in a few dimensions."""
    one = predictions(1797, width)
    two = one + np.random.default_rng(1).normal(0, 0.3, one.shape)
    two[:, 3] += 1.5
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(two, axis=1)
    alive = norms[0] > 0
    dots = np.einsum("ij,ij->i", one, two)[alive]
    cosines = dots / (norms[0] * norms[1])[alive]
    shift = (two.mean(axis=0) - one.mean(axis=0)) / one.std(axis=0)
    worst = np.argsort(cosines)[:10]
    largest = np.argsort(-np.abs(shift))[:10]
    return {
        "kind": "diff",
        "version": "0.1.0",
        "a": facts("/data/runs/monday", width=width),
        "b": facts("/data/runs/tuesday", 1801, width),
        "same_space": True,
        "rows": {"a": 1797, "b": 1801, "common": 1797, "added": 4, "removed": 0}
        | {"compared": 1795, "identical": 12, "zero": 0},
        "examples": {"added": ["a-1797", "a-1798", "a-1799", "a-1800"], "removed": []},
        "cosine": _figures(cosines),
        "worst": [
            {"key": f"a-{row}", "cosine": float(cosines[row])}
            | {"norm_a": float(norms[0][alive][row]), "norm_b": float(norms[1][alive][row])}
            for row in worst
        ],
        "norm_ratio": _figures(norms[1][alive] / norms[0][alive]),
        "norms": {
            "a": NormStats.of(norms[0]).to_dict(),
            "b": NormStats.of(norms[1]).to_dict(),
            "psi": 0.012,
            "ks": 0.0312,
        },
        "centroid": {"shift": 1.51, "relative": 0.0731, "cosine": 0.9981},
        "dimensions": {
            "shift": shift.tolist(),
            "largest": [{"dimension": int(d), "shift": float(shift[d])} for d in largest],
        },
        "frechet": 2.41,
        "overlap": {
            str(k): {"value": value, "low": value - 0.012, "high": value + 0.011}
            for k, value in ((1, 0.95), (5, 0.93), (10, 0.92), (100, 0.9))
        },
        "sample": 1000,
        "k": [1, 5, 10, 100],
        "metric": "cosine",
        "verdict": {
            "kind": "moved",
            "words": "The vectors moved: half of the common rows have a cosine below 0.9962, and "
            "92 % of the 10 nearest neighbours stay.",
        },
        "warnings": [],
        "seconds": 0.8,
    }


def nothing_in_common() -> dict[str, Any]:
    """A diff of two sets without a common key."""
    document = difference()
    empty: dict[str, Any] = dict.fromkeys(("mean", "min", "max"))
    quantiles = dict.fromkeys(document["cosine"]["quantiles"])
    empty |= {"count": 0, "quantiles": quantiles, "histogram": []}
    document |= {"cosine": empty, "norm_ratio": empty, "worst": [], "overlap": None}
    document |= {"frechet": None, "same_space": None}
    document["centroid"] = dict.fromkeys(document["centroid"])
    document["rows"] |= {
        "common": 0,
        "compared": 0,
        "identical": 0,
        "zero": 0,
        "added": 1801,
        "removed": 1797,
    }
    document["dimensions"] = {"shift": [None] * 64, "largest": []}
    document["norms"] |= {"psi": None, "ks": None}
    document["a"] |= {"provenance": None, "key": [], "column": [], "kind": "data"}
    return document
