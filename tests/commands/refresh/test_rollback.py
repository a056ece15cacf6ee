"""Going back, the hold that follows, and which versions are kept."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import accept, history, read, release, rollback, verify
from batchnorm_tool.errors import InputError, JobError
from tests.commands.refresh.nightly import LOOSE, Nightly, firsts, items, rows_of, units
from tests.kill_points import tree
from tests.refresh_records import stored_record

FIRST = dict.fromkeys(range(20), 0)
SECOND = {**FIRST, 3: 1, 30: 0}
THIRD = {key: edit for key, edit in SECOND.items() if key != 5} | {4: 1}


def nights(nightly: Nightly, *inputs: dict[int, int], **values: Any) -> list[dict[Any, Any]]:
    """Publish nights; what readers found after each."""
    found = []
    for edits in inputs:
        assert nightly.night(edits, **values).state == "published"
        found.append(nightly.rows())
    return found


def test_a_rollback_restores_the_version_before(nightly: Nightly, seen: set[float]) -> None:
    first, second = nights(nightly, FIRST, SECOND)
    seen.clear()
    night = rollback(nightly.store)
    assert (night.state, night.version) == ("published", 3)
    assert seen == set()
    assert nightly.rows() == first != second
    record = stored_record(nightly.state, 3)
    assert record is not None
    assert (record["kind"], record["restores"], record["base"]) == ("rollback", 1, 2)
    assert (record["rows"]["live"], record["rows"]["predicted"]) == (20, 0)
    facts = nightly.state.pointer()
    assert (facts.live, facts.waiting, facts.next_version) == (3, None, 4)
    assert facts.hold is not None
    assert facts.hold.reason == "rollback to version 1"
    assert lance.dataset(nightly.store).tags.list()["live"]["version"] == facts.lance_version
    assert verify(nightly.store).rows == 20


def test_nights_on_hold_are_staged_and_wait(nightly: Nightly, seen: set[float]) -> None:
    nights(nightly, FIRST, SECOND)
    rollback(nightly.store)
    seen.clear()
    held = nightly.held({**FIRST, 7: 1})
    assert (held["reason"], held["version"], held["rows"]["predicted"]) == ("hold", 4, 1)
    assert held["gate"]["passed"]
    assert seen == firsts({7: 1})
    assert "the store has been on hold since" in held["message"]
    assert f"`batchnorm-tool release {nightly.store}`" in held["message"]
    seen.clear()
    again = nightly.held()
    assert (again["version"], again["reason"]) == (4, "hold")
    assert seen == set()


def test_release_lets_the_same_command_publish(nightly: Nightly, seen: set[float]) -> None:
    nights(nightly, FIRST, SECOND)
    rollback(nightly.store)
    nightly.held({**FIRST, 7: 1})
    before = tree(Path(nightly.store))
    assert release(nightly.store) == {
        "store": nightly.store,
        "released": True,
        "live": 3,
        "waiting": 4,
    }
    assert tree(Path(nightly.store)) == before
    seen.clear()
    night = nightly.night()
    assert (night.state, night.version) == ("published", 4)
    assert seen == set()
    assert nightly.vectors() == units({**FIRST, 7: 1})


def test_release_without_a_hold_says_so(nightly: Nightly) -> None:
    nightly.night(FIRST)
    found = release(nightly.store)
    assert (found["released"], found["live"], found["waiting"]) == (False, 1, None)


def test_accept_publishes_and_ends_the_hold(nightly: Nightly) -> None:
    nights(nightly, FIRST, SECOND)
    rollback(nightly.store)
    nightly.held({**FIRST, 7: 1})
    assert accept(nightly.store, 4).state == "published"
    assert nightly.state.pointer().hold is None
    assert nightly.vectors() == units({**FIRST, 7: 1})
    assert nightly.night({**FIRST, 8: 1}).state == "published"


def test_on_hold_the_gate_comes_first(nightly: Nightly) -> None:
    nights(nightly, FIRST, SECOND)
    rollback(nightly.store)
    limits = {"gate": {**LOOSE, "input": {**LOOSE["input"], "vanished": 0.0}}}
    held = nightly.held(dict.fromkeys(range(19), 0), limits)
    assert held["reason"] == "gate"


def test_a_hold_stays_where_nothing_is_to_do(nightly: Nightly) -> None:
    nights(nightly, FIRST, SECOND)
    rollback(nightly.store)
    assert nightly.night(FIRST).state == "nothing to do"
    assert nightly.state.pointer().hold is not None


def test_a_rollback_to_any_kept_version(nightly: Nightly) -> None:
    first, _, third = nights(nightly, FIRST, SECOND, THIRD)
    rollback(nightly.store, to=1)
    assert nightly.rows() == first
    rollback(nightly.store, to=3)
    assert nightly.rows() == third
    assert [each["restores"] for each in history(nightly.store)["nights"]] == [*[None] * 3, 1, 3]


def test_a_second_rollback_goes_further_back(nightly: Nightly) -> None:
    first, second, _ = nights(nightly, FIRST, SECOND, THIRD)
    rollback(nightly.store)
    assert nightly.rows() == second
    rollback(nightly.store)
    assert nightly.rows() == first
    before = tree(Path(nightly.store)), nightly.state.pointer()
    with pytest.raises(
        InputError, match=r"No earlier version is kept\. Expected one of: 1, 2, 3, 4\."
    ):
        rollback(nightly.store)
    assert (tree(Path(nightly.store)), nightly.state.pointer()) == before


def test_a_store_of_one_version_has_nothing_to_go_back_to(nightly: Nightly) -> None:
    nightly.night(FIRST)
    with pytest.raises(InputError, match="Expected one of: none, only the live version is kept"):
        rollback(nightly.store)
    assert nightly.state.pointer().hold is None


@pytest.mark.parametrize(("version", "why"), [(2, "is already live"), (7, "is not kept")])
def test_where_there_is_nothing_to_go_to(nightly: Nightly, version: int, why: str) -> None:
    nights(nightly, FIRST, SECOND)
    before = nightly.rows()
    with pytest.raises(
        InputError, match=rf"Version {version} {why}\. Expected one of: 1\. Received: {version}\."
    ):
        rollback(nightly.store, to=version)
    assert nightly.rows() == before


@pytest.mark.parametrize("function", [rollback, release, history, lambda path: accept(path, 1)])
def test_what_is_no_store_is_refused(nightly: Nightly, function: Any) -> None:
    with pytest.raises(InputError, match="is not a store of batchnorm_tool"):
        function(nightly.store)
    assert tree(nightly.path) == {}


def test_a_rollback_discards_the_waiting_night(nightly: Nightly) -> None:
    limits = {"gate": {**LOOSE, "input": {**LOOSE["input"], "vanished": 0.0}}}
    first, _ = nights(nightly, FIRST, SECOND)
    nightly.held(FIRST, limits)
    rollback(nightly.store)
    assert nightly.rows() == first
    record = stored_record(nightly.state, 3)
    assert record is not None
    assert record["state"] == "discarded"
    assert nightly.staged() == []
    with pytest.raises(JobError, match="no version is waiting, and version 3 is discarded"):
        accept(nightly.store, 3)


def test_a_rollback_over_other_columns_and_another_space(nightly: Nightly) -> None:
    (first,) = nights(nightly, FIRST)
    values = {"normalize": {"norm": "l1"}, "input__passthrough": []}
    nights(nightly, SECOND, **values, store__on_new_space="publish")
    rollback(nightly.store)
    assert nightly.rows() == first
    assert read(nightly.store).schema.names[-1] == "label"
    assert nightly.night(FIRST).state == "nothing to do"
    held = nightly.held(SECOND, **values)
    assert held["new_space"]
    assert (held["rows"]["reused"], held["rows"]["predicted"]) == (21, 0)


def test_targets_go_back_with_the_store(nightly: Nightly) -> None:
    nightly.sections["publish"] = [
        {"to": "parquet", "path": "snapshots"},
        {"to": "changes", "path": "feed"},
    ]

    def snapshot() -> dict[Any, Any]:
        folder = nightly.path / "snapshots"
        table = pq.read_table(folder / (folder / "current").read_text().strip())
        return rows_of(table.combine_chunks())

    own = ["feature_hash", "passthrough_hash"]
    nightly.night(FIRST)
    first = nightly.rows(without=own)
    nightly.night(SECOND)
    assert snapshot() == nightly.rows(without=own) != first
    night = rollback(nightly.store)
    assert [(each["name"], each["error"]) for each in night.targets] == [
        ("parquet", None),
        ("changes", None),
    ]
    assert snapshot() == first
    assert sorted(path.name for path in (nightly.path / "feed").iterdir()) == ["1", "2", "3"]
    upserts = pq.read_table(nightly.path / "feed" / "3" / "upserts")
    deletes = pq.read_table(nightly.path / "feed" / "3" / "deletes.parquet")
    assert upserts["id"].to_pylist() == [3]
    assert deletes["id"].to_pylist() == [30]
    nightly.held(SECOND)
    assert snapshot() == first


def versions(nightly: Nightly) -> tuple[list[int], list[int], list[str]]:
    """Kept versions, Lance's versions, and its tags but for `live`."""
    facts = nightly.state.pointer()
    dataset = lance.dataset(nightly.store)
    numbers = sorted(each["version"] for each in dataset.versions())
    return sorted(facts.versions), numbers, sorted({*dataset.tags.list()} - {"live"})


