"""Prepare and commit a change of the dataset, and remove what no version needs any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.display import plural
from batchnorm_tool.errors import OutputError, WorkFailed
from batchnorm_tool.inputs.row_hash import key_ids
from batchnorm_tool.inputs.row_ids import IdLookup, repeats
from batchnorm_tool.storage.files import make_directories, sync_directory, write_errors
from batchnorm_tool.store.checksums import tracked_files
from batchnorm_tool.store.lance import (
    lance,
    latest_version,
    open_dataset,
    reading,
    write_fragments,
    writing,
)
from batchnorm_tool.store.rows import scan

_ADDRESS = "_rowaddr"
# The address of a row is the number of its fragment, followed by 32 bits for its place in it.
_PLACE_BITS = np.uint64(32)
_PLACE = np.uint64(2**32 - 1)
WRITTEN_BEFORE = ("data", "_deletions")
_WRITTEN_BY_COMMIT = ("_versions", "_transactions")
LIVE = "live"
# What a compaction replaced: readers that opened it before are not at their end yet.
_COMPACTED = "compacted"
_VERSION = "night-"
# The tag that protects a version, by its number in the store.
version_tag: Callable[[int], str] = f"{_VERSION}{{}}".format
_TAGS = "_refs/tags"
# Beyond these a scan reads much that is dead, or opens many files.
_MOST_DEAD = 0.3
_MOST_FRAGMENTS = 64
# Others stay as they are, so that older versions go on sharing them.
_SMALL_ROWS = 262_144
_DEAD_IN_FRAGMENT = 0.1


def prepare_whole(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Prepared:
    """Write all rows of a new version, in the place of whatever rows there are."""
    base = latest_version(path) or 0
    builder = TransactionBuilder(path, base)
    place, mode = (open_dataset(path), "overwrite") if base else (path, "create")
    fragments = write_fragments(place, schema, batches, mode)
    return builder.finish(lance().LanceOperation.Overwrite(schema, fragments))


def prepare_merge(
    path: str,
    schema: pa.Schema,
    keys: Sequence[str],
    batches: Iterable[pa.RecordBatch],
    replaced: np.ndarray | None = None,
) -> Prepared:
    """Write the rows that a new version adds, and mark those that it replaces or removes.

    ``batches`` hold each key at most once, and are streamed. ``replaced`` is what
    `addresses_to_delete` told of; default: the rows that have the keys of ``batches``.
    """
    # Not by Lance's own merge: that deletes by an expression, which for keys of several columns, or
    # of some types, cannot be written or takes minutes. Rows are found by their keys' 128-bit ids
    # here, and deleted by their place. Takes 40 bytes for each row that is written or removed.
    dataset = open_dataset(path)
    builder = TransactionBuilder(path, dataset.version)
    ids: list[np.ndarray] = [np.empty((0, 2), np.uint64)]
    fragments = write_fragments(dataset, schema, _noting_ids(batches, keys, ids))
    # The rows are written by then, but no reader sees them; checking first would read them twice.
    _refuse_repeated(path, ids)
    if replaced is None:
        replaced = addresses_to_delete(path, np.concatenate(ids), keys)
    changed, emptied = _delete(path, dataset, replaced)
    operation = lance().LanceOperation.Update(
        removed_fragment_ids=emptied,
        updated_fragments=changed,
        new_fragments=fragments,
        update_mode="rewrite_rows",
    )
    return builder.finish(operation)


def prepare_restore(path: str, lance_version: int) -> Prepared:
    """Prepare that an older version becomes the newest; no rows are written."""
    open_dataset(path, lance_version)
    base = open_dataset(path).version
    return TransactionBuilder(path, base).finish(lance().LanceOperation.Restore(lance_version))


def _noting_ids(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], ids: list[np.ndarray]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        ids.append(key_ids(pa.Table.from_batches([batch]), keys))
        yield batch


def _refuse_repeated(path: str, ids: list[np.ndarray]) -> None:
    pairs = repeats(np.concatenate(ids))
    if len(pairs):
        raise WorkFailed(
            f"Writing the store `{path}` was stopped: row {pairs[0, 1]:,} of the rows to be "
            "written repeats the key of an earlier one. Expected: unique keys. "
            f"Received: {plural(len(pairs), 'duplicate')}. Nothing was published; run the "
            "command again."
        )


def addresses_to_delete(path: str, ids: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Return Lance's addresses ``uint64[n]`` of rows of the newest version that have these keys."""
    wanted, found = IdLookup(ids), [np.empty(0, np.uint64)]
    for batch in scan(path, open_dataset(path), keys, with_row_address=True):
        is_wanted = wanted.find(key_ids(pa.Table.from_batches([batch]), keys)) >= 0
        found.append(batch[_ADDRESS].to_numpy()[is_wanted])
    return np.concatenate(found)


