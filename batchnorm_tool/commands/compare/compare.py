"""Which normalization serves stored predictions: several norms compared over the same vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchnorm_tool.commands.compare.pairs import Figures
from batchnorm_tool.commands.compare.passes import Options, document_of
from batchnorm_tool.commands.compare.queries import (
    QuerySet,
    Relevance,
    chosen,
    grouped,
    relevance_by_file,
    relevance_by_label,
)
from batchnorm_tool.comparison.scores import Metric
from batchnorm_tool.comparison.verdict import ComparisonDocument, RankingFigures
from batchnorm_tool.errors import InputError, JobError, capture_warnings
from batchnorm_tool.norms.norm import Anything, Norm
from batchnorm_tool.readers.files import predictions_of_array
from batchnorm_tool.readers.opening import (
    checked_ks,
    checked_names,
    checked_path,
    checked_whole,
    open_predictions,
    several,
)
from batchnorm_tool.readers.source import VectorSource

if TYPE_CHECKING:
    import pandas as pd


DEFAULT_NORMS = ("none", "l1", "l2", "max")
DEFAULT_K = (1, 5, 10, 100)
DEFAULT_SAMPLE = 2000


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
        norms: Names of norms; the others are tested against the first one.
        metric: What the serving system ranks by: ``"dot"``, ``"euclidean"`` or ``"cosine"``.
        k: Numbers of neighbours; default: those of 1, 5, 10 and 100 that the base has.
        sample: Queries at most, drawn at random; ``None`` for all rows.
        seed: Of the draw, the intervals and the tests.

    Returns:
        The comparison: a verdict, and the figures behind it.

    Raises:
        InputError: An input cannot be read, widths differ, labels hold nulls, keys do not match, or
            the base has fewer rows than ``k`` asks for.
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
        query_set = _query_set(source, queries, column, key)
        options = Options(
            tuple(_norms(norms)),
            Metric.parse(metric),
            _depths(k, query_set),
            checked_whole("seed", seed),
        )
        size = None if sample is None else checked_whole("sample", sample, 1)
        graded = _relevance(query_set, label, relevance, relevance_columns)
        rows = chosen(query_set, graded, size, options.seed)
        groups = None if by is None else grouped(query_set.source, _one("by", by), rows)
        document = document_of(query_set, graded, rows, groups, options)
    document["warnings"] = [*dict.fromkeys(warnings), *document["warnings"]]
    document["seconds"] = time.perf_counter() - started
    return Comparison(document)


def _query_set(
    source: Any, queries: Any, column: str | Sequence[str] | None, key: str | Sequence[str] | None
) -> QuerySet:
    given = [source] if queries is None else [source, queries]
    files = [isinstance(each, (str, os.PathLike)) for each in given]
    if not any(files) and (column or key):
        raise JobError("`column` and `key` name columns of a file. Received: an array. Omit them.")
    base = open_predictions(source, column, key) if files[0] else predictions_of_array(source)
    if queries is None:
        return QuerySet(base, base)
    opened = _open_queries(queries, column, key) if files[1] else predictions_of_array(queries)
    query_set = QuerySet(base, opened)
    query_set.check_width()
    return query_set


def _open_queries(
    path: Any, column: str | Sequence[str] | None, key: str | Sequence[str] | None
) -> VectorSource:
    """Open queries by the names that the base has; a file of nothing but vectors has no names."""
    try:
        return open_predictions(path, column, key)
    except InputError:
        if not (column or key) or (alone := open_predictions(path)).columns:
            raise
        return alone


def _norms(names: Sequence[str]) -> list[Norm]:
    given = several(names)
    found = [Norm.parse(name) for name in given]
    if not found or len(set(found)) != len(found):
        raise JobError(
            f"`norms` must name different norms. Received: {', '.join(given) or 'no names'}."
        )
    return found


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


def _relevance(
    query_set: QuerySet,
    label: str | None,
    relevance: str | os.PathLike[str] | None,
    columns: Sequence[str] | None,
) -> Relevance | None:
    if label is not None and relevance is not None:
        raise JobError(
            "`label` and `relevance` both define what is relevant. Expected only one of them. "
            f"Received: {label} and {relevance}. Omit one of them."
        )
    if columns is not None and relevance is None:
        raise JobError(
            "`relevance_columns` names columns of a relevance file. Expected `relevance` as well. "
            f"Received: {', '.join(map(str, several(columns)))} alone."
        )
    if label is not None:
        return relevance_by_label(query_set, _one("label", label))
    if relevance is None:
        return None
    names = None if columns is None else checked_names("relevance_columns", columns)
    return relevance_by_file(query_set, checked_path("relevance", relevance), names)


def _one(argument: str, name: str) -> str:
    if not isinstance(name, str):
        raise JobError(f"`{argument}` must be the name of a column. Received: {name!r}.")
    return name


def _rows(group: str, figures: RankingFigures, first: str) -> list[tuple[Any, ...]]:
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
