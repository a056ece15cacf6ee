"""The passes over the base of a comparison, and the document of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool._version import __version__
from batchnorm_tool.commands.compare.pairs import Sample, StreamedBase, evenly_spread, set_facts
from batchnorm_tool.comparison.judgements import GradedJudgements, Judgements
from batchnorm_tool.comparison.metrics import (
    RBO_PERSISTENCE,
    Rankings,
    rank_correlation,
    to_json_value,
)
from batchnorm_tool.comparison.neighbours import neighbours
from batchnorm_tool.comparison.norm_survey import NormSurvey, measured, norms_to_measure
from batchnorm_tool.comparison.scores import Metric, Queries
from batchnorm_tool.comparison.verdict import (
    ComparisonDocument,
    ComparisonFigures,
    GroupedFigures,
    GroupFigures,
    Numbers,
    SurveyFigures,
    verdict,
)
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, warn
from batchnorm_tool.norms.norm import L1, L2, MAX, Float64s, Norm

if TYPE_CHECKING:
    from batchnorm_tool.commands.compare.queries import Groups, QuerySet, Relevance
    from batchnorm_tool.readers.source import PredictionBatch

Int64s = np.ndarray
# Ranks of more rows than that tell no more: their correlation is known to 0.002.
RANKED_ROWS = 262_144


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
    query_set: QuerySet,
    relevance: Relevance | None,
    rows: Int64s,
    groups: Groups | None,
    options: Options,
) -> ComparisonDocument:
    """Measure everything, and put it into the document of a comparison."""
    if query_set.source.width == 1:
        warn("The vectors have a single component: every norm except none makes them 1 or -1.")
    sampled = Sample(rows, np.empty((len(rows), query_set.source.width), query_set.source.dtype))
    is_graded = relevance is not None and isinstance(relevance.judgements, GradedJudgements)
    passed = first_pass(query_set, sampled, options.norms, all_lengths=is_graded)
    if not query_set.is_base:
        for batch in query_set.source.batches():
            sampled.add(batch)
    _check_depth(query_set, passed.survey, max(options.ks))
    usable = np.flatnonzero(np.isfinite(sampled.vectors).all(axis=1))
    if not len(usable):
        raise InputError(_no_queries(query_set, len(rows)))
    queries = Queries.of(sampled.vectors[usable], query_set.own_rows[rows[usable]])
    base = StreamedBase(query_set.base, passed.probe)
    found = neighbours(queries, base, options.norms, options.metric, max(options.ks))
    judgements = None if relevance is None else relevance.judgements.take(rows[usable])
    if judgements is not None and not (judgements.judged & (judgements.relevant > 0)).any():
        raise InputError(_nothing_relevant(query_set, len(usable)))
    rankings = Rankings(found, options.ks, query_set.base.rows, judgements, options.seed)
    document: ComparisonFigures = {
        **_facts(query_set, relevance, passed, options),
        "queries": _query_facts(rows, usable, rankings.judgements),
        **rankings.figures(),
        "by": _by(groups, usable, rankings),
        "popularity": _popularity(relevance, passed.lengths),
        "headline": None if relevance is None else f"precision@{rankings.headline_k}",
        "warnings": _warnings(rows, usable, relevance, rankings.judgements),
    }
    return {**document, "verdict": verdict(document).to_dict(), "seconds": 0.0}


def _check_depth(query_set: QuerySet, survey: NormSurvey, k: int) -> None:
    """Refuse more neighbours than there are finite rows."""
    finite = survey.rows - survey.missing - survey.nonfinite
    most = finite - query_set.is_base
    if k > most and finite < survey.rows:
        enough = f"`k` of at most {most:,}" if most > 0 else "finite vectors to compare"
        remedy = "Use a smaller `k`" if most > 0 else "Fix them, or choose another `column`"
        raise InputError(
            f"{query_set.base.name}: only finite rows can be neighbours, {finite:,} "
            f"of {survey.rows:,}. Expected: {enough}. Received: `k` {k:,}. {remedy}."
        )


def _nothing_relevant(query_set: QuerySet, queries: int) -> str:
    return (
        f"{query_set.source.name}: no row is relevant to any query of {queries:,}. Expected "
        "classes with several rows, or judgements above 0. Received: none. Choose another `label` "
        "or `relevance`."
    )


def _no_queries(query_set: QuerySet, drawn: int) -> str:
    received = "null, NaN or infinity in every one" if drawn else "a source without rows"
    return (
        f"{query_set.source.name}: no query of {drawn:,} can be used. Expected finite vectors. "
        f"Received: {received}. Inspect the file with `batchnorm-tool show`."
    )


def _facts(
    query_set: QuerySet, relevance: Relevance | None, passed: FirstPass, options: Options
) -> SurveyFigures:
    survey, ranked = passed.survey, _ranked(passed.lengths)
    return {
        "kind": "comparison",
        "version": __version__,
        "source": set_facts(query_set.base, survey),
        "queries_from": None if query_set.is_base else query_set.source.facts(),
        "metric": str(options.metric),
        "compared": [norm.label for norm in options.norms],
        "k": list(options.ks),
        "seed": options.seed,
        "relevance": None if relevance is None else relevance.facts,
        "norms": {label: stats.to_dict() for label, stats in survey.norms.items()},
        "rank_correlation": _correlations(ranked),
        "ranked_rows": len(ranked[MAX.label]),
        "unit_share": {norm.label: survey.unit[norm.label] / survey.rows for norm in (L1, L2, MAX)},
        "rbo_p": RBO_PERSISTENCE,
    }


def _ranked(lengths: Mapping[str, Float64s]) -> dict[str, Float64s]:
    """Return norms of finite rows whose ranks are compared, evenly spread if there are many."""
    finite = np.flatnonzero(np.isfinite(lengths[MAX.label]))
    some = finite[:: max(1, -(-len(finite) // RANKED_ROWS))]
    return {label: values[some] for label, values in lengths.items() if label != "none"}


def _correlations(ranked: Mapping[str, Float64s]) -> dict[str, Numbers]:
    return {
        one: {
            other: 1.0
            if one == other
            else to_json_value(rank_correlation(ranked[one], ranked[other]))
            for other in ranked
        }
        for one in ranked
    }


def _popularity(
    relevance: Relevance | None, lengths: Mapping[str, Float64s]
) -> dict[str, float | None] | None:
    """Correlate the ranks of rows' norms with the number of queries they are relevant to."""
    if relevance is None or not isinstance(relevance.judgements, GradedJudgements):
        return None
    known = relevance.judgements
    finite = np.isfinite(lengths[MAX.label])
    relevant = known.items[(known.items >= 0) & (known.item_grades > 0)]
    counts = np.bincount(relevant, minlength=len(finite)).astype(np.float64)[finite]
    return {
        label: to_json_value(rank_correlation(values[finite], counts))
        for label, values in lengths.items()
        if label != "none"
    }