def _delete(path: str, dataset: Any, addresses: np.ndarray) -> tuple[list[Any], list[int]]:
    """Mark rows as deleted; returns the fragments as they are then, and numbers of emptied ones."""
    changed, emptied = [], []
    numbers = (addresses >> _PLACE_BITS).astype(np.int64)
    places = (addresses & _PLACE).astype(np.int64)
    for number in np.unique(numbers).tolist():
        with writing(path):
            fragment = dataset.get_fragment(number)
            # Not meant for end users, says Lance; but of what is, nothing marks rows before a
            # commit by their place, and `delete`, by an expression, takes 30 times as long.
            left = fragment.delete_rows(places[numbers == number].tolist())
        if left is None:
            emptied.append(number)
        else:
            changed.append(left)
    return changed, emptied


@dataclass(frozen=True)
class Prepared:
    """A change that nobody sees before `commit`; ``base`` is the version that it changes, or 0."""

    path: str
    uuid: str
    base: int
    files: tuple[str, ...]
    _transaction: Any = field(repr=False)

    def sync(self) -> None:
        """Make sure that the new files, and their names, outlive a power cut."""
        _sync(self.path, self.files)


class TransactionBuilder:
    """What was there before a change was written; `finish` tells which files are new."""

    def __init__(self, path: str, base: int) -> None:
        with write_errors(path):
            make_directories(Path(path).absolute())
        self._path, self._base = path, base
        # Lance does not say what it wrote. Under the store's lock, what was not there before is
        # new.
        self._before = files_of(path, WRITTEN_BEFORE)

    def finish(self, operation: Any) -> Prepared:
        """Return the change that ``operation`` describes, which builds on the base."""
        transaction = lance().Transaction(read_version=self._base, operation=operation)
        new = sorted(files_of(self._path, WRITTEN_BEFORE) - self._before)
        return Prepared(self._path, transaction.uuid, self._base, tuple(new), transaction)


def commit(prepared: Prepared) -> int:
    """Let readers see a prepared change as a new version, and return Lance's number of it.

    It is synced. Not promised: that a power cut before that leaves either version whole.
    """
    path = prepared.path
    prepared.sync()
    _refuse_unless_newest(path, prepared.base, latest_version(path) or 0)
    before = files_of(path, _WRITTEN_BY_COMMIT)
    with writing(path):
        base = open_dataset(path, prepared.base) if prepared.base else path
        # Without retries: Lance would rebase the change onto a version that came in between, which
        # the gate never saw.
        dataset = lance().LanceDataset.commit(base, prepared._transaction, max_retries=0)  # noqa: SLF001
    _sync(path, sorted(files_of(path, _WRITTEN_BY_COMMIT) - before))
    _refuse_unless_newest(path, prepared.base, dataset.version - 1)
    return int(dataset.version)


def _refuse_unless_newest(path: str, base: int, newest: int) -> None:
    if newest != base:
        raise OutputError(
            f"Another program has written to the store `{path}`: its newest version in Lance "
            f"is {newest}. Expected: {base}, as at the start of this refresh. Only batchnorm-tool "
            "may write there. Find out what wrote to it, undo that (`rollback` restores a "
            "version), and run again."
        )


def committed_version(path: str, uuid: str) -> int | None:
    """Return Lance's number of the version that a transaction made, synced; ``None`` for none."""
    if latest_version(path) is None:
        return None
    with reading(path):
        dataset = open_dataset(path)
        # The newest first: it is nearly always that one, and each takes a file to be read.
        versions = sorted((each["version"] for each in dataset.versions()), reverse=True)
        for version in versions:
            transaction = dataset.read_transaction(version)
            if transaction is not None and transaction.uuid == uuid:
                _sync(path, sorted(files_of(path, _WRITTEN_BY_COMMIT)))
                return int(version)
    return None


def files_of(path: str, directories: tuple[str, ...]) -> set[str]:
    """Return paths, below the dataset, of the files in some of its directories."""
    with write_errors(path):
        return {
            f"{directory}/{name}"
            for directory in directories
            if (Path(path) / directory).is_dir()
            for name in os.listdir(Path(path) / directory)
        }


