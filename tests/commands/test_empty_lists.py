"""Rows without a vector: empty lists, nulls, lists of width 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError
from batchnorm_tool.job import Input, Job, Output
from batchnorm_tool.pipeline.output_schema import output_specs
from tests.command_line import invoke

LISTS = pa.list_(pa.float32())
QUARANTINE = ("--invalid", "quarantine", "--max-bad-fraction", "1")
TWO = [3.0, 4.0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.parquet"


def store(path: Path, rows: list[Any], kind: pa.DataType = LISTS) -> None:
    pq.write_table(pa.table({"id": range(len(rows)), "emb": pa.array(rows, kind)}), path)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([[]] * 5, []),
        ([[], [], TWO], [2]),
        ([None] * 300 + [TWO], [300]),
        ([[]] * 300 + [TWO, [1.0], TWO], [300, 302]),
        ([None] * 300 + [[]] * 300, []),
    ],
    ids=["all empty", "most empty", "nulls first", "empty ones first", "nothing"],
)
def test_rows_without_a_vector_are_bad_and_the_others_go_on(
    tmp_path: Path, source: Path, rows: list[Any], good: list[int]
) -> None:
    store(source, rows)
    failed = invoke("normalize", source, tmp_path / "out", "--key", "id")
    assert failed.exit_code == 4
    assert f"{source}, row 0, key 0: " in failed.stderr
    done = invoke("normalize", source, tmp_path / "out", "--key", "id", *QUARANTINE)
    assert done.exit_code == 0, done.stderr
    found = ds.dataset(tmp_path / "out" / "vectors").to_table()
    assert found["id"].to_pylist() == good
    assert found["norm"].to_pylist() == [5.0] * len(good)
    assert invoke("show", source).exit_code == 0


@pytest.mark.parametrize("rows", [[[]] * 5, [None] * 5, [[], None]], ids=["empty", "null", "both"])
@pytest.mark.parametrize("command", ["compare", "diff"])
def test_a_column_without_vectors_is_not_compared(
    source: Path, rows: list[Any], command: str
) -> None:
    store(source, rows)
    other = [source] if command == "diff" else []
    done = invoke(command, source, *other)
    assert done.exit_code == 2
    assert "The column `emb` does not contain vectors" in done.stderr
    assert str(source) in done.stderr


@pytest.mark.parametrize("command", ["normalize", "compare", "diff", "show"])
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_lists_of_width_0_are_no_vectors(tmp_path: Path, command: str, *, named: bool) -> None:
    source = tmp_path / "in.arrow"
    table = pa.table({"id": range(5), "emb": pa.array([[]] * 5, pa.list_(pa.float32(), 0))})
    with pa.ipc.new_file(source, table.schema) as writer:
        writer.write_table(table)
    second = {"normalize": [tmp_path / "out"], "diff": [source]}.get(command, [])
    flags = ["--column", "emb"] if named and command != "show" else []
    done = invoke(command, source, *second, *flags)
    assert done.exit_code == (0 if command == "show" else 2)
    assert command == "show" or str(source) in done.stderr


def test_an_output_without_values_is_refused() -> None:
    job = Job(input=Input(path="a.npy"), output=Output(path="out"))
    with pytest.raises(ModelError, match=r"`embedding` has no values.*shape \(0,\)"):
        output_specs(job, [Field("embedding", (0,), "float32")])