def _query_facts(
    rows: Int64s, usable: Int64s, judgements: Judgements | None
) -> dict[str, int | None]:
    relevance = None if judgements is None else judgements.judged
    return {
        "rows": len(rows),
        "used": len(usable),
        "nonfinite": len(rows) - len(usable),
        "judged": None if relevance is None else int(relevance.sum()),
        "without_relevant": None
        if judgements is None
        else int(np.count_nonzero(judgements.judged & (judgements.relevant == 0))),
    }


def _by(groups: Groups | None, usable: Int64s, rankings: Rankings) -> GroupedFigures | None:
    if groups is None:
        return None
    found: list[GroupFigures] = []
    for name, members in groups.members.items():
        queries = np.flatnonzero(np.isin(usable, members))
        if len(queries):
            found.append({"group": name, "queries": len(queries), **rankings.figures(queries)})
    return {"column": groups.column, "kind": groups.kind, "groups": found}


def _warnings(
    rows: Int64s, usable: Int64s, relevance: Relevance | None, judgements: Judgements | None
) -> list[str]:
    warnings = []
    facts = relevance.facts if relevance else {}
    if judgements is not None:
        barren = int(np.count_nonzero(judgements.judged & (judgements.relevant == 0)))
        if barren:
            warnings.append(f"Judged queries without a relevant row, counted as 0: {barren:,}.")
    if facts.get("unknown_queries"):
        warnings.append(
            "Queries of the relevance file that are not among the queries, "
            f"ignored: {facts['unknown_queries']:,}."
        )
    lost = len(rows) - len(usable)
    if lost:
        warnings.append(f"Queries with null, NaN or infinity, ignored: {lost:,} of {len(rows):,}.")
    if facts.get("unknown_items"):
        warnings.append(
            "Items of the relevance file that are not in the base, counted as relevant rows that "
            f"no norm can find: {facts['unknown_items']:,}."
        )
    return warnings


@dataclass(frozen=True)
class FirstPass:
    """What the first pass over the base brings.

    Attributes:
        survey: Norms of all rows.
        probe: Rows spread evenly, by which the search begins.
        lengths: Norms of single rows by label: of all rows where all are wanted, else of some.
    """

    survey: NormSurvey
    probe: Sample
    lengths: Mapping[str, Float64s]


def first_pass(
    query_set: QuerySet, sampled: Sample, compared: Sequence[Norm], *, all_lengths: bool
) -> FirstPass:
    """Measure all rows of the base once; reading goes on meanwhile."""
    base = query_set.base
    norms = norms_to_measure(compared)
    samples = [evenly_spread(base), *([sampled] if query_set.is_base else [])]
    step = 1 if all_lengths else max(1, -(-base.rows // RANKED_ROWS))

    def measure(batch: PredictionBatch) -> tuple[NormSurvey, dict[str, Float64s]]:
        lengths = measured(batch.vectors, norms)
        for sample in samples:
            sample.add(batch)
        some = slice(-batch.first_row % step, None, step)
        return NormSurvey.of(lengths, batch.missing), {
            label: values[some].copy() for label, values in lengths.items()
        }

    nothing = measured(np.empty((0, base.width)), norms)
    survey = NormSurvey.of(nothing, np.zeros(0, bool))
    lengths = {label: [values] for label, values in nothing.items()}
    for found, some in map_in_order(measure, base.batches()):
        survey += found
        for label, values in some.items():
            lengths[label].append(values)
    joined = {label: np.concatenate(values) for label, values in lengths.items()}
    return FirstPass(survey, samples[0], joined)
