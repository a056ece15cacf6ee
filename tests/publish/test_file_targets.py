from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.errors import JobError, OutputError
from batchnorm_tool.publish import Target, directories, open_target
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import verified_json
from batchnorm_tool.storage.files import OutputFile
from tests.publish.kills import killed_at
from tests.publish.publications import (
    Publication,
    Section,
    Store,
    a_month,
    integers,
    pairs,
    replaced,
    rows,
    shown,
    texts,
)
from tests.publish.replaying import Loader

KINDS = ["changes", "parquet"]


def target(kind: str, path: Path, keep: int = 3) -> Target:
    return open_target(Section(kind, path=str(path), keep=keep))


def read_snapshot(path: Path) -> pa.Table:
    pointer = (path / "current").read_text().strip()
    return shown(without_hashes_back(ds.dataset(path / pointer).to_table()))


def without_hashes_back(table: pa.Table) -> pa.Table:
    """`shown` takes the two columns of hashes away, which targets do not have."""
    empty = pa.nulls(table.num_rows)
    return table.append_column("feature_hash", empty).append_column("passthrough_hash", empty)


def read(kind: str, path: Path) -> pa.Table:
    if kind == "parquet":
        return read_snapshot(path)
    loader = Loader()
    loader.catch_up(path)
    return shown(without_hashes_back(loader.table()))


def same(one: pa.Table, other: pa.Table) -> bool:
    """Equal to the bit, NaN included."""
    return one.schema.equals(other.schema) and repr(one.to_pylist()) == repr(other.to_pylist())


