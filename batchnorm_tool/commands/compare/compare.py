"""Which normalization serves stored predictions: several norms compared over the same vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool._version import __version__
from batchnorm_tool.commands.compare import sets
from batchnorm_tool.commands.compare.queries import Groups, QuerySet, Relevance, relevance_of
from batchnorm_tool.commands.compare.sets import Figures, Sample
from batchnorm_tool.comparison import verdict
from batchnorm_tool.comparison.judgements import GradedJudgements, Judgements
from batchnorm_tool.comparison.metrics import RBO_PERSISTENCE, Rankings, rank_correlation
from batchnorm_tool.comparison.neighbours import Queries
from batchnorm_tool.comparison.norm_survey import NormSurvey, measured, norms_to_measure
from batchnorm_tool.comparison.scores import Metric
from batchnorm_tool.comparison.variants import (
    Variant,
    by_plain_norm,
    fit,
    variant_neighbours,
    variants_of,
)
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import InputError, capture_warnings, warn
from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Float64s, Norm
from batchnorm_tool.readers.vectors import checked_ks, checked_whole, several

if TYPE_CHECKING:
    import pandas as pd

    from batchnorm_tool.comparison.verdict import ComparisonDocument, ComparisonFigures, Numbers
    from batchnorm_tool.readers.source import PredictionBatch

Int64s = np.ndarray
DEFAULT_NORMS = ("none", "l1", "l2", "max")
DEFAULT_K = (1, 5, 10, 100)
DEFAULT_SAMPLE = 2000
# Ranks of more rows than that tell no more: their correlation is known to 0.002.
RANKED_ROWS = 262_144


@dataclass(frozen=True)
class Comparison(Figures):
    """What several norms make of the same predictions."""

    _document: ComparisonDocument

    def __repr__(self) -> str:
        norms = ", ".join(self._document["compared"])
        return f"Comparison({norms}; {self._document['verdict']['kind']})"

    def to_pandas(self) -> pd.DataFrame:
        """Return the figures one below the other.

        Its columns: ``group`` (``all``, or a group of ``by``), ``norm``, ``metric`` (of quality,
        ``overlap@K`` and ``rbo`` with the first norm, ``skewness``, ``antihubs``), ``value``, and
        ``low`` and ``high`` where there is a 95 % interval.
        """
        import pandas as pd

        groups = (self._document["by"] or {"groups": []})["groups"]
        named = [("all", self._document), *((one["group"], one) for one in groups)]
        first = self._document["compared"][0]
        rows = [row for name, figures in named for row in _rows(name, figures, first)]
        return pd.DataFrame(rows, columns=["group", "norm", "metric", "value", "low", "high"])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``comparison.json`` and ``comparison.html`` into a directory, made if need be.

        Raises:
            OutputError: They cannot be written.
        """
        from batchnorm_tool.report.compare_page import comparison_page

        self._save(directory, "comparison", comparison_page(self._document))


def compare(  # noqa: PLR0913  (each is a flag of the command)
    source: str | os.PathLike[str] | Anything,
    *,
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    label: str | None = None,
    queries: str | os.PathLike[str] | Anything | None = None,
    relevance: str | os.PathLike[str] | None = None,
    relevance_columns: Sequence[str] | None = None,
    by: str | None = None,
    norms: Sequence[str] = DEFAULT_NORMS,
    metric: str = "dot",
    k: Sequence[int] | None = None,
    sample: int | None = DEFAULT_SAMPLE,
    seed: int = 0,
    mixed_spaces: bool = False,
) -> Comparison:
    """Find the best normalization for stored predictions, and how sure that is.

    The base is always whole. It is read in blocks and never held in memory: three times, or more
    often where there are thousands of queries.

    Args:
        source: The predictions: a Parquet, Arrow or NPY file, a directory or a glob of them, the
            output directory of a finished run (its raw predictions are restored), or an array
            ``[n, d]``.
        column: The column of the vectors, or several scalar ones; of a run its output. Default: the
            only one that there is. It and ``key`` are those of ``source`` and ``queries`` alike,
            where these are files.
        key: The column that names a row; default: a run's own key, else the row number, as always
            in an array.
        label: A column with a class for each row: rows of the same class are relevant.
        queries: Vectors in a second file, or array, that are asked with; default: rows of
            ``source``, which are then not their own neighbours.
        relevance: A file of judgements (Parquet, CSV or TREC qrels), by the keys of queries and
            rows.
        relevance_columns: Names of its columns for query, item and, if there is one, grade.
        by: A column of the queries: every figure also for each of its values, or tenths.
        norms: Names of norms, which may have options: ``"l2:256"`` keeps 256 components,
            ``"l2+mean"`` projects the rows' mean direction off, ``"l2+int8"`` and ``"l2+binary"``
            quantize, and ``"l2:256+mean+int8"`` does all; ``"power:0.5"`` divides by that power of
            the L2 norm. The others are tested against the first one, and those with options
            against their own norm without, where it is compared.
        metric: What the serving system ranks by: ``"dot"``, ``"euclidean"`` or ``"cosine"``.
        k: Numbers of neighbours; default: those of 1, 5, 10 and 100 that the base has.
        sample: Queries at most, drawn at random; ``None`` for all rows.
        seed: Of the draw, the intervals and the tests.
        mixed_spaces: Compare vectors of two spaces, such as those of two models, all the same.

    Returns:
        The comparison: a verdict, and the figures behind it.

    Raises:
        InputError: An input cannot be read, spaces or widths differ, labels hold nulls, keys do not
            match, or the base has fewer rows than ``k`` asks for.
        JobError: There is no such norm or metric, or arguments contradict one another.
        Damaged: The manifest or a file of a run is damaged.

    Example:
        >>> found = compare("data_samples/digits_predictions.parquet", key="id", k=[10], sample=200)
        >>> found.to_dict()["overlap"]["none"]["none"]["10"]
        1.0
    """
    started = time.perf_counter()
    warnings: list[str] = []
    with capture_warnings(warnings.append):
        query_set = QuerySet.open(source, queries, column, key, mixed_spaces=mixed_spaces)
        options = _Options(
            variants_of(several(norms), query_set.base.width, query_set.base.name),
            Metric.parse(metric),
            _depths(k, query_set),
            checked_whole("seed", seed),
        )
        size = None if sample is None else checked_whole("sample", sample, 1)
        graded = relevance_of(query_set, label, relevance, relevance_columns)
        rows = query_set.draw(graded, size, options.seed)
        groups = None if by is None else Groups.of(query_set.source, by, rows)
        document = _document(query_set, graded, rows, groups, options)
    document["warnings"] = [*dict.fromkeys(warnings), *document["warnings"]]
    document["seconds"] = time.perf_counter() - started
    return Comparison(document)


