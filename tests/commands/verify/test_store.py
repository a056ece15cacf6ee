from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from batchnorm_tool.commands.verify import verify as verify_verify
from batchnorm_tool.commands.verify.verify import verify
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.store import transaction
from batchnorm_tool.store.checksums import record_files
from batchnorm_tool.store.index import IndexWriter
from batchnorm_tool.store.state import StoreDirectory, index_path
from tests.store.items import (
    ITEMS,
    SHOPS,
    Row,
    indexed,
    item,
    merge,
    publish,
    record,
    row,
    stored,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "items.lance")
    publish(path, [item(number) for number in range(20)])
    publish(path, [item(3, 2), {**item(30, 2), "status": "stale: missing"}], [{"id": 4}])
    return path


def found(path: str) -> str:
    with pytest.raises(Damaged) as caught:
        verify(path)
    assert "Restore the dataset and its state together" in caught.value.message
    return caught.value.message


def test_a_sound_store_is_sound(path: str) -> None:
    verification = verify(path)
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    held = [file for file in files if "hint" not in file.name]
    assert verification.to_dict() | {"seconds": 0} == {
        "path": path,
        "rows": 20,
        "vectors": 20,
        "parts": 2,
        "files": len(held),
        "bytes": sum(file.stat().st_size for file in held),
        "keys": True,
        "seconds": 0,
    }


def test_keys_of_several_columns_are_sound(tmp_path: Path) -> None:
    path = str(tmp_path / "shops.lance")
    publish(path, [row({"shop": "it's", "day": None}, 1, 1, SHOPS)], layout=SHOPS)
    assert "`day` is null" in found(path)


