"""What a person decides of a store: accept, go back, end a hold; and its history, to decide by."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from batchnorm_tool.commands.progress import Progress, SilentProgress
from batchnorm_tool.commands.refresh import commit
from batchnorm_tool.commands.refresh.changes.result import DOCUMENT, ChangeSet
from batchnorm_tool.commands.refresh.evaluate import conclude, staged_record
from batchnorm_tool.commands.refresh.metrics import measured
from batchnorm_tool.commands.refresh.plan import prepare_targets
from batchnorm_tool.commands.refresh.record import PhaseTimings, RefreshResult, Released, now
from batchnorm_tool.commands.refresh.staging import discard_staged, resume, staged_fault
from batchnorm_tool.errors import Damaged, InputError, JobError
from batchnorm_tool.gate.record import Acceptance, History, Hold
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.row_hash import bytes_of
from batchnorm_tool.publish import check_targets, lagging
from batchnorm_tool.readers.vectors import checked_whole
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.storage.files import save_page
from batchnorm_tool.store.index import INDEX_FIELDS, KEY_ID, IndexWriter, read_index
from batchnorm_tool.store.rows import rows as stored_rows
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    STAGING_PATH,
    STATUS,
    Basis,
    StoreDirectory,
    StoredRecord,
    StorePointer,
    StoreSchema,
    contract_path,
    index_path,
    is_good,
    open_store,
    quarantined_path,
)
from batchnorm_tool.store.transaction import prepare_restore


def accept(  # noqa: PLR0913  (each is a flag of the command)
    path: str | os.PathLike[str],
    version: int,
    *,
    wait_seconds: float = 0.0,
    metrics_file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    note: str | None = None,
) -> RefreshResult:
    """Publish the candidate that waits, without computing it again; a hold ends with it.

    A candidate that was stopped by its input, before the model ran, is scored now, and waits once
    more where its vectors break a limit.

    Args:
        path: The store.
        version: The number of the candidate: one that has been superseded is not published.
        wait_seconds: How long to wait while another run holds the store.
        metrics_file: Write Prometheus metrics to this file, however it ends.
        progress: Receives how far the work is; default: nothing does.
        note: Why; it stays in the version's record, with the user, the host and the time.

    Returns:
        The refresh, published.

    Raises:
        JobError: No such candidate waits.
        Damaged: A file that is staged is not as it was written; `refresh` stages it again.
        InputError: There is no store at ``path``.
        Held: Its vectors break a limit that was not reported before.
        TargetFailed: It is published, and a target is behind.
        Busy: Another run holds the store.

    Example:
        >>> from batchnorm_tool import accept
        >>> accept("stores/items.lance", 12).state  # doctest: +SKIP
        'published'
    """
    state, _ = open_store(os.fspath(path))
    version = checked_whole("version", version, 1)
    if not isinstance(note, str | None):
        raise JobError(f"`note` must be text or None. Received: {note!r}.")

    def work() -> RefreshResult:
        with state.lock(wait_seconds):
            commit.recover(state)
            return _accept_locked(state, version, note, progress or SilentProgress())

    return measured(state.path, metrics_file, work)


def _accept_locked(
    state: StoreDirectory, version: int, note: str | None, progress: Progress
) -> RefreshResult:
    pointer = state.pointer()
    if version == pointer.live and state.existing_record(version).accepted is not None:
        return commit.deliver_again(state, pointer)
    _check_waits(state, pointer, version)
    staging, difference = resume(state, pointer, progress), ChangeSet.load(state.storage)
    fault = staged_fault(state, pointer)
    if staging is None or difference is None or fault:
        said = fault or f"No readable `{STAGING_PATH}` and `{DOCUMENT}`."
        raise Damaged(
            f"The staged files of version {version} in `{state.root}` are damaged, or were written "
            f"by another version of batchnorm-tool. {said} Run `batchnorm-tool refresh` to stage "
            "it again."
        )
    check_targets(staging.plan.job.publish)
    prepare_targets(staging.plan)
    record = state.record(version) or staged_record(staging, difference)
    return conclude(staging, difference, record, _acceptance(note))


def _acceptance(note: str | None) -> Acceptance:
    """Return what is kept of a decision that is made now, on this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        user = str(os.getuid())
    # What a shell gives may be no text.
    said = None if note is None else note.encode(errors="replace").decode()
    return Acceptance(now(), user, socket.gethostname(), said or None)


