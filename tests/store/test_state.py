from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.store.state import NORM, STATUS, StoreDirectory, StorePointer
from tests.store.items import ITEMS


@pytest.fixture
def state(tmp_path: Path) -> StoreDirectory:
    return StoreDirectory(str(tmp_path / "items.lance"))


def test_columns_of_ours_have_other_names_in_the_dataset_and_keys_the_same() -> None:
    ours = ("a", "b", "state of the row", "d")
    layout = replace(ITEMS, bookkeeping=ours)
    assert layout.stored("id", STATUS, NORM) == ["id", "state of the row", "norm"]


def test_staged_rows_have_keys_passed_through_columns_and_hashes() -> None:
    assert ITEMS.staged.names == ["id", "label", ".feature_hash", ".passthrough_hash"]


def test_rows_are_read_back_as_they_were_written(state: StoreDirectory) -> None:
    tables = [pa.table({"id": [1, 2]}), pa.table({"id": [3], "more": [0]})]
    schema = tables[0].schema
    state.write_rows("night/kept/a.arrow", schema, tables)
    state.write_rows("night/kept/b.arrow", schema, tables[:1])
    state.write_rows("night/removed.arrow", schema, [])
    read = state.read_rows("night/kept/b.arrow", "night/removed.arrow")
    assert [table.to_pydict() for table in read] == [{"id": [1, 2]}]
    whole = pa.concat_tables(state.read_directory("night/kept"))
    assert whole["id"].to_pylist() == [1, 2, 3, 1, 2]
    assert (state.rows_in("night/kept"), state.rows_in("night/none")) == (5, 0)


def test_rows_that_cannot_be_read_are_named(state: StoreDirectory) -> None:
    state.storage.put("night/kept.arrow", b"no Arrow file")
    with pytest.raises(WorkFailed, match=r"night/kept\.arrow` cannot be read"):
        list(state.read_rows("night/kept.arrow"))


def test_hashes_of_replaced_rows_are_read_back(state: StoreDirectory) -> None:
    hashes = np.arange(48, dtype=np.uint8).reshape(3, 16)
    state.put_replaced(2, [hashes[:1], hashes[1:]])
    state.put_replaced(3, [])
    assert state.replaced(2).tolist() == hashes.tolist()
    assert state.replaced(3).shape == state.replaced(4).shape == (0, 16)


@pytest.mark.parametrize("left", [0, 60, 130], ids=["nothing", "half a header", "half the rows"])
def test_damaged_hashes_of_replaced_rows_are_told_of(state: StoreDirectory, left: int) -> None:
    state.put_replaced(2, [np.zeros((3, 16), np.uint8)])
    file = state.storage.root / "nights/000002.replaced.npy"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(Damaged, match=r"000002\.replaced\.npy` is damaged.* or remove it"):
        state.replaced(2)


def test_what_no_version_and_no_candidate_needs_is_discarded(state: StoreDirectory) -> None:
    for version in (1, 2, 3, 4):
        state.put_replaced(version, [])
        state.storage.put(f"index/{version:06d}.parquet", b"")
        state.storage.put(f"nights/{version:06d}.json", b"{}")
    state.storage.put("night/candidate.json", b"{}")
    state.discard_uncommitted(StorePointer(live=2, versions={1: 1, 2: 2}, waiting=3))
    assert state.storage.names("index") == ["000002.parquet", "000003.parquet"]
    records = state.storage.names("nights")
    assert [name for name in records if name.endswith(".npy")] == [
        f"{version:06d}.replaced.npy" for version in (1, 2, 3)
    ]
    assert len([name for name in records if name.endswith(".json")]) == 4
    assert state.storage.names("night") == ["candidate.json"]
    state.discard_uncommitted(StorePointer(live=2, versions={2: 2}))
    assert state.storage.names("index") == ["000002.parquet"]
    assert state.storage.names("night") == []
