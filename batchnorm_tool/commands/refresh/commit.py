"""A candidate becomes the live version: one commit, then the notes that go with it.

What is written before the commit nobody sees; an intent tells a later call what was about to
happen, so that it finishes what a kill left half done::

    rows written and synced -> intent.json -> commit -> checksums, tags, record -> store.json
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.refresh.candidate import KEPT, PREDICTED, REMOVED
from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.inputs.row_hash import key_ids
from batchnorm_tool.storage import TEMPORARY, checked_json
from batchnorm_tool.store.checksums import record_files
from batchnorm_tool.store.lance import newest_version
from batchnorm_tool.store.rows import KeyPlaces, read_rows
from batchnorm_tool.store.rows import rows as stored_rows
from batchnorm_tool.store.state import NIGHT, NIGHTS, StoreFacts, index_path, replaced_path
from batchnorm_tool.store.transaction import (
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchnorm_tool.job.refresh_sections import Keep
    from batchnorm_tool.store.state import StoreLayout, StoreState
    from batchnorm_tool.store.transaction import Prepared

INTENT = f"{NIGHT}/intent.json"


def check_dataset(state: StoreState, facts: StoreFacts) -> None:
    """Check that the dataset is the one that the state describes.

    Raises:
        OutputError: Somebody else has written to it, or it belongs to no store.
        Damaged: It is gone.
    """
    newest = newest_version(state.path)
    if newest == facts.lance_version:
        return
    if newest is None:
        msg = (
            f"The dataset `{state.path}` is gone, and `{state.root}` says that version "
            f"{facts.live} lies there. Put it back, or remove the state as well to begin anew."
        )
        raise Damaged(msg)
    if facts.live is None:
        msg = (
            f"`{state.path}` holds a Lance dataset that no refresh has made. Choose another "
            "`store.path`."
        )
        raise OutputError(msg)
    msg = (
        f"Somebody else has written to `{state.path}`. Expected Lance's version "
        f"{facts.lance_version} to be the newest. Received: {newest}. Restore version "
        f"{facts.lance_version} with Lance, and let nobody but `batchnorm-tool` write to a store."
    )
    raise OutputError(msg)


def merge(
    state: StoreState, facts: StoreFacts, after: StoreFacts, record: dict[str, Any], *, whole: bool
) -> StoreFacts:
    """Publish the staged rows as one new version.

    Args:
        state: The store; the caller holds its lock.
        facts: What stands in it.
        after: The same when the version is live, but for Lance's number of it.
        record: The record of the night.
        whole: Whether the dataset is written anew, rather than merged into.

    Returns:
        What stands in the store now.
    """
    check_dataset(state, facts)
    layout = after.layout
    assert layout is not None  # noqa: S101  (a version has a layout)
    if whole or facts.live is None:
        batches = _all_rows(state, facts, layout, replaces=record["new_space"])
        prepared = prepare_whole(state.path, layout.schema, batches)
    else:
        removed = pa.concat_tables([layout.key_schema.empty_table(), *_tables(state, [REMOVED])])
        upserts = _batches(_tables(state, [PREDICTED, KEPT]))
        prepared = prepare_merge(state.path, layout.schema, layout.keys, upserts, removed)
    return switch(state, prepared, after, record)


def _tables(state: StoreState, paths: list[str]) -> Iterator[pa.Table]:
    for path in paths:
        yield from read_rows(state.storage, path)


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def _all_rows(
    state: StoreState, facts: StoreFacts, layout: StoreLayout, *, replaces: bool
) -> Iterator[pa.RecordBatch]:
    """Every row of the version: those that stay, then those that the night writes."""
    if facts.live is not None and facts.layout is not None and not replaces:
        yield from _staying(state, facts, facts.layout, layout)
    yield from _batches(_tables(state, [PREDICTED, KEPT]))


def _staying(
    state: StoreState, facts: StoreFacts, before: StoreLayout, layout: StoreLayout
) -> Iterator[pa.RecordBatch]:
    """Rows of the live version that the night leaves alone, in the new version's columns."""
    keys = list(layout.keys)
    ids = [
        key_ids(table.select(keys), keys) for table in _tables(state, [PREDICTED, KEPT, REMOVED])
    ]
    written = KeyPlaces(np.concatenate([np.empty((0, 2), np.uint64), *ids]))
    # A column of ours that is renamed holds what it held.
    ours = ((each.vector, each.norm, *each.bookkeeping) for each in (before, layout))
    renamed = dict(zip(*ours, strict=True))
    stored = {name: renamed.get(name, name) for name in before.schema.names}
    gone = {*before.passthrough} - {*layout.passthrough}
    kept = [name for name in stored if name not in gone]
    for batch in stored_rows(state.path, facts.lance_version, kept):
        table = pa.Table.from_batches([batch]).rename_columns([stored[name] for name in kept])
        rest = table.filter(pa.array(written.find(key_ids(table, keys)) < 0))
        for field in layout.schema:
            if field.name not in rest.schema.names:
                rest = rest.append_column(field, pa.nulls(rest.num_rows, field.type))
        yield from rest.select(layout.schema.names).cast(layout.schema).to_batches()


