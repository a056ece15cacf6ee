"""Which rows of a comparison are queries, what is relevant to them, and how they are grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.compare.relevance import judgements_of, read_relevance
from batchnorm_tool.comparison.judgements import GradedJudgements, Judgements, LabelJudgements
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError, JobError, warn
from batchnorm_tool.pipeline.output_schema import ROW_COLUMN

if TYPE_CHECKING:
    from batchnorm_tool.readers.source import VectorSource

Int64s = np.ndarray

# A number column with more values than that is cut into tenths.
_MOST_VALUES = 20
# Columns that a message lists.
_SHOWN = 12
# Groups of a column of text; what is rarer is put together.
_MOST_GROUPS = 50


@dataclass(frozen=True)
class Relevance:
    """What is relevant to every query that could be asked.

    Attributes:
        judgements: For each row of the source of queries.
        facts: Where they come from, as plain data: the ``relevance`` of a comparison.
    """

    judgements: Judgements
    facts: Mapping[str, object]


@dataclass(frozen=True)
class QuerySet:
    """The base, and where its queries come from: the base itself, or a second file.

    Attributes:
        base: The rows among which neighbours are looked for.
        source: Where queries come from; the base itself, if it is the same object.
    """

    base: VectorSource
    source: VectorSource

    @property
    def is_base(self) -> bool:
        """Whether queries are rows of the base, which are then not their own neighbours."""
        return self.source is self.base

    @property
    def own_rows(self) -> Int64s:
        """Each query's own row of the base, ``int64[n]``; -1 for none."""
        rows = np.arange(self.source.rows)
        return rows if self.is_base else np.full(self.source.rows, -1)

    def check_width(self) -> None:
        """Refuse queries of another width than the base."""
        if self.source.width != self.base.width:
            raise InputError(
                f"{self.source.path}: its vectors differ in width from those of {self.base.path}. "
                f"Expected: {self.base.width}. Received: {self.source.width}. Use queries from "
                "the same vector space as the base."
            )


def relevance_by_label(query_set: QuerySet, label: str) -> Relevance:
    """Take rows of the same class as relevant to one another."""
    base = _labels(query_set.base, label)
    source = base if query_set.is_base else _labels(query_set.source, label)
    chunks = pa.chunked_array([*base.chunks, *_as_type(source, base.type, query_set, label).chunks])
    codes = chunks.combine_chunks().dictionary_encode()
    numbers = np.asarray(codes.indices.to_numpy(zero_copy_only=False), np.int64)
    of_base = numbers[: len(base)]
    found = LabelJudgements(numbers[len(base) :], of_base, query_set.own_rows)
    classes = len(np.unique(of_base))
    facts = {"kind": "labels", "column": label, "classes": classes, "clicks": False}
    return Relevance(found, facts)


def _as_type(
    source: pa.ChunkedArray, kind: pa.DataType, query_set: QuerySet, label: str
) -> pa.ChunkedArray:
    try:
        return source.cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"{query_set.source.name}: its labels `{label}` differ in type from those "
            f"of {query_set.base.name}. Expected: {kind}. Received: {source.type}. Store both "
            "with the same type."
        ) from error


def _labels(side: VectorSource, label: str) -> pa.ChunkedArray:
    column = side.read_columns([label])[label]
    if pa.types.is_nested(column.type):
        raise InputError(
            f"{side.name}: the label column `{label}` does not hold classes. Expected one number "
            f"or string per row. Received: {column.type}. Choose another column."
        )
    nulls = np.flatnonzero(column.is_null(nan_is_null=True).to_numpy())
    if len(nulls):
        raise InputError(
            f"{side.locate(int(nulls[0]))}: the label `{label}` is null. Expected a class in each "
            f"row. Received: {plural(len(nulls), 'null')} in {plural(len(column), 'row')}. Fill "
            "them in, or remove those rows."
        )
    return column


def relevance_by_file(query_set: QuerySet, path: str, columns: Sequence[str] | None) -> Relevance:
    """Read relevance from a file, which names queries and rows by their keys."""
    table = read_relevance(path, columns)
    base_keys = _keys(query_set.base)
    query_keys = base_keys if query_set.is_base else _keys(query_set.source)
    found, facts = judgements_of(table, query_keys, base_keys, query_set.own_rows)
    _check_row_numbers(query_set.base, path, "items", facts["unknown_items"])
    _check_row_numbers(query_set.source, path, "queries", facts["unknown_queries"])
    clicks = int(table.facts["duplicates"]) > 0
    return Relevance(found, {"kind": "file", **table.facts, **facts, "clicks": clicks})