def test_as_many_versions_are_kept_as_asked_for(nightly: Nightly) -> None:
    keep = {"store__keep": {"count": 2, "days": None}}
    _, second, third = nights(nightly, FIRST, SECOND, THIRD, **keep)
    kept, numbers, tags = versions(nightly)
    assert kept == [2, 3]
    assert numbers == sorted(nightly.state.pointer().versions.values())
    assert tags == ["night-2", "night-3"]
    with pytest.raises(JobError, match=r"keeps: 2, 3 \(3 is live\)"):
        read(nightly.store, version=1)
    for version, expected in ((2, second), (3, third)):
        assert read(nightly.store, version=version).rows == len(expected)
    names = tree(Path(nightly.state.root)).keys()
    assert {name for name in names if name.endswith(".npy")} == {
        "nights/000002.replaced.npy",
        "nights/000003.replaced.npy",
    }
    assert {name for name in names if name.startswith("index/")} == {"index/000003.parquet"}
    assert [each["version"] for each in history(nightly.store)["nights"]] == [1, 2, 3]
    with pytest.raises(InputError, match="Version 1 is not kept"):
        rollback(nightly.store, to=1)
    assert verify(nightly.store).rows == len(third)


def aged(nightly: Nightly, days: dict[int, float]) -> None:
    """Let versions have been published so many days ago."""
    for version, age in days.items():
        record = nightly.state.existing_record(version)
        finished = dt.datetime.now(dt.UTC) - dt.timedelta(days=age)
        told = finished.isoformat(timespec="seconds")
        nightly.state.put_record(replace(record, finished=told))


