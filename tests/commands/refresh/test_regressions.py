"""Nights after something went wrong, or in the middle of it: each test once found a fault."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchnorm_tool import accept, refresh, rollback, verify
from batchnorm_tool.commands.refresh.changes import source as changes_source
from batchnorm_tool.commands.refresh.refresh import plan_refresh
from batchnorm_tool.commands.show import show
from batchnorm_tool.errors import Damaged, JobError, OutputError, TargetFailed, WorkFailed
from batchnorm_tool.models.batching import IdentityPredictor
from batchnorm_tool.storage import TEMPORARY, Storage
from batchnorm_tool.store.state import StoreDirectory, StorePointer
from tests.commands.refresh.dying import counted, dies
from tests.commands.refresh.nightly import (
    LOOSE,
    Nightly,
    features,
    firsts,
    items,
    lists,
    rows_of,
    units,
)
from tests.refresh_records import stored_record

FIRST = dict.fromkeys(range(30), 0)
SECOND = {**FIRST, 3: 1}
THIRD = {**FIRST, 4: 1}
MANY = dict.fromkeys(range(1_000), 0)
CHANGED = {"gate": {**LOOSE, "input": {**LOOSE["input"], "changed": 0.01}}}
NO_OUTPUT_LIMITS = dict.fromkeys(
    ("bad", "norm_psi", "norm_quantiles", "centroid_shift", "dimension_shift", "frechet")
)
SNAPSHOTS = {"publish": [{"to": "parquet", "path": "snapshots"}]}
DELTA: dict[str, Any] = {"store__mode": "delta"}


class Killed(BaseException):
    """What ends a night without asking anybody."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", ["refresh", "rollback"])
def test_what_waits_is_staged_anew_after_a_kill_at_the_facts(
    nightly: Nightly, command: str, moment: str
) -> None:
    real = StoreDirectory.put_pointer

    def put_facts(state: StoreDirectory, facts: StorePointer) -> None:
        if moment == "after":
            real(state, facts)
        raise Killed

    nightly.night(FIRST)
    nightly.night(SECOND)
    rollback(nightly.store)
    nightly.held(THIRD)
    nightly.put(FIRST if command == "refresh" else THIRD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreDirectory, "put_pointer", put_facts)
        with pytest.raises(Killed):
            nightly.night() if command == "refresh" else rollback(nightly.store, to=2)
    held = nightly.held(THIRD)
    assert (held["reason"], held["version"]) == ("hold", 5)
    assert accept(nightly.store, 5).state == "published"
    assert nightly.vectors() == units(THIRD)
    assert verify(nightly.store).rows == 30


def snapshot(nightly: Nightly) -> dict[Any, Any]:
    folder = nightly.path / "snapshots"
    table = pq.read_table(folder / (folder / "current").read_text().strip())
    return rows_of(table.combine_chunks(), ["version"])


@contextmanager
def unreachable(folder: Path) -> Iterator[None]:
    """Another store holds a target's directory."""
    with Storage(folder).lock():
        yield


@pytest.mark.parametrize("reason", ["gate", "hold"])
def test_a_night_that_waits_brings_targets_to_the_live_version(
    nightly: Nightly, reason: str
) -> None:
    nightly.sections = SNAPSHOTS
    nightly.night(FIRST)
    nightly.night(SECOND)
    with unreachable(nightly.path / "snapshots"), pytest.raises(TargetFailed):
        nightly.night(THIRD) if reason == "gate" else rollback(nightly.store)
    own = ["version", "feature_hash", "passthrough_hash"]
    assert snapshot(nightly) != nightly.rows(own)
    held = nightly.held({**FIRST, 5: 1, 6: 1}, CHANGED if reason == "gate" else {})
    assert held["reason"] == reason
    assert [target["error"] for target in held["targets"]] == [None]
    assert snapshot(nightly) == nightly.rows(own)


