from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.compare.relevance import RelevanceTable, read_relevance
from batchnorm_tool.errors import InputError, JobError

Write = Callable[[str | bytes | pa.Table], str]
Triple = tuple[str, str, float]

TRIPLES: list[Triple] = [("q1", "d1", 2.0), ("q1", "d2", 0.0), ("017", "d1", 1.0)]
CSV = "query,item,grade\nq1,d1,2\nq1,d2,0\n017,d1,1\n"
TREC = "q1 0 d1 2\nq1 0 d2 0\n017 0 d1 1\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: str | bytes | pa.Table) -> str:
        path = tmp_path / "relevance"
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


def table_of(**columns: Any) -> pa.Table:
    return pa.table(columns)


def triples(table: RelevanceTable) -> list[Triple]:
    columns = (table.queries.to_pylist(), table.items.to_pylist(), table.grades.tolist())
    return list(zip(*columns, strict=True))


def refusal(path: str, columns: Sequence[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_relevance(path, columns)
    return caught.value.message


# Formats


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (CSV, "csv"),
        (CSV.replace(",", "\t"), "csv"),
        (CSV.replace("\n", "\r\n"), "csv"),
        ("\ufeff" + CSV, "csv"),
        ("grade,extra,item,query\n2,x,d1,q1\n0,,d2,q1\n1,y,d1,017\n", "csv"),
        ('query,item,grade\n"q1",d1, 2\nq1,"d2",0.0\n017,d1,1e0\n\n', "csv"),
        (TREC, "trec"),
        (TREC.replace(" ", "\t"), "trec"),
        (TREC.replace("\n", "\r\n"), "trec"),
        ("\ufeff" + TREC, "trec"),
        ("\n  q1   0\td1 2  \n\nq1 Q0 d2 -2\n \n017 0 d1 1.0", "trec"),
        (table_of(query=["q1", "q1", "017"], item=["d1", "d2", "d1"], grade=[2, 0, 1]), "parquet"),
    ],
    ids=[
        "csv",
        "tabs",
        "csv_crlf",
        "csv_byte_order_mark",
        "csv_other_columns",
        "csv_quotes_and_blanks",
        "trec",
        "trec_tabs",
        "trec_crlf",
        "trec_byte_order_mark",
        "trec_blanks_and_negative",
        "parquet",
    ],
)
def test_every_format_says_the_same(write: Write, content: str | pa.Table, kind: str) -> None:
    table = read_relevance(write(content))
    assert triples(table) == TRIPLES
    assert table.facts == {"path": table.path, "format": kind, "rows": 3, "duplicates": 0}


def test_qrels_are_read_as_ir_measures_reads_them(write: Write) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.permutation(2000)[:500]
    path = write("".join(f"q{p // 50}\t0  d{p % 50} {p % 4}\n" for p in pairs.tolist()))
    theirs = [(q.query_id, q.doc_id, q.relevance) for q in ir_measures.read_trec_qrels(path)]
    assert triples(read_relevance(path)) == theirs


def test_ids_with_commas_do_not_make_qrels_csv(write: Write) -> None:
    assert triples(read_relevance(write("a,b 0 c,d 1\n"))) == [("a,b", "c,d", 1.0)]


def test_ids_of_csv_may_hold_commas_and_line_breaks(write: Write) -> None:
    path = write('query,item\n"a,b","c\nd"\n')
    assert triples(read_relevance(path)) == [("a,b", "c\nd", 1.0)]


def test_ids_of_csv_may_be_longer_than_what_is_parsed_at_a_time(write: Write) -> None:
    long = "x\n" * 1_000_000
    assert triples(read_relevance(write(f'query,item\n1,"{long}"\n'))) == [("1", long, 1.0)]


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        (pa.array([17, 3], pa.int64()), ["17", "3"]),
        (pa.array([17, 3], pa.uint8()), ["17", "3"]),
        (pa.array(["017", "ä"], pa.large_string()), ["017", "ä"]),
        (pa.array(["017", "3"]).dictionary_encode(), ["017", "3"]),
        (pa.array([17, 3]).dictionary_encode(), ["17", "3"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
    ],
    ids=["int64", "uint8", "large_string", "dictionary", "dictionary_of_int64", "binary"],
)
def test_ids_are_text_whatever_their_type(write: Write, ids: pa.Array, texts: list[str]) -> None:
    table = read_relevance(write(table_of(query=ids, item=ids)))
    assert triples(table) == [(text, text, 1.0) for text in texts]


