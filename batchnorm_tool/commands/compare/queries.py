"""What a comparison is asked: its base and queries, what is relevant to them, and their groups."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import python_values
from batchnorm_tool.commands.compare.relevance import judgements_of, read_relevance
from batchnorm_tool.comparison.judgements import GradedJudgements, Judgements, LabelJudgements
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError, JobError, warn
from batchnorm_tool.pipeline.output_schema import ROW_COLUMN
from batchnorm_tool.readers.source import VectorSource, check_spaces, predictions_of_array
from batchnorm_tool.readers.vectors import checked_names, checked_path, open_predictions, several

Int64s = np.ndarray
Names = str | Sequence[str]
# A number column with more values than that is cut into tenths.
_MOST_VALUES = 20
# Columns that a message lists.
_SHOWN = 12
# Groups of a column of text; what is rarer is put together.
_MOST_GROUPS = 50


@dataclass(frozen=True)
class Relevance:
    """Judgements of every row of the source of queries, and facts of where they come from."""

    judgements: Judgements
    facts: Mapping[str, object]


@dataclass(frozen=True)
class QuerySet:
    """The base, and where its queries come from: the base itself, if it is the same object."""

    base: VectorSource
    source: VectorSource

    @classmethod
    def open(
        cls,
        base: Any,
        queries: Any,
        column: Names | None,
        key: Names | None,
        *,
        mixed_spaces: bool = False,
    ) -> QuerySet:
        """Open files or arrays; without ``queries`` the rows of the base are asked."""
        given = [base] if queries is None else [base, queries]
        files = [isinstance(each, (str, os.PathLike)) for each in given]
        if not any(files) and (column or key):
            raise JobError(
                "`column` and `key` name columns of a file. Received: an array. Omit them."
            )
        read = partial(open_predictions, mixed_spaces=mixed_spaces)
        opened = read(base, column, key) if files[0] else predictions_of_array(base)
        if queries is None:
            return cls(opened, opened)
        asked = (
            _open_queries(read, queries, column, key) if files[1] else predictions_of_array(queries)
        )
        check_spaces(opened, asked, mixed=mixed_spaces)
        if asked.width != opened.width:
            raise InputError(
                f"{asked.path}: its vectors differ in width from those of {opened.path}. "
                f"Expected: {opened.width}. Received: {asked.width}. Use queries from the same "
                "vector space as the base."
            )
        return cls(opened, asked)

    @property
    def is_base(self) -> bool:
        """Whether queries are rows of the base, which are then not their own neighbours."""
        return self.source is self.base

    @property
    def own_rows(self) -> Int64s:
        """Each query's own row of the base, ``int64[n]``; -1 for none."""
        rows = np.arange(self.source.rows)
        return rows if self.is_base else np.full(self.source.rows, -1)

    def draw(self, relevance: Relevance | None, sample: int | None, seed: int) -> Int64s:
        """Draw the queries, ``int64[q]``, ascending rows of their source; None for all."""
        rows = np.arange(self.source.rows)
        if relevance is not None and isinstance(relevance.judgements, GradedJudgements):
            rows = rows[relevance.judgements.judged]
        if sample is None or sample >= len(rows):
            return rows
        return np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))


def _open_queries(
    read: Callable[..., VectorSource], path: Any, column: Names | None, key: Names | None
) -> VectorSource:
    """Open queries by the names that the base has; a file of nothing but vectors has no names."""
    try:
        return read(path, column, key)
    except InputError:
        if not (column or key) or (alone := read(path)).columns:
            raise
        return alone


def relevance_of(
    query_set: QuerySet,
    label: str | None,
    relevance: str | os.PathLike[str] | None,
    columns: Sequence[str] | None,
) -> Relevance | None:
    """Return what is relevant by a column of classes or a file, or None without both."""
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
        return _by_label(query_set, _one("label", label))
    if relevance is None:
        return None
    names = None if columns is None else checked_names("relevance_columns", columns)
    return _by_file(query_set, checked_path("relevance", relevance), names)


def _one(argument: str, name: str) -> str:
    if not isinstance(name, str):
        raise JobError(f"`{argument}` must be the name of a column. Received: {name!r}.")
    return name


def _by_label(query_set: QuerySet, label: str) -> Relevance:
    """Take rows of the same class as relevant to one another."""
    base = _labels(query_set.base, label)
    source = base if query_set.is_base else _labels(query_set.source, label)
    try:
        source = source.cast(base.type)
    except pa.ArrowException as error:
        raise InputError(
            f"{query_set.source.name}: its labels `{label}` differ in type from those "
            f"of {query_set.base.name}. Expected: {base.type}. Received: {source.type}. Store both "
            "with the same type."
        ) from error
    chunks = pa.chunked_array([*base.chunks, *source.chunks])
    codes = _stored(chunks.combine_chunks()).dictionary_encode()
    numbers = np.asarray(codes.indices.to_numpy(zero_copy_only=False), np.int64)
    of_base = numbers[: len(base)]
    found = LabelJudgements(numbers[len(base) :], of_base, query_set.own_rows)
    classes = len(np.unique(of_base))
    facts = {"kind": "labels", "column": label, "classes": classes, "clicks": False}
    return Relevance(found, facts)


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


def _by_file(query_set: QuerySet, path: str, columns: Sequence[str] | None) -> Relevance:
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


@dataclass(frozen=True)
class Groups:
    """Queries by the values of a column: by the name of each group, which of them, ``int64[m]``."""

    column: str
    kind: Literal["values", "deciles"]
    members: Mapping[str, Int64s]

    @classmethod
    def of(cls, source: VectorSource, column: str, rows: Int64s) -> Groups:
        """Group rows by tenths of a number with many values, else by value; null and NaN apart."""
        values = source.read_columns([_one("by", column)])[column].take(pa.array(rows))
        values = values.combine_chunks()
        if pa.types.is_nested(values.type):
            raise InputError(
                f"{source.path}: `by` names the column `{column}`, which does not hold plain "
                f"values. Expected numbers, strings or dates. Received: {values.type}. Choose "
                "another column."
            )
        is_float = pa.types.is_floating(values.type)
        if is_float:  # NaN becomes null
            values = pa.array(values.to_numpy(zero_copy_only=False), from_pandas=True)
        is_number = is_float or pa.types.is_integer(values.type)
        if is_number and len(values.unique()) > _MOST_VALUES:
            return cls(column, "deciles", _tenths(values))
        return cls(column, "values", _by_value(values))


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


def _stored(values: pa.Array) -> pa.Array:
    """Return values as they are stored: of few extension types Arrow tells equal ones."""
    return values.storage if isinstance(values.type, pa.BaseExtensionType) else values


def _by_value(values: pa.Array) -> dict[str, Int64s]:
    codes = _stored(values).dictionary_encode()
    numbers = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known = python_values(codes.dictionary)
    names = [str(value) for value in known]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names))
    most = np.sort(np.argsort(-counts, kind="stable")[:_MOST_GROUPS])
    by_name = sorted(most, key=lambda code: known[int(code)])
    members = {names[code]: np.flatnonzero(numbers == code) for code in by_name}
    if len(rest := np.flatnonzero((numbers >= 0) & ~np.isin(numbers, most))):
        members[plural(len(names) - len(most), "other value")] = rest
    return _with_unknown(members, np.flatnonzero(numbers < 0))


def _with_unknown(members: dict[str, Int64s], unknown: Int64s) -> dict[str, Int64s]:
    name = "null (missing)" if "null" in members else "null"
    return {**members, name: unknown} if len(unknown) else members
