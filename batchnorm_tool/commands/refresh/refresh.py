"""Bring a store of embeddings up to date with the input: only what changed, whole or not.

::

    plan -> difference -> gate (input) -> reuse, score -> candidate -> gate (output)
         -> merge -> targets -> old versions removed
"""

import functools
import os
import secrets
import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchnorm_tool.commands.progress import Progress, SilentProgress
from batchnorm_tool.commands.refresh import commit, evaluate
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.metrics import measured
from batchnorm_tool.commands.refresh.plan import RefreshPlan, make_plan, prepare_targets, store_of
from batchnorm_tool.commands.refresh.record import PhaseTimings, PlannedRefresh, RefreshResult, now
from batchnorm_tool.commands.refresh.staging import Staging, begin, discard_staged, staged_plan
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Refused
from batchnorm_tool.formats.parquet import close_cached_files
from batchnorm_tool.gate.record import NOTHING, GateRecord
from batchnorm_tool.job import Job, check_job
from batchnorm_tool.publish import check_layout, check_targets, forget
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.lance import check_installed, latest_version
from batchnorm_tool.store.state import INDEX, RECORDS, StoreDirectory, StoredRecord, StorePointer


def refresh(  # noqa: PLR0913  (each is a flag of the command)
    job: Job,
    *,
    retry_quarantined: bool = False,
    wait_seconds: float = 0.0,
    metrics_file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
    run_id: str | None = None,
) -> RefreshResult:
    """Bring a store up to date with the input, guard it, and publish it.

    Only new and changed rows go through the model; rows are identified by their key, and compared
    by a 128-bit hash of their features. Readers of the store see the previous version or the new
    one. Killed anywhere, the same call finishes.

    Args:
        job: What to do, with the section ``store``.
        retry_quarantined: Predict rows again that are bad by their prediction, whatever changed.
        wait_seconds: How long to wait while another run holds the store.
        metrics_file: Write Prometheus metrics to this file, however the refresh ends.
        progress: Receives how far the work is; default: nothing does.
        announce: Called with what a person should know, before and during the work.
        run_id: What this attempt is known by in records and logs; default: drawn.

    Returns:
        The refresh: published, or with nothing to do.

    Raises:
        Refused: The job cannot be done as asked; nothing was written.
        BadRows: The data broke a row policy; nothing was published.
        Held: A limit is broken, the space is new, or the store is on hold: the refresh waits for
            `accept`, and nothing was published.
        TargetFailed: The store holds the new version, and a target does not.
        Busy: Another run holds the store.
        WorkFailed: Something failed half way; the same call resumes.

    Example:
        >>> from batchnorm_tool import Job, refresh
        >>> result = refresh(Job.load("configs/refresh.yaml"))  # doctest: +SKIP
        >>> result.state, result.rows["changed"]  # doctest: +SKIP
        ('published', 17)
    """
    check_job("refresh", job)
    store = store_of(job)
    state = StoreDirectory(store.path)
    shown = progress or SilentProgress()
    attempt = run_id or secrets.token_hex(8)
    planned = functools.partial(make_plan, job, retry=retry_quarantined, progress=shown)

    def work() -> RefreshResult:
        check_installed()
        check_targets(job.publish)
        try:
            with state.lock(wait_seconds):
                return _refresh_locked(state, planned, announce, shown, attempt)
        finally:
            close_cached_files()

    return measured(state.path, metrics_file, work)


def plan_refresh(job: Job, *, retry_quarantined: bool = False) -> dict[str, Any]:
    """Return what `refresh` would change, without the model and without writing to the store.

    Returns:
        ``rows`` by kind, ``gate`` with what the limits on the input say, ``new_space`` and
        ``notes``, as plain data.
    """
    return planned_refresh(job, retry_quarantined=retry_quarantined).to_dict()


def planned_refresh(job: Job, *, retry_quarantined: bool = False) -> PlannedRefresh:
    """Return what `plan_refresh` tells."""
    check_job("plan_refresh", job)
    state = StoreDirectory(store_of(job).path)
    check_installed()
    check_targets(job.publish)
    latest_version(state.path)  # refuses a path that holds something else
    return state.look(functools.partial(_planned, job, state, retry_quarantined))


def _planned(job: Job, state: StoreDirectory, retry: bool, pointer: StorePointer) -> PlannedRefresh:  # noqa: FBT001
    plan = make_plan(job, pointer, staged_plan(state), retry=retry, fits=False)
    check_layout(job.publish, plan.layout)
    # Beside the store where that is possible: what differs may be as large as the input.
    beside = Path(state.path).parent
    with tempfile.TemporaryDirectory(
        prefix="batchnorm-tool-", dir=beside if os.access(beside, os.W_OK) else None
    ) as scratch:
        # Indices and their bases lie in directories; what is found must not lie in the store.
        for name in (INDEX, RECORDS):
            (Path(scratch) / name).symlink_to((state.storage.root / name).absolute())
        found = ChangeDetector.of(plan, pointer.live, state, storage=Storage(scratch)).run()
    findings = evaluate.evaluate_input(plan, found, state.record(pointer.live))
    return PlannedRefresh(
        store=state.path,
        live=pointer.live,
        rows=found.counts,
        gate=GateRecord.of(job.gate.action, findings),
        new_space=plan.new_space,
        hold=pointer.hold,
        notes=(*plan.notes, *found.notes),
    )


def _refresh_locked(
    state: StoreDirectory,
    planned: Callable[[StorePointer, RefreshPlan | None], RefreshPlan],
    announce: Callable[[str], None],
    progress: Progress,
    run_id: str,
) -> RefreshResult:
    timings = PhaseTimings()
    with timings.phase("plan"):
        commit.recover(state)
        pointer = state.pointer()
        commit.check_dataset(state, pointer)
        plan = planned(pointer, staged_plan(state))
        outdated = prepare_targets(plan)
    for note in plan.notes:
        announce(note)
    staging = replace(begin(state, pointer, plan, progress, run_id), timings=timings)
    try:
        difference = staging.difference()
    except Refused:
        state.discard_uncommitted(staging.pointer)
        raise
    counts = difference.counts
    summary = (
        f"{plural(counts.rows_in, 'row')} in: {counts.new:,} new, {counts.changed:,} "
        f"changed, {counts.vanished:,} vanished; {counts.for_the_model:,} to predict."
    )
    for line in (*difference.notes, summary):
        announce(line)
    record = evaluate.staged_record(staging, difference)
    if staging.is_unchanged(difference):
        return _finish_unchanged(staging, record, outdated)
    return evaluate.conclude(staging, difference, record)


def _finish_unchanged(
    staging: Staging, record: StoredRecord, outdated: Collection[str]
) -> RefreshResult:
    """Leave the store as it is; a target that is behind is brought up to date all the same."""
    state = staging.state
    pointer = discard_staged(state, staging.pointer)
    if pointer.hold is None:  # after a rollback, a target stays at what it went back to
        forget(staging.plan.job.publish, outdated, state.storage)
    live = state.existing_record(pointer.live or 0)
    with staging.timings.phase("targets"):
        targets = commit.deliver_live(state, pointer, staging.plan.job.publish, was_live=True)
    # What is told beside the input is the live version's.
    rows, kept = record.rows, live.rows
    record = replace(
        record,
        kind=NOTHING,
        state=live.state,
        version=live.version,
        norms=live.norms,
        gate=live.gate,
        finished=now(),
        rows=replace(rows, stale=kept.stale, quarantined=kept.quarantined, live=kept.live),
        targets=targets,
    )
    return commit.finish_refresh(state, record, staging.plan.store.keep, staging.timings)