def _check_waits(state: StoreDirectory, pointer: StorePointer, version: int) -> None:
    if pointer.waiting == version:
        return
    one = "no version" if pointer.waiting is None else f"version {pointer.waiting}"
    record = state.record(version)
    outcome = f", and version {version} is {record.state}" if record else ""
    raise JobError(
        f"Version {version} of `{state.path}` cannot be accepted: {one} is waiting{outcome}. "
        f"`batchnorm-tool history {state.path}` lists all versions."
    )


def release(path: str | os.PathLike[str], *, wait_seconds: float = 0.0) -> dict[str, Any]:
    """End the hold after a rollback: the next refresh publishes again.

    Args:
        path: The store.
        wait_seconds: How long to wait while another run holds the store.

    Returns:
        ``store``, ``released`` (whether there was a hold), ``live`` and ``waiting``.

    Raises:
        InputError: There is no store at ``path``.
        Busy: Another run holds the store.

    Example:
        >>> from batchnorm_tool import release
        >>> release("stores/items.lance")["released"]  # doctest: +SKIP
        True
    """
    return end_hold(path, wait_seconds=wait_seconds).to_dict()


def end_hold(path: str | os.PathLike[str], *, wait_seconds: float = 0.0) -> Released:
    """Do what `release` does."""
    state, _ = open_store(os.fspath(path))
    with state.lock(wait_seconds):
        commit.recover(state)
        pointer = state.pointer()
        if pointer.hold is not None:
            state.put_pointer(replace(pointer, hold=None))
        return Released(state.path, pointer.hold is not None, pointer.live, pointer.waiting)


def rollback(
    path: str | os.PathLike[str],
    to: int | None = None,
    *,
    wait_seconds: float = 0.0,
    metrics_file: str | os.PathLike[str] | None = None,
) -> RefreshResult:
    """Make an older version the live one, bring every target to it, and put the store on hold.

    Until `release` or `accept`, later refreshes are staged and checked, but not published.

    Args:
        path: The store.
        to: The version; default: the one before the live one.
        wait_seconds: How long to wait while another run holds the store.
        metrics_file: Write Prometheus metrics to this file, however it ends.

    Returns:
        The new version, whose rows are those of the old one.

    Raises:
        InputError: There is no store at ``path``, or no such version is kept.
        TargetFailed: The store is rolled back, and a target is behind.
        Busy: Another run holds the store.

    Example:
        >>> from batchnorm_tool import rollback
        >>> rollback("stores/items.lance", to=11).state  # doctest: +SKIP
        'published'
    """
    state, _ = open_store(os.fspath(path))
    to = None if to is None else checked_whole("to", to, 1)

    def work() -> RefreshResult:
        with state.lock(wait_seconds):
            finished, pointer = commit.recover(state), state.pointer()
            commit.check_dataset(state, pointer)
            if _is_broken_off(state, pointer, to, finished):
                return commit.deliver_again(state, pointer)
            return _Rollback(state, pointer, _target(state, pointer, to)).run()

    return measured(state.path, metrics_file, work, is_refresh=False)


def _is_broken_off(
    state: StoreDirectory, pointer: StorePointer, to: int | None, finished: int | None
) -> bool:
    """Tell whether this very rollback made the live version before it was killed."""
    record = state.record(pointer.live)
    if record is None or record.restores is None or to not in {None, record.restores}:
        return False
    live = record.version
    return finished == live or bool(lagging(commit.published_to(record), state.storage, live))


def _target(state: StoreDirectory, pointer: StorePointer, to: int | None) -> int:
    """Return the version to go back to."""
    wanted = _before_live(state, pointer) if to is None else to
    if wanted in pointer.versions and wanted != pointer.live:
        return wanted
    kept = ", ".join(map(str, sorted({*pointer.versions} - {pointer.live})))
    what = "is already live" if wanted == pointer.live else "is not kept"
    named = "No earlier version is kept" if wanted is None else f"Version {wanted} {what}"
    raise InputError(
        f"`{state.path}`: {named}. Expected one "
        f"of: {kept or 'none, only the live version is kept'}. Received: {wanted}. "
        f"`batchnorm-tool history {state.path}` lists all versions."
    )


def _before_live(state: StoreDirectory, pointer: StorePointer) -> int | None:
    """Return what the live version was built on; of a rollback, what its target was built on."""
    record = state.record(pointer.live)
    while record is not None and record.restores is not None:
        record = state.record(record.restores)
    return record.base if record else None


