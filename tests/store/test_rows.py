from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.errors import Damaged
from batchnorm_tool.inputs.row_hash import as_ids
from batchnorm_tool.store import rows
from tests.store.items import SHOPS, item, keys_of, merge, row, write

NAMES = ["feature_hash", "status"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.lance")


def test_rows_stream_in_bounded_batches_of_the_columns_asked_for(path: str) -> None:
    write(path, [item(number) for number in range(100)])
    found = list(rows.rows(path, None, ["norm", "id"], 30))
    assert [batch.schema.names for batch in found] == [["norm", "id"]] * len(found)
    assert max(batch.num_rows for batch in found) == 30
    assert [key for batch in found for key in batch["id"].to_pylist()] == list(range(100))


def test_wide_rows_come_in_smaller_batches(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [item(number) for number in range(100)])
    monkeypatch.setattr(rows, "_BATCH_BYTES", 16 * 10)
    assert max(batch.num_rows for batch in rows.rows(path, None, ["vector"])) == 10
    taken = rows.at_addresses(path, None, np.arange(25, dtype=np.uint64), ["vector"])
    assert [table.num_rows for table in taken] == [10, 10, 5]


@pytest.mark.parametrize("most", [65_536, 3])
def test_rows_are_taken_in_the_order_of_their_keys(
    path: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BATCH_ROWS", most)
    write(path, [item(number) for number in range(20)])
    merge(path, [item(number, 2) for number in range(0, 20, 3)], [{"id": 5}])
    asked = [17, 3, 0, 19, 4, 11, 12]
    tables = list(
        rows.take_by_key(
            path, None, keys_of([{"id": key} for key in asked]), ["id"], ["label", "id", "version"]
        )
    )
    assert max(table.num_rows for table in tables) <= most
    found = pa.concat_tables(tables)
    assert found.column_names == ["label", "id", "version"]
    assert found["id"].to_pylist() == asked
    assert found["version"].to_pylist() == [2 if key % 3 == 0 else 1 for key in asked]


def test_rows_are_taken_from_an_older_version(path: str) -> None:
    write(path, [item(1)])
    merge(path, [item(1, 2)])
    (found,) = rows.take_by_key(path, 1, keys_of([{"id": 1}]), ["id"], ["version"])
    assert found["version"].to_pylist() == [1]


def test_a_key_that_is_not_there_is_named(path: str) -> None:
    held = row({"shop": "it's", "day": None}, 1, 1, SHOPS)
    write(path, [held], SHOPS)
    asked = keys_of([{"shop": "its", "day": None}], SHOPS)
    with pytest.raises(Damaged, match="no row with the key `shop` = 'its', `day` = None, which"):
        list(rows.take_by_key(path, None, asked, SHOPS.keys, ["norm"]))


def hashes_of(found: list[dict[str, object]]) -> np.ndarray:
    joined = b"".join(bytes(each["feature_hash"]) for each in found)  # type: ignore[call-overload]
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


def test_good_rows_are_found_by_the_hash_of_their_features(path: str) -> None:
    held = [item(number) for number in range(20)]
    held[4]["status"] = "stale: missing"
    held[6]["feature_hash"] = held[5]["feature_hash"]
    write(path, held)
    asked = as_ids(hashes_of([held[12], held[4], held[5], item(99)]))
    places = rows.addresses_of_hashes(path, None, asked, NAMES).find(asked)
    known = np.unique(places[places != rows.NOWHERE])
    found = pa.concat_tables(rows.at_addresses(path, None, known, ["id", "feature_hash", "vector"]))
    assert found["id"].to_pylist() in ([5, 12], [6, 12])
    assert found["vector"].to_pylist() == [held[key]["vector"] for key in found["id"].to_pylist()]


def test_no_hash_finds_no_row(path: str) -> None:
    write(path, [item(1)])
    none = np.empty((0, 2), np.uint64)
    found = rows.addresses_of_hashes(path, None, none, NAMES)
    assert found.find(none).tolist() == []
    assert found.find(np.ones((2, 2), np.uint64)).tolist() == [rows.NOWHERE] * 2


def test_a_missing_file_is_damage(path: str) -> None:
    write(path, [item(1)])
    (file,) = (Path(path) / "data").iterdir()
    file.unlink()
    with pytest.raises(Damaged, match=r"items\.lance` cannot be read: .*ot found"):
        list(rows.rows(path, None, ["id"]))
