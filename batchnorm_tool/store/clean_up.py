"""Which versions of the dataset stay: tags that protect them, and the removal of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from batchnorm_tool.storage.files import sync_directory, write_errors
from batchnorm_tool.store.commit import (
    WRITTEN_BEFORE,
    Preparation,
    commit,
    files_of,
    sync_file,
)
from batchnorm_tool.store.fragments import write_fragments
from batchnorm_tool.store.ledger import tracked_files
from batchnorm_tool.store.library import lance, open_dataset, writing
from batchnorm_tool.store.rows import scan

LIVE = "live"
# What a compaction replaced: readers that opened it before are not at their end yet.
_COMPACTED = "compacted"
_NIGHT = "night-"
_TAGS = "_refs/tags"
# Beyond these a scan reads much that is dead, or opens many files.
_MOST_DEAD = 0.3
_MOST_FRAGMENTS = 64
# Others stay as they are, so that older versions go on sharing them.
_SMALL_ROWS = 262_144
_DEAD_IN_FRAGMENT = 0.1


def night_tag(version: int) -> str:
    """The tag that protects a version, whose number in the store this is."""
    return f"{_NIGHT}{version}"


def tag(path: str, version: int, lance_version: int) -> None:
    """Protect a version from clean-up; harmless where it is so tagged already.

    Args:
        path: Of the dataset.
        version: Its number in the store: the tag is ``night-<version>``.
        lance_version: Its number in Lance.

    Raises:
        WorkFailed: The tag cannot be written.
    """
    _put_tag(path, night_tag(version), lance_version)


def move_live_tag(path: str, lance_version: int) -> None:
    """Let the tag ``live`` name a version.

    Raises:
        WorkFailed: The tag cannot be written.
    """
    _put_tag(path, LIVE, lance_version)


def tags(path: str) -> dict[str, int]:
    """Lance's number of the version that each tag names.

    Raises:
        WorkFailed: They cannot be read.
    """
    with writing(path):
        return {name: each["version"] for name, each in open_dataset(path).tags.list().items()}


def _put_tag(path: str, name: str, lance_version: int) -> None:
    present = tags(path)
    if present.get(name) == lance_version:
        return
    with writing(path):
        put = open_dataset(path).tags
        (put.update if name in present else put.create)(name, lance_version)
    directory = Path(path) / _TAGS
    with write_errors(path):
        sync_file(directory / f"{name}.json")
        for each in (directory, directory.parent, directory.parent.parent):
            sync_directory(each)


def clean_up(path: str, keep: Collection[int]) -> int:
    """Remove all versions but some, and what killed nights left behind.

    Whoever calls this holds the store's lock: files of a commit under way would be removed too.

    Args:
        path: Of the dataset.
        keep: The versions to keep, by their numbers in the store. The live one and the newest in
            Lance stay in any case; what `compact` replaced stays until the next commit.

    Returns:
        Bytes that were freed.

    Raises:
        WorkFailed: Files cannot be removed.
        Damaged: The dataset cannot be read.
    """
    dataset = open_dataset(path)
    with writing(path):
        kept, present = {LIVE, *map(night_tag, keep)}, tags(path)
        for name in set(present) - kept:
            is_past = name == _COMPACTED and present[name] < dataset.version - 1
            if is_past or name.startswith(_NIGHT):  # others are somebody else's
                dataset.tags.delete(name)
        cleaned = dataset.cleanup_old_versions(
            older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
        )
    return int(cleaned.bytes_removed) + _remove_leftovers(path)


def _remove_leftovers(path: str) -> int:
    """Remove files of killed nights that Lance leaves: deletions on top of the newest version."""
    needed = set(tracked_files(path)["path"].to_pylist())
    freed = 0
    with write_errors(path):
        for file in sorted(files_of(path, WRITTEN_BEFORE) - needed):
            freed += (Path(path) / file).stat().st_size
            (Path(path) / file).unlink()
    return freed


def compact(path: str, versions: Mapping[int, int]) -> dict[int, int]:
    """Write the newest version's rows anew where much of them is dead, or they lie in many files.

    That is where more than 30 % of the stored rows are deleted ones, or there are more than 64
    fragments. Older versions go on needing their own files until they are cleaned up, and so does
    the one that is replaced, which readers may have open since its publication.

    Args:
        path: Of the dataset.
        versions: Lance's number of each kept version.

    Returns:
        The same, where those that were the newest in Lance have the number of the compacted one,
        which holds the same rows, though maybe in another order.

    Raises:
        WorkFailed: It cannot be written.
        OutputError: Somebody else has written to the store.
    """
    dataset = open_dataset(path)
    scattered = _scattered(dataset)
    if not scattered:
        return dict(versions)
    _put_tag(path, _COMPACTED, dataset.version)
    preparation = Preparation(path, dataset.version)
    batches = scan(path, dataset, dataset.schema.names, fragments=scattered)
    operation = lance().LanceOperation.Update(
        removed_fragment_ids=[fragment.fragment_id for fragment in scattered],
        new_fragments=write_fragments(dataset, dataset.schema, batches),
        update_mode="rewrite_rows",
    )
    new = commit(preparation.finish(operation))
    return {ours: new if old == dataset.version else old for ours, old in versions.items()}


def _scattered(dataset: Any) -> list[Any]:
    """The fragments to write anew; none, while it is not worth it."""
    fragments = dataset.get_fragments()
    physical = sum(fragment.physical_rows for fragment in fragments)
    dead = sum(fragment.num_deletions for fragment in fragments)
    if dead <= _MOST_DEAD * physical and len(fragments) <= _MOST_FRAGMENTS:
        return []
    return [fragment for fragment in fragments if _is_worth_it(fragment)]


def _is_worth_it(fragment: Any) -> bool:
    rows = fragment.physical_rows
    return bool(rows < _SMALL_ROWS or fragment.num_deletions > _DEAD_IN_FRAGMENT * rows)
