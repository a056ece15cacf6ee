"""A candidate becomes the live version: one commit, then notes, targets, and old versions go.

What is written before the commit nobody sees; an intent tells a later call what was about to
happen, so that it finishes what a kill left half done::

    rows written and synced -> intent.json -> commit -> checksums, tags, record -> store.json
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool import publish
from batchnorm_tool.commands.refresh.candidate import REMOVED, Candidate, StagedRows
from batchnorm_tool.commands.refresh.record import PhaseTimings, RefreshResult, now
from batchnorm_tool.commands.refresh.staging import Staging
from batchnorm_tool.errors import Damaged, Lines, OutputError, TargetFailed
from batchnorm_tool.gate.record import NOTHING, PUBLISHED, Acceptance, Outcome
from batchnorm_tool.inputs.row_hash import HASH_VERSION, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.job import Publish
from batchnorm_tool.job.refresh_sections import Keep
from batchnorm_tool.storage import TEMPORARY
from batchnorm_tool.storage.checked_json import LEFT_OUT_IF_NONE, SealedRecord
from batchnorm_tool.store import rows, transaction
from batchnorm_tool.store.checksums import record_files, recorded_files
from batchnorm_tool.store.lance import latest_version
from batchnorm_tool.store.state import (
    STAGING,
    StoreDirectory,
    StoredRecord,
    StorePointer,
    StoreSchema,
)
from batchnorm_tool.store.transaction import Prepared

INTENT = f"{STAGING}/intent.json"


@dataclass(frozen=True)
class Intent(SealedRecord):
    """What is about to happen: a commit with what follows it, or a compaction.

    Lance knows the commit by ``uuid``; ``after`` stands in the store then, but for Lance's number
    of the version; ``compacts`` is Lance's number of the version whose rows are written anew.
    """

    uuid: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    record: Annotated[StoredRecord | None, LEFT_OUT_IF_NONE] = None
    after: Annotated[StorePointer | None, LEFT_OUT_IF_NONE] = None
    compacts: Annotated[int | None, LEFT_OUT_IF_NONE] = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, by what turns its parts into such: another takes 15 ms."""
        record, after = self.record and self.record.to_dict(), self.after and self.after.to_dict()
        found = {"uuid": self.uuid, "record": record, "after": after, "compacts": self.compacts}
        return {name: value for name, value in found.items() if value is not None}


def check_dataset(state: StoreDirectory, pointer: StorePointer) -> None:
    """Check that the dataset is the one that the state describes."""
    newest = latest_version(state.path)
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
    staged: StagedRows, after: StorePointer, record: StoredRecord, *, whole: bool
) -> StorePointer:
    """Publish the staged rows as one new version."""
    state, layout = staged.state, staged.plan.layout
    check_dataset(state, staged.pointer)
    if whole:
        batches = _batches(_all_rows(staged, replaces=record.new_space))
        prepared = transaction.prepare_whole(state.path, layout.schema, batches)
    else:
        written = _batches(staged.written())
        prepared = transaction.prepare_merge(
            state.path, layout.schema, layout.keys, written, staged.replaced
        )
    return switch(state, prepared, after, record)