def test_a_dataset_that_is_gone_is_missed_though_nothing_changed(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST)
    shutil.rmtree(nightly.store)
    seen.clear()
    with pytest.raises(Damaged, match=r"items\.lance` is missing"):
        nightly.night(FIRST)
    with pytest.raises(Damaged, match=r"items\.lance` is missing"):
        nightly.night(SECOND)
    assert seen == set()


def test_a_dataset_of_somebody_else_is_refused_before_the_model(
    nightly: Nightly, seen: set[float]
) -> None:
    lance.write_dataset(pa.table({"a": [1, 2]}), nightly.store)
    with pytest.raises(
        OutputError, match="holds a Lance dataset that `batchnorm-tool refresh` did not create"
    ):
        nightly.night(FIRST)
    assert seen == set()
    assert lance.dataset(nightly.store).to_table().to_pydict() == {"a": [1, 2]}


def test_the_vector_of_a_stale_row_takes_another_type(nightly: Nightly) -> None:
    source = {"path": "in", "key": "id", "features": {"x": "x"}, "passthrough": ["label"]}
    nightly.sections = {"input": {**source, "invalid": "quarantine"}}
    nightly.night(FIRST)
    before = nightly.vectors()
    table = items(FIRST)
    bad = table.set_column(1, "x", pa.array([None, *table["x"].to_pylist()[1:]], table["x"].type))
    nightly.night(bad)
    night = nightly.night(bad, {"output": {"dtype": "float16"}})
    assert (night.rows["stale"], night.rows["live"]) == (1, 30)
    vector = np.frombuffer(before[0][0], np.float32).astype(np.float16)
    assert nightly.vectors()[0] == (vector.tobytes(), before[0][1])
    assert nightly.rows()[0]["status"] == "stale: null_feature"
    assert verify(nightly.store).rows == 30


def test_statistics_are_of_rows_that_are_not_deleted(nightly: Nightly) -> None:
    judged = {"null_shift": 0.01, "min_rows": 50}
    limits = {"gate": {**LOOSE, "input": {**LOOSE["input"], **judged}}}
    nightly.night(dict.fromkeys(range(400), 0), limits)
    deleted = [key < 200 for key in range(300)]
    x = [None if gone else features(key, 1) for key, gone in enumerate(deleted)]
    columns = {"x": pa.array(x, pa.list_(pa.float32(), 8)), "gone": deleted}
    table = items(dict.fromkeys(range(300), 1), **columns)
    night = nightly.night(table, limits, **DELTA, store__delete_column="gone")
    assert (night.rows["vanished"], night.rows["live"]) == (200, 200)
    (finding,) = [each for each in night.record["gate"]["findings"] if "null" in each["limit"]]
    assert (finding["measured"], finding["passed"]) == (0, True)
    statistics = night.record["input"]["statistics"]
    assert statistics["columns"] == {"x": {"rows": 100, "nulls": 0}}
    assert statistics["inputs"]["x"]["rows"] == 100


def shifted(keys: range, away: range) -> pa.Table:
    x = lists([features(key) + np.float32(5 * (key in away)) for key in keys])
    return items(dict.fromkeys(keys, 0), x=x)


def test_a_full_night_is_held_against_the_last_one_that_was_full(nightly: Nightly) -> None:
    nightly.sections = {"gate": {"input": {"changed": None}, "output": NO_OUTPUT_LIMITS}}
    first = nightly.night(MANY).record["input"]["statistics"]
    away = range(40)
    nightly.night(shifted(range(20), away), **DELTA)
    delta = nightly.night(shifted(away, away), **DELTA).record["input"]
    assert delta["reference"] == first != delta["statistics"]
    held = nightly.held(shifted(range(1_000), range(1_000)))
    broken = {each["limit"] for each in held["gate"]["findings"] if not each["passed"]}
    assert "gate.input.mean_shift" in broken
    night = nightly.night(shifted(range(1_000), range(50)))
    assert (night.state, night.rows["changed"]) == ("published", 10)
    assert night.record["input"]["reference"] == night.record["input"]["statistics"] != first


