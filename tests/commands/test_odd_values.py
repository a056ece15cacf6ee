"""Keys and labels for which Python or Arrow has no value or no function: named all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import InputError, Job, JobError, compare, diff, read, run, verify
from batchnorm_tool.display import printable
from batchnorm_tool.pipeline.output_schema import fixed_size_list

ROWS = 40
FAR = [(row + 1) * 10**17 for row in range(ROWS)]
KINDS = {
    "years": pa.array(FAR, pa.timestamp("us")),
    "zone": pa.array(range(ROWS), pa.timestamp("s", "Not/AZone")),
    "durations": pa.array(FAR, pa.duration("s")),
}


def table(path: Path, key: pa.Array, bad: int | None = None) -> str:
    vectors = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    if bad is not None:
        vectors[bad] = np.nan
    pq.write_table(
        pa.table({"k": key, "l": np.arange(ROWS) % 4, "emb": fixed_size_list(vectors)}), path
    )
    return str(path)


@pytest.mark.parametrize("key", KINDS.values(), ids=KINDS)
def test_a_bad_row_is_named_whatever_its_key(tmp_path: Path, key: pa.Array) -> None:
    sections = {
        "input": {"path": table(tmp_path / "in.parquet", key, bad=3), "key": "k"},
        "normalize": {"nonfinite": "quarantine", "max_bad_fraction": 1},
        "output": {"path": "out"},
    }
    sections["input"] |= {"features": "emb", "invalid": "quarantine"}
    result = run(Job.from_dict(sections, tmp_path))
    assert result.rows["quarantined"] == 1
    assert read(result.path).rows == ROWS - 1


@pytest.mark.parametrize("key", KINDS.values(), ids=KINDS)
def test_such_keys_are_compared(tmp_path: Path, key: pa.Array) -> None:
    one = table(tmp_path / "a.parquet", key)
    other = table(tmp_path / "b.parquet", key.take(pa.array(range(ROWS))[::-1]))
    found = diff(one, other, key="k", column="emb").to_dict()
    assert found["rows"]["common"] == ROWS
    assert len(found["worst"]) == 10
    assert compare(one, key="k", column="emb", label="l", by="k").to_dict()["by"]


def test_times_of_day_with_nanoseconds_are_read_and_verified(tmp_path: Path) -> None:
    path = table(tmp_path / "in.parquet", pa.array(range(ROWS), pa.time64("ns")))
    source = {"path": path, "key": "k", "features": "emb"}
    result = run(Job.from_dict({"input": source, "output": {"path": "out"}}, tmp_path))
    assert verify(result.path, keys=True).rows == ROWS
    assert read(result.path).to_numpy()[0].tolist() == list(range(ROWS))


def test_labels_may_be_of_an_extension_type(tmp_path: Path) -> None:
    stored = pa.array([b"%016d" % (row % 4) for row in range(ROWS)], pa.binary(16))
    labels = pa.ExtensionArray.from_storage(pa.uuid(), stored)
    path = table(tmp_path / "a.parquet", labels)
    assert compare(path, column="emb", label="k").to_dict()["relevance"]["classes"] == 4


def test_partitions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for value in ("%FF", "%FE"):
        (tmp_path / "in" / f"d={value}").mkdir(parents=True)
        table(tmp_path / "in" / f"d={value}" / "a.parquet", pa.array(range(ROWS)))
    with pytest.raises(InputError, match=r"not UTF-8\. Received: 'd=%F[EF]'"):
        run(Job.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}, tmp_path))


def test_a_connection_string_is_no_norm_and_not_shown(tmp_path: Path) -> None:
    path = table(tmp_path / "in.parquet", pa.array(range(ROWS)))
    sections = {"input": {"path": path}, "normalize": {"norm": "mysql+x://root:hunter2@h/db"}}
    with pytest.raises(JobError) as caught:
        Job.from_dict({**sections, "output": {"path": "out"}}, tmp_path)
    assert "Unknown norm" in caught.value.message
    assert "hunter2" not in printable(caught.value.message)
