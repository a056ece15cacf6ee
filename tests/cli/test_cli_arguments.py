"""Whatever stands behind a flag: it is taken, or refused in words, and never a fault of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.cli.flags import COLUMN_FLAG, JOB_FLAGS
from tests.command_line import invoke

VALUES = ["", " ", "nonsense", "-1", "1e400", "nan", "9" * 5000, "é\n\x1b[31m", "a,a", "[", "!!x y"]
COMPARING = [
    "--norms",
    "--metric",
    "--label",
    "--queries",
    "--relevance",
    "--relevance-columns",
    "--by",
    "--column",
    "--key",
    "--k",
    "--sample",
    "--seed",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "in.parquet"
    numbers = np.random.default_rng(0).normal(size=(8, 2))
    table = {"id": range(8), "a": numbers[:, 0], "vector": pa.array(numbers.tolist())}
    pq.write_table(pa.table(table), path)
    return path


def assert_told(*arguments: object) -> None:
    result = invoke(*arguments)
    shown = f"{arguments[-1]!r:.60}: {result.stderr}"
    assert result.exit_code in (0, 2), shown
    assert isinstance(result.exception, SystemExit | None), shown
    assert "unforeseen" not in result.stderr, shown
    assert "\x1b" not in result.output, shown


@pytest.mark.parametrize("flag", [name for name, *_ in (*JOB_FLAGS, COLUMN_FLAG)])
def test_any_value_of_a_flag_of_a_job_is_taken_or_refused(
    data: Path, tmp_path: Path, flag: str
) -> None:
    for value in VALUES:
        assert_told("normalize", data, tmp_path / "out", "--dry-run", flag, value)


@pytest.mark.parametrize("flag", COMPARING)
def test_any_value_of_a_flag_of_compare_is_taken_or_refused(data: Path, flag: str) -> None:
    for value in VALUES:
        assert_told("compare", data, flag, value)


@pytest.mark.parametrize("key", ["input", "input.path", "input.fill.a", "output.columns", "a.b.c"])
def test_any_value_of_a_key_is_taken_or_refused(data: Path, tmp_path: Path, key: str) -> None:
    for value in VALUES:
        assert_told("normalize", data, tmp_path / "out", "--dry-run", "--set", f"{key}={value}")
