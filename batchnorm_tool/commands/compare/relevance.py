"""Relevance files: which row is relevant to which, read from Parquet, CSV or TREC qrels."""

from __future__ import annotations

import codecs
import csv
import io
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from batchnorm_tool.comparison.judgements import GradedJudgements, Int64s
from batchnorm_tool.display import near_matches, plural
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.formats import files
from batchnorm_tool.formats.parquet import Parquet
from batchnorm_tool.norms.norm import Float64s

COLUMNS = ("query", "item", "grade")
"""The columns of a Parquet or CSV file where none are named; the grade may be missing."""
EXPECTED = (
    "Expected: Parquet, CSV with a header, or TREC qrels (lines of `query 0 item grade`), in UTF-8"
)
_TREC_FIELDS = 4
# Column of a file, row by row in one or several pieces.
_Column: TypeAlias = pa.Array | pa.ChunkedArray
_Keys: TypeAlias = Sequence[Any] | _Column
# How messages call a row.
_Place: TypeAlias = Callable[[int], str]


def _parsed(path: str, content: bytes, columns: Sequence[str] | None) -> tuple[str, pa.Table]:
    """Recognise the format, and return it and the rows: ``query``, ``item`` and ``grade``."""
    if Parquet().recognises(content[:4], content[-4:]):
        return "parquet", _from_parquet(path, content, columns)
    text = _text(path, content)
    first = next(line for line in io.StringIO(text) if line.strip())
    delimiters = [mark for mark in "\t," if mark in first]
    if delimiters and not _is_judgement(first):
        return "csv", _from_csv(path, content, columns, (first, delimiters[0]))
    if columns is None:
        return "trec", _from_trec(path, text)
    raise InputError(
        f"{path}: looks like TREC qrels, which has no column names. Expected: Parquet or CSV with "
        f"the columns {list(columns)}. Received: {first.strip()!r} as the first line. Omit "
        "`--relevance-columns`, or add a header separated by commas or tabs."
    )


def _text(path: str, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(
            f"{path}: is neither Parquet nor text. {EXPECTED}. Received: a file that begins "
            f"with {content[:24]!r}. Decompress it, or convert it to one of these formats."
        )
    return text


def _is_judgement(line: str) -> bool:
    fields = line.split()
    return len(fields) == _TREC_FIELDS and _is_numeric(pa.array(fields[-1:]))


def _from_trec(path: str, text: str) -> pa.Table:
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    lines = pc.ascii_trim_whitespace(lines)
    filled = np.flatnonzero(pc.binary_length(lines).to_numpy())
    fields = pc.ascii_split_whitespace(lines.take(pa.array(filled)))
    _check_fields(path, fields, filled)
    queries, items, texts = (pc.list_element(fields, place) for place in (0, 2, 3))
    grades = _grades(texts, lambda row: f"{path}, line {filled[row] + 1}", least=-math.inf)
    # trec_eval: below 0 is judged and not relevant.
    return pa.table([queries, items, np.maximum(grades, 0)], COLUMNS)


def _check_fields(path: str, fields: pa.ListArray, lines: np.ndarray) -> None:
    lengths = pc.list_value_length(fields).to_numpy()
    wrong = np.flatnonzero(lengths != _TREC_FIELDS)
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"{path}, line {lines[row] + 1}: is not a judgement. Expected: {_TREC_FIELDS} fields, "
            "`query 0 item grade`, as in TREC qrels. "
            f"Received: {lengths[row]}, {' '.join(fields[row].as_py())!r}. Correct the line; if "
            "this is a CSV file, add a header separated by commas or tabs."
        )


def _from_csv(
    path: str, content: bytes, columns: Sequence[str] | None, header: tuple[str, str]
) -> pa.Table:
    line, delimiter = header
    names = _chosen(path, columns, next(csv.reader([line], delimiter=delimiter)))
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(content),
            pyarrow.csv.ReadOptions(use_threads=False),  # only then do errors name the row
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # As text: 017 is not 17.
            pyarrow.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.large_string())
            ),
        )
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: is not well-formed CSV. Expected: the same number of fields in every row as "
            f"in the header, row 1. Received: {' '.join(str(error).split())}. Correct the row."
        ) from error
    return _of_columns(path, table)


