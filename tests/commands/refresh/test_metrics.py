"""The Prometheus text file of a night, read back by Prometheus' own parser."""

from __future__ import annotations

import math
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchnorm_tool.commands.refresh.metrics import (
    CommandOutcome,
    check_metrics_file,
    last_success,
    write_metrics,
)
from batchnorm_tool.errors import JobError, WorkFailed
from tests.refresh_records import record_of
from tests.report import history_documents as histories

STORE = "/stores/items.lance"
OUTCOME = CommandOutcome(
    exit_code=0, store=STORE, seconds=71.5, live=29, last_success=1_772_330_400.25
)
TARGETS = [
    {"name": "feed", "kind": "changes", "seconds": 1.0},
    {"name": "pg", "kind": "pgvector", "seconds": 1.0, "error": "away"},
]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(path: Path) -> Samples:
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    return {
        (s.name.removeprefix("batchnorm_tool_refresh_"), frozenset(s.labels.items())): s.value
        for family in families
        for s in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset({"store": STORE, **labels}.items())))


def written(tmp_path: Path, record: dict[str, Any] | None, **changes: Any) -> Samples:
    path = tmp_path / "refresh.prom"
    write_metrics(path, record and record_of(**record), replace(OUTCOME, **changes))
    return read(path)


def test_a_night_in_numbers(tmp_path: Path) -> None:
    record = histories.night(29, targets=TARGETS)
    samples = written(tmp_path, record)
    for kind, rows in record["rows"].items():
        assert value(samples, "rows", kind=kind) == rows
    for phase, seconds in record["seconds"].items():
        assert value(samples, "phase_seconds", phase=phase) == seconds
    for name, shown in (("q01", "0.01"), ("q50", "0.5"), ("q95", "0.95"), ("q99", "0.99")):
        assert value(samples, "norm", quantile=shown) == record["norms"][name]
    assert value(samples, "version") == 29
    assert value(samples, "duration_seconds") == 71.5
    assert value(samples, "exit_code") == 0
    assert value(samples, "live_version") == 29
    assert value(samples, "waiting_version") == 0
    assert value(samples, "on_hold") == 0
    assert value(samples, "target_up_to_date", target="feed") == 1
    assert value(samples, "target_up_to_date", target="pg") == 0
    assert value(samples, "last_success_timestamp_seconds") == 1_772_330_400.25


def test_what_the_gate_measured(tmp_path: Path) -> None:
    record = histories.broken(30, "waiting", measured=None)
    samples = written(tmp_path, record, exit_code=3, waiting=30, hold=True, last_success=None)
    for finding in record["gate"]["findings"]:
        labels = {"limit": finding["limit"], "scope": finding["scope"]}
        assert value(samples, "gate_passed", **labels) == finding["passed"]
        assert value(samples, "gate_limit", **labels) == finding["allowed"]
        measured = value(samples, "gate_value", **labels)
        assert measured is not None
        assert measured == finding["measured"] or math.isnan(measured)
    assert value(samples, "exit_code") == 3
    assert value(samples, "waiting_version") == 30
    assert value(samples, "on_hold") == 1


def test_every_metric_is_described(tmp_path: Path) -> None:
    written(tmp_path, histories.night(3, targets=TARGETS))
    text = (tmp_path / "refresh.prom").read_text()
    families = list(text_string_to_metric_families(text))
    assert all(f.documentation and f.type == "gauge" for f in families)
    assert {f.name for f in families} == {
        f"batchnorm_tool_refresh_{name}"
        for name in (
            *("rows", "phase_seconds", "duration_seconds", "norm", "gate_value", "gate_limit"),
            *("gate_passed", "target_up_to_date", "exit_code", "last_success_timestamp_seconds"),
            *("version", "live_version", "waiting_version", "on_hold"),
        )
    }


def test_a_failed_night_keeps_the_time_of_the_last_success(tmp_path: Path) -> None:
    written(tmp_path, histories.night(29))
    samples = written(tmp_path, None, exit_code=1, last_success=None)
    assert value(samples, "last_success_timestamp_seconds") == 1_772_330_400.25
    assert value(samples, "exit_code") == 1
    assert value(samples, "rows", kind="in") is None


def test_the_success_of_another_store_is_not_taken_over(tmp_path: Path) -> None:
    written(tmp_path, None)
    samples = written(tmp_path, None, store="other", exit_code=1, last_success=None)
    assert not [name for name, _ in samples if name.startswith("last_success")]


def test_a_store_that_never_succeeded_has_no_such_time(tmp_path: Path) -> None:
    samples = written(tmp_path, None, exit_code=1, last_success=None)
    assert value(samples, "last_success_timestamp_seconds") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"batchnorm_tool{", b"a b c d"],
    ids=["empty", "bytes", "cut", "no"],
)
def test_an_old_file_that_cannot_be_read_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refresh.prom").write_bytes(content)
    assert last_success(tmp_path / "refresh.prom", STORE) is None
    assert value(written(tmp_path, None, last_success=None), "exit_code") == 0


def test_names_with_quotes_and_line_breaks_come_back(tmp_path: Path) -> None:
    name = 'a "store"\\\nb'
    samples = written(tmp_path, None, store=name)
    assert samples["exit_code", frozenset({("store", name)})] == 0


def test_a_night_without_norms_or_gate(tmp_path: Path) -> None:
    record = histories.rollback(20, 17) | {"norms": {"count": 0, "q50": None}}
    samples = written(tmp_path, record)
    assert not [name for name, _ in samples if name.startswith(("norm", "gate"))]
    assert value(samples, "rows", kind="new") == 0


def test_the_file_can_be_read_by_the_collector_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        written(tmp_path, None)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "refresh.prom").stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["refresh.prom"]


def test_the_file_is_replaced_whole_and_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, None, exit_code=7)
    seen: list[float | None] = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append(value(read(tmp_path / "refresh.prom"), "exit_code"))

    monkeypatch.setattr(os, "fsync", fsync)
    written(tmp_path, None, exit_code=0)
    assert seen == [7]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"Cannot write `.*missing/refresh\.prom`"):
        write_metrics(tmp_path / "missing" / "refresh.prom", None, OUTCOME)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, None)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailed, match="No space left"):
        write_metrics(tmp_path / "refresh.prom", None, replace(OUTCOME, exit_code=1))
    assert os.listdir(tmp_path) == ["refresh.prom"]
    assert value(read(tmp_path / "refresh.prom"), "exit_code") == 0


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(JobError, match=r"pip install 'batchnorm-tool\[refresh\]'"):
        check_metrics_file(tmp_path / "refresh.prom")


def test_a_device_or_directory_is_no_metrics_file(tmp_path: Path) -> None:
    for place in ("/dev/null", str(tmp_path)):
        with pytest.raises(JobError, match="must be a file"):
            check_metrics_file(place)
    check_metrics_file(tmp_path / "new.prom")


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "link.prom"
    link.symlink_to(tmp_path / "real.prom")
    write_metrics(link, None, OUTCOME)
    assert link.is_symlink()
    assert "exit_code" in (tmp_path / "real.prom").read_text()
