"""The checksums of the dataset's files, because Lance does not notice a flipped bit."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from batchnorm_tool.job import STATE_SUFFIX
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.storage.checked_json import Count, SealedRecord
from batchnorm_tool.storage.files import fault_in, read_errors, record_of, unknown_files
from batchnorm_tool.store.lance import latest_version, open_dataset, reading
from batchnorm_tool.store.state import CHECKSUMS_PATH

_TAGS = "_refs/tags"
# Others are somebody else's, who may change them.
_OUR_TAGS = ("live.json", "compacted.json", "night-*.json")
# Rewritten by every commit; a copy of what the names beside it say.
_HINT = "_versions/latest_version_hint.json"
# Lance leaves their directories behind when the last file goes.
_LEFT_EMPTY = ("_deletions/file", "_refs/tags/file", "_transactions/file", "data/file")


@dataclass(frozen=True)
class Checksums(SealedRecord):
    """Size and SHA-256 of each file of the dataset, by its path."""

    files: dict[str, tuple[Count, str]]
    format: Literal[1] = 1


def record_files(path: str, storage: Storage, lance_versions: Iterable[int]) -> None:
    """Take the checksums of all files of these versions that have none yet; forget other files."""
    known, tracked, wanted = _records(path, storage), tracked_files(path), set(lance_versions)
    names = zip(tracked["version"].to_pylist(), tracked["path"].to_pylist(), strict=True)
    files = [*sorted({name for version, name in names if version in wanted}), *_tags(path)]
    known_still = {name: each for name, each in known.items() if not name.startswith(_TAGS)}
    records = [known_still.get(file) or _record(path, file) for file in files]
    entries = {record.path: (record.bytes, record.sha256) for record in records}
    if entries != {name: (each.bytes, each.sha256) for name, each in known.items()}:
        storage.put(CHECKSUMS_PATH, Checksums(entries).to_json())


def recorded_files(path: str, storage: Storage) -> list[FileRecord]:
    """Return the files whose checksums are known, by path."""
    return sorted(_records(path, storage).values(), key=lambda record: record.path)


def check_files(path: str, storage: Storage) -> Iterator[str]:
    """Say, a sentence each, which files of the dataset are missing, have other bytes, or are extra.

    A tag that somebody else has made is none of them.
    """
    records = recorded_files(path, storage)
    for record in records:
        finding, _ = fault_in(Path(path), record, "checksum file")
        if finding:
            yield finding
    known = {record.path for record in records}
    for file in unknown_files(Path(path), {*known, _HINT, *_LEFT_EMPTY}):
        is_tag = file.startswith(f"{_TAGS}/") and file.endswith(".json")
        if not is_tag or file in _tags(path):
            yield (
                f"`{file}` does not belong to a kept version. It can be removed; the next refresh "
                "also does so."
            )
    yield from _check_hint(path)


def _tags(path: str) -> list[str]:
    found = (place for pattern in _OUR_TAGS for place in (Path(path) / _TAGS).glob(pattern))
    return sorted(place.relative_to(path).as_posix() for place in found)


def _check_hint(path: str) -> Iterator[str]:
    """Check the file that lets a reader find the newest version without listing all names."""
    try:
        place = Path(path) / _HINT
        hint = None if place.is_symlink() else json.loads(place.read_bytes())["version"]
    except FileNotFoundError:  # older releases write none
        return
    except (OSError, ValueError, TypeError, KeyError):
        hint = None
    newest = latest_version(path)
    if hint != newest:
        yield f"`{_HINT}` names version {hint}, but the newest is {newest}."


def _records(path: str, storage: Storage) -> dict[str, FileRecord]:
    text = storage.get(CHECKSUMS_PATH)
    if text is None:
        return {}
    known = Checksums.opened(text, f"{path}{STATE_SUFFIX}/{CHECKSUMS_PATH}").files
    return {name: FileRecord(name, *entry) for name, entry in known.items()}


def tracked_files(path: str) -> pa.Table:
    """Return the files of all versions: columns ``version`` (in Lance) and ``path``."""
    with reading(path):
        return open_dataset(path).tracked_files().read_all()


def _record(path: str, file: str) -> FileRecord:
    with read_errors(Path(path) / file):
        return record_of(Path(path), file)
