"""A candidate becomes the live version: one commit, then the notes that go with it.

What is written before the commit nobody sees; an intent tells a later call what was about to
happen, so that it finishes what a kill left half done::

    rows written and synced -> intent.json -> commit -> checksums, tags, record -> store.json
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.refresh.candidate import KEPT, PREDICTED, REMOVED
from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.inputs.row_hash import IdLookup, key_ids
from batchnorm_tool.job.refresh_sections import Keep
from batchnorm_tool.storage import TEMPORARY
from batchnorm_tool.storage.checked_json import LEFT_OUT_IF_NONE, SealedRecord
from batchnorm_tool.store.checksums import record_files
from batchnorm_tool.store.lance import newest_version
from batchnorm_tool.store.rows import read_rows
from batchnorm_tool.store.rows import rows as stored_rows
from batchnorm_tool.store.state import (
    RECORDS,
    STAGING,
    StoreDirectory,
    StoredRecord,
    StorePointer,
    StoreSchema,
    index_path,
    replaced_path,
)
from batchnorm_tool.store.transaction import (
    Prepared,
    clean_up,
    commit,
    committed_version,
    compact,
    move_live_tag,
    prepare_merge,
    prepare_whole,
    tag,
    tags,
)

INTENT = f"{STAGING}/intent.json"


@dataclass(frozen=True)
class Intent(SealedRecord):
    """What is about to happen: a commit with what follows it, or a compaction.

    Attributes:
        uuid: What Lance knows the commit by.
        record: Of the version that it makes.
        after: What stands in the store then, but for Lance's number of the version.
        compacts: Lance's number of the version whose rows are written anew.
    """

    uuid: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    record: Annotated[StoredRecord | None, LEFT_OUT_IF_NONE] = None
    after: Annotated[StorePointer | None, LEFT_OUT_IF_NONE] = None
    compacts: Annotated[int | None, LEFT_OUT_IF_NONE] = None


def check_dataset(state: StoreDirectory, pointer: StorePointer) -> None:
    """Check that the dataset is the one that the state describes."""
    newest = newest_version(state.path)
    if newest == pointer.lance_version:
        return
    if newest is None:
        raise Damaged(
            f"The dataset `{state.path}` is missing, but `{state.root}` records "
            f"version {pointer.live} there. Restore it, or remove the state as well to start over."
        )
    if pointer.live is None:
        raise OutputError(
            f"`{state.path}` holds a Lance dataset that `batchnorm-tool refresh` did not create. "
            "Choose another `store.path`."
        )
    raise OutputError(
        f"Another program has written to `{state.path}`. Expected Lance "
        f"version {pointer.lance_version} to be the newest. Received: {newest}. Restore "
        f"version {pointer.lance_version} with Lance, and let only `batchnorm-tool` write to a "
        "store."
    )


def merge(
    state: StoreDirectory,
    pointer: StorePointer,
    after: StorePointer,
    record: StoredRecord,
    *,
    whole: bool,
) -> StorePointer:
    """Publish the staged rows as one new version."""
    check_dataset(state, pointer)
    layout = after.layout
    assert layout is not None  # noqa: S101  (a version has a layout)
    if whole or pointer.live is None:
        batches = _all_rows(state, pointer, layout, replaces=record.new_space)
        prepared = prepare_whole(state.path, layout.schema, batches)
    else:
        removed = pa.concat_tables([layout.key_schema.empty_table(), *_tables(state, [REMOVED])])
        upserts = _batches(_tables(state, [PREDICTED, KEPT]))
        prepared = prepare_merge(state.path, layout.schema, layout.keys, upserts, removed)
    return switch(state, prepared, after, record)


def _tables(state: StoreDirectory, paths: list[str]) -> Iterator[pa.Table]:
    for path in paths:
        yield from read_rows(state.storage, path)


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def _all_rows(
    state: StoreDirectory, pointer: StorePointer, layout: StoreSchema, *, replaces: bool
) -> Iterator[pa.RecordBatch]:
    """Yield every row of the version: those that stay, then those that the refresh writes."""
    if pointer.live is not None and pointer.layout is not None and not replaces:
        yield from _staying(state, pointer, pointer.layout, layout)
    yield from _batches(_tables(state, [PREDICTED, KEPT]))


def _staying(
    state: StoreDirectory, pointer: StorePointer, before: StoreSchema, layout: StoreSchema
) -> Iterator[pa.RecordBatch]:
    """Yield rows of the live version that the refresh leaves alone, in the new columns."""
    keys = list(layout.keys)
    ids = [
        key_ids(table.select(keys), keys) for table in _tables(state, [PREDICTED, KEPT, REMOVED])
    ]
    written = IdLookup(np.concatenate([np.empty((0, 2), np.uint64), *ids]))
    # A column of ours that is renamed holds what it held.
    ours = ((each.vector, each.norm, *each.bookkeeping) for each in (before, layout))
    renamed = dict(zip(*ours, strict=True))
    stored = {name: renamed.get(name, name) for name in before.schema.names}
    gone = {*before.passthrough} - {*layout.passthrough}
    kept = [name for name in stored if name not in gone]
    for batch in stored_rows(state.path, pointer.lance_version, kept):
        table = pa.Table.from_batches([batch]).rename_columns([stored[name] for name in kept])
        rest = table.filter(pa.array(written.find(key_ids(table, keys)) < 0))
        for field in layout.schema:
            if field.name not in rest.schema.names:
                rest = rest.append_column(field, pa.nulls(rest.num_rows, field.type))
        yield from rest.select(layout.schema.names).cast(layout.schema).to_batches()


def switch(
    state: StoreDirectory, prepared: Prepared, after: StorePointer, record: StoredRecord
) -> StorePointer:
    """Commit a prepared change, and make it the live version."""
    prepared.sync()
    record = replace(record, files=state.files_of(record.version))
    intent = Intent(uuid=prepared.uuid, record=record, after=after)
    # With all that follows the commit in it: after a kill nothing has to be worked out again, from
    # a job that may have changed.
    state.storage.put(INTENT, intent.to_json())
    return _finish(state, after, record, commit(prepared))


def recover(state: StoreDirectory) -> int | None:
    """Finish a publication that was interrupted after its commit; forget one before it.

    Returns:
        The version whose publication was finished; ``None`` where there was none.
    """
    state.storage.remove(TEMPORARY)  # what killed refreshes were writing
    intent = Intent.from_json(state.storage.get(INTENT))
    if intent is None:
        return None
    if intent.compacts is not None:
        _finish_compaction(state, intent.compacts)
    if intent.uuid is None or intent.record is None or intent.after is None:
        return None
    # Lance is asked, not the clock: only whether the commit came about decides how it goes on.
    lance_version = committed_version(state.path, intent.uuid)
    if lance_version is None:
        state.storage.remove(INTENT)
        return None
    return _finish(state, intent.after, intent.record, lance_version).live


def _finish_compaction(state: StoreDirectory, base: int) -> None:
    """Take in that the newest version's rows were rewritten, if they were; then clean up."""
    pointer, newest = state.pointer(), newest_version(state.path)
    if pointer.lance_version == base and newest == base + 1:
        pointer = _renumber(state, pointer, {**pointer.versions, pointer.live or 0: newest})
    _remove_files(state, pointer)