@pytest.mark.parametrize("keys", [integers, texts])
@pytest.mark.parametrize("kind", KINDS)
def test_every_version_of_a_month_arrives_exactly(
    kind: str, keys: Callable[..., Any], tmp_path: Path
) -> None:
    _, nights = a_month(keys)
    place, held = target(kind, tmp_path / "out", keep=10), None
    for publication in nights:
        held = place.publish(publication, held)
        assert same(read(kind, tmp_path / "out"), shown(publication.table)), publication.version
        assert (held["version"], held["rows"]) == (publication.version, publication.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_missed_two_versions_catches_up(kind: str, tmp_path: Path) -> None:
    _, nights = a_month()
    place = target(kind, tmp_path)
    held = place.publish(nights[1], place.publish(nights[0], None))
    place.publish(nights[4], held)
    assert same(read(kind, tmp_path), shown(nights[4].table))


def test_composite_keys_and_rows_that_all_vanish(tmp_path: Path) -> None:
    store = Store(["shop", "number"])
    full = rows(pairs(("a", 1), ("a", 2), ("b'", 1)), 1)
    first, empty = store.put(1, full), store.put(2, full.slice(0, 0))
    place = target("changes", tmp_path)
    place.publish(empty, place.publish(first, None))
    assert manifest(tmp_path, 2)["deletes"] == 3
    loader = Loader()
    loader.catch_up(tmp_path)
    assert loader.table().num_rows == 0


def manifest(path: Path, version: int) -> dict[str, Any]:
    document = verified_json((path / f"{version}/manifest.json").read_bytes())
    assert document is not None
    return document


def test_the_manifest_of_a_change_set_says_what_a_loader_needs(tmp_path: Path) -> None:
    _, nights = a_month()
    place = target("changes", tmp_path)
    place.publish(nights[2], place.publish(nights[1], place.publish(nights[0], None)))
    told = manifest(tmp_path, 3)
    files = told.pop("files")
    assert told == {
        "format": 1,
        "version": 3,
        "builds_on": 2,
        "rows": 41,
        "upserts": 1,
        "deletes": 2,
        "run_id": "store-3",
        "published": "now",
        "space": "abc",
        "norm": "l2",
        "columns": {
            "keys": ["id"],
            "vector": "vector",
            "norm": "norm",
            "passthrough": ["title", "price", "tags", "day"],
        },
        "width": 4,
        "dtype": "float32",
    }
    names = ["upserts/part-000000.parquet", "deletes.parquet", "contract.json"]
    assert [file["path"] for file in files] == names
    assert (tmp_path / "3/contract.json").read_bytes() == nights[2].contract
    for file in files:
        assert (tmp_path / "3" / file["path"]).stat().st_size == file["bytes"]
    assert pq.read_table(tmp_path / "3/deletes.parquet").to_pydict() == {"id": [0, 1]}
    assert "feature_hash" not in pq.read_schema(tmp_path / "3/upserts/part-000000.parquet").names


def test_a_change_set_builds_on_the_newest_one_that_is_there(tmp_path: Path) -> None:
    _, nights = a_month()
    place, held = target("changes", tmp_path, keep=9), None
    for publication in nights:
        held = place.publish(publication, held)
    bases = [manifest(tmp_path, version)["builds_on"] for version in range(1, 8)]
    assert bases == [None, 1, 2, 3, 4, 5, None]


@pytest.mark.parametrize("loss", ["directory", "manifest", "note", "version"])
def test_a_full_set_is_written_where_the_base_is_gone(loss: str, tmp_path: Path) -> None:
    store, nights = a_month()
    place = target("changes", tmp_path)
    held: dict[str, Any] | None = place.publish(nights[0], None)
    if loss == "directory":
        Storage(tmp_path).remove("1")
    elif loss == "manifest":
        (tmp_path / "1/manifest.json").write_text("{}")
    elif loss == "note":
        held = None
    else:
        del store.versions[1]
    facts = place.publish(nights[1], held)
    assert facts["builds_on"] is None
    assert facts["upserts"] == nights[1].rows


@pytest.mark.parametrize(("keep", "left"), [(1, ["7"]), (3, ["5", "6", "7"])])
def test_the_feed_keeps_the_newest_versions_alone(
    keep: int, left: list[str], tmp_path: Path
) -> None:
    _, nights = a_month()
    place, held = target("changes", tmp_path, keep), None
    for publication in nights:
        held = place.publish(publication, held)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_snapshots_keep_the_newest_versions_and_hold_data_alone(tmp_path: Path) -> None:
    _, nights = a_month()
    place = target("parquet", tmp_path, 2)
    for publication in nights:
        place.publish(publication, None)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "current",
        "versions/6.contract.json",
        "versions/6.json",
        "versions/6/part-000000.parquet",
        "versions/7.contract.json",
        "versions/7.json",
        "versions/7/part-000000.parquet",
    ]
    assert (tmp_path / "current").read_text() == "versions/7\n"
    assert (tmp_path / "versions/7.contract.json").read_bytes() == nights[-1].contract
    document = json.loads((tmp_path / "versions/7.json").read_text())
    assert document["files"][0]["path"] == "part-000000.parquet"
    assert document["files"][0]["bytes"] == (tmp_path / files[-1]).stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_become_several_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "PART_BYTES", 700)
    _, nights = a_month()
    target(kind, tmp_path).publish(nights[0], None)
    assert len([*tmp_path.rglob("part-*.parquet")]) > 2
    assert same(read(kind, tmp_path), shown(nights[0].table))


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_another_store_is_ahead_in_is_refused(kind: str, tmp_path: Path) -> None:
    _, nights = a_month()
    place = target(kind, tmp_path)
    place.publish(nights[4], None)
    with pytest.raises(
        OutputError, match=rf"`{kind}`: `{tmp_path}` holds version 5, and this store"
    ):
        place.publish(nights[0], None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_number_of_another_store_is_replaced(kind: str, tmp_path: Path) -> None:
    _, nights = a_month()
    other = Store(["id"], name="other").put(1, rows(integers(5, 6), 9))
    place = target(kind, tmp_path)
    place.publish(nights[0], None)
    place.publish(other, None)
    assert same(read(kind, tmp_path), shown(other.table))


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_on_an_object_store_is_refused_before_the_work(kind: str) -> None:
    with pytest.raises(JobError, match=r"without a scheme\. Received: `s3://bucket/x`"):
        open_target(Section(kind, path="s3://bucket/x")).check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_fails_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, nights = a_month()
    with pytest.raises(OutputError, match=f"publish target `{kind}`: .*the next `refresh`"):
        target(kind, tmp_path / "file").publish(nights[0], None)


STEPS = [
    (OutputFile, "commit"),
    (Storage, "begin_publish"),
    (Storage, "finish_publish"),
    (Storage, "end_publish"),
    (Storage, "remove"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_step_the_target_ends_in_the_same_state(
    kind: str, step: tuple[type, str], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nights = a_month()
    kills = 0
    for count in range(1, 100):
        place = target(kind, tmp_path / str(count), 2)
        held = place.publish(nights[1], place.publish(nights[0], None))
        attempt = partial(place.publish, nights[2], held)
        if not killed_at(monkeypatch, step, count, when, attempt):
            break
        kills += 1
        if kind == "parquet":
            seen = read_snapshot(tmp_path / str(count))
            assert any(same(seen, shown(night.table)) for night in nights[1:3])
        place.publish(nights[2], held)
        check_finished(kind, tmp_path / str(count), nights[2])
    assert kills


@pytest.mark.parametrize(("kind", "parts"), [("changes", "2/upserts"), ("parquet", "versions/2")])
def test_what_a_killed_publication_staged_is_not_shown(
    kind: str, parts: str, tmp_path: Path
) -> None:
    _, nights = a_month()
    held = target(kind, tmp_path).publish(nights[0], None)
    Storage(tmp_path).put(f"_state/{parts}/part-000009.parquet", b"half of it")
    target(kind, tmp_path).publish(nights[1], held)
    assert [path.name for path in (tmp_path / parts).iterdir()] == ["part-000000.parquet"]


def test_a_snapshot_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    _, nights = a_month()
    place = target("parquet", tmp_path)
    place.publish(nights[0], None)
    before = (tmp_path / "versions/1").stat().st_ino
    (tmp_path / "current").unlink()
    place.publish(nights[0], None)
    assert (tmp_path / "versions/1").stat().st_ino == before
    assert (tmp_path / "current").read_text() == "versions/1\n"


def check_finished(kind: str, place: Path, publication: Publication) -> None:
    if kind == "parquet":
        assert same(read_snapshot(place), shown(publication.table))
        names = {"current", "versions"}
    else:
        assert manifest(place, 3)["builds_on"] == 2
        names = {"2", "3"}
    assert {path.name for path in place.iterdir()} == names


def test_replaying_a_feed_twice_changes_nothing(tmp_path: Path) -> None:
    _, nights = a_month()
    place, held = target("changes", tmp_path, 9), None
    for publication in nights[:6]:
        held = place.publish(publication, held)
    loader = Loader()
    loader.catch_up(tmp_path)
    loader.version = 5
    loader.catch_up(tmp_path)
    assert same(shown(without_hashes_back(loader.table())), shown(nights[5].table))


def test_changes_are_given_where_they_can_be(tmp_path: Path) -> None:
    store = Store(["id"])
    table = rows(integers(*range(30)), 1)
    first = store.put(1, table)
    second = store.put(2, replaced(table, rows(integers(3), 2), [7]))
    place = target("changes", tmp_path)
    facts = place.publish(second, place.publish(first, None))
    assert (facts["upserts"], facts["deletes"], facts["builds_on"]) == (1, 1, 1)