def _from_parquet(path: str, content: bytes, columns: Sequence[str] | None) -> pa.Table:
    with files.refusing(path):
        file = pq.ParquetFile(pa.BufferReader(content))
        present = file.schema_arrow.names
    names = _chosen(path, columns, present)
    with files.refusing(path):
        table = file.read(names, use_threads=False)
    return _of_columns(path, table.select(names))


def _chosen(path: str, columns: Sequence[str] | None, present: Sequence[str]) -> list[str]:
    """Return the columns to read, of each of which the file has one."""
    names = list(columns or COLUMNS)
    if columns is None and COLUMNS[-1] not in present:
        names.pop()
    for name in names:
        if present.count(name) != 1:
            words = "several columns" if name in present else "no column"
            hint = "" if name in present else near_matches(name, present)
            raise InputError(
                f"{path}: has {words} `{name}`{hint}. Expected: {names}, each once. Received: "
                f"columns {list(present)}. Choose the columns with `--relevance-columns "
                "QUERY,ITEM,GRADE`."
            )
    return names


def _of_columns(path: str, table: pa.Table) -> pa.Table:
    def placed(name: str) -> tuple[_Column, _Place]:
        return table[name], lambda row: f"{path}, column `{name}`, row {row} (the first is 0)"

    queries, items, *rest = map(placed, table.column_names)
    grades = _grades(*rest[0], least=0) if rest else np.ones(len(table))
    return pa.table([_ids(*queries), _ids(*items), grades], COLUMNS)


def _ids(column: _Column, place: _Place) -> _Column:
    """Return ids as text, none of them missing."""
    try:
        texts = _key_texts(column)
    except pa.ArrowException as error:
        raise InputError(
            f"{place(0)}: is not an id. Expected: text or integers. Received: {column.type}. "
            "Choose another column with `--relevance-columns`."
        ) from error
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    missing = np.flatnonzero(lengths == 0)
    if missing.size:
        row = int(missing[0])
        raise InputError(
            f"{place(row)}: the id is missing, as in {missing.size:,} "
            f"of {plural(len(texts), 'row')}. Expected: an id in every row. "
            f"Received: {column[row].as_py()!r}. Remove these rows."
        )
    return texts


def _key_texts(column: _Column) -> _Column:
    """Return keys or ids as text, by which they are matched; null where they are."""
    return pc.cast(_plain(column), pa.large_string())


