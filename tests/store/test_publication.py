from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchnorm_tool.store import transaction
from batchnorm_tool.store.rows import Publication
from batchnorm_tool.store.state import StoreDirectory, StoreSchema
from tests.store.items import (
    ITEMS,
    SHOPS,
    by_key,
    item,
    layout_of,
    publish,
    record,
    row,
    stored,
    switch,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.lance")


def publication(path: str, layout: StoreSchema = ITEMS) -> Publication:
    state = StoreDirectory(path)
    facts = state.pointer()
    assert facts.live is not None
    records = {version: state.existing_record(version) for version in facts.versions}
    return Publication(path, layout, facts.versions, facts.live, records)


def told(path: str, base: int, layout: StoreSchema = ITEMS) -> tuple[list[Any], list[Any]]:
    changes = publication(path, layout).changes(base)
    upserts = [each for batch in changes.upsert_batches() for each in batch.to_pylist()]
    deletes = [each for batch in changes.delete_batches() for each in batch.to_pylist()]
    assert (changes.upserts, changes.deletes) == (len(upserts), len(deletes))
    return by_key(upserts, layout), by_key(deletes, layout)


def three_nights(path: str) -> None:
    publish(path, [item(number) for number in range(6)])
    publish(path, [item(1, 2), item(7, 2)], [{"id": 0}])
    publish(path, [item(2, 3), item(7, 3)], [{"id": 1}])


def roll_back(path: str, base: int) -> None:
    state = StoreDirectory(path)
    facts = state.pointer()
    restored = transaction.commit(transaction.prepare_restore(path, facts.versions[base]))
    switch(state, facts, facts.next_version, restored, ITEMS)


def test_changes_of_a_night(path: str) -> None:
    three_nights(path)
    assert told(path, 2) == ([item(2, 3), item(7, 3)], [{"id": 1}])


def test_changes_over_several_nights(path: str) -> None:
    three_nights(path)
    assert told(path, 1) == ([item(2, 3), item(7, 3)], [{"id": 0}, {"id": 1}])


def test_nothing_changes_within_a_version(path: str) -> None:
    three_nights(path)
    assert told(path, 3) == ([], [])


def test_changes_after_a_rollback(path: str) -> None:
    three_nights(path)
    roll_back(path, 1)
    assert told(path, 3) == ([item(0), item(1), item(2)], [{"id": 7}])
    assert told(path, 1) == ([], [])


def test_changes_survive_a_compaction(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three_nights(path)
    monkeypatch.setattr(transaction, "_MOST_FRAGMENTS", 1)
    state = StoreDirectory(path)
    facts = state.pointer()
    state.put_pointer(replace(facts, versions=transaction.compact(path, facts.versions)))
    assert told(path, 2) == ([item(2, 3), item(7, 3)], [{"id": 1}])


def test_changes_under_keys_of_several_columns(path: str) -> None:
    keys = [{"shop": shop, "day": None} for shop in ("it's", "its", "")]
    publish(path, [row(key, 1, place, SHOPS) for place, key in enumerate(keys)], layout=SHOPS)
    changed = row(keys[0], 2, 9, SHOPS)
    publish(path, [changed], [keys[2]], SHOPS)
    assert told(path, 1, SHOPS) == ([changed], [keys[2]])


def test_replaying_changes_gives_the_version(path: str) -> None:
    three_nights(path)
    held = {each["id"]: each for each in stored(path, 1)}
    upserts, deletes = told(path, 1)
    for each in deletes:
        del held[each["id"]]
    held |= {each["id"]: each for each in upserts}
    assert by_key(held.values()) == stored(path)


def test_all_rows_with_the_layout_of_the_store(path: str) -> None:
    three_nights(path)
    found = publication(path)
    batches = list(found.all_batches())
    assert all(batch.schema.equals(ITEMS.schema) for batch in batches)
    assert by_key(pa.Table.from_batches(batches).to_pylist()) == stored(path)
    assert found.rows == 5
    assert found.record.version == found.version == 3


def test_changes_have_the_layout_of_the_store(path: str) -> None:
    three_nights(path)
    changes = publication(path).changes(2)
    assert [batch.schema for batch in changes.upsert_batches()] == [ITEMS.schema]
    assert [batch.schema for batch in changes.delete_batches()] == [ITEMS.key_schema]


def test_changes_start_from_kept_versions_only(path: str) -> None:
    three_nights(path)
    found = publication(path)
    assert [found.can_start_from(base) for base in (None, 1, 3, 9)] == [False, True, True, False]
    assert not Publication(path, ITEMS, {3: 3}, 3, found.records).can_start_from(1)
    assert not Publication(path, ITEMS, found.versions, 3, {3: found.record}).can_start_from(1)


def test_changes_do_not_start_from_another_space(path: str) -> None:
    three_nights(path)
    StoreDirectory(path).put_record(record(1, 6, 1, space="other"))
    assert not publication(path).can_start_from(1)


def test_changes_do_not_start_from_another_layout(path: str) -> None:
    publish(path, [item(1)])
    wide = layout_of([pa.field("id", pa.int64())], width=6)
    lance_version = write(path, [row({"id": 1}, 2, 1, wide)], wide)
    state = StoreDirectory(path)
    switch(state, state.pointer(), 2, lance_version, wide)
    assert not publication(path, wide).can_start_from(1)


def test_wide_changes_are_read_in_batches(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnorm_tool.store import rows

    publish(path, [item(number) for number in range(3)])
    publish(path, [item(number, 2) for number in range(20)])
    monkeypatch.setattr(rows, "BATCH_ROWS", 8)
    batches = list(publication(path).changes(1).upsert_batches())
    assert [batch.num_rows for batch in batches] == [8, 8, 4]
