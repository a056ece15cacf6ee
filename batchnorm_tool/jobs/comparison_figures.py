"""The passes over the base of a comparison, and the document of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import batchnorm_tool
from batchnorm_tool.comparison.agreement import RBO_PERSISTENCE, rank_correlation
from batchnorm_tool.comparison.figures import Rankings, plain
from batchnorm_tool.comparison.judgements import GradedJudgements
from batchnorm_tool.comparison.neighbours import Queries, neighbours
from batchnorm_tool.comparison.verdict import verdict
from batchnorm_tool.errors import InputError
from batchnorm_tool.input_warnings import warn
from batchnorm_tool.jobs.neighbour_overlap import StreamedBase
from batchnorm_tool.jobs.norm_pass import RANKED_ROWS, FirstPass, first_pass
from batchnorm_tool.jobs.pairing import Sample
from batchnorm_tool.norms import L1, L2, MAX

if TYPE_CHECKING:
    from batchnorm_tool.comparison.judgements import Judgements
    from batchnorm_tool.comparison.norm_survey import NormSurvey
    from batchnorm_tool.comparison.similarity import Metric
    from batchnorm_tool.jobs.comparison_queries import Asking, Groups, Judged
    from batchnorm_tool.norms import Float64s, Norm

Int64s = np.ndarray


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Attributes:
        norms: Which are compared; the others are tested against the first one.
        metric: What the serving system ranks by.
        ks: Numbers of neighbours, ascending.
        seed: Of everything that is drawn.
    """

    norms: tuple[Norm, ...]
    metric: Metric
    ks: tuple[int, ...]
    seed: int


def document_of(
    asking: Asking, judged: Judged | None, rows: Int64s, groups: Groups | None, options: Options
) -> dict[str, Any]:
    """Measure everything, and put it into the document of a comparison.

    Args:
        asking: The base, and where queries come from.
        judged: What is relevant to whom, if that is known.
        rows: ``int64[q]``, the queries' rows in their source.
        groups: The queries by a column, if that is asked for.
        options: What is asked.

    Raises:
        InputError: No query can be used, or an input cannot be read.
        Damaged: A file of a run is missing, or cannot be read.
    """
    if asking.source.width == 1:
        warn("The vectors have one component: under every norm but none they become 1 or -1.")
    asked = Sample(rows, np.empty((len(rows), asking.source.width), asking.source.dtype))
    passed = first_pass(asking, asked, options.norms, all_lengths=_is_graded(judged))
    if not asking.is_base:
        for batch in asking.source.batches():
            asked.add(batch)
    _check_depth(asking, passed.survey, max(options.ks))
    usable = np.flatnonzero(np.isfinite(asked.vectors).all(axis=1))
    if not len(usable):
        raise InputError(_no_queries(asking, len(rows)))
    queries = Queries.of(asked.vectors[usable], asking.own_rows[rows[usable]])
    base = StreamedBase(asking.base, passed.probe)
    found = neighbours(queries, base, options.norms, options.metric, max(options.ks))
    judgements = None if judged is None else judged.judgements.take(rows[usable])
    if judgements is not None and not (judgements.judged & (judgements.relevant > 0)).any():
        raise InputError(_nothing_relevant(asking, len(usable)))
    rankings = Rankings(found, options.ks, asking.base.rows, judgements, options.seed)
    document = {
        **_facts(asking, judged, passed, options),
        "queries": _query_facts(rows, usable, rankings.judgements),
        **rankings.figures(),
        "by": _by(groups, usable, rankings),
        "popularity": _popularity(judged, passed.lengths),
        "headline": None if judged is None else f"precision@{rankings.headline_k}",
        "warnings": _warnings(rows, usable, judged, rankings.judgements),
    }
    return {**document, "verdict": verdict(document).to_dict()}


def _is_graded(judged: Judged | None) -> bool:
    return judged is not None and isinstance(judged.judgements, GradedJudgements)


def _check_depth(asking: Asking, survey: NormSurvey, k: int) -> None:
    """Refuse more neighbours than there are finite rows."""
    finite = survey.rows - survey.missing - survey.nonfinite
    most = finite - asking.is_base
    if k > most and finite < survey.rows:
        enough = f"`k` of at most {most:,}" if most > 0 else "finite vectors to compare"
        remedy = "Ask for fewer with `k`" if most > 0 else "Mend them, or name another `column`"
        msg = (
            f"{asking.base.path}: only {finite:,} of {survey.rows:,} rows are finite and can be "
            f"neighbours. Expected: {enough}. Received: `k` {k:,}. {remedy}."
        )
        raise InputError(msg)


def _nothing_relevant(asking: Asking, queries: int) -> str:
    return (
        f"{asking.source.path}: no row is relevant to any of the {queries:,} queries. Expected "
        "classes of several rows, or judgements above 0. Received: none. Name another `label` or "
        "`relevance`."
    )