def test_a_rollback_that_a_target_cannot_follow_leaves_what_waits(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "postgresql://127.0.0.1:1/none?connect_timeout=1"
    table = {"to": "pgvector", "table": "items", "index": "none", "dsn_env": "NIGHTLY_DSN"}
    monkeypatch.setenv("NIGHTLY_DSN", nowhere)
    for edits in (FIRST, SECOND):
        with pytest.raises(TargetFailed):
            nightly.night(edits, {"publish": [table]})
    waiting = nightly.held({**FIRST, 5: 1}, CHANGED)["version"]
    monkeypatch.delenv("NIGHTLY_DSN")
    with pytest.raises(JobError, match="NIGHTLY_DSN"):
        rollback(nightly.store)
    assert (stored_record(nightly.state, waiting) or {})["state"] == "waiting"
    assert accept(nightly.store, waiting).state == "published"
    assert nightly.vectors() == units({**FIRST, 5: 1})


@pytest.mark.parametrize("edits", [FIRST, SECOND], ids=["nothing to do", "published"])
def test_what_a_killed_night_was_writing_is_removed(nightly: Nightly, edits: Any) -> None:
    nightly.night(FIRST)
    torn = Path(nightly.state.root) / TEMPORARY / "7-torn-0"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"half of a file")
    nightly.night(edits)
    assert [*torn.parent.glob("*")] == []


def metric(path: Path, name: str) -> float | None:
    families = text_string_to_metric_families(path.read_text())
    samples = [sample for family in families for sample in family.samples]
    return {each.name: each.value for each in samples}.get(f"batchnorm_tool_refresh_{name}")


def test_a_rollback_is_no_refresh_that_succeeded(nightly: Nightly) -> None:
    path, last = nightly.path / "nightly.prom", "last_success_timestamp_seconds"
    nightly.night(FIRST)
    nightly.night(SECOND)
    rollback(nightly.store, metrics_file=path)
    assert (metric(path, "exit_code"), metric(path, "live_version")) == (0, 3)
    assert metric(path, last) is None
    nightly.put(FIRST)
    refresh(nightly.job(), metrics_file=path)
    success = metric(path, last)
    assert success
    rollback(nightly.store, to=2, metrics_file=path)
    assert metric(path, last) == success