def switch(
    state: StoreState, prepared: Prepared, after: StoreFacts, record: dict[str, Any]
) -> StoreFacts:
    """Commit a prepared change, and make it the live version."""
    prepared.sync()
    record = {**record, "files": state.files_of(record["version"])}
    intent = {"uuid": prepared.uuid, "record": record, "after": after.to_dict()}
    state.storage.put(INTENT, checked_json.sealed_json(intent))
    return _finish(state, after, record, commit(prepared))


def recover(state: StoreState) -> int | None:
    """Finish a publication that was interrupted after its commit; forget one before it.

    Returns:
        The version whose publication was finished; ``None`` where there was none.
    """
    state.storage.remove(TEMPORARY)  # what killed nights were writing
    text = state.storage.get(INTENT)
    intent = None if text is None else checked_json.opened_json(text)
    if intent is None:
        return None
    if "compacts" in intent:
        _finish_compaction(state, intent["compacts"])
        return None
    lance_version = committed_version(state.path, intent["uuid"])
    if lance_version is None:
        state.storage.remove(INTENT)
        return None
    after = StoreFacts.from_dict(intent["after"])
    return _finish(state, after, intent["record"], lance_version).live


def _finish_compaction(state: StoreState, base: int) -> None:
    """Take in that the newest version's rows were written anew, if they were; then clean up."""
    facts, newest = state.facts(), newest_version(state.path)
    if facts.lance_version == base and newest == base + 1:
        facts = _renumber(state, facts, {**facts.versions, facts.live or 0: newest})
    _remove_files(state, facts)


def _renumber(state: StoreState, facts: StoreFacts, versions: dict[int, int]) -> StoreFacts:
    """Note Lance's numbers of the kept versions after a compaction."""
    after = facts.with_changes(versions=versions)
    live, lance_version = after.live, after.lance_version
    assert live is not None and lance_version is not None  # noqa: PT018, S101  (it was compacted)
    tag(state.path, live, lance_version)
    move_live_tag(state.path, lance_version)
    _note_files(state, after)
    state.put_facts(after)
    return after


def _finish(
    state: StoreState, after: StoreFacts, record: dict[str, Any], lance_version: int
) -> StoreFacts:
    """All that follows a commit; may be repeated after a kill at any point of it."""
    version = record["version"]
    facts = after.with_changes(versions={**after.versions, version: lance_version})
    tag(state.path, version, lance_version)
    move_live_tag(state.path, lance_version)
    _note_files(state, facts)
    state.put_record(
        {**record, "state": "published", "lance_version": lance_version, "finished": now()}
    )
    state.put_facts(facts)
    discard_night(state, facts)
    return facts


def _note_files(state: StoreState, facts: StoreFacts) -> None:
    """Take the checksums of the files of all versions that Lance has: kept ones and tagged ones."""
    versions = {*facts.versions.values(), *tags(state.path).values()}
    record_files(state.path, state.storage, versions)


def discard_night(state: StoreState, facts: StoreFacts) -> None:
    """Remove all that is staged, and every index but those of the live version and a candidate."""
    storage = state.storage
    needed = {index_path(version) for version in (facts.live, facts.waiting) if version is not None}
    for name in storage.names("index"):
        if f"index/{name}" not in needed:
            storage.remove(f"index/{name}")
    noted = {replaced_path(version) for version in (*facts.versions, facts.waiting or 0)}
    for name in storage.names(NIGHTS):
        if name.endswith(".npy") and f"{NIGHTS}/{name}" not in noted:
            storage.remove(f"{NIGHTS}/{name}")
    if facts.waiting is None:
        storage.remove(NIGHT)


def now() -> str:
    """The time, as records have it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def remove_old_versions(state: StoreState, facts: StoreFacts, keep: Keep) -> StoreFacts:
    """Remove what ``store.keep`` does not keep; the live version always stays.

    Returns:
        What stands in the store now.
    """
    kept = {version: facts.versions[version] for version in kept_versions(state, facts, keep)}
    state.storage.put(INTENT, checked_json.sealed_json({"compacts": facts.lance_version}))
    if kept != facts.versions:
        facts = facts.with_changes(versions=kept)
        state.put_facts(facts)
    compacted = compact(state.path, facts.versions)
    if compacted != facts.versions:
        facts = _renumber(state, facts, compacted)
    _remove_files(state, facts)
    return facts


def _remove_files(state: StoreState, facts: StoreFacts) -> None:
    """Remove the files of versions that are not kept; what was under way is done then."""
    clean_up(state.path, set(facts.versions))
    _note_files(state, facts)
    state.storage.remove(INTENT)
    discard_night(state, facts)


def kept_versions(state: StoreState, facts: StoreFacts, keep: Keep) -> list[int]:
    """The versions that stay: the newest ``count``, none older than ``days``, and the live one."""
    newest = sorted(facts.versions)[-keep.count :] if keep.count else sorted(facts.versions)
    return [
        version
        for version in newest
        if version == facts.live or keep.days is None or _age(state, version).days < keep.days
    ]


def _age(state: StoreState, version: int) -> dt.timedelta:
    record = state.record(version)
    if record is None:
        return dt.timedelta.max
    return dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record["finished"])
