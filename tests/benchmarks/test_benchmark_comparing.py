"""The rows of `compare`, at a size that takes seconds: no time is asserted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.bench import Bench
from benchmarks.cases import comparing
from benchmarks.contenders.faiss_neighbours import without_own
from benchmarks.data import Table, make
from benchmarks.sizes import SIZES

TINY = SIZES["tiny"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A sitting whose files are in a temporary directory, faiss in the tests' own environment."""
    monkeypatch.setenv("BENCHMARKS_WORK", str(tmp_path))
    for module in ("benchmarks.data", "benchmarks.bench"):
        monkeypatch.setattr(f"{module}.WORK", tmp_path)
    monkeypatch.setattr(comparing, "PEERS_PYTHON", Path(sys.executable))
    return Bench(TINY, cores=1)


def test_faiss_finds_the_same_neighbours(bench: Bench) -> None:
    [finding] = comparing.nearest_neighbours(bench)
    assert [record.contender for record in bench.records] == ["ours", "four searches of faiss"]
    ours, other = (record.measurement.body_seconds for record in bench.records)
    assert finding.value == pytest.approx(other / ours)
    assert re.fullmatch(r"[\d.]+ s \([\d.]+ CPU s\)", finding.ours)
    assert finding.work == "100 neighbours of 50 queries in 4,000 rows of 128, 4 norms, in memory"


def test_without_its_environment_faiss_is_not_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "PEERS_PYTHON", Path("nowhere"))
    [finding] = comparing.nearest_neighbours(bench)
    assert (finding.verdict, bench.records) == ("not measured", [])


def test_memory_is_held_against_the_base(bench: Bench) -> None:
    held, streamed = comparing.memory_of_neighbours(bench)
    peaks = [record.measurement.peak_rss_bytes for record in bench.records]
    assert held.value == pytest.approx(peaks[0] / 1e6 - TINY.base * 128 * 4 / 1e6)
    assert streamed.value == pytest.approx(peaks[1] / (TINY.streamed_base * 128 * 4))
    assert bench.records[1].measurement.said["queries"] == TINY.queries


def test_all_norms_of_all_rows_are_measured(bench: Bench) -> None:
    [finding] = comparing.norm_survey(bench)
    ours, loop, _ = (record.measurement for record in bench.records)
    rows = TINY.surveyed
    assert ours.said["counts"] == {"l1": rows, "l2": rows, "max": rows, "none": rows}
    assert loop.said["rows"] == rows
    assert finding.value == pytest.approx(ours.body_seconds / loop.body_seconds)


def test_a_query_is_none_of_its_neighbours_in_faiss_either() -> None:
    found = np.array([[7, 4, 5], [1, 2, 3], [9, 8, 6]])
    assert without_own(found, np.array([4, 0, 6])).tolist() == [[7, 5], [1, 2], [9, 8]]


def test_both_layouts_of_uneven_rows_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.data.WORK", tmp_path)
    tables = [Table(70_000, 4, layout) for layout in ("uneven", "uneven_npy")]
    for table in tables:
        make(table)
    stored = pq.read_table(tables[0].path)["features"].combine_chunks().flatten().to_numpy()
    matrix = np.load(tables[1].path)
    assert matrix.shape == (70_000, 4)
    np.testing.assert_array_equal(matrix, stored.reshape(-1, 4))
    assert pq.read_metadata(tables[0].path).row_group(0).num_rows == 65_536
    # A length is that of four normal numbers, times e to a normal number of deviation 0.3.
    squares = np.square(matrix.astype(np.float64)).mean()
    assert squares == pytest.approx(np.exp(2 * 0.3**2), rel=0.03)
