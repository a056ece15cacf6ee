"""Relevance files, and whom they judge: queries and base rows are found by their keys."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnorm_tool.comparison.judgements import GradedJudgements, Int64s
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.relevance_formats import EXPECTED, RelevanceRows, key_texts, parse_relevance

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s


@dataclass(frozen=True, eq=False)
class RelevanceTable:
    """What a relevance file says, each pair of query and item once.

    Attributes:
        path: The file.
        format: ``"parquet"``, ``"csv"`` or ``"trec"``.
        rows: Rows of the file; more than there are pairs where clicks repeat.
        queries: large_string[m], as the file names them.
        items: large_string[m], likewise.
        grades: float64[m], finite, 0 or more: the sum over the rows of the pair.
    """

    path: str
    format: str
    rows: int
    queries: pa.LargeStringArray
    items: pa.LargeStringArray
    grades: Float64s

    @property
    def facts(self) -> dict[str, str | int]:
        """Path, format, rows, and how many of the rows were added to an earlier one."""
        return {
            "path": self.path,
            "format": self.format,
            "rows": self.rows,
            "duplicates": self.rows - len(self.grades),
        }


def read_relevance(path: str, columns: Sequence[str] | None = None) -> RelevanceTable:
    """Read who is relevant to whom from a file, whatever its name ends in.

    TREC qrels are lines of ``query 0 item grade``, separated by blanks, where a grade below 0 means
    judged and not relevant, like 0. CSV has a header, and commas or tabs. Grades of the same query
    and item are added up, so that a log of clicks can be given as it is.

    Args:
        path: A local file; it is read as a whole.
        columns: Names of the query, item and grade columns of a Parquet or CSV file. With two
            names every row has grade 1. ``None`` means ``query``, ``item`` and, if it is there,
            ``grade``.

    Returns:
        The judgements, each pair of query and item once, in the order of the file.

    Raises:
        JobError: ``columns`` are not two or three different names.
        InputError: The file cannot be read, has no rows or not these columns, or a row has no id
            or no grade.

    Example:
        >>> table = read_relevance("clicks.csv", ("user", "film"))  # doctest: +SKIP
        >>> table.facts  # doctest: +SKIP
        {'path': 'clicks.csv', 'format': 'csv', 'rows': 5120, 'duplicates': 212}
    """
    _check_names(columns)
    return _summed(path, parse_relevance(path, _content(path), columns))


def _check_names(columns: Sequence[str] | None) -> None:
    if columns is None or (len(columns) in (2, 3) and len(set(columns)) == len(columns)):
        return
    raise JobError(
        "`--relevance-columns`: expected two or three different names, `QUERY,ITEM` or "
        f"`QUERY,ITEM,GRADE`. Received: {','.join(columns)!r}. Name the columns in this order."
    )


def _content(path: str) -> bytes:
    try:
        content = Path(path).read_bytes() if _may_be_read(path) else b""
    except (OSError, ValueError) as error:  # a ValueError is a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: the relevance file cannot be read. {EXPECTED}. Received: {reason}. "
            "Check `--relevance`."
        ) from error
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise _nothing_in(path, "an empty file")
    return content


def _may_be_read(path: str) -> bool:
    """Tell whether it is no FIFO and no device, which may never end."""
    return not Path(path).exists() or Path(path).is_file() or Path(path).is_dir()


def _summed(path: str, rows: RelevanceRows) -> RelevanceTable:
    if not len(rows.grades):
        raise _nothing_in(path, "a header without rows")
    table = pa.table({"query": rows.queries, "item": rows.items, "grade": rows.grades})
    # One thread adds in the order of the file: the same bits every time.
    pairs = table.group_by(["query", "item"], use_threads=False).aggregate([("grade", "sum")])
    queries, items, grades = (
        pairs[name].combine_chunks() for name in ("query", "item", "grade_sum")
    )
    return RelevanceTable(path, rows.format, len(table), queries, items, grades.to_numpy())


def _nothing_in(path: str, received: str) -> InputError:
    return InputError(
        f"{path}: holds no judgements. {EXPECTED}, with at least one row. Received: {received}. "
        "Write it again, or leave out `--relevance`."
    )


def judgements_of(
    table: RelevanceTable,
    query_keys: Sequence[Any] | pa.Array | pa.ChunkedArray,
    base_keys: Sequence[Any] | pa.Array | pa.ChunkedArray,
    query_rows: Int64s,
) -> tuple[GradedJudgements, dict[str, int]]:
    """Find a file's queries and items among the rows that are compared.

    Keys are matched by their text: 17 and ``"17"`` are the same, 17 and ``"017"`` are not. A
    judgement of a query about its own row is left out, for no query is its own neighbour.

    Args:
        table: What the file says.
        query_keys: Keys of the q queries: a list, an array or an Arrow column. Give all queries,
            and `GradedJudgements.take` a sample of them: the others would seem to be unknown.
        base_keys: Keys of the n rows of the base; may be ``query_keys`` itself.
        query_rows: int64[q], the base row that is the query itself, -1 where there is none.

    Returns:
        Judgements of the q queries, and counts: ``judged_queries``, ``unknown_queries`` (ids in the
        file that are no query's key), ``unknown_items`` (that are no base row's), and ``pairs``,
        the judgements that are kept.

    Raises:
        InputError: No query or no item of the file is known, a key names two rows, or nothing but
            judgements of queries about themselves is left.

    Example:
        >>> queries, items = (pa.array(ids, pa.large_string()) for ids in (["7", "9"], ["8", "8"]))
        >>> table = RelevanceTable("clicks.csv", "csv", 2, queries, items, np.ones(2))
        >>> judgements, facts = judgements_of(table, [7], [6, 7, 8], np.array([1]))
        >>> judgements.items, facts["unknown_queries"]
        (array([2]), 1)
    """
    queries = _rows_of_keys(table.path, ("queries", table.queries), query_keys)
    items = _rows_of_keys(table.path, ("items", table.items), base_keys)
    own = (queries >= 0) & (items >= 0) & (query_rows[queries] == items)
    kept = np.flatnonzero((queries >= 0) & ~own)
    if not kept.size:
        raise InputError(
            f"{table.path}: judges queries about themselves alone. Expected: judgements of other "
            f"rows. Received: {len(queries)} pairs, none of another row. Check which columns "
            "`--relevance-columns` names."
        )
    kept = kept[np.argsort(queries[kept], kind="stable")]
    offsets = np.searchsorted(queries[kept], np.arange(len(query_rows) + 1))
    judgements = GradedJudgements(offsets, items[kept], table.grades[kept])
    return judgements, {
        "judged_queries": int(np.count_nonzero(judgements.judged)),
        "unknown_queries": _distinct(table.queries, queries < 0),
        "unknown_items": _distinct(table.items, items < 0),
        "pairs": len(kept),
    }


def _rows_of_keys(
    path: str, named: tuple[str, pa.Array], keys: Sequence[Any] | pa.Array | pa.ChunkedArray
) -> Int64s:
    """The row of each id among keys, -1 for an id that is none of them."""
    words, ids = named
    texts = key_texts(keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys))
    _check_unique(words, texts)
    rows = pc.fill_null(pc.index_in(ids, value_set=texts), -1).to_numpy().astype(np.int64)
    if (rows < 0).all():
        raise InputError(
            f"{path}: none of its {words} is known. Expected: keys such as {texts[0].as_py()!r}. "
            f"Received: ids such as {ids[0].as_py()!r}. Name the column that holds these ids with "
            "`--key`, or the right columns of the file with `--relevance-columns`."
        )
    return rows


def _check_unique(words: str, texts: pa.Array | pa.ChunkedArray) -> None:
    if pc.count_distinct(texts).as_py() == len(texts) - texts.null_count:
        return
    counts = pc.value_counts(pc.drop_null(texts))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    raise InputError(
        f"The key {twice['values']!r} names {twice['counts']} rows of the {words}. Expected: "
        "every key once, where a relevance file names rows by it. Received: several rows with one "
        "key. Give `--key` a column that tells rows apart."
    )


def _distinct(ids: pa.Array, chosen: np.ndarray) -> int:
    return int(pc.count_distinct(ids.filter(pa.array(chosen))).as_py())