@pytest.mark.parametrize(
    "grades",
    [
        pa.array([1, 0], pa.int8()),
        pa.array([1, 0], pa.float32()),
        pa.array([True, False]),
        pa.array([Decimal("1.00"), Decimal("0.00")]),
        pa.array(["1", " 0.0"]),
        pa.array(["1", " 0"]).dictionary_encode(),
    ],
    ids=lambda grades: str(grades.type).partition("<")[0],
)
def test_grades_are_numbers_whatever_their_type(write: Write, grades: pa.Array) -> None:
    path = write(table_of(query=[1, 1], item=[1, 2], grade=grades))
    assert triples(read_relevance(path)) == [("1", "1", 1.0), ("1", "2", 0.0)]


# Columns


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (None, ("q", "i", 1.0)),
        (("user", "film"), ("u", "f", 1.0)),
        (("film", "user", "clicks"), ("f", "u", 7.0)),
        (("query", "item", "clicks"), ("q", "i", 7.0)),
    ],
    ids=["default_without_grade", "two", "three", "default_names_with_grade"],
)
def test_columns_are_those_that_are_named(
    write: Write, form: str, columns: tuple[str, ...] | None, expected: Triple
) -> None:
    text = "query,clicks,user,item,film\nq,7,u,i,f\n"
    header, row = (line.split(",") for line in text.split())
    path = write(text if form == "csv" else pa.table([[cell] for cell in row], names=header))
    assert triples(read_relevance(path, columns)) == [expected]


@pytest.mark.parametrize(
    "columns",
    [("query",), ("query", "query"), ("a", "b", "c", "d"), ()],
    ids=["one", "twice", "four", "none"],
)
def test_columns_are_two_or_three_names(write: Write, columns: tuple[str, ...]) -> None:
    with pytest.raises(JobError, match=r"QUERY,ITEM,GRADE.*Received: '" + ",".join(columns)):
        read_relevance(write(CSV), columns)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_missing_column_is_named_with_its_likeliest_spelling(write: Write, form: str) -> None:
    path = write("user,film\n1,2\n" if form == "csv" else table_of(user=[1], film=[2]))
    message = refusal(path, ("user", "flim"))
    assert f"{path}: has no column `flim` (did you mean `film`?)" in message
    assert "Received: columns ['user', 'film']" in message
    assert "--relevance-columns" in message


def test_a_column_that_occurs_twice_is_refused(write: Write) -> None:
    assert "several columns `item`" in refusal(write("query,item,item\n1,2,3\n"))


def test_qrels_have_no_names(write: Write) -> None:
    message = refusal(write(TREC), ("user", "film"))
    assert "looks like TREC qrels" in message
    assert "'q1 0 d1 2' as the first line" in message


# Refusals


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "contains no judgements"),
        (b"\xef\xbb\xbf \n\n", "contains no judgements"),
        (b"query,item,grade\n", "only a header"),
        (gzip.compress(TREC.encode()), "neither Parquet nor text"),
        ("query,item\nä,b\n".encode("latin-1"), "neither Parquet nor text"),
        (CSV.encode("utf-16"), "neither Parquet nor text"),
        (b"ARROW1\0\0", "begins with b'ARROW1"),
        (b"PAR1 and then nothing that ends in it PAR1", "damaged or truncated"),
        (b"query,item,grade\n1,2,3\n1,2\n", "Row #3: Expected 3 columns, got 2"),
        (b"1,2,3\n1,3,4\n", "no column `query`"),
    ],
    ids=[
        "empty",
        "blank",
        "header_only",
        "gzip",
        "latin_1",
        "utf_16",
        "arrow",
        "damaged_parquet",
        "short_csv_row",
        "csv_without_header",
    ],
)
def test_what_is_no_relevance_file_is_refused(write: Write, content: bytes, words: str) -> None:
    path = write(content)
    message = refusal(path)
    assert words in message
    assert message.startswith(path)
    assert "Received: " in message


def test_a_table_without_rows_is_refused(write: Write) -> None:
    nothing = pa.array([], pa.string())
    assert "contains no judgements" in refusal(write(table_of(query=nothing, item=nothing)))