def _no_queries(asking: Asking, drawn: int) -> str:
    received = "null, NaN or infinity in each of them" if drawn else "a source without rows"
    return (
        f"{asking.source.path}: none of the {drawn:,} queries can be used. Expected vectors of "
        f"finite numbers. Received: {received}. Look at the file with `batchnorm-tool show`."
    )


def _facts(
    asking: Asking, judged: Judged | None, passed: FirstPass, options: Options
) -> dict[str, Any]:
    survey, ranked = passed.survey, _ranked(passed.lengths)
    return {
        "kind": "comparison",
        "version": batchnorm_tool.__version__,
        "source": {
            **asking.base.facts(),
            "zero": survey.zero,
            "nonfinite": survey.nonfinite,
            "missing": survey.missing,
        },
        "queries_from": None if asking.is_base else asking.source.facts(),
        "metric": str(options.metric),
        "compared": [norm.label for norm in options.norms],
        "k": list(options.ks),
        "seed": options.seed,
        "relevance": None if judged is None else dict(judged.facts),
        "norms": {label: stats.to_dict() for label, stats in survey.norms.items()},
        "rank_correlation": _correlations(ranked),
        "ranked_rows": len(ranked[MAX.label]),
        "unit_share": {norm.label: survey.unit[norm.label] / survey.rows for norm in (L1, L2, MAX)},
        "rbo_p": RBO_PERSISTENCE,
    }


def _ranked(lengths: Mapping[str, Float64s]) -> dict[str, Float64s]:
    """Norms of finite rows whose ranks are compared, evenly spread where there are too many."""
    finite = np.flatnonzero(np.isfinite(lengths[MAX.label]))
    some = finite[:: max(1, -(-len(finite) // RANKED_ROWS))]
    return {label: values[some] for label, values in lengths.items() if label != "none"}


def _correlations(ranked: Mapping[str, Float64s]) -> dict[str, dict[str, float | None]]:
    return {
        one: {
            other: 1.0 if one == other else plain(rank_correlation(ranked[one], ranked[other]))
            for other in ranked
        }
        for one in ranked
    }


def _popularity(
    judged: Judged | None, lengths: Mapping[str, Float64s]
) -> dict[str, float | None] | None:
    """Rank correlation of each row's norm with the number of queries that it is relevant to."""
    if judged is None or not isinstance(judged.judgements, GradedJudgements):
        return None
    known = judged.judgements
    finite = np.isfinite(lengths[MAX.label])
    relevant = known.items[(known.items >= 0) & (known.item_grades > 0)]
    counts = np.bincount(relevant, minlength=len(finite)).astype(np.float64)[finite]
    return {
        label: plain(rank_correlation(values[finite], counts))
        for label, values in lengths.items()
        if label != "none"
    }


def _query_facts(
    rows: Int64s, usable: Int64s, judgements: Judgements | None
) -> dict[str, int | None]:
    judged = None if judgements is None else judgements.judged
    return {
        "rows": len(rows),
        "used": len(usable),
        "nonfinite": len(rows) - len(usable),
        "judged": None if judged is None else int(judged.sum()),
        "without_relevant": None
        if judgements is None
        else int(np.count_nonzero(judgements.judged & (judgements.relevant == 0))),
    }


def _by(groups: Groups | None, usable: Int64s, rankings: Rankings) -> dict[str, Any] | None:
    if groups is None:
        return None
    found = []
    for name, members in groups.members.items():
        queries = np.flatnonzero(np.isin(usable, members))
        if len(queries):
            found.append({"group": name, "queries": len(queries), **rankings.figures(queries)})
    return {"column": groups.column, "kind": groups.kind, "groups": found}


def _warnings(
    rows: Int64s, usable: Int64s, judged: Judged | None, judgements: Judgements | None
) -> list[str]:
    warnings = []
    facts = judged.facts if judged else {}
    if judgements is not None:
        barren = int(np.count_nonzero(judgements.judged & (judgements.relevant == 0)))
        if barren:
            warnings.append(f"Judged queries without a relevant row, which count as 0: {barren:,}.")
    if facts.get("unknown_queries"):
        warnings.append(
            "Queries of the relevance file that are not among the queries, and left out: "
            f"{facts['unknown_queries']:,}."
        )
    lost = len(rows) - len(usable)
    if lost:
        warnings.append(
            f"Queries that hold null, NaN or infinity, and are left out: {lost:,} of {len(rows):,}."
        )
    if facts.get("unknown_items"):
        warnings.append(
            "Items of the relevance file that are not in the base, and count as relevant rows that "
            f"no norm can find: {facts['unknown_items']:,}."
        )
    return warnings
