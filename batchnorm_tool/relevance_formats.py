"""What a relevance file may be: Parquet, CSV or TREC qrels, told apart by their content."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import local_file
from batchnorm_tool.formats.parquet import Parquet

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s

COLUMNS = ("query", "item", "grade")
"""The columns of a Parquet or CSV file where none are named; the grade may be missing."""
EXPECTED = (
    "Expected: Parquet, CSV with a header, or TREC qrels (lines of `query 0 item grade`), in UTF-8"
)

_TREC_FIELDS = 4
# Column of a file, row by row in one or several pieces.
_Column: TypeAlias = pa.Array | pa.ChunkedArray
# How messages call a row.
_Place: TypeAlias = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class RelevanceRows:
    """The rows of a relevance file, in its order.

    Attributes:
        format: ``"parquet"``, ``"csv"`` or ``"trec"``.
        queries: large_string[n], none of them missing or empty.
        items: large_string[n], likewise.
        grades: float64[n], finite, 0 or more.
    """

    format: str
    queries: _Column
    items: _Column
    grades: Float64s


def parse_relevance(path: str, content: bytes, columns: Sequence[str] | None) -> RelevanceRows:
    r"""Recognise the format of a relevance file and read its rows.

    Args:
        path: What messages call the file.
        content: Its bytes, at least one that is not blank, without a byte order mark.
        columns: Names of the query, item and (with three of them) grade columns; ``None`` for
            `COLUMNS`. Without a grade column every row has grade 1.

    Returns:
        The rows; none where there is only a header.

    Raises:
        InputError: No format fits, a column is missing, or a row has no id or no grade.

    Example:
        >>> rows = parse_relevance("clicks.csv", b"user,film\n7,12\n7,30\n", ("user", "film"))
        >>> rows.format, rows.items.to_pylist(), rows.grades
        ('csv', ['12', '30'], array([1., 1.]))
    """
    if Parquet().recognises(content[:4], content[-4:]):
        return _from_parquet(path, content, columns)
    text = _text(path, content)
    first = next(line for line in io.StringIO(text) if line.strip())
    delimiters = [mark for mark in "\t," if mark in first]
    if delimiters and not _is_judgement(first):
        return _from_csv(path, content, columns, (first, delimiters[0]))
    if columns is None:
        return _from_trec(path, text)
    raise InputError(
        f"{path}: looks like TREC qrels, whose columns have no names. Expected: Parquet or CSV "
        f"with the columns {list(columns)}. Received: {first.strip()!r} as the first line. "
        "Leave out `--relevance-columns`, or write a header with commas or tabs."
    )


def _text(path: str, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(
            f"{path}: is neither Parquet nor text. {EXPECTED}. Received: a file that begins with "
            f"{content[:24]!r}. Unpack it if it is compressed, or write it in one of these formats."
        )
    return text


def _is_judgement(line: str) -> bool:
    fields = line.split()
    return len(fields) == _TREC_FIELDS and _is_numeric(pa.array(fields[-1:]))


# TREC qrels


def _from_trec(path: str, text: str) -> RelevanceRows:
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    lines = pc.ascii_trim_whitespace(lines)
    filled = np.flatnonzero(pc.binary_length(lines).to_numpy())
    fields = pc.ascii_split_whitespace(lines.take(pa.array(filled)))
    _check_fields(path, fields, filled)
    queries, items, texts = (pc.list_element(fields, place) for place in (0, 2, 3))
    grades = _grades(texts, lambda row: f"{path}, line {filled[row] + 1}", least=-math.inf)
    # trec_eval: below 0 is judged and not relevant.
    return RelevanceRows("trec", queries, items, np.maximum(grades, 0))


def _check_fields(path: str, fields: pa.ListArray, lines: np.ndarray) -> None:
    lengths = pc.list_value_length(fields).to_numpy()
    wrong = np.flatnonzero(lengths != _TREC_FIELDS)
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"{path}, line {lines[row] + 1}: is no judgement. Expected: {_TREC_FIELDS} fields, "
            f"`query 0 item grade`, as in TREC qrels. Received: {lengths[row]}, "
            f"{' '.join(fields[row].as_py())!r}. Correct the line; if this is a CSV file, give it "
            "a header with commas or tabs."
        )


# Columns with names


def _from_csv(
    path: str, content: bytes, columns: Sequence[str] | None, header: tuple[str, str]
) -> RelevanceRows:
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
            f"{path}: is not well-formed CSV. Expected: as many fields in every row as in its "
            f"header, which is row 1. Received: {' '.join(str(error).split())}. Correct the row."
        ) from error
    return _of_columns(path, "csv", table)


def _from_parquet(path: str, content: bytes, columns: Sequence[str] | None) -> RelevanceRows:
    with local_file.refusing(path):
        file = pq.ParquetFile(pa.BufferReader(content))
        present = file.schema_arrow.names
    names = _chosen(path, columns, present)
    with local_file.refusing(path):
        table = file.read(names, use_threads=False)
    return _of_columns(path, "parquet", table.select(names))


def _chosen(path: str, columns: Sequence[str] | None, present: Sequence[str]) -> list[str]:
    """The columns to read, of each of which the file has one."""
    names = list(columns or COLUMNS)
    if columns is None and COLUMNS[-1] not in present:
        names.pop()
    for name in names:
        if present.count(name) != 1:
            words = "several columns" if name in present else "no column"
            hint = "" if name in present else near_matches(name, present)
            raise InputError(
                f"{path}: has {words} `{name}`{hint}. Expected: one of each of {names}. "
                f"Received: columns {list(present)}. "
                "Name the right ones with `--relevance-columns QUERY,ITEM,GRADE`."
            )
    return names


def _of_columns(path: str, kind: str, table: pa.Table) -> RelevanceRows:
    queries, items, *rest = (
        (column, _places(path, name))
        for name, column in zip(table.column_names, table.columns, strict=True)
    )
    grades = _grades(*rest[0], least=0) if rest else np.ones(len(table))
    return RelevanceRows(kind, _ids(*queries), _ids(*items), grades)


def _places(path: str, column: str) -> _Place:
    return lambda row: f"{path}, column `{column}`, row {row} (the first is 0)"


# Values


def _ids(column: _Column, place: _Place) -> _Column:
    """Ids as text, none of them missing."""
    try:
        texts = key_texts(column)
    except pa.ArrowException as error:
        raise InputError(
            f"{place(0)}: is no id. Expected: text or whole numbers. Received: {column.type}. "
            "Name another column with `--relevance-columns`."
        ) from error
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    missing = np.flatnonzero(lengths == 0)
    if missing.size:
        row = int(missing[0])
        raise InputError(
            f"{place(row)}: the id is missing, as in {missing.size} of {len(texts)} rows. "
            f"Expected: an id in every row. Received: {column[row].as_py()!r}. "
            "Leave these rows out."
        )
    return texts


def key_texts(column: _Column) -> _Column:
    """Keys or ids as text, by which they are matched.

    Args:
        column: Text, numbers or whatever else Arrow writes as text.

    Returns:
        large_string of the same length, null where ``column`` is.

    Raises:
        pyarrow.ArrowException: Arrow does not write this type as text.

    Example:
        >>> key_texts(pa.array([17, None])).to_pylist()
        ['17', None]
    """
    return pc.cast(_plain(column), pa.large_string())


def _plain(column: _Column) -> _Column:
    """A column without its dictionary."""
    if pa.types.is_dictionary(column.type):
        return pc.cast(column, column.type.value_type)
    return column


def _grades(column: _Column, place: _Place, least: float) -> Float64s:
    """Grades as float64, all of them finite and none below ``least``."""
    column = _plain(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.ascii_trim_whitespace(column)
    if not _is_numeric(column):
        _refuse_grade(column, place, _first_not_numeric(column))
    grades = pc.fill_null(pc.cast(column, pa.float64(), safe=False), math.nan).to_numpy()
    wrong = np.flatnonzero(~(np.isfinite(grades) & (grades >= least)))
    if wrong.size:
        _refuse_grade(column, place, int(wrong[0]))
    return np.asarray(grades)


def _refuse_grade(column: _Column, place: _Place, row: int) -> None:
    raise InputError(
        f"{place(row)}: is no grade. Expected: a finite number, 0 or more. "
        f"Received: {column[row].as_py()!r}. Correct it, or leave the row out."
    )


def _is_numeric(column: _Column) -> bool:
    try:
        pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException:
        return False
    return True


def _first_not_numeric(column: _Column) -> int:
    """Row of the first text that is no number; Arrow tells the text, but not its row."""
    lengths = range(1, len(column) + 1)
    return bisect_left(lengths, 1, key=lambda length: not _is_numeric(column.slice(0, length)))
