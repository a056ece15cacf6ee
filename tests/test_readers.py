"""Other people's readers, pointed at `OUT/vectors`, find every row with its vector and norm.

Beside that directory lie `_stats` and `_quarantine`, which hold Parquet of other schemas.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, normalize, run
from batchnorm_tool.job import Input, Normalize, Output

ROWS, WIDTH, PART_ROWS = 1000, 5, 256
PARTS = 4
BAD_ROWS = [7, 300]

# Keys, vectors and norms, in any order of the rows.
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stored:
    """A finished run of several parts, and what readers must find in it."""

    path: Path
    ids: np.ndarray
    vectors: np.ndarray
    norms: np.ndarray

    @property
    def directory(self) -> str:
        """What readers are pointed at."""
        return str(self.path / "vectors")

    def check(self, found: Found) -> None:
        ids, vectors, norms = found
        order = np.argsort(ids)
        np.testing.assert_array_equal(ids[order], self.ids)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors[order], self.vectors)
        assert norms.dtype == np.float64
        np.testing.assert_array_equal(norms[order], self.norms)


def make_run(directory: Path, form: str) -> Stored:
    """Normalize stored predictions, two of which go to quarantine."""
    raw = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32) * 100
    raw[BAD_ROWS, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(raw.ravel()), WIDTH)
    source = directory / "predictions.parquet"
    pq.write_table(pa.table({"id": np.arange(ROWS) + 10_000, "raw": column}), source)
    job = Job(
        input=Input(path=str(source), key="id", features="raw"),
        normalize=Normalize(nonfinite="quarantine", max_bad_fraction=1.0),
        output=Output(path=str(directory / "out"), format=form, part_rows=PART_ROWS),
    )
    assert run(job).rows["quarantined"] == len(BAD_ROWS)
    good = np.delete(np.arange(ROWS), BAD_ROWS)
    vectors, norms = normalize(raw[good], return_norm=True)
    return Stored(Path(job.output.path), good + 10_000, vectors, norms)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return make_run(tmp_path_factory.mktemp("parquet"), "parquet")


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return make_run(tmp_path_factory.mktemp("arrow"), "arrow")


@pytest.fixture(scope="module")
def npy(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return make_run(tmp_path_factory.mktemp("npy"), "npy")


def from_pandas(frame: pd.DataFrame) -> Found:
    return frame["id"].to_numpy(), np.stack(frame["vector"].tolist()), frame["norm"].to_numpy()


def from_polars(frame: pl.DataFrame) -> Found:
    assert frame.schema["vector"] == pl.Array(pl.Float32, WIDTH)
    return frame["id"].to_numpy(), frame["vector"].to_numpy(), frame["norm"].to_numpy()


def from_arrow(table: pa.Table) -> Found:
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    return table["id"].to_numpy(), vectors, table["norm"].to_numpy()


def with_pandas(path: str) -> Found:
    return from_pandas(pd.read_parquet(path))


def with_polars(path: str) -> Found:
    return from_polars(pl.read_parquet(path))


def with_lazy_polars(path: str) -> Found:
    return from_polars(pl.scan_parquet(path).filter(pl.col("norm") > 0).collect())


def with_duckdb(path: str) -> Found:
    with duckdb.connect() as database:
        query = f"SELECT id, vector::FLOAT[{WIDTH}] AS vector, norm FROM '{path}/*.parquet'"  # noqa: S608
        return from_arrow(database.sql(query).to_arrow_table())


def with_pyarrow(path: str) -> Found:
    return from_arrow(ds.dataset(path).to_table())


def with_datasets(path: str) -> Found:
    from datasets import load_dataset

    cache = str(Path(path).parent.parent / "cache")
    rows = load_dataset("parquet", data_dir=path, split="train", cache_dir=cache)
    assert rows.features["vector"].length == WIDTH
    arrays = rows.with_format("numpy")[:]
    return arrays["id"], arrays["vector"], rows.data["norm"].to_numpy()


READERS: dict[str, Callable[[str], Found]] = {
    "pandas": with_pandas,
    "polars": with_polars,
    "polars, lazily": with_lazy_polars,
    "duckdb": with_duckdb,
    "pyarrow.dataset": with_pyarrow,
    "datasets": with_datasets,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers_of_parquet(parquet: Stored, reader: Callable[[str], Found]) -> None:
    parquet.check(reader(parquet.directory))


def test_what_readers_must_not_see_lies_beside_the_vectors(parquet: Stored) -> None:
    beside = {path.parent.name for path in parquet.path.glob("_*/*.parquet")}
    assert beside == {"_stats", "_quarantine"}
    assert {path.name for path in parquet.path.iterdir()} == {
        *("vectors", "contract.json", "_manifest.json", "_SUCCESS", "_stats", "_quarantine")
    }
    assert sorted(path.name for path in Path(parquet.directory).iterdir()) == [
        f"part-{part:06}.parquet" for part in range(PARTS)
    ]


def test_pyarrow_reads_the_arrow_layout(arrow: Stored) -> None:
    arrow.check(from_arrow(ds.dataset(arrow.directory, format="arrow").to_table()))


def test_polars_reads_the_arrow_layout(arrow: Stored) -> None:
    arrow.check(from_polars(pl.read_ipc(f"{arrow.directory}/*.arrow")))


def test_numpy_reads_the_npy_layout(npy: Stored) -> None:
    keys = pd.read_parquet(npy.path / "keys")["id"].to_numpy()
    vectors, norms = (
        [np.load(path, mmap_mode="r") for path in sorted((npy.path / name).iterdir())]
        for name in ("vectors", "norms")
    )
    assert [array.flags.c_contiguous for array in vectors] == [True] * PARTS
    npy.check((keys, np.concatenate(vectors), np.concatenate(norms)))


SPARK = """
import sys
from pyspark.sql import SparkSession

builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
spark = builder.config("spark.sql.shuffle.partitions", "1").getOrCreate()
frame = spark.read.parquet(sys.argv[1])
types = dict(frame.dtypes)
assert types == {"id": "bigint", "vector": "array<float>", "norm": "double"}, types
for row in frame.collect():
    print(row.id, *(float(value).hex() for value in [*row.vector, row.norm]))
"""


@pytest.mark.needs("java")
def test_spark_reads_parquet(parquet: Stored) -> None:
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    printed = subprocess.run(
        [sys.executable, "-c", SPARK, parquet.directory],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    lines = [line.split() for line in printed.splitlines()]
    numbers = np.array([[float.fromhex(word) for word in words] for _, *words in lines])
    ids = np.array([int(key) for key, *_ in lines])
    parquet.check((ids, numbers[:, :-1].astype(np.float32), numbers[:, -1]))