def _check_row_numbers(side: VectorSource, path: str, words: str, unknown: int) -> None:
    """Refuse ids that went for row numbers and are none; warn where they could be both."""
    by_number = not side.keys or (side.kind == "run" and side.keys == (ROW_COLUMN,))
    # A run's norms, which name no row, are `norm`, or `NAME_norm` for each of several outputs.
    others = [name for name in side.columns if name.rpartition("_")[2] not in (ROW_COLUMN, "norm")]
    if not by_number or not others:
        return
    columns = ", ".join(f"`{name}`" for name in others[:_SHOWN])
    if unknown:
        raise InputError(
            f"{path}: {unknown:,} of its {words} are not row numbers of {side.name}, and no key "
            "is given. Expected: values of a key column, or row numbers from 0 "
            f"to {side.rows - 1:,}. Received: other values. Choose the column that holds these "
            f"ids with `key` (`--key`), one of: {columns}."
        )
    warn(
        f"{path}: its {words} were read as row numbers of {side.name}, counted from 0, because no "
        "key is given. If they are ids, choose their column with `key` (`--key`), one "
        f"of: {columns}."
    )


def _keys(side: VectorSource) -> Any:
    if not side.keys:
        return np.arange(side.rows)
    if len(side.keys) > 1:
        raise JobError(
            f"{side.name}: the key has several columns: {', '.join(side.keys)}. Expected one "
            "column, because a relevance file identifies each item by a single value. Choose one "
            "with `key`."
        )
    return side.read_columns(side.keys)[side.keys[0]]


def chosen(
    query_set: QuerySet, relevance: Relevance | None, sample: int | None, seed: int
) -> Int64s:
    """Draw the queries, ``int64[q]``, ascending rows of their source."""
    rows = np.arange(query_set.source.rows)
    if relevance is not None and isinstance(relevance.judgements, GradedJudgements):
        rows = rows[relevance.judgements.judged]
    if sample is None or sample >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))


@dataclass(frozen=True)
class Groups:
    """Queries by the values of a column.

    Attributes:
        column: Its name.
        kind: ``"values"`` or ``"deciles"``.
        members: By the name of each group, which of the queries, ``int64[m]``.
    """

    column: str
    kind: str
    members: Mapping[str, Int64s]


def grouped(source: VectorSource, column: str, rows: Int64s) -> Groups:
    """Group queries by a column: by tenths of a number with many values, else by value.

    Null and NaN are a group of their own.
    """
    values = source.read_columns([column])[column].take(pa.array(rows)).combine_chunks()
    if pa.types.is_nested(values.type):
        raise InputError(
            f"{source.path}: `by` names the column `{column}`, which does not hold plain values. "
            f"Expected numbers, strings or dates. Received: {values.type}. Choose another column."
        )
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if pa.types.is_floating(values.type):
        values = pa.array(values.to_numpy(zero_copy_only=False), from_pandas=True)  # NaN to null
    if is_number and len(values.unique()) > _MOST_VALUES:
        return Groups(column, "deciles", _tenths(values))
    return Groups(column, "values", _by_value(values))


def _tenths(values: pa.Array) -> dict[str, Int64s]:
    numbers = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    known = ~np.isnan(numbers)
    # Numbers that are there, not means of two: infinity has none.
    ordered = np.sort(numbers[known])
    edges = np.unique(ordered[np.linspace(0, len(ordered) - 1, 11).astype(np.int64)])
    places = np.searchsorted(edges[1:-1], numbers, side="right")
    names = _ranges(edges.tolist())
    members = {name: np.flatnonzero(known & (places == at)) for at, name in enumerate(names)}
    return _with_unknown(members, np.flatnonzero(~known))


def _ranges(edges: Sequence[float]) -> list[str]:
    """Return names of the ranges between edges, with as many digits as tell these apart."""
    least = 15 if all(edge.is_integer() for edge in edges) else 6
    written = ([f"{edge:.{digits}g}" for edge in edges] for digits in range(least, 18))
    texts = next(each for each in written if len(set(each)) == len(edges))
    ends = [*[")"] * (len(edges) - 2), "]"]
    return [f"[{low}, {high}{end}" for low, high, end in zip(texts, texts[1:], ends, strict=False)]


def _by_value(values: pa.Array) -> dict[str, Int64s]:
    codes = values.dictionary_encode()
    numbers = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = [str(value) for value in codes.dictionary.to_pylist()]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names))
    most = np.sort(np.argsort(-counts, kind="stable")[:_MOST_GROUPS])
    by_name = sorted(most, key=lambda code: codes.dictionary[int(code)].as_py())
    members = {names[code]: np.flatnonzero(numbers == code) for code in by_name}
    rest = np.flatnonzero((numbers >= 0) & ~np.isin(numbers, most))
    if len(rest):
        members[plural(len(names) - len(most), "other value")] = rest
    return _with_unknown(members, np.flatnonzero(numbers < 0))


def _with_unknown(members: dict[str, Int64s], unknown: Int64s) -> dict[str, Int64s]:
    name = "null (missing)" if "null" in members else "null"
    return {**members, name: unknown} if len(unknown) else members
