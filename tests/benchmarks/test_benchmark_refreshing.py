"""The rows of `refresh`, at a size that takes seconds: no time is asserted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.cases import refreshing
from benchmarks.contenders.store_copies import copy_store, store_bytes
from benchmarks.data import HEAVY, Table, make
from benchmarks.measure import Measurement
from benchmarks.sizes import SIZES

TINY = SIZES["tiny"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory in the place of the benchmark's."""
    monkeypatch.setenv("BENCHMARKS_WORK", str(tmp_path))
    for module in ("benchmarks.data", "benchmarks.bench"):
        monkeypatch.setattr(f"{module}.WORK", tmp_path)
    return tmp_path


@pytest.fixture
def bench(work: Path) -> Bench:
    return Bench(TINY, cores=2)


@pytest.fixture
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored predictions, where TensorFlow would take most of a test's time."""
    monkeypatch.setattr(refreshing, "DEEP", None)


def features(table: Table) -> np.ndarray:
    lists = pq.read_table(table.path)["features"].combine_chunks()
    return lists.flatten().to_numpy().reshape(table.rows, -1)


def said(bench: Bench) -> dict[str, Any]:
    return {record.contender: record.measurement.said for record in bench.records}


def test_one_in_a_hundred_rows_changes_every_night(work: Path) -> None:
    first, second, third = (Table(60_000, 3, night=night) for night in (1, 2, 3))
    for table in (first, second, third):
        make(table)
    found = [features(table) for table in (first, second, third)]
    for before, after, table in zip(found, found[1:], (second, third), strict=False):
        others = np.flatnonzero((before != after).any(axis=1))
        np.testing.assert_array_equal(others, table.changed)
        assert len(others) == 600
        assert others.max() >= 50_000  # in the second block too
    assert not np.array_equal(second.changed, third.changed)
    assert pq.read_table(third.path)["id"].to_pylist() == list(range(60_000))
    third.path.rename(work / "once")
    make(third)
    assert third.path.read_bytes() == (work / "once").read_bytes()


def test_a_night_is_held_against_its_parts(bench: Bench, work: Path) -> None:
    [finding] = refreshing.night_against_its_parts(bench)
    _, ours, *parts = (record.measurement for record in bench.records)
    assert finding.value == pytest.approx(
        ours.body_seconds / sum(part.body_seconds for part in parts)
    )
    changed = TINY.rows // 100
    assert [part.said["rows"] for part in parts] == [TINY.rows, changed, changed]
    assert parts[2].said["live"] == TINY.rows
    assert ours.said["rows"]["predicted"] == changed
    libraries = {name.partition(".")[0] for name in ours.said["imported"]}
    assert libraries <= {"batchnorm_tool", "encodings"}
    assert list((work / "out" / "tiny").iterdir()) == []


def test_a_night_without_changes_is_held_against_hashing(
    bench: Bench, without_a_model: None
) -> None:
    [finding] = refreshing.nothing_changed(bench)
    _, *taken = (record.measurement for record in bench.records)
    ours, ours_imports, alone, its_imports = (one.seconds for one in taken)
    assert finding.value == pytest.approx((ours - ours_imports) / (alone - its_imports))
    assert finding.other.endswith("neither TensorFlow nor Lance imported")
    assert all(taken[place].said["modules"] > 100 for place in (1, 3))
    assert taken[2].said["rows"] == TINY.rows


def test_a_night_without_changes_that_imports_lance_misses(
    bench: Bench, without_a_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "imported_modules", lambda *_: ["json", "lance.file"])
    [finding] = refreshing.nothing_changed(bench)
    assert (finding.value, finding.verdict) == (math.inf, "missed")
    assert finding.other.endswith("imports lance")


def test_the_difference_is_measured_in_rows(bench: Bench, without_a_model: None) -> None:
    [finding] = refreshing.difference_alone(bench)
    _, ours, _ = (record.measurement for record in bench.records)
    assert finding.value == pytest.approx(TINY.rows / ours.body_seconds / 1e6)
    assert ours.said["rows"]["changed"] == TINY.rows // 100
    assert ours.said["rows"]["same"] == TINY.rows - TINY.rows // 100


