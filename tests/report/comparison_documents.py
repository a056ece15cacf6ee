"""Documents of comparisons, made from random predictions in the format of the job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchnorm_tool.norms.stats import NormStats

NORMS = ("none", "l1", "l2", "max")
KS = (1, 5, 10, 100)
FAMILIES = ("precision", "recall", "ndcg", "mrr", "map")
BASE = {"none": 0.70, "l1": 0.89, "l2": 0.96, "max": 0.705, "lp:3": 0.95}


def predictions(rows: int = 1797, width: int = 64, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(0.4, 1.0, (rows, width)) * generator.lognormal(1.0, 0.4, (rows, 1))
    vectors[rows // 3] = 0
    return vectors


def norm_stats(vectors: np.ndarray, norm: str) -> dict[str, Any]:
    order = {"l1": 1, "l2": 2, "max": math.inf, "lp:3": 3}[norm]
    return NormStats.of(np.linalg.norm(vectors, ord=order, axis=1)).to_dict()


def facts(path: str, rows: int = 1797, width: int = 64) -> dict[str, Any]:
    provenance = {"space": "5f" * 32, "model": "/models/encoder.keras", "norm": "l2"}
    return {
        "path": path,
        "kind": "run",
        "rows": rows,
        "width": width,
        "dtype": "float32",
        "key": ["id"],
        "column": "vector",
        "provenance": provenance,
    }


def quality(norms: Sequence[str], ks: Sequence[int], lift: float = 0.0) -> dict[str, Any]:
    """Values that grow or fall with k as those of real metrics do."""
    return {
        norm: {
            f"{family}@{k}": _value(norm, place, math.log10(k), lift)
            for place, family in enumerate(FAMILIES)
            for k in ks
        }
        for norm in norms
    }


def _value(norm: str, place: int, depth: float, lift: float) -> dict[str, float]:
    slope = (-0.05, -0.3, -0.02, 0.01, -0.1)[place]
    value = min(max(BASE[norm] + lift - 0.02 * place + slope * depth, 0.02), 0.99)
    reach = 0.02 * math.sqrt(value * (1 - value)) + 0.004
    return {"value": value, "low": value - reach, "high": value + reach}


def significance(values: dict[str, Any]) -> dict[str, Any]:
    first, *others = values
    return {"against": first} | {
        norm: {
            metric: {
                "difference": its["value"] - values[first][metric]["value"],
                "low": its["value"] - values[first][metric]["value"] - 0.011,
                "high": its["value"] - values[first][metric]["value"] + 0.012,
                "p": 0.0001 if norm != "max" else 0.21,
                "p_holm": 0.0003 if norm != "max" else 0.21,
            }
            for metric, its in values[norm].items()
        }
        for norm in others
    }


def agreement(norms: Sequence[str], ks: Sequence[int]) -> dict[str, Any]:
    def shared(one: str, other: str, k: int) -> float:
        return 1.0 if one == other else round(0.9 - abs(BASE[one] - BASE[other]) * 2 - 0.05 / k, 4)

    every = {
        one: {other: {str(k): shared(one, other, k) for k in ks} for other in norms}
        for one in norms
    }
    return {
        "overlap": every,
        "rbo": {one: {other: shared(one, other, 3) for other in norms} for one in norms},
        "hubness": {
            norm: {
                "k": 10,
                "skewness": 6 * (1 - BASE[norm]) + 0.3,
                "antihubs": 1 - BASE[norm],
                "largest": 310 - place * 40,
            }
            for place, norm in enumerate(norms)
        },
    }


def comparison(
    norms: Sequence[str] = NORMS, ks: Sequence[int] = KS, *, judged: bool = True
) -> dict[str, Any]:
    """A comparison of digits under the dot product, in which l2 is best."""
    vectors = predictions()
    measured = [norm for norm in ("l1", "l2", "max", "lp:3") if norm != "lp:3" or norm in norms]
    values = quality(norms, ks) if judged else None
    return {
        "kind": "comparison",
        "version": "0.1.0",
        "source": facts("/data/runs/digits") | {"zero": 1, "nonfinite": 0, "missing": 0},
        "queries_from": None,
        "metric": "dot",
        "compared": list(norms),
        "k": list(ks),
        "seed": 0,
        "queries": {"rows": 1797, "used": 1797, "nonfinite": 0, "judged": 1797 if judged else 0}
        | {"without_relevant": 3 if judged else 0},
        "relevance": {"kind": "labels", "column": "label", "classes": 10} if judged else None,
        "norms": {norm: norm_stats(vectors, norm) for norm in measured},
        "rank_correlation": {
            one: {
                other: 1.0 if other == one else 0.98 - 0.01 * (len(one) + len(other))
                for other in measured
            }
            for one in measured
        },
        "ranked_rows": 1797,
        "unit_share": dict.fromkeys(measured, 0.0),
        **agreement(norms, ks),
        "rbo_p": 0.9,
        "popularity": None,
        "quality": values,
        "tests": significance(values) if values and len(norms) > 1 else None,
        "by": None,
        "verdict": _better() if judged else _unjudged(),
        "headline": f"precision@{10 if 10 in ks else ks[0]}" if judged else None,
        "warnings": [],
        "seconds": 1.9,
    }


def _better() -> dict[str, Any]:
    return {
        "norm": "l2",
        "kind": "better",
        "words": "Normalize by l2: precision@10 is 0.963 (0.955 to 0.970), against 0.702 (0.690 to "
        "0.714) with none.",
        "reason": "The difference of +0.261 (95 % interval +0.249 to +0.273) over 1,797 judged "
        "queries is significant (p below 0.001, corrected for the number of norms). Next best is "
        "l1, 0.073 lower.",
        "cost": "Stored vectors and the index must be rebuilt; 38.0 % of the 10 nearest rows stay "
        "the same. A row's length then no longer affects its rank.",
        "notes": [
            (
                "Under dot product the query's own norm cannot change a ranking: it scales all "
                "scores of that query equally. Only the norms of the stored rows matter."
            )
        ],
    }


def _unjudged() -> dict[str, Any]:
    return {
        "norm": None,
        "kind": "not judged",
        "words": "The norm changes the neighbours, but there is no ground truth to say which are "
        "right. Add classes with `--label`, or judgements with `--relevance`.",
        "reason": "Share of the 10 nearest rows in common with none: l1 0.52, l2 0.38, max 0.89.",
        "cost": "",
        "notes": [],
    }


def under_cosine() -> dict[str, Any]:
    document = comparison()
    document["metric"] = "cosine"
    for name in ("overlap", "rbo"):
        document[name] = {
            one: {other: {str(k): 1.0 for k in KS} if name == "overlap" else 1.0 for other in NORMS}
            for one in NORMS
        }
    document["quality"] = dict.fromkeys(NORMS, document["quality"]["l2"])
    document["tests"] = None
    document["hubness"] = dict.fromkeys(NORMS, document["hubness"]["l2"])
    document["verdict"] = {
        "norm": None,
        "kind": "cannot matter",
        "words": "The norm makes no difference: the serving system ranks by cosine.",
        "reason": "Cosine divides every vector by its L2 norm before it compares.",
        "cost": "",
        "notes": [],
    }
    return document


def by_column(groups: Sequence[str] | None = None, *, judged: bool = True) -> dict[str, Any]:
    """The comparison broken down by deciles, or by the values that are given."""
    document = comparison(judged=judged)
    edges = [f"[{low / 10:.1f}, {low / 10 + 0.1:.1f})" for low in range(10)]
    names = edges if groups is None else groups
    document["by"] = {
        "column": "height" if groups is None else "label",
        "kind": "deciles" if groups is None else "values",
        "groups": [
            {"group": name, "queries": 180 - place}
            | {"quality": quality(NORMS, KS, -0.01 * (place % 20)) if judged else None}
            | agreement(NORMS, KS)
            for place, name in enumerate(names)
        ],
    }
    return document


def with_clicks() -> dict[str, Any]:
    document = comparison((*NORMS, "lp:3"))
    document["queries_from"] = facts("/data/queries.parquet", 800) | {"kind": "data"}
    document["relevance"] = {
        "kind": "file",
        "path": "/data/clicks.csv",
        "pairs": 12345,
        "unknown_items": 17,
        "unknown_queries": 2,
        "clicks": True,
    }
    document["popularity"] = {"l1": 0.31, "l2": 0.33, "max": 0.28, "lp:3": 0.3}
    document["warnings"] = ["17 items of `/data/clicks.csv` are not among the vectors."]
    return document


def full_of_gaps() -> dict[str, Any]:
    """A comparison in which nothing could be measured, although everything was asked for."""
    document = by_column(["a", "b"])
    nothing = {"value": None, "low": None, "high": None}
    untested = {"difference": None, "low": None, "high": None, "p": None, "p_holm": None}
    for holder in (document, *document["by"]["groups"]):
        holder["quality"] = {n: dict.fromkeys(m, nothing) for n, m in document["quality"].items()}
        same = {n: {o: 1.0 if n == o else None for o in NORMS} for n in NORMS}
        holder["overlap"] = {
            n: {o: dict.fromkeys(map(str, KS), same[n][o]) for o in NORMS} for n in NORMS
        }
        holder["rbo"] = same
        unknown = {"k": 10, "skewness": None, "antihubs": math.nan, "largest": 1}
        holder["hubness"] = dict.fromkeys(NORMS, unknown)
    for norm in NORMS[1:]:
        document["tests"][norm] = dict.fromkeys(document["tests"][norm], untested)
    measured = list(document["norms"])
    document["norms"] = {norm: NormStats().to_dict() for norm in measured}
    document["rank_correlation"] = {
        one: {other: 1.0 if one == other else None for other in measured} for one in measured
    }
    document["unit_share"] = dict.fromkeys(measured)
    document["popularity"] = dict.fromkeys(measured)
    return document