@dataclass
class _Rollback:
    """One rollback."""

    state: StoreDirectory
    pointer: StorePointer
    target: int
    timings: PhaseTimings = field(default_factory=PhaseTimings)

    def run(self) -> RefreshResult:
        state = self.state
        restored, live = map(state.existing_record, (self.target, self.pointer.live or 0))
        targets = commit.published_to(live)
        check_targets(targets)
        self.pointer = discard_staged(state, self.pointer, "discarded")
        version, record = self.pointer.next_version, self._record(restored, live)
        with self.timings.phase("merge"):
            self._write_index(restored.basis.layout)
            self._write_replaced()
            state.storage.link(contract_path(self.target), contract_path(version))
            prepared = prepare_restore(state.path, self.pointer.versions[self.target])
            pointer = commit.switch(state, prepared, self._after(restored.basis), record)
        return commit.deliver_published(state, pointer, targets, None, self.timings)

    def _record(self, restored: StoredRecord, live: StoredRecord) -> StoredRecord:
        # Versions of the store from before such rows were kept remember none of them.
        aside = quarantined_path(self.target) in {file.path for file in restored.files}
        rows = restored.rows
        return replace(
            restored,
            version=self.pointer.next_version,
            base=live.version,
            kind="rollback",
            restores=self.target,
            reason=None,
            accepted=None,
            run_id=secrets.token_hex(8),
            started=now(),
            rows=RefreshRows(
                stale=rows.stale, quarantined=rows.quarantined if aside else 0, live=rows.live
            ),
            publish=live.publish,
            keep=None,
            seconds={},
            warnings=(),
            targets=(),
        )

    def _after(self, basis: Basis) -> StorePointer:
        version = self.pointer.next_version
        hold = Hold(now(), f"rollback to version {self.target}", version)
        changes = {"next_version": version + 1, "live": version, "hold": hold, **vars(basis)}
        return replace(self.pointer, **changes)

    def _write_index(self, layout: StoreSchema) -> None:
        """Write the index of the restored version from its rows, and those set aside."""
        names = [field.name for field in INDEX_FIELDS if field.name != KEY_ID]
        columns, version = [*layout.keys, *names], self.pointer.next_version
        with IndexWriter(self.state.storage, index_path(version), layout.key_schema) as writer:
            lance_version = self.pointer.versions[self.target]
            for batch in stored_rows(self.state.path, lance_version, layout.stored(*columns)):
                writer.add(pa.Table.from_batches([batch]).rename_columns(columns))
            aside = quarantined_path(version)
            if self.state.storage.link(quarantined_path(self.target), aside):
                for table in self.state.read_rows(aside):
                    writer.add(table)
            writer.commit()

    def _write_replaced(self) -> None:
        """Write the hashes of all good rows that were live: any of them may be wanted again."""
        index = index_path(self.pointer.live or 0)
        tables = read_index(self.state.storage, index, [FEATURE_HASH, STATUS])
        hashes = (bytes_of(table[FEATURE_HASH])[is_good(table[STATUS])] for table in tables)
        self.state.put_replaced(self.pointer.next_version, hashes)


def history(path: str | os.PathLike[str], *, html: str | None = None) -> dict[str, Any]:
    """List the versions of a store.

    Args:
        path: The store.
        html: Write a page that draws them over time to this file, which works offline.

    Returns:
        ``live``, ``hold``, ``waiting``, ``kept`` (versions) and ``nights``: their records, oldest
        first, as plain data.

    Raises:
        InputError: There is no store at ``path``.
        Damaged: A record is not what its checksum says.

    Example:
        >>> from batchnorm_tool import history
        >>> history("stores/items.lance")["live"]  # doctest: +SKIP
        12
    """
    return plain(read_history(path, html))


def read_history(path: str | os.PathLike[str], html: str | None = None) -> History:
    """Return what `history` tells, and write its page."""
    state, pointer = open_store(os.fspath(path))
    records = (state.record(version) for version in state.recorded())
    facts = state.path, pointer.live, pointer.hold, pointer.waiting
    kept, nights = tuple(sorted(pointer.versions)), tuple(record for record in records if record)
    found = History("history", *facts, kept, nights)
    if html is not None:
        from batchnorm_tool.report.history_page import history_page

        save_page(html, history_page(found))
    return found
