"""Prepare a change of the dataset: all of its rows anew, some of them, or an older version's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import WorkFailed
from batchnorm_tool.row_hash import key_ids
from batchnorm_tool.store.commit import Preparation, commit
from batchnorm_tool.store.fragments import write_fragments
from batchnorm_tool.store.key_places import KeyPlaces
from batchnorm_tool.store.library import lance, latest_version, open_dataset, writing
from batchnorm_tool.store.rows import key_batches

if TYPE_CHECKING:
    from batchnorm_tool.store.commit import Prepared

# The number of a row is that of its fragment, followed by 32 bits for its place in it.
_PLACE_BITS = np.uint64(32)
_PLACE = np.uint64(2**32 - 1)


def prepare_whole(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Prepared:
    """Write all rows of a new version, in the place of whatever rows there are.

    Args:
        path: Of the dataset, which need not exist.
        schema: Of the rows; it may differ from what was there before.
        batches: The rows; they are streamed.

    Returns:
        The change; nobody sees it before `commit`.

    Raises:
        WorkFailed: It cannot be written.
        OutputError: Something else lies at ``path``.
    """
    base = latest_version(path) or 0
    preparation = Preparation(path, base)
    place, mode = (open_dataset(path), "overwrite") if base else (path, "create")
    fragments = write_fragments(place, schema, batches, mode)
    return preparation.finish(lance().LanceOperation.Overwrite(schema, fragments))


def prepare_merge(
    path: str,
    schema: pa.Schema,
    keys: Sequence[str],
    batches: Iterable[pa.RecordBatch],
    deleted: pa.Table | None = None,
) -> Prepared:
    """Write the rows that a new version adds or replaces, and mark those that it removes.

    Not by Lance's own merge: that deletes by an expression, which for keys of several columns, or
    of some types, cannot be written or takes minutes. Rows are found by their keys' 128-bit ids
    here, and deleted by their place. Takes 40 bytes for each row that is written or removed.

    Args:
        path: Of the dataset, which exists.
        schema: Of its rows.
        keys: Names of the key columns.
        batches: Rows of that schema, each key at most once; they are streamed. A row takes the
            place of the one that has its key.
        deleted: Key columns of the rows to remove; a key that is not there does no harm, and one
            that is written too is written.

    Returns:
        The change; nobody sees it before `commit`.

    Raises:
        WorkFailed: It cannot be written, or two rows of ``batches`` have the same key.
        Damaged: The dataset cannot be read.
    """
    dataset = open_dataset(path)
    preparation = Preparation(path, dataset.version)
    ids: list[np.ndarray] = [np.empty((0, 2), np.uint64)]
    fragments = write_fragments(dataset, schema, _noting_ids(batches, keys, ids))
    _refuse_repeated(path, ids)
    if deleted is not None:
        ids.append(key_ids(deleted, keys))
    changed, emptied = _delete(path, dataset, _addresses(path, dataset.version, keys, ids))
    operation = lance().LanceOperation.Update(
        removed_fragment_ids=emptied,
        updated_fragments=changed,
        new_fragments=fragments,
        update_mode="rewrite_rows",
    )
    return preparation.finish(operation)


def prepare_restore(path: str, lance_version: int) -> Prepared:
    """Prepare that an older version becomes the newest; no rows are written.

    Raises:
        Damaged: The dataset cannot be read, or has no such version.
    """
    open_dataset(path, lance_version)
    base = open_dataset(path).version
    return Preparation(path, base).finish(lance().LanceOperation.Restore(lance_version))


def restore(path: str, lance_version: int) -> int:
    """Make an older version the newest, in one commit.

    Returns:
        Lance's number of the new version, synced.

    Raises:
        Damaged: The dataset cannot be read, or has no such version.
        WorkFailed: It cannot be written.
    """
    return commit(prepare_restore(path, lance_version))


def _noting_ids(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], ids: list[np.ndarray]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        ids.append(key_ids(pa.Table.from_batches([batch]).select(list(keys)), keys))
        yield batch


def _refuse_repeated(path: str, ids: list[np.ndarray]) -> None:
    repeated = KeyPlaces(np.concatenate(ids)).repeated()
    if len(repeated):
        msg = (
            f"Writing the store `{path}` was stopped: row {repeated[0]:,} of the rows to be "
            f"written has the key of an earlier one. Expected: each key once. Received: "
            f"{len(repeated):,} repetitions. Nothing was published; run the command again."
        )
        raise WorkFailed(msg)


def _addresses(
    path: str, lance_version: int, keys: Sequence[str], ids: list[np.ndarray]
) -> np.ndarray:
    """``uint64[n]``: where the rows lie whose keys have these ids, in order."""
    places = KeyPlaces(np.concatenate(ids))
    found = [np.empty(0, np.uint64)]
    for addresses, known in key_batches(path, lance_version, keys):
        found.append(addresses[places.find(known) >= 0])
    return np.sort(np.concatenate(found))


def _delete(path: str, dataset: Any, addresses: np.ndarray) -> tuple[list[Any], list[int]]:
    """Mark rows as deleted; returns the fragments as they are then, and numbers of emptied ones."""
    changed, emptied = [], []
    numbers = (addresses >> _PLACE_BITS).astype(np.int64)
    places = (addresses & _PLACE).astype(np.int64)
    for number in np.unique(numbers).tolist():
        with writing(path):
            fragment = dataset.get_fragment(number)
            # Not `delete`, whose expression takes 25 times as long for 100,000 rows.
            left = fragment.delete_rows(places[numbers == number].tolist())
        if left is None:
            emptied.append(number)
        else:
            changed.append(left)
    return changed, emptied