def _batches(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def _all_rows(staged: StagedRows, *, replaces: bool) -> Iterator[pa.Table]:
    """Yield every row of the version: those that stay, then those that the refresh writes."""
    before = staged.pointer.layout
    if before is not None and not replaces:
        yield from _staying(staged, before)
    yield from staged.written()


def _staying(staged: StagedRows, before: StoreSchema) -> Iterator[pa.Table]:
    """Yield rows of the live version that the refresh leaves alone, in the new columns."""
    state, layout = staged.state, staged.plan.layout
    keys = list(layout.keys)
    tables = (*staged.written(), *state.read_rows(REMOVED))
    ids = [key_ids(table.select(keys), keys) for table in tables]
    written = IdLookup(np.concatenate([np.empty((0, 2), np.uint64), *ids]))
    # A column of ours that is renamed holds what it held.
    ours = ((each.vector, each.norm, *each.bookkeeping) for each in (before, layout))
    renamed = dict(zip(*ours, strict=True))
    stored = {name: renamed.get(name, name) for name in before.schema.names}
    gone = {*before.passthrough} - {*layout.passthrough}
    kept = [name for name in stored if name not in gone]
    for batch in rows.rows(state.path, staged.pointer.lance_version, kept):
        table = pa.Table.from_batches([batch]).rename_columns([stored[name] for name in kept])
        rest = table.filter(pa.array(written.find(key_ids(table, keys)) < 0))
        for field in layout.schema:
            if field.name not in rest.schema.names:
                rest = rest.append_column(field, pa.nulls(rest.num_rows, field.type))
        yield rest.select(layout.schema.names).cast(layout.schema)


def switch(
    state: StoreDirectory, prepared: Prepared, after: StorePointer, record: StoredRecord
) -> StorePointer:
    """Commit a prepared change, and make it the live version."""
    prepared.sync()
    files = state.files_of(record.version, state.record(record.base))
    record = replace(record, files=files)
    intent = Intent(uuid=prepared.uuid, record=record, after=after)
    # With all that follows the commit in it: after a kill nothing has to be worked out again, from
    # a job that may have changed.
    state.storage.put(INTENT, intent.to_json())
    return _finish(state, after, record, transaction.commit(prepared))


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
    lance_version = transaction.committed_version(state.path, intent.uuid)
    if lance_version is None:
        state.storage.remove(INTENT)
        return None
    return _finish(state, intent.after, intent.record, lance_version).live


def _finish_compaction(state: StoreDirectory, base: int) -> None:
    """Take in that the newest version's rows were rewritten, if they were; then clean up."""
    pointer, newest = state.pointer(), latest_version(state.path)
    if pointer.lance_version == base and newest == base + 1:
        pointer = _renumber(state, pointer, {**pointer.versions, pointer.live or 0: newest})
    _remove_files(state, pointer)


def _renumber(
    state: StoreDirectory, pointer: StorePointer, versions: dict[int, int]
) -> StorePointer:
    """Note Lance's numbers of the kept versions after a compaction."""
    after = replace(pointer, versions=versions)
    live, lance_version = after.live, after.lance_version
    assert live is not None and lance_version is not None  # noqa: PT018, S101  (it was compacted)
    transaction.tag(state.path, live, lance_version)
    transaction.move_live_tag(state.path, lance_version)
    _note_files(state, after)
    state.put_pointer(after)
    return after


def _finish(
    state: StoreDirectory, after: StorePointer, record: StoredRecord, lance_version: int
) -> StorePointer:
    """Do all that follows a commit; may be repeated after a kill at any point of it."""
    version = record.version
    pointer = replace(after, versions={**after.versions, version: lance_version})
    transaction.tag(state.path, version, lance_version)
    transaction.move_live_tag(state.path, lance_version)
    _note_files(state, pointer)
    state.switch_contract(version)
    # The record before the pointer: a live version always has one.
    record = replace(record, state=PUBLISHED, lance_version=lance_version, finished=now())
    state.put_record(record)
    state.put_pointer(pointer)
    # Last: as long as the intent is there, all of this is done again after a kill.
    state.discard_uncommitted(pointer)
    return pointer


def _note_files(state: StoreDirectory, pointer: StorePointer) -> None:
    """Take the checksums of the files of all versions that Lance has: kept ones and tagged ones."""
    versions = {*pointer.versions.values(), *transaction.tags(state.path).values()}
    record_files(state.path, state.storage, versions)


def remove_old_versions(state: StoreDirectory, pointer: StorePointer, keep: Keep) -> StorePointer:
    """Remove what ``store.keep`` does not keep; the live version always stays."""
    kept = {version: pointer.versions[version] for version in kept_versions(state, pointer, keep)}
    # A kill between Lance's commit and our note would leave a newest version that is not known.
    state.storage.put(INTENT, Intent(compacts=pointer.lance_version).to_json())
    if kept != pointer.versions:
        pointer = replace(pointer, versions=kept)
        state.put_pointer(pointer)
    compacted = transaction.compact(state.path, pointer.versions)
    if compacted != pointer.versions:
        pointer = _renumber(state, pointer, compacted)
    _remove_files(state, pointer)
    return pointer


def _remove_files(state: StoreDirectory, pointer: StorePointer) -> None:
    """Remove the files of versions that are not kept; what was under way is done then."""
    transaction.clean_up(state.path, set(pointer.versions))
    _note_files(state, pointer)
    state.storage.remove(INTENT)
    state.discard_uncommitted(pointer)


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


def publish_candidate(
    staging: Staging,
    staged: StagedRows,
    candidate: Candidate,
    record: StoredRecord,
    accepted: Acceptance | None,
) -> RefreshResult:
    """Make a candidate the live version, and bring the targets to it."""
    state, plan = staging.state, staging.plan
    seconds = dict(staging.timings.seconds)
    record = replace(record, reason=None, accepted=accepted, seconds=seconds)
    with staging.timings.phase("merge"):
        after = _pointer_after(staging, candidate.version, accepted=accepted is not None)
        pointer = merge(staged, after, record, whole=candidate.whole)
    return deliver_published(state, pointer, plan.job.publish, plan.store.keep, staging.timings)


def deliver_published(
    state: StoreDirectory,
    pointer: StorePointer,
    targets: Sequence[Publish],
    keep: Keep | None,
    timings: PhaseTimings,
) -> RefreshResult:
    """Bring the targets to a version that has just been published, and remove old versions."""
    with timings.phase("targets"):
        outcomes = deliver_live(state, pointer, targets)
    # What the phases after the commit took is known only now.
    record = state.existing_record(pointer.live or 0)
    record = replace(record, targets=outcomes, seconds=dict(timings.seconds))
    state.put_record(record)
    return finish_refresh(state, record, keep, timings)


def _pointer_after(staging: Staging, version: int, *, accepted: bool) -> StorePointer:
    """Return what stands in the store when the version is live, but for Lance's number of it."""
    pointer, plan = staging.pointer, staging.plan
    return replace(
        pointer,
        next_version=max(pointer.next_version, version + 1),
        live=version,
        waiting=None,
        hold=None if accepted else pointer.hold,
        layout=plan.layout,
        identity=plan.identity,
        hash_version=HASH_VERSION,
        resolved=plan.resolved,
        options_fingerprint=plan.options_fingerprint,
    )


def deliver_live(
    state: StoreDirectory,
    pointer: StorePointer,
    targets: Sequence[Publish],
    *,
    was_live: bool = False,
) -> tuple[Outcome, ...]:
    """Bring every target to the live version; one that fails does not keep others from it.

    ``was_live``: it was so before, and a target that lacks it is behind.
    """
    live = pointer.live
    if live is None or not publish.lagging(targets, state.storage, live):
        return ()
    assert pointer.layout is not None  # noqa: S101  (there is a live version)
    known = ((version, state.record(version)) for version in pointer.versions)
    records = {version: record for version, record in known if record}
    layout, versions, contract = pointer.layout.as_floats, pointer.versions, state.contract(live)
    publication = rows.Publication(state.path, layout, versions, live, records, contract)
    expected = live if was_live else None
    return tuple(publish.deliver(publication, targets, state.storage, expected))


def deliver_again(state: StoreDirectory, pointer: StorePointer) -> RefreshResult:
    """End what a kill broke off after the live version was published, old versions included."""
    record = state.existing_record(pointer.live or 0)
    targets = published_to(record)
    publish.check_targets(targets)
    state.discard_uncommitted(pointer)
    outcomes = deliver_live(state, pointer, targets)
    return finish_refresh(state, replace(record, targets=outcomes), record.keep, None)


def _is_over(state: StoreDirectory, pointer: StorePointer, keep: Keep) -> bool:
    """Tell whether versions are too many, or there are files that killed refreshes left."""
    known = {file.path for file in recorded_files(state.path, state.storage)}
    left = transaction.files_of(state.path, transaction.WRITTEN_BEFORE) - known
    return bool(left) or kept_versions(state, pointer, keep) != sorted(pointer.versions)


def published_to(record: StoredRecord) -> list[Publish]:
    """Return the targets that the refresh of a record had."""
    return [Publish.model_validate(one) for one in record.publish]


def finish_refresh(
    state: StoreDirectory, record: StoredRecord, keep: Keep | None, timings: PhaseTimings | None
) -> RefreshResult:
    """Remove old versions, note what all of it took, and say of targets that failed.

    Without ``timings``, a call before this one did the work, and has noted what it took.
    """
    timings = timings or PhaseTimings(dict(record.seconds))
    pointer = state.pointer()
    if keep is not None and (record.kind != NOTHING or _is_over(state, pointer, keep)):
        with timings.phase("cleanup"):
            remove_old_versions(state, pointer, keep)
    record = replace(record, seconds=dict(timings.seconds))
    if record.kind != NOTHING:
        state.put_record(record)
    result = RefreshResult(state.path, record)
    failed = [target for target in record.targets if target.error]
    if failed:
        # Where one may come right by itself, a scheduler may try again.
        code = 1 if any(target.passing for target in failed) else 2
        raise TargetFailed(Lines(*(str(target.error) for target in failed)), result, code)
    return result