def _sync(path: str, files: tuple[str, ...] | list[str]) -> None:
    """Sync files, the directories that hold them, and the dataset's own directory."""
    root = Path(path)
    with write_errors(path):
        for file in files:
            with (root / file).open("rb") as opened:
                os.fsync(opened.fileno())
        # A file whose directory is not synced may have its content after a power cut, and no name.
        above = {root / folder for file in files for folder in Path(file).parents}
        for directory in sorted({root} | above):
            sync_directory(directory)


def tag(path: str, version: int, lance_version: int) -> None:
    """Protect a version from clean-up; harmless where it is so tagged already."""
    _put_tag(path, version_tag(version), lance_version)


def move_live_tag(path: str, lance_version: int) -> None:
    """Let the tag ``live`` name a version."""
    _put_tag(path, LIVE, lance_version)


def tags(path: str) -> dict[str, int]:
    """Return Lance's number of the version that each tag names."""
    with writing(path):
        return {name: each["version"] for name, each in open_dataset(path).tags.list().items()}


def _put_tag(path: str, name: str, lance_version: int) -> None:
    present = tags(path)
    if present.get(name) == lance_version:
        return
    with writing(path):
        put = open_dataset(path).tags
        (put.update if name in present else put.create)(name, lance_version)
    _sync(path, [f"{_TAGS}/{name}.json"])


def clean_up(path: str, keep: Collection[int]) -> None:
    """Remove all versions but some, and what killed refreshes left behind.

    Whoever calls this holds the store's lock: files of a commit under way would be removed too.
    """
    dataset = open_dataset(path)
    with writing(path):
        # Tags of other programs stay, and with them their versions: they were set on purpose.
        kept, present = {LIVE, *map(version_tag, keep)}, tags(path)
        for name in set(present) - kept:
            is_past = name == _COMPACTED and present[name] < dataset.version - 1
            if is_past or name.startswith(_VERSION):  # others are somebody else's
                dataset.tags.delete(name)
        dataset.cleanup_old_versions(
            # What a killed refresh left counts as unverified, and would stay for seven days.
            older_than=timedelta(0),
            delete_unverified=True,
            error_if_tagged_old_versions=False,
        )
    # Of killed refreshes Lance leaves deletions beyond the newest version.
    needed = set(tracked_files(path)["path"].to_pylist())
    with write_errors(path):
        for file in sorted(files_of(path, WRITTEN_BEFORE) - needed):
            (Path(path) / file).unlink()


def compact(path: str, versions: Mapping[int, int]) -> dict[int, int]:
    """Write the newest version's rows again where much of them is dead, or they lie in many files.

    Returns ``versions``, the newest with its new number: the same rows, maybe in another order.
    """
    # That is where more than 30 % of the stored rows are deleted ones, or there are more than 64
    # fragments. Older versions go on needing their own files until they are cleaned up, and so does
    # the one that is replaced, which readers may have open since its publication.
    dataset = open_dataset(path)
    scattered = _scattered(dataset)
    if not scattered:
        return dict(versions)
    # Before the rows are written again: without a tag, the next clean-up would take the files from
    # under readers who opened them.
    _put_tag(path, _COMPACTED, dataset.version)
    builder = TransactionBuilder(path, dataset.version)
    batches = scan(path, dataset, dataset.schema.names, fragments=scattered)
    operation = lance().LanceOperation.Update(
        removed_fragment_ids=[fragment.fragment_id for fragment in scattered],
        new_fragments=write_fragments(dataset, dataset.schema, batches),
        update_mode="rewrite_rows",
    )
    new = commit(builder.finish(operation))
    return {ours: new if old == dataset.version else old for ours, old in versions.items()}


def _scattered(dataset: Any) -> list[Any]:
    """Return the fragments to rewrite; none, while it is not worth it."""
    fragments = dataset.get_fragments()
    physical = sum(fragment.physical_rows for fragment in fragments)
    dead = sum(fragment.num_deletions for fragment in fragments)
    if dead <= _MOST_DEAD * physical and len(fragments) <= _MOST_FRAGMENTS:
        return []
    sizes = ((each, each.physical_rows, each.num_deletions) for each in fragments)
    return [
        each for each, rows, dead in sizes if rows < _SMALL_ROWS or dead > _DEAD_IN_FRAGMENT * rows
    ]
