"""How good a ranking is: precision, recall, nDCG, MRR and MAP of each query.

The definitions are trec_eval's, as ir-measures gives them: ``P@k``, ``R@k``, ``nDCG@k``, ``RR@k``
and ``AP@k``. A row is relevant where its grade is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.comparison.judgements import Int64s, Judgements
    from batchnorm_tool.norms import Float64s


def quality(judgements: Judgements, rows: Int64s, ks: Sequence[int]) -> dict[str, Float64s]:
    """Measure the rankings of queries, at several depths.

    - ``precision@k``: share of the first k ranks that are relevant.
    - ``recall@k``: share of the relevant rows that are in the first k ranks.
    - ``ndcg@k``: sum of ``grade / log2(rank + 1)`` over that of the ideal ranking (Järvelin and
      Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, ACM TOIS 20(4), 2002, with the
      discount that trec_eval has made usual).
    - ``mrr@k``: one over the rank of the first relevant row, 0 where the first k have none.
    - ``map@k``: sum of the precisions at relevant ranks up to k, over the number of relevant rows.

    Args:
        judgements: Of q queries.
        rows: int64[q, kmax], each query's neighbours, nearest first, each once; -1 where there are
            no more.
        ks: Depths, each from 1 to ``kmax``.

    Returns:
        float64[q] for each of ``"precision@1"`` and so on, metric by metric. NaN for a query that
        is not judged; 0 for a judged one without relevant rows.

    Example:
        >>> from batchnorm_tool.comparison.judgements import LabelJudgements
        >>> labels = LabelJudgements(np.array([1]), np.array([1, 0, 1, 1]), np.array([0]))
        >>> measured = quality(labels, np.array([[2, 1, 3]]), [2])
        >>> {name: values.tolist() for name, values in measured.items()}
        {'precision@2': [0.5], 'recall@2': [0.5], 'ndcg@2': [0.613...], 'mrr@2': [1.0],
         'map@2': [0.5]}
    """
    curves = _curves(judgements, judgements.grades(rows[:, : max(ks)]))
    judged = judgements.judged
    return {
        f"{metric}@{k}": np.where(judged, curve[:, k - 1], np.nan)
        for metric, curve in curves.items()
        for k in ks
    }


def _curves(judgements: Judgements, grades: Float64s) -> dict[str, Float64s]:
    """Every metric at every depth: float64[q, k]."""
    hits = grades > 0
    relevant = judgements.relevant[:, None]
    ranks = np.arange(1, grades.shape[1] + 1)
    discounts = np.log2(ranks + 1)
    found = np.cumsum(hits, axis=1, dtype=np.int64)
    precision = found / ranks
    gains = np.cumsum(grades / discounts, axis=1)
    most = np.cumsum(judgements.ideal(len(ranks)) / discounts, axis=1)
    return {
        "precision": precision,
        "recall": _shares(found, relevant),
        "ndcg": _shares(gains, most),
        "mrr": np.maximum.accumulate(hits / ranks, axis=1),
        "map": _shares(np.cumsum(hits * precision, axis=1), relevant),
    }


def _shares(parts: Float64s | Int64s, wholes: Float64s | Int64s) -> Float64s:
    """Parts over wholes, 0 where the whole is 0."""
    shares = np.zeros(parts.shape)
    return np.divide(parts, wholes, out=shares, where=wholes > 0)