def test_versions_are_kept_for_as_long_as_asked_for(nightly: Nightly) -> None:
    keep = {"store__keep": {"count": None, "days": 10}}
    nights(nightly, FIRST, SECOND, THIRD, **keep)
    aged(nightly, {1: 10.1, 2: 9.9, 3: 8})
    nights(nightly, FIRST, **keep)
    assert versions(nightly)[0] == [2, 3, 4]


def test_the_live_version_is_kept_whatever_its_age(nightly: Nightly) -> None:
    keep = {"store__keep": {"count": 1, "days": 1}}
    (first,) = nights(nightly, FIRST, **keep)
    aged(nightly, {1: 400})
    assert nightly.night(FIRST, **keep).state == "nothing to do"
    assert nightly.rows() == first
    assert versions(nightly)[0] == [1]
    nights(nightly, SECOND, **keep)
    assert versions(nightly)[0] == [2]
    rollback_is_refused = pytest.raises(InputError, match="only the live version is kept")
    with rollback_is_refused:
        rollback(nightly.store)


def test_without_limits_every_version_is_kept(nightly: Nightly) -> None:
    keep = {"store__keep": {"count": None, "days": None}}
    nights(nightly, FIRST, **keep)
    aged(nightly, {1: 4000})
    nights(nightly, SECOND, THIRD, FIRST, **keep)
    assert versions(nightly)[0] == [1, 2, 3, 4]
    rollback(nightly.store, to=1)
    assert nightly.vectors() == units(FIRST)


def test_rows_of_older_versions_are_read_while_they_are_kept(nightly: Nightly) -> None:
    nights(nightly, FIRST, SECOND, THIRD)
    for version, edits in enumerate((FIRST, SECOND, THIRD), 1):
        keys, vectors, norms = read(nightly.store, version=version).to_numpy()
        found = zip(keys.tolist(), vectors, norms.tolist(), strict=True)
        assert {key: (one.tobytes(), norm) for key, one, norm in found} == units(edits)


def test_history_lists_every_night(nightly: Nightly, tmp_path: Path) -> None:
    nights(nightly, FIRST, SECOND)
    nightly.night(items(SECOND, label=["new"] * 21))
    rollback(nightly.store)
    nightly.held({**FIRST, 7: 1})
    page = tmp_path / "history.html"
    found = history(nightly.store, html=str(page))
    assert (found["live"], found["waiting"], found["kept"]) == (4, 5, [1, 2, 3, 4])
    assert found["hold"]["version"] == 4
    kinds = [(each["kind"], each["state"], each["reason"]) for each in found["nights"]]
    assert kinds == [
        ("load", "published", None),
        ("refresh", "published", None),
        ("refresh", "published", None),
        ("rollback", "published", None),
        ("refresh", "waiting", "hold"),
    ]
    wanted = ("new", "changed", "touched", "live")
    rows = [tuple(each["rows"][name] for name in wanted) for each in found["nights"]]
    assert rows == [(20, 0, 0, 20), (1, 1, 0, 21), (0, 0, 21, 21), (0, 0, 0, 21), (0, 2, 0, 20)]
    assert not {"basis", "publish"} & {*found["nights"][0]}
    assert "<html" in page.read_text().lower()
