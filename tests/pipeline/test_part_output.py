from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, run, verify
from batchnorm_tool.pipeline.output_schema import fixed_size_list

ROWS, BAD = 12, 7


def quarantined(folder: Path, columns: dict[str, Any], spec: dict[str, Any]) -> pa.Table:
    """What lies in quarantine after a run over ``columns``, whose row 7 is bad."""
    pq.write_table(pa.table({"id": np.arange(ROWS), **columns}), folder / "in.parquet")
    data = {
        "input": {"path": "in.parquet", "key": "id", **spec},
        "normalize": {"max_bad_fraction": 1},
        "output": {"path": "out", "part_rows": 8},
    }
    result = run(Job.from_dict(data, folder))
    assert verify(result.path, keys=True).rows == ROWS - 1
    return pq.read_table(Path(result.path) / "_quarantine" / "part-000000.parquet")


def vectors(width: int = 2) -> np.ndarray:
    array = np.ones((ROWS, width), np.float32)
    array[BAD] = np.nan
    return array


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        ([], ["file", "file_row", "reason", "prediction"]),
        (["file", "reason"], ["file_", "file_row", "reason_", "prediction"]),
        (["file_row", "prediction"], ["file", "file_row_", "reason", "prediction_"]),
        (["file", "file_"], ["file__", "file_row", "reason", "prediction"]),
    ],
    ids=["none", "file and reason", "file_row and prediction", "twice"],
)
def test_columns_of_quarantine_make_way_for_those_passed_through(
    tmp_path: Path, names: list[str], ours: list[str]
) -> None:
    columns = {name: [f"{name} {row}" for row in range(ROWS)] for name in names}
    spec = {"passthrough": names, "features": "x"}
    table = quarantined(tmp_path, {**columns, "x": fixed_size_list(vectors())}, spec)
    assert table.column_names == ["id", *names, *ours]
    (row,) = table.to_pylist()
    assert [row[name] for name in names] == [f"{name} {BAD}" for name in names]
    path, *found, prediction = (row[name] for name in ours)
    assert path == str(tmp_path / "in.parquet")
    assert found == [BAD, "nonfinite_prediction"]
    assert np.isnan(prediction).all()


def test_predictions_of_several_outputs_make_way_too(tmp_path: Path) -> None:
    columns = {"x": fixed_size_list(vectors()), "a_prediction": range(ROWS)}
    spec = {"passthrough": ["a_prediction"], "features": {"a": "x", "b": "x"}}
    table = quarantined(tmp_path, columns, spec)
    assert table.column_names[-2:] == ["a_prediction_", "b_prediction"]
    assert table["a_prediction"].to_pylist() == [BAD]


def test_a_prediction_of_higher_rank_keeps_its_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", vectors(6).reshape(ROWS, 2, 3))
    data = {
        "input": {"path": "in.npy"},
        "normalize": {"max_bad_fraction": 1},
        "output": {"path": "out"},
    }
    run(Job.from_dict(data, tmp_path))
    schema = pq.read_schema(tmp_path / "out" / "_quarantine" / "part-000000.parquet")
    assert schema.field("prediction").type.list_size == 6
    assert schema.field("prediction").metadata[b"shape"] == b"[2, 3]"