@pytest.mark.parametrize("directory", ["_deletions", "_transactions", "_versions", "data"])
def test_a_flipped_bit_in_the_dataset_is_found(path: str, directory: str) -> None:
    for file in (Path(path) / directory).iterdir():
        content = file.read_bytes()
        broken = bytearray(content)
        broken[len(broken) // 2] ^= 4
        file.write_bytes(broken)
        assert file.name in found(path)
        file.write_bytes(content)
    assert verify(path).rows == 20


@pytest.mark.parametrize("name", ["nights/000001.json", "nights/000002.json", "files.json"])
def test_a_flipped_bit_in_the_state_is_found(path: str, name: str) -> None:
    file = Path(f"{path}.state") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "its checksum does not match" in found(path)


def test_a_flipped_bit_in_the_switch_is_found(path: str) -> None:
    file = Path(f"{path}.state") / "store.json"
    file.write_bytes(file.read_bytes().replace(b'"live":2', b'"live":1'))
    with pytest.raises(Damaged, match=r"store\.json` is damaged"):
        verify(path)


def test_a_flipped_bit_in_the_index_is_found(path: str) -> None:
    file = Path(f"{path}.state") / index_path(2)
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    assert index_path(2) in found(path)


def record_says(path: str, version: int, **facts: Any) -> None:
    state = StoreDirectory(path)
    state.put_record(replace(state.existing_record(version), **facts))


def test_records_agree_with_the_switch(path: str) -> None:
    record_says(path, 1, state="discarded")
    assert "Version 1 should be published, but its record says: discarded." in found(path)


def test_a_missing_record_is_found(path: str) -> None:
    StoreDirectory(path).storage.remove("nights/000001.json")
    assert "Version 1 should be published, but its record says: None." in found(path)


def test_a_candidate_has_a_record(path: str) -> None:
    state = StoreDirectory(path)
    state.put_pointer(replace(state.pointer(), waiting=3))
    assert "Version 3 should be waiting, but its record says: None." in found(path)
    state.put_record(replace(record(3, 20, 3), state="waiting"))
    assert verify(path).rows == 20


def test_a_wrong_tag_is_found(path: str) -> None:
    transaction.tag(path, 1, 2)
    transaction.move_live_tag(path, 1)
    message = found(path)
    assert "The tag `night-1` names version 2 in Lance, and 1 in the store's records." in message
    assert "The tag `live` names version 1 in Lance, and 2 in the store's records." in message


def test_what_somebody_else_wrote_is_found(path: str) -> None:
    lance.dataset(path).delete("id = 3")
    message = found(path)
    assert "Readers see version 3 in Lance, but 2 is live in the store's records" in message
    assert "does not belong to a kept version" in message


def rewritten(path: str, change: Callable[[list[Row]], None]) -> None:
    """Put other rows into the dataset: the checksums and the switch know them, but no index."""
    held = stored(path)
    change(held)
    state = StoreDirectory(path)
    lance_version = write(path, held)
    versions = {2: lance_version}
    transaction.tag(path, 2, lance_version)
    transaction.move_live_tag(path, lance_version)
    transaction.clean_up(path, {2})
    record_files(path, state.storage, versions.values())
    state.put_pointer(replace(state.pointer(), versions=versions))


def put(name: str, value: Any) -> Callable[[list[Row]], None]:
    return lambda held: held[5].update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("vector", [0.5, 0.5, 0.5, 0.6]), "a vector does not have length 1 under l2"),
        (put("vector", [float("nan"), 0, 0, 1]), "a vector or norm is not finite"),
        (put("norm", -1.0), "a norm is negative"),
        (put("norm", 9.0), "its norm differs from the one in `index/000002.parquet`"),
        (put("feature_hash", bytes(16)), "its hash of the features differs from the one"),
        (
            put("passthrough_hash", bytes(8)),
            "its hash of the passed-through values differs from the",
        ),
        (put("status", "stale: other"), "its status differs from the one"),
        (put("id", 77), "its key is not in `index/000002.parquet`"),
        (put("id", None), "`id` is null"),
        (put("vector", None), "`vector` is null"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_rows_that_are_not_what_they_should_be_are_found(
    path: str, change: Callable[[list[Row]], None], words: str
) -> None:
    rewritten(path, change)
    message = found(path)
    assert f"`items.lance`, row 5: {words}" in message


def test_a_repeated_key_is_found(path: str) -> None:
    rewritten(path, lambda held: held.insert(3, held[2]))
    message = found(path)
    assert "`items.lance`, row 3: an earlier row has the same key." in message
    assert "1 finding:" in message


def test_a_key_repeated_in_another_batch_is_found(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchnorm_tool.commands.verify import store

    monkeypatch.setattr(store, "_BATCH_BYTES", 8 * 4 * 5)
    rewritten(path, lambda held: held.append(held[2]))
    assert "`items.lance`, row 20: an earlier row has the same key." in found(path)


def test_rows_that_are_in_the_index_alone_are_found(path: str) -> None:
    rewritten(path, lambda held: held.__delitem__(slice(3, 5)))
    assert "Not in the dataset: 2 rows of `index/000002.parquet`" in found(path)


def test_quarantined_rows_are_in_the_index_alone(path: str) -> None:
    state = StoreDirectory(path)
    bad = {**item(55, 2), "status": "quarantined: missing", "norm": None}
    with IndexWriter(state.storage, index_path(2), ITEMS.key_schema) as index:
        index.add(indexed(pa.Table.from_pylist([bad, *stored(path)], ITEMS.schema)))
        index.commit()
    record_says(path, 2, files=state.files_of(2))
    assert verify(path).rows == 20


def test_a_store_that_is_refreshed_meanwhile_is_not_called_damaged(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = verify_verify.open_snapshot

    def opening(where: str, **given: bool) -> Any:
        opened = really(where, **given)
        publish(where, [item(8, 3)])
        transaction.clean_up(where, {3})
        return opened

    monkeypatch.setattr(verify_verify, "open_snapshot", opening)
    with pytest.raises(WorkFailed, match="was changed by a refresh during verification"):
        verify(path)


def test_a_store_under_a_refresh_is_not_called_damaged(path: str) -> None:
    merge(path, [item(8, 3)])
    with (
        StoreDirectory(path).lock(),
        pytest.raises(WorkFailed, match="was changed by a refresh during verification"),
    ):
        verify(path)