@pytest.mark.parametrize(
    "name", ["missing", "", "null\0byte"], ids=["missing", "directory", "null"]
)
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    message = refusal(path)
    assert message.startswith(f"{path}: the relevance file cannot be read")
    assert "Check `--relevance`" in message


@pytest.mark.parametrize(
    ("line", "count"),
    [("q2 0 d3", 3), ("q2 0 d3 1 run", 5), ("q2", 1)],
    ids=["three", "five", "one"],
)
@pytest.mark.parametrize("before", ["", "q1 0 d1 2\n\nq1 0 d2 0\n"], ids=["first", "fourth"])
def test_a_line_of_qrels_with_other_fields_is_named(
    write: Write, line: str, count: int, before: str
) -> None:
    path = write(f"{before}{line}\nq9 0 d9 1\n")
    message = refusal(path)
    assert f"{path}, line {before.count(chr(10)) + 1}: is not a judgement" in message
    assert (
        f"Expected: 4 fields, `query 0 item grade`, as in TREC qrels. Received: {count}" in message
    )
    assert repr(line) in message


@pytest.mark.parametrize("grade", ["high", "nan", "inf", "1_0", "0x1"])
def test_a_grade_of_qrels_that_is_no_number_is_named(write: Write, grade: str) -> None:
    path = write(f"q1 0 d1 1\n\nq1 0 d2 {grade}\nq1 0 d3 1\n")
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: is not a grade. Expected: a finite number")
    assert f"Received: {grade!r}" in message


@pytest.mark.parametrize(
    ("grades", "received"),
    [
        (pa.array([1.0, None, 2.0]), "None"),
        (pa.array([1.0, float("nan"), 2.0]), "nan"),
        (pa.array([1.0, float("inf"), 2.0]), "inf"),
        (pa.array([1, -1, -2]), "-1"),
        (pa.array(["1", "many", "few"]), "'many'"),
        (pa.array(["1", "", "2"]), "''"),
        (pa.array(["1", "-0.5", "2"]), "'-0.5'"),
        (pa.array(["1", None, "2"]), "None"),
    ],
    ids=["null", "nan", "inf", "negative", "text", "empty", "negative_text", "null_text"],
)
def test_a_wrong_grade_is_named_with_column_and_row(
    write: Write, grades: pa.Array, received: str
) -> None:
    path = write(table_of(query=[1, 1, 1], item=[1, 2, 3], clicks=grades))
    message = refusal(path, ("query", "item", "clicks"))
    assert message.startswith(f"{path}, column `clicks`, row 1 (the first is 0): is not a grade.")
    assert f"Received: {received}. Correct it" in message


@pytest.mark.parametrize("cell", ["", "x", "-1"], ids=["empty", "text", "negative"])
def test_a_wrong_grade_in_csv_is_named_with_column_and_row(write: Write, cell: str) -> None:
    message = refusal(write(f"query,item,grade\n1,1,1\n1,2,{cell}\n"))
    assert "column `grade`, row 1 (the first is 0): is not a grade" in message
    assert f"Received: {cell!r}" in message


def test_a_grade_of_another_kind_is_refused(write: Write) -> None:
    path = write(table_of(query=[1], item=[1], grade=[[1.0]]))
    assert "column `grade`, row 0 (the first is 0): is not a grade" in refusal(path)


@pytest.mark.parametrize("column", ["query", "item"])
@pytest.mark.parametrize("missing", [None, ""], ids=["null", "empty"])
def test_a_missing_id_is_named_with_column_and_row(
    write: Write, column: str, missing: str | None
) -> None:
    ids = {"query": ["1", "1", "1"], "item": ["1", "2", "3"], column: ["1", missing, missing]}
    path = write(pa.table(ids))
    message = refusal(path)
    assert message.startswith(
        f"{path}, column `{column}`, row 1 (the first is 0): the id is missing"
    )
    assert "2 of 3 rows" in message
    assert f"Received: {missing!r}" in message


def test_a_missing_id_in_csv_is_refused(write: Write) -> None:
    message = refusal(write("query,item\n1,2\n1,\n"))
    assert "column `item`, row 1 (the first is 0): the id is missing" in message


def test_ids_of_another_kind_are_refused(write: Write) -> None:
    message = refusal(write(table_of(query=[[1]], item=[1])))
    assert "column `query`" in message
    assert "is not an id" in message
    assert "list" in message