def test_memory_is_that_of_the_further_rows_with_keys_of_any_type(bench: Bench) -> None:
    findings = refreshing.memory_of_the_difference(bench)
    measured = [record.measurement for record in bench.records[4:]]
    assert [one.said["rows"]["in"] for one in measured] == [4_000, 16_000] * 2
    for finding, few, many in zip(findings, measured[::2], measured[1::2], strict=True):
        assert finding.value == pytest.approx((many.peak_rss_bytes - few.peak_rss_bytes) / 12_000)
    keys = pq.read_schema(Table(TINY.rows, 16, "text_keys").path).field("id")
    assert (keys.type, findings[1].work[-7:]) == ("string", "strings")


def test_a_first_load_is_held_against_a_run(bench: Bench, without_a_model: None) -> None:
    ratio, more = refreshing.first_load(bench)
    ours, ours_imports, run, its_imports = (one.measurement.seconds for one in bench.records)
    took, limit = ours - ours_imports, run - its_imports
    assert (ratio.value, more.value) == (pytest.approx(took / limit), pytest.approx(took - limit))
    assert more.target.limit == pytest.approx(1 + 4e-6 * 1_600)
    assert "1,600 rows of 128" in ratio.work


def test_the_disk_holds_every_kept_night(bench: Bench, work: Path) -> None:
    [finding] = refreshing.disk_after_nights(bench)
    [told] = said(bench).values()
    assert told["changed"] == [0, 40, 40]
    assert told["live"] == TINY.kept
    assert finding.value == pytest.approx(told["kept_bytes"] / told["fresh_bytes"])
    assert told["kept_bytes"] > told["fresh_bytes"] > TINY.kept * 64 * 4
    assert list((work / "data").iterdir()) == []


class Told(Bench):
    """A sitting in which nothing is measured: every contender says what it is told to."""

    told: tuple[float, int] = (10.0, 40)

    def run(self, case: str, contenders: Any, repetitions: int | None = None) -> dict[str, Runs]:
        load, changed = self.told
        rows = {"changed": changed, "new": 0, "vanished": 0}
        bodies = [{"body_seconds": load}, {"body_seconds": 0.9, "rows": rows}]
        runs = [Runs([Measurement(9.0, 9.0, 1, 1, body)]) for body in bodies]
        return dict(zip(contenders, runs, strict=True))


@pytest.fixture
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshing.lineup, "made", lambda thing: thing.path)


def test_a_heavy_model_is_held_against_its_first_load(nothing_made: None) -> None:
    [finding] = refreshing.heavy_model(Told(TINY, cores=1))
    assert finding.value == pytest.approx(9.0)
    assert (finding.verdict, finding.ours) == ("met", "0.900 s")
    assert "9.99 MFLOP a row" in finding.work


def test_a_row_of_the_heavy_model_takes_ten_million_operations() -> None:
    assert HEAVY.row_operations == 2 * (128 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 64)


def test_a_night_that_did_other_work_is_no_measurement(nothing_made: None) -> None:
    sitting = Told(TINY, cores=1)
    sitting.told = (10.0, 41)
    with pytest.raises(Disagreement, match=r"found \[41, 0, 0\] changed rows. Expected: \[40"):
        refreshing.heavy_model(sitting)


def test_the_copy_of_a_store_can_be_changed_alone(bench: Bench, without_a_model: None) -> None:
    table = Table(TINY.rows, 4)
    refreshing._first_night(bench, "refresh-night", table, None)
    base = refreshing.lineup.store_in(bench.output("refresh-night", "first"))
    size = store_bytes(str(base))
    night = refreshing.lineup.night(
        replace(table, night=2), None, bench.output("refresh-night", "night"), base.parent
    )
    for _ in range(2):  # the second one finds the store as the first one did
        [runs] = bench.run("refresh-night", {"ours": night}, 1).values()
        assert runs.said["rows"]["changed"] == TINY.rows // 100
    assert lance.dataset(str(base)).version == 1
    assert store_bytes(str(base)) == size
    copy = base.with_name("another.lance")
    copy_store(str(base), str(copy))
    assert store_bytes(str(copy)) == size


def test_what_a_contender_is_told_fits_a_command_line(nothing_made: None) -> None:
    merge = refreshing._merge_alone(Bench(SIZES["full"], 2), "x", Table(1_000_000, night=2))
    assert isinstance(merge, Contender)
    assert sum(len(str(word)) for word in merge.command) < 2_000
