from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from batchnorm_tool.errors import Damaged
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import is_sealed
from batchnorm_tool.store import checksums, transaction
from tests.store.items import item, merge, write


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "items.lance")
    write(path, [item(number) for number in range(50)])
    merge(path, [item(3, 2)])
    return path


@pytest.fixture
def storage(path: str) -> Storage:
    storage = Storage(f"{path}.state")
    checksums.record_files(path, storage, [1, 2])
    return storage


def test_every_file_of_the_versions_is_recorded(path: str, storage: Storage) -> None:
    records = checksums.recorded_files(path, storage)
    assert sorted(record.path.partition("/")[0] for record in records) == [
        "_deletions",
        *["_transactions"] * 2,
        *["_versions"] * 2,
        *["data"] * 2,
    ]
    for record in records:
        content = (Path(path) / record.path).read_bytes()
        assert record.bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert list(checksums.check_files(path, storage)) == []


def test_only_the_versions_named_are_recorded(path: str) -> None:
    storage = Storage(f"{path}.state")
    checksums.record_files(path, storage, [1])
    assert len(checksums.recorded_files(path, storage)) == 3


def test_known_files_are_not_hashed_again(
    path: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    really = checksums._record

    def spy(where: str, file: str) -> object:
        hashed.append(file)
        return really(where, file)

    monkeypatch.setattr(checksums, "_record", spy)
    checksums.record_files(path, storage, [1, 2])
    assert hashed == []
    merge(path, [item(4, 3)])
    checksums.record_files(path, storage, [1, 2, 3])
    # A fragment has one deletion file, which grows with the versions.
    kinds = sorted(file.partition("/")[0] for file in hashed)
    assert kinds == ["_deletions", "_transactions", "_versions", "data"]


def test_files_that_are_gone_are_forgotten(path: str, storage: Storage) -> None:
    transaction.move_live_tag(path, 2)
    transaction.clean_up(path, set())
    assert any("is missing" in found for found in checksums.check_files(path, storage))
    checksums.record_files(path, storage, [2])
    assert list(checksums.check_files(path, storage)) == []


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


KINDS = ["_deletions", "_transactions", "_versions", "data"]


@pytest.mark.parametrize("directory", KINDS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped, "is not what was written: SHA-256"),
        (cut, "bytes; the"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped", "cut", "missing"],
)
def test_damage_is_found(
    path: str, storage: Storage, directory: str, damage: Callable[[Path], None], words: str
) -> None:
    file = max(file for file in (Path(path) / directory).iterdir() if file.suffix != ".json")
    damage(file)
    found = [each for each in checksums.check_files(path, storage) if "hint" not in each]
    assert len(found) == 1
    assert f"`{directory}/{file.name}`" in found[0]
    assert any(word in found[0] for word in words.split("|"))


@pytest.mark.parametrize("directory", KINDS)
def test_foreign_files_are_found(path: str, storage: Storage, directory: str) -> None:
    (Path(path) / directory / "notes.txt").write_text("mine")
    (found,) = checksums.check_files(path, storage)
    assert f"`{directory}/notes.txt` does not belong to a kept version" in found


def test_a_wrong_hint_is_found(path: str, storage: Storage) -> None:
    hint = Path(path) / "_versions" / "latest_version_hint.json"
    hint.write_text('{"version":1}')
    assert list(checksums.check_files(path, storage)) == [
        "`_versions/latest_version_hint.json` names version 1, but the newest is 2."
    ]
    hint.write_text("{")
    assert len(list(checksums.check_files(path, storage))) == 1
    hint.unlink()
    assert list(checksums.check_files(path, storage)) == []


def test_damaged_checksums_are_refused(path: str, storage: Storage) -> None:
    content = storage.get("files.json")
    assert content is not None
    assert is_sealed(content)
    storage.put("files.json", content.replace(b'"format":1', b'"format":2'))
    with pytest.raises(Damaged, match=r"files\.json` is damaged: its checksum does not match"):
        list(checksums.check_files(path, storage))