def test_metrics_of_a_night_that_was_interrupted(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(self: Any, arrays: Any) -> Any:
        raise KeyboardInterrupt

    nightly.night(FIRST)
    nightly.put(SECOND)
    monkeypatch.setattr(IdentityPredictor, "predict", predict)
    path = nightly.path / "nightly.prom"
    with pytest.raises(KeyboardInterrupt):
        refresh(nightly.job(), metrics_file=path)
    assert (metric(path, "exit_code"), metric(path, "live_version")) == (130, 1)


def test_warnings_of_features_are_in_the_record(encoded: Nightly) -> None:
    whole = pa.array([[key] * 8 for key in FIRST], pa.list_(pa.int64(), 8))
    encoded.night(items(FIRST, x=whole))
    large = pa.array([[2**60 + 1] * 8, *whole.to_pylist()[1:]], whole.type)
    night = encoded.night(items(FIRST, x=large))
    assert (
        len([text for text in night.record["warnings"] if ("rounds to the same values") in text])
        == 1
    )
    assert stored_record(encoded.state, 2) == night.record


def test_warnings_of_the_scored_run_are_in_the_record(nightly: Nightly) -> None:
    ones = [features(key) / np.linalg.norm(features(key)) for key in FIRST]
    nightly.night(FIRST)
    held = nightly.held(items(FIRST, x=lists(ones)), {"normalize": {"norm": "l1"}})
    for record in (held, accept(nightly.store, 2).record):
        assert len([text for text in record["warnings"] if "already have unit length" in text]) == 1
    assert "already have unit length" in str((stored_record(nightly.state, 2) or {})["warnings"])


def test_the_stored_record_has_the_seconds_of_every_phase(nightly: Nightly) -> None:
    nightly.sections = SNAPSHOTS
    for command in (
        lambda: nightly.night(FIRST),
        lambda: nightly.night(SECOND),
        lambda: rollback(nightly.store),
    ):
        night = command()
        record = stored_record(nightly.state, night.version or 0) or {}
        assert {"merge", "targets"} <= {*record["seconds"]}
        assert record == night.record


def test_vectors_of_several_versions_for_rows_of_many_staged_files(
    nightly: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_source, "_PART_BYTES", 1)
    nightly.night(FIRST)
    second = FIRST | dict.fromkeys(range(10), 1)
    nightly.night(second)
    nightly.night(second | dict.fromkeys(range(5), 2) | dict.fromkeys(range(10, 15), 1))
    edits = FIRST | dict.fromkeys(range(5), 1) | dict.fromkeys(range(15, 18), 3)
    twins = {40: 7, 41: 7, 42: 12}  # new keys with features that others have tonight, and had once
    others = [features(key, edits[key]) for key in twins.values()]
    x = lists([*(features(key, edit) for key, edit in edits.items()), *others])
    labels = [f"{'new' if key >= 18 else 'label'} {key}" for key in (*edits, *twins)]
    seen.clear()
    table = items({**edits, **dict.fromkeys(twins, 0)}, label=labels)
    held = nightly.held(table.set_column(1, "x", x), CHANGED)
    parts = [name for name in nightly.staged() if "part-" in name]
    assert len([name for name in parts if "changed" in name]) == 21
    assert len([name for name in parts if "touched" in name]) == 12
    night = accept(nightly.store, held["version"])
    assert (night.rows["reused"], night.rows["predicted"], night.rows["touched"]) == (18, 3, 12)
    assert seen == firsts(dict.fromkeys(range(15, 18), 3))
    expected = units(edits)
    assert nightly.vectors() == expected | {key: expected[twin] for key, twin in twins.items()}
    assert [row["label"] for _, row in sorted(nightly.rows().items())] == labels
    assert verify(nightly.store).rows == 33


@pytest.mark.parametrize("last", ["after commit", "mkdir .*/night"])
def test_what_a_refresh_that_was_killed_twice_leaves_is_removed(
    nightly: Nightly, last: str
) -> None:
    nightly.night(FIRST)
    nightly.put(SECOND)

    def killed_at(name: str) -> None:
        copy = nightly.path.with_name("copy")
        shutil.copytree(nightly.path, copy)
        names = counted(lambda: refresh(nightly.job()))
        shutil.rmtree(nightly.path)
        copy.rename(nightly.path)
        at = max(number for number, each in enumerate(names, 1) if re.fullmatch(name, each))
        assert dies(lambda: refresh(nightly.job()), at)

    killed_at("after delete_rows")
    killed_at(last)
    assert refresh(nightly.job()).state == "nothing to do"
    verify(nightly.store)


@pytest.mark.parametrize("switches", [1, 9], ids=["once", "always"])
@pytest.mark.parametrize("command", ["--dry-run", "show"])
def test_what_a_refresh_removed_meanwhile_is_no_damage(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch, command: str, switches: int
) -> None:
    nightly.night(FIRST, store__keep__count=1)
    before = nightly.state.pointer()
    nightly.night(SECOND, store__keep__count=1)
    real, old = StoreDirectory.pointer, [before] * switches

    def pointer(state: StoreDirectory) -> StorePointer:
        # As `look` asks, and not as it compares: what it had is out of date by then.
        asks = len(seen) % 2 == 0
        seen.append(asks)
        return old.pop() if asks and old else real(state)

    seen: list[bool] = []
    if command == "show":  # asks for the pointer when it opens the store
        seen.append(True)
    monkeypatch.setattr(StoreDirectory, "pointer", pointer)

    def look() -> Any:
        if command == "show":
            return show(nightly.store).to_dict()["version"]
        return plan_refresh(nightly.job())["live"]

    if switches == 1:
        assert look() == 2
    else:
        with pytest.raises(WorkFailed, match="was changed by a refresh meanwhile"):
            look()