def _depths(ks: Any, query_set: QuerySet) -> tuple[int, ...]:
    most = query_set.base.rows - query_set.is_base
    if most < 1:
        least = "two rows" if query_set.is_base else "one row"
        raise InputError(
            f"{query_set.base.name}: there are too few rows for neighbours. Expected: at "
            f"least {least}. Received: {query_set.base.rows}. Use a file with more predictions."
        )
    if ks is None:
        return tuple(k for k in DEFAULT_K if k <= most)
    numbers = checked_ks(ks)
    if numbers[-1] > most:
        others = "others" if query_set.is_base else "rows"
        raise InputError(
            f"{query_set.base.name}: the base has only {most:,} {others} that can be neighbours. "
            f"Expected: `k` of at most {most:,}. Received: {numbers[-1]:,}. Use a smaller `k`."
        )
    return numbers


def _rows(group: str, figures: verdict.RankingFigures, first: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for norm in figures["hubness"]:
        for metric, one in (figures["quality"] or {}).get(norm, {}).items():
            rows.append((group, norm, metric, one["value"], one["low"], one["high"]))
        for k, share in figures["overlap"][first][norm].items():
            rows.append((group, norm, f"overlap@{k}", share, None, None))
        rows.append((group, norm, "rbo", figures["rbo"][first][norm], None, None))
        hubness = figures["hubness"][norm]
        rows += [
            (group, norm, name, hubness[name], None, None) for name in ("skewness", "antihubs")
        ]
    return rows


@dataclass(frozen=True)
class _Options:
    """What is asked of a comparison; the other norms are tested against the first one."""

    variants: tuple[Variant, ...]
    metric: Metric
    ks: tuple[int, ...]
    seed: int


def _document(
    query_set: QuerySet,
    relevance: Relevance | None,
    rows: Int64s,
    groups: Groups | None,
    options: _Options,
) -> ComparisonDocument:
    """Measure everything, and put it into the document of a comparison."""
    if query_set.source.width == 1:
        warn("The vectors have a single component: every norm except none makes them 1 or -1.")
    sampled = Sample.of(query_set.source, rows)
    is_graded = relevance is not None and isinstance(relevance.judgements, GradedJudgements)
    norms = [each.how.norm for each in options.variants]
    passed = first_pass(query_set, sampled, norms, all_lengths=is_graded)
    if not query_set.is_base:
        for batch in query_set.source.batches():
            sampled.add(batch)
    _check_depth(query_set, passed.survey, max(options.ks))
    usable = np.flatnonzero(np.isfinite(sampled.vectors).all(axis=1))
    if not len(usable):
        received = "null, NaN or infinity in every one" if len(rows) else "a source without rows"
        raise InputError(
            f"{query_set.source.name}: no query of {len(rows):,} can be used. Expected finite "
            f"vectors. Received: {received}. Inspect the file with `batchnorm-tool show`."
        )
    queries = Queries.of(sampled.vectors[usable], query_set.own_rows[rows[usable]])
    base = sets.StreamedBase(query_set.base, passed.probe)
    fitted = fit(base, options.variants)
    found = variant_neighbours(queries, base, fitted, options.metric, max(options.ks))
    judgements = None if relevance is None else relevance.judgements.take(rows[usable])
    if judgements is not None and not (judgements.judged & (judgements.relevant > 0)).any():
        raise InputError(
            f"{query_set.source.name}: no row is relevant to any query of {len(usable):,}. "
            "Expected classes with several rows, or judgements above 0. Received: none. Choose "
            "another `label` or `relevance`."
        )
    with_options = by_plain_norm(options.variants)
    rankings = Rankings(
        found, options.ks, query_set.base.rows, judgements, options.seed, with_options
    )
    query_facts = _query_facts(len(rows), len(usable), judgements)
    document: ComparisonFigures = {
        **_facts(query_set, relevance, passed, options),
        "queries": query_facts,
        **rankings.figures(),
        "by": _by(groups, usable, rankings),
        "popularity": _popularity(relevance, passed.lengths),
        "headline": None if relevance is None else f"precision@{verdict.headline_k(options.ks)}",
        "warnings": list(_warnings(query_facts, relevance.facts if relevance else {})),
    }
    return {**document, "verdict": verdict.verdict(document), "seconds": 0.0}


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


def _facts(
    query_set: QuerySet, relevance: Relevance | None, passed: FirstPass, options: _Options
) -> verdict.SurveyFigures:
    survey, lengths = passed.survey, passed.lengths
    # Norms of finite rows whose ranks are compared, evenly spread if there are many.
    finite = np.flatnonzero(np.isfinite(lengths[MAX.label]))
    some = finite[:: max(1, -(-len(finite) // RANKED_ROWS))]
    ranked = {label: values[some] for label, values in lengths.items()}
    return {
        "kind": "comparison",
        "version": __version__,
        "source": sets.set_facts(query_set.base, survey),
        "queries_from": None if query_set.is_base else query_set.source.facts(),
        "metric": str(options.metric),
        "compared": [each.label for each in options.variants],
        "k": list(options.ks),
        "seed": options.seed,
        "relevance": None if relevance is None else relevance.facts,
        "norms": {label: stats.to_dict() for label, stats in survey.norms.items()},
        "rank_correlation": {
            one: {
                other: 1.0 if one == other else rank_correlation(ranked[one], ranked[other])
                for other in ranked
            }
            for one in ranked
        },
        "ranked_rows": len(some),
        "unit_share": {norm.label: survey.unit[norm.label] / survey.rows for norm in (L1, L2, MAX)},
        "rbo_p": RBO_PERSISTENCE,
    }


def _popularity(relevance: Relevance | None, lengths: Mapping[str, Float64s]) -> Numbers | None:
    """Correlate the ranks of rows' norms with the number of queries they are relevant to."""
    if relevance is None or not isinstance(relevance.judgements, GradedJudgements):
        return None
    known = relevance.judgements
    finite = np.isfinite(lengths[MAX.label])
    relevant = known.items[(known.items >= 0) & (known.item_grades > 0)]
    counts = np.bincount(relevant, minlength=len(finite)).astype(np.float64)[finite]
    return {label: rank_correlation(values[finite], counts) for label, values in lengths.items()}


def _query_facts(rows: int, usable: int, judgements: Judgements | None) -> dict[str, int | None]:
    judged = without_relevant = None
    if judgements is not None:
        judged = int(judgements.judged.sum())
        without_relevant = int((judgements.judged & (judgements.relevant == 0)).sum())
    counts = {"rows": rows, "used": usable, "nonfinite": rows - usable}
    return {**counts, "judged": judged, "without_relevant": without_relevant}


def _by(groups: Groups | None, usable: Int64s, rankings: Rankings) -> verdict.GroupedFigures | None:
    if groups is None:
        return None
    found: list[verdict.GroupFigures] = []
    for name, members in groups.members.items():
        queries = np.flatnonzero(np.isin(usable, members))
        if len(queries):
            found.append({"group": name, "queries": len(queries), **rankings.figures(queries)})
    return {"column": groups.column, "kind": groups.kind, "groups": found}


def _warnings(queries: Mapping[str, int | None], relevance: Mapping[str, Any]) -> Iterator[str]:
    if amount := queries["without_relevant"]:
        yield f"Judged queries without a relevant row, counted as 0: {amount:,}."
    if unknown := relevance.get("unknown_queries"):
        yield f"Queries of the relevance file that are not among the queries, ignored: {unknown:,}."
    if lost := queries["nonfinite"]:
        yield f"Queries with null, NaN or infinity, ignored: {lost:,} of {queries['rows']:,}."
    if unknown := relevance.get("unknown_items"):
        yield (
            "Items of the relevance file that are not in the base, counted as relevant rows that "
            f"no norm can find: {unknown:,}."
        )


@dataclass(frozen=True)
class FirstPass:
    """What the first pass over the base brings; ``lengths`` are norms of all rows, or of some.

    There are none of ``none``, which are ones.
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
    samples = [sets.evenly_spread(base), *([sampled] if query_set.is_base else [])]
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
    joined.pop("none", None)  # ones
    return FirstPass(survey, samples[0], joined)