def _plain(column: _Column) -> _Column:
    """Return a column without its dictionary."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column, column.type.value_type)
    return column


def _grades(column: _Column, place: _Place, least: float) -> Float64s:
    """Return grades as float64, all of them finite and none below ``least``."""
    column = _plain(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.ascii_trim_whitespace(column)
    if not _is_numeric(column):
        # Arrow tells the first text that is no number, but not its row.
        lengths = range(1, len(column) + 1)
        row = bisect_left(lengths, 1, key=lambda length: not _is_numeric(column.slice(0, length)))
        _refuse_grade(column, place, row)
    grades = pc.fill_null(pc.cast(column, pa.float64(), safe=False), math.nan).to_numpy()
    wrong = np.flatnonzero(~(np.isfinite(grades) & (grades >= least)))
    if wrong.size:
        _refuse_grade(column, place, int(wrong[0]))
    return np.asarray(grades)


def _refuse_grade(column: _Column, place: _Place, row: int) -> None:
    raise InputError(
        f"{place(row)}: is not a grade. Expected: a finite number, 0 or more. "
        f"Received: {column[row].as_py()!r}. Correct it, or remove the row."
    )


def _is_numeric(column: _Column) -> bool:
    try:
        pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException:
        return False
    return True


@dataclass(frozen=True, eq=False)
class RelevanceTable:
    """What a relevance file says of queries and items, as it names them, each pair once.

    Grades are float64[m], finite, 0 or more: the sum over the rows of the pair. The file has more
    rows than pairs where clicks repeat.
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

    The ``columns`` are those of query, item and grade in a Parquet or CSV file; with two names
    every row has grade 1. Default: ``query``, ``item`` and, if it is there, ``grade``.
    """
    if columns is not None and not len(columns) == len(set(columns)) in (2, 3):
        raise JobError(
            "`--relevance-columns`: expected two or three different names, `QUERY,ITEM` or "
            f"`QUERY,ITEM,GRADE`. Received: {','.join(columns)!r}. List the columns in this order."
        )
    kind, table = _parsed(path, _content(path), columns)
    if not len(table):
        raise _nothing_in(path, "only a header")
    # One thread adds in the order of the file: the same bits every time.
    pairs = table.group_by(["query", "item"], use_threads=False).aggregate([("grade", "sum")])
    queries, items, grades = (
        pairs[name].combine_chunks() for name in ("query", "item", "grade_sum")
    )
    return RelevanceTable(path, kind, len(table), queries, items, grades.to_numpy())


def _content(path: str) -> bytes:
    file = Path(path)
    try:
        # A FIFO or a device may never end.
        may_be_read = not file.exists() or file.is_file() or file.is_dir()
        content = file.read_bytes() if may_be_read else b""
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


def _nothing_in(path: str, received: str) -> InputError:
    return InputError(
        f"{path}: contains no judgements. {EXPECTED}, with at least one row. "
        f"Received: {received}. Write it again, or omit `--relevance`."
    )


def judgements_of(
    table: RelevanceTable, query_keys: _Keys, base_keys: _Keys, query_rows: Int64s
) -> tuple[GradedJudgements, dict[str, int]]:
    """Find a file's queries and items among the rows that are compared.

    Keys are matched by their text: 17 and ``"17"`` are the same, 17 and ``"017"`` are not. Give
    those of all q queries, and `GradedJudgements.take` a sample: the others would seem to be
    unknown. A judgement of a query about its own row of the base, ``int64[q]`` or -1, is left out,
    for no query is its own neighbour. The counts are of judged queries, of ids in the file that are
    no query's or base row's key, and of the judgements that are kept.
    """
    queries = _rows_of_keys(table.path, ("queries", table.queries), query_keys)
    items = _rows_of_keys(table.path, ("items", table.items), base_keys)
    own = (queries >= 0) & (items >= 0) & (query_rows[queries] == items)
    kept = np.flatnonzero((queries >= 0) & ~own)
    if not kept.size:
        raise InputError(
            f"{table.path}: judges every query against itself only. Expected: judgements of other "
            f"rows. Received: {plural(len(queries), 'pair')}, none with another row. Check the "
            "columns given by `--relevance-columns`."
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


def _rows_of_keys(path: str, named: tuple[str, pa.Array], keys: _Keys) -> Int64s:
    """Return the row of each id among keys, -1 for an id that is none of them."""
    words, ids = named
    texts = _key_texts(keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys))
    _check_unique(words, texts)
    rows = pc.fill_null(pc.index_in(ids, value_set=texts), -1).to_numpy().astype(np.int64)
    if (rows < 0).all():
        raise InputError(
            f"{path}: none of its {words} matches a row. Expected: keys such "
            f"as {texts[0].as_py()!r}. Received: ids such as {ids[0].as_py()!r}. Choose the "
            "column that holds these ids with `--key`, or the columns of the relevance file with "
            "`--relevance-columns`."
        )
    return rows


def _check_unique(words: str, texts: _Column) -> None:
    if pc.count_distinct(texts).as_py() == len(texts) - texts.null_count:
        return
    counts = pc.value_counts(pc.drop_null(texts))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    raise InputError(
        f"The key {twice['values']!r} identifies {twice['counts']:,} rows of the {words}. "
        "Expected: unique keys, because the relevance file refers to rows by key. Received: "
        "duplicate keys. Choose a unique column with `--key`."
    )


def _distinct(ids: pa.Array, chosen: np.ndarray) -> int:
    return int(pc.count_distinct(ids.filter(pa.array(chosen))).as_py())
