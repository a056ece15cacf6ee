"""The benchmark itself, at a size that takes seconds: no time is asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.__main__ import work_through
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, Contender
from benchmarks.cases import CASES
from benchmarks.data import Table, make
from benchmarks.findings import Finding, Target
from benchmarks.measure import ContenderFailed
from benchmarks.report import Report
from benchmarks.sizes import SIZES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 4 (ours and the plain script), 6 (no model at all) and 9 (no run at all)."""
    work = tmp_path_factory.mktemp("sitting")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "--size",
            "tiny",
            "--only",
            "4",
            "--only",
            "6",
            "--only",
            "9",
        ],
        cwd=ROOT,
        env={**os.environ, "BENCHMARKS_WORK": str(work)},
        capture_output=True,
        check=True,
    )
    return work


def test_a_sitting_measures_compares_and_saves(sitting: Path) -> None:
    saved = json.loads((sitting / "results" / "tiny.json").read_text())
    assert [one["row"] for one in saved["findings"]] == ["4", "4", "6", "9", "9", "9", "9"]
    assert all(one["value"] > 0 for one in saved["findings"])
    measured = [(one["case"], one["contender"]) for one in saved["measurements"]]
    assert measured == [
        ("4", "ours"),
        ("4", "plain script, batch 32"),
        ("4", "ours, Arrow"),
        ("6", "ours"),
        ("6", "copy loop"),
        ("9", "batch size for Dense 512-256-64"),
        ("9", "batch size for Dense 64"),
    ]
    assert saved["measurements"][0]["said"]["rows"] == SIZES["tiny"].rows
    assert saved["command"] == "python -m benchmarks --size tiny --only 4 --only 6 --only 9"


def test_a_sitting_leaves_nothing_but_data_and_results(sitting: Path) -> None:
    assert sorted(path.name for path in (sitting / "out" / "tiny").iterdir()) == []


def test_the_same_data_is_made_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.data.WORK", tmp_path)
    table = Table(1_000, 4)
    make(table)
    first = table.path.read_bytes()
    table.path.unlink()
    make(table)
    assert table.path.read_bytes() == first


@pytest.mark.parametrize(
    ("layout", "groups", "encoding"),
    [
        ("plain", 2, "PLAIN"),
        ("one_group", 1, "PLAIN"),
        ("wide", 2, "PLAIN"),
        ("dictionary", 2, "RLE_DICTIONARY"),
        ("uneven", 1, "PLAIN"),
    ],
)
def test_layouts_are_what_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, groups: int, encoding: str
) -> None:
    monkeypatch.setattr("benchmarks.data.WORK", tmp_path)
    table = Table(60_000, 4, layout)
    make(table)
    metadata = pq.read_metadata(table.path)
    assert (metadata.num_rows, metadata.num_row_groups) == (60_000, groups)
    assert encoding in metadata.row_group(0).column(1).encodings
    assert ("RLE_DICTIONARY" in metadata.row_group(0).column(1).encodings) == (
        encoding == "RLE_DICTIONARY"
    )


def test_contenders_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    size = replace(SIZES["tiny"], repetitions=2)
    contenders = {
        name: Contender(("sh", "-c", f"echo {name} >> {log}; mkdir {tmp_path / name}"), output)
        for name, output in (("a", tmp_path / "a"), ("b", tmp_path / "b"))
    }
    runs = Bench(size, cores=1).run("1", contenders)
    assert log.read_text().split() == ["a", "b", "a", "b"]
    assert [len(each.measurements) for each in runs.values()] == [2, 2]


def test_every_target_of_the_issue_has_a_case() -> None:
    of_compare = ["compare-neighbours", "compare-memory", "compare-norms"]
    of_refresh = ["load", "night", "heavy", "nothing", "difference", "memory", "disk"]
    assert list(CASES) == [
        *map(str, range(1, 13)),
        *("start", "backend-memory", "families", "baked", "growth"),
        *of_compare,
        *(f"refresh-{name}" for name in of_refresh),
    ]


def test_the_copy_loop_writes_as_the_tool_does(tmp_path: Path) -> None:
    """The same settings: a file of ours, and one through the benchmark's writer."""
    from batchnorm_tool import Job, run
    from benchmarks.contenders.writer_settings import open_writer

    predictions = ROOT / "data_samples" / "digits_predictions.parquet"
    job = Job.from_dict(
        {
            "input": {"path": str(predictions), "key": "id", "features": "prediction"},
            "output": {"path": str(tmp_path / "ours")},
        }
    )
    run(job)
    [ours] = (tmp_path / "ours" / "vectors").iterdir()
    table, other = pq.read_table(ours), tmp_path / "other.parquet"
    with open_writer(other, table.schema, ["vector", "norm"]) as writer:
        writer.write_table(table)
    described = [_columns(path) for path in (ours, other)]
    assert described[0] == described[1]
    shutil.rmtree(tmp_path / "ours")


def _columns(path: Path) -> list[tuple[object, ...]]:
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    return [
        (
            one.path_in_schema,
            one.compression,
            one.encodings,
            one.total_compressed_size,
            one.is_stats_set,
        )
        for one in columns
    ]


def test_a_contender_that_fails_is_named() -> None:
    bench = Bench(SIZES["tiny"], cores=1)
    with pytest.raises(ContenderFailed, match=r"^Ray Data ended with exit code 4: no room$"):
        bench.run("3", {"Ray Data": Contender(("sh", "-c", "echo no room >&2; exit 4"))})
    assert bench.records == []


def test_the_other_cases_go_on_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: Bench) -> list[Finding]:
        raise Disagreement("id 7 differs")

    found = Finding("2", "", "", "", 1.0, Target("at most", 2))
    cases = {"1": fail, "2": lambda bench: [found]}
    monkeypatch.setattr("benchmarks.__main__.CASES", cases)
    report = Report("make bench")
    for name in cases:
        work_through(name, Bench(SIZES["tiny"], cores=1), report)
    assert report.failures == {"1": "id 7 differs"}
    assert report.findings == [found]