def _renumber(
    state: StoreDirectory, pointer: StorePointer, versions: dict[int, int]
) -> StorePointer:
    """Note Lance's numbers of the kept versions after a compaction."""
    after = pointer.with_changes(versions=versions)
    live, lance_version = after.live, after.lance_version
    assert live is not None and lance_version is not None  # noqa: PT018, S101  (it was compacted)
    tag(state.path, live, lance_version)
    move_live_tag(state.path, lance_version)
    _note_files(state, after)
    state.put_pointer(after)
    return after


def _finish(
    state: StoreDirectory, after: StorePointer, record: StoredRecord, lance_version: int
) -> StorePointer:
    """Do all that follows a commit; may be repeated after a kill at any point of it."""
    version = record.version
    pointer = after.with_changes(versions={**after.versions, version: lance_version})
    tag(state.path, version, lance_version)
    move_live_tag(state.path, lance_version)
    _note_files(state, pointer)
    # The record before the pointer: a live version always has one.
    state.put_record(
        replace(record, state="published", lance_version=lance_version, finished=now())
    )
    state.put_pointer(pointer)
    # Last: as long as the intent is there, all of this is done again after a kill.
    discard_uncommitted(state, pointer)
    return pointer


def _note_files(state: StoreDirectory, pointer: StorePointer) -> None:
    """Take the checksums of the files of all versions that Lance has: kept ones and tagged ones."""
    versions = {*pointer.versions.values(), *tags(state.path).values()}
    record_files(state.path, state.storage, versions)


def discard_uncommitted(state: StoreDirectory, pointer: StorePointer) -> None:
    """Remove all that is staged, and every index but those of the live version and a candidate."""
    storage = state.storage
    needed = {
        index_path(version) for version in (pointer.live, pointer.waiting) if version is not None
    }
    for name in storage.names("index"):
        if f"index/{name}" not in needed:
            storage.remove(f"index/{name}")
    noted = {replaced_path(version) for version in (*pointer.versions, pointer.waiting or 0)}
    for name in storage.names(RECORDS):
        if name.endswith(".npy") and f"{RECORDS}/{name}" not in noted:
            storage.remove(f"{RECORDS}/{name}")
    if pointer.waiting is None:
        storage.remove(STAGING)


def now() -> str:
    """Return the time, as records have it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def remove_old_versions(state: StoreDirectory, pointer: StorePointer, keep: Keep) -> StorePointer:
    """Remove what ``store.keep`` does not keep; the live version always stays."""
    kept = {version: pointer.versions[version] for version in kept_versions(state, pointer, keep)}
    # A kill between Lance's commit and our note would leave a newest version that is not known.
    state.storage.put(INTENT, Intent(compacts=pointer.lance_version).to_json())
    if kept != pointer.versions:
        pointer = pointer.with_changes(versions=kept)
        state.put_pointer(pointer)
    compacted = compact(state.path, pointer.versions)
    if compacted != pointer.versions:
        pointer = _renumber(state, pointer, compacted)
    _remove_files(state, pointer)
    return pointer


def _remove_files(state: StoreDirectory, pointer: StorePointer) -> None:
    """Remove the files of versions that are not kept; what was under way is done then."""
    clean_up(state.path, set(pointer.versions))
    _note_files(state, pointer)
    state.storage.remove(INTENT)
    discard_uncommitted(state, pointer)


def kept_versions(state: StoreDirectory, pointer: StorePointer, keep: Keep) -> list[int]:
    """Return the versions that stay: the newest ``count``, none above ``days``, the live one."""
    newest = sorted(pointer.versions)[-keep.count :] if keep.count else sorted(pointer.versions)
    return [
        version
        for version in newest
        if version == pointer.live or keep.days is None or _age(state, version).days < keep.days
    ]


def _age(state: StoreDirectory, version: int) -> dt.timedelta:
    record = state.record(version)
    if record is None:
        return dt.timedelta.max
    return dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record.finished or record.started)
