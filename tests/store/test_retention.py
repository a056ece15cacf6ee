from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.store import rows, transaction
from batchnorm_tool.store.lance import latest_version
from tests.store.items import ITEMS, batches, by_key, item, merge, stored, write


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.lance")


def nights(path: str, count: int) -> dict[int, int]:
    """Versions of the store, ten above those of Lance, all tagged."""
    versions = {11: write(path, [item(number) for number in range(50)])}
    for version in range(12, 11 + count):
        versions[version] = merge(path, [item(version, version)], [{"id": version + 10}])
    for version, lance_version in versions.items():
        transaction.tag(path, version, lance_version)
    transaction.move_live_tag(path, max(versions.values()))
    return versions


def files(path: str) -> set[str]:
    return {name for _, _, names in os.walk(path) for name in names}


def test_tags_name_versions(path: str) -> None:
    nights(path, 2)
    assert transaction.tags(path) == {"night-11": 1, "night-12": 2, "live": 2}
    transaction.move_live_tag(path, 1)
    transaction.tag(path, 12, 1)
    assert transaction.tags(path) == {"night-11": 1, "night-12": 1, "live": 1}


def test_tags_are_synced_and_written_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [item(1)])
    synced: list[str] = []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    transaction.tag(path, 11, 1)
    tags = f"{path}/_refs/tags"
    assert set(synced) == {f"{tags}/night-11.json", tags, f"{path}/_refs", path}
    synced.clear()
    transaction.tag(path, 11, 1)
    assert synced == []


def test_versions_that_are_not_kept_go(path: str) -> None:
    versions = nights(path, 5)
    kept = {12: stored(path, versions[12]), 15: stored(path)}
    before = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    transaction.clean_up(path, {12, 15})
    after = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    assert after < before
    assert transaction.tags(path) == {"night-12": 2, "night-15": 5, "live": 5}
    assert stored(path) == kept[15]
    assert stored(path, versions[12]) == kept[12]
    with pytest.raises(Damaged, match="not found"):
        stored(path, versions[13])


def test_the_live_version_stays_whatever_is_kept(path: str) -> None:
    nights(path, 3)
    transaction.move_live_tag(path, 2)
    live, newest = stored(path, 2), stored(path, 3)
    transaction.clean_up(path, set())
    assert (stored(path, 2), stored(path)) == (live, newest)


def test_tags_of_others_stay(path: str) -> None:
    import lance

    nights(path, 3)
    lance.dataset(path).tags.create("mine", 1)
    transaction.clean_up(path, {13})
    assert transaction.tags(path) == {"night-13": 3, "live": 3, "mine": 1}
    assert len(stored(path, 1)) == 50


def test_files_of_killed_nights_go(path: str) -> None:
    nights(path, 2)
    before = files(path)
    transaction.prepare_merge(path, ITEMS.schema, ITEMS.keys, batches([item(1, 9), item(70, 9)]))
    transaction.prepare_whole(path, ITEMS.schema, batches([item(1, 9)]))
    left = files(path) - before
    assert len(left) == 3
    transaction.clean_up(path, {11, 12})
    assert files(path) == before


def test_a_kept_version_can_be_read_while_others_go(path: str) -> None:
    versions = nights(path, 5)
    expected = stored(path, versions[13])
    reading = rows.rows(path, versions[13], ITEMS.schema.names, 10)
    found = [next(reading)]
    transaction.clean_up(path, {13})
    found += reading
    assert by_key(each for batch in found for each in batch.to_pylist()) == expected


def test_few_dead_rows_are_left_alone(path: str) -> None:
    versions = nights(path, 3)
    assert transaction.compact(path, versions) == versions
    assert latest_version(path) == 3


def test_many_dead_rows_are_written_anew(path: str) -> None:
    import lance

    versions = nights(path, 3)
    versions[14] = merge(path, [item(7, 14)], [{"id": number} for number in range(24)])
    held = stored(path)
    assert transaction.compact(path, versions) == {**versions, 14: 5}
    assert latest_version(path) == 5
    assert stored(path) == held
    assert stored(path, versions[13]) != held
    assert [fragment.num_deletions for fragment in lance.dataset(path).get_fragments()] == [0]


def test_many_fragments_become_few(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lance

    monkeypatch.setattr(transaction, "_MOST_FRAGMENTS", 2)
    monkeypatch.setattr(transaction, "_SMALL_ROWS", 10)
    versions = nights(path, 3)
    held = stored(path)
    assert transaction.compact(path, versions) == {**versions, 13: 4}
    assert stored(path) == held
    fragments = lance.dataset(path).get_fragments()
    assert [fragment.count_rows() for fragment in fragments] == [46, 2]
    merge(path, [item(60, 15), item(13, 15)], [{"id": 0}])
    assert stored(path) == by_key(
        [*(each for each in held if each["id"] not in (0, 13)), item(60, 15), item(13, 15)]
    )


def test_compacting_refuses_what_somebody_else_wrote(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = nights(path, 2)
    monkeypatch.setattr(transaction, "_MOST_FRAGMENTS", 1)
    really = transaction.write_fragments

    def writing(*given: object) -> object:
        monkeypatch.setattr(transaction, "write_fragments", really)
        merge(path, [item(90, 9)])
        return really(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(transaction, "write_fragments", writing)
    with pytest.raises(OutputError, match="Another program"):
        transaction.compact(path, versions)
