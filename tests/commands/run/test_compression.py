"""How vectors are compressed is a choice of the job, and no other result where it is the usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, OutputError, read, run, verify
from tests.commands.workshop import predictions


def job_with(folder: Path, **output: Any) -> Job:
    """Stored predictions, written to ``out``."""
    np.save(folder / "in.npy", predictions(200))
    data = {"input": {"path": "in.npy"}, "output": {"path": "out", **output}}
    return Job.from_dict(data, folder)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("compression", ["zstd:9", "lz4", "none"])
def test_the_rows_are_the_same_however_they_are_compressed(
    tmp_path: Path, form: str, compression: str
) -> None:
    usual = read(run(job_with(tmp_path)).path).to_numpy()
    result = run(job_with(tmp_path, path="other", format=form, compression=compression))
    assert verify(result.path).rows == 200
    for mine, other in zip(read(result.path).to_numpy(), usual, strict=True):
        assert np.array_equal(mine, other)


def test_files_hold_what_the_job_says(tmp_path: Path) -> None:
    result = run(job_with(tmp_path, compression="lz4"))
    file = pq.ParquetFile(Path(result.path, "vectors", "part-000000.parquet"))
    assert file.metadata.row_group(0).column(1).compression == "LZ4"


def test_only_another_compression_is_another_result(tmp_path: Path) -> None:
    run(job_with(tmp_path))
    assert run(job_with(tmp_path, compression="zstd")).nothing_to_do
    with pytest.raises(OutputError, match=r"`output\.compression`"):
        run(job_with(tmp_path, compression="none"))
