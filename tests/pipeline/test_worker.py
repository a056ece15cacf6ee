from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.errors import Interrupted, WorkFailed
from batchnorm_tool.formats.arrow_columns import regrouped
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.pipeline.worker import Worker
from batchnorm_tool.storage import open_storage

ROWS = 100


@pytest.fixture
def worker_for(tmp_path: Path) -> Callable[..., Worker]:
    """Makes a worker over two files of stored predictions: parts of 40 rows, chunks of 16."""

    def make(**sections: dict[str, Any]) -> Worker:
        values = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
        values[90] = np.nan
        (tmp_path / "in").mkdir(exist_ok=True)
        for number, rows in enumerate((slice(0, 70), slice(70, ROWS))):
            table = pa.table({"id": np.arange(ROWS)[rows] * 3, "x": fixed_size_list(values[rows])})
            pq.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=9)
        data = {
            "input": {"path": "in", "key": "id", **sections.get("input", {})},
            "normalize": {"nonfinite": "quarantine", **sections.get("normalize", {})},
            "output": {"path": "out", "part_rows": 40},
        }
        preparation = Preparation(Job.from_dict(data, tmp_path))
        plan = preparation.plan()
        plan = replace(plan, resolved=replace(plan.resolved, chunk_rows=16))
        return Worker(plan, open_storage(plan.job.output.path), preparation.predictor())

    return make


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_part_is_committed_with_its_record(
    worker_for: Callable[..., Worker], tmp_path: Path
) -> None:
    record = worker_for().process_part(2)
    assert (record.part, record.first_row) == (2, 80)
    assert (record.counts.rows_in, record.counts.rows_out, record.counts.quarantined) == (20, 19, 1)
    assert [(row.row, row.file_row, row.key) for row in record.first_bad_rows] == [(90, 20, "270")]
    assert record.first_bad_rows[0].file == str(tmp_path / "in" / "1.parquet")
    paths = [file.path for file in record.files]
    assert paths == ["vectors/part-000002.parquet", "_quarantine/part-000002.parquet"]
    assert "_state/records/000002.json" in files(tmp_path / "out")


def test_a_part_may_span_files(worker_for: Callable[..., Worker], tmp_path: Path) -> None:
    worker = worker_for()
    record = worker.process_part(1)
    assert record.counts.rows_in == 40
    (path,) = (tmp_path / "out").rglob("vectors/part-000001.parquet")
    assert pq.read_table(path)["id"].to_pylist() == [3 * row for row in range(40, 80)]


def test_the_same_part_has_the_same_bytes_whoever_makes_it(
    worker_for: Callable[..., Worker],
) -> None:
    records = [worker_for().process_part(number) for number in (2, 0, 2)]
    assert records[0].to_json() == records[2].to_json()
    assert records[0].files == records[2].files


def test_progress_is_told_chunk_by_chunk(worker_for: Callable[..., Worker]) -> None:
    told: list[int] = []
    worker_for().process_part(0, told.append)
    assert told == [16, 16, 8]


def test_rows_without_a_key_carry_their_number(
    worker_for: Callable[..., Worker], tmp_path: Path
) -> None:
    record = worker_for(input={"key": None, "features": "x"}).process_part(2)
    (path,) = (tmp_path / "out").rglob("vectors/part-000002.parquet")
    assert pq.read_table(path)["row"].to_pylist() == [n for n in range(80, ROWS) if n != 90]
    assert [(row.row, row.key) for row in record.first_bad_rows] == [(90, "90")]


def test_a_fault_in_a_later_chunk_is_located(worker_for: Callable[..., Worker]) -> None:
    worker = worker_for()
    plan = replace(worker.plan, resolved=replace(worker.plan.resolved, chunk_rows=3))
    record = Worker(plan, worker.storage, worker.predictor).process_part(2)
    assert [(row.row, row.file_row) for row in record.first_bad_rows] == [(90, 20)]


def test_a_stop_drops_the_part(worker_for: Callable[..., Worker], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        worker_for().process_part(0, stopped=lambda: True)
    assert files(tmp_path / "out") == []


def test_a_part_that_breaks_a_policy_leaves_a_refusal_and_no_files(
    worker_for: Callable[..., Worker], tmp_path: Path
) -> None:
    record = worker_for(normalize={"nonfinite": "fail"}).process_part(2)
    assert (record.counts.failed, record.files) == (1, ())
    assert files(tmp_path / "out") == ["_state/refused/000002.json"]


def test_a_file_that_is_replaced_under_the_plan_is_noticed(
    worker_for: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = worker_for()
    other = pa.table({"id": range(30), "x": fixed_size_list(np.ones((30, 2), np.float32))})
    pq.write_table(other, tmp_path / "in" / "1.parquet")
    with pytest.raises(WorkFailed, match=r"1\.parquet"):
        worker.process_part(2)
    assert not list((tmp_path / "out").rglob("records/*"))


@given(sizes=st.lists(st.integers(0, 9), max_size=6), rows=st.integers(1, 12))
def test_regrouping_keeps_rows_in_order_on_a_grid(sizes: list[int], rows: int) -> None:
    values = iter(range(sum(sizes)))
    batches = [
        pa.RecordBatch.from_pydict({"x": pa.array([next(values) for _ in range(size)], pa.int64())})
        for size in sizes
    ]
    tables = list(regrouped(batches, rows))
    assert [value for table in tables for value in table["x"].to_pylist()] == list(
        range(sum(sizes))
    )
    assert [table.num_rows for table in tables[:-1]] == [rows] * (len(tables) - 1)
    assert all(0 < table.num_rows <= rows for table in tables)
