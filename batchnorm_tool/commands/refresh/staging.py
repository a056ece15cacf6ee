"""A refresh on its way to a candidate, in steps that are each kept: a killed one goes on."""

import functools
from dataclasses import dataclass, field, replace
from typing import Annotated

from batchnorm_tool.commands.progress import Progress, SilentProgress
from batchnorm_tool.commands.refresh.candidate import Candidate, StagedRows, make_candidate
from batchnorm_tool.commands.refresh.changes.detect import detect_changes
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.changes.source import RefreshSource
from batchnorm_tool.commands.refresh.changes.worker import CHANGED
from batchnorm_tool.commands.refresh.commit import discard_uncommitted, now
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.refresh.record import SUPERSEDED, WAITING, PhaseTimings
from batchnorm_tool.commands.refresh.scoring import (
    REUSED,
    SCORED,
    reusable_vectors,
    reuse,
    rows_in,
    score,
)
from batchnorm_tool.publish import find_unfit
from batchnorm_tool.storage.checked_json import SealedRecord, stored_as
from batchnorm_tool.store.state import (
    STAGING,
    STAGING_PATH,
    StoreDirectory,
    StorePointer,
    index_path,
)


@dataclass
class Staging:
    """The unfinished refresh.

    Attributes:
        state: The store; the caller holds its lock.
        pointer: What stands in it.
        plan: What the refresh is asked to do.
        started: ``run_id`` and ``started`` of the refresh.
        progress: Receives how far the work is.
        timings: What each phase takes.
    """

    state: StoreDirectory
    pointer: StorePointer
    plan: RefreshPlan
    started: dict[str, str]
    progress: Progress = field(default_factory=SilentProgress)
    timings: PhaseTimings = field(default_factory=PhaseTimings)

    @property
    def version(self) -> int:
        """The number of the refresh; it is given once the refresh waits or is published."""
        return self.pointer.waiting or self.pointer.next_version

    def rows(self, difference: ChangeSet) -> StagedRows:
        """Return the staged rows."""
        return StagedRows(self.state, self.pointer, self.plan, self.version, difference.reason)

    def difference(self) -> ChangeSet:
        """Return what differs from the live version, found once."""
        found = ChangeSet.load(self.state.storage)
        if found is not None:
            return found
        with self.timings.phase("difference"):
            return self._find()

    def _find(self) -> ChangeSet:
        index = None if self.pointer.live is None else index_path(self.pointer.live)
        source = refresh_source(self.plan)
        with self.progress.work(source.table.rows, 0):
            return detect_changes(
                source,
                index,
                self.state.storage,
                recompute=self.plan.recompute,
                advance=self.progress.advance,
            )

    def candidate(self, difference: ChangeSet) -> Candidate:
        """Return the refresh made ready to be merged: scored and put together, once."""
        found = Candidate.load(self.state.storage)
        if found is not None:
            return found
        self._reuse()
        with self.timings.phase("prediction"):
            result = score(self.state, self.plan, difference, self.progress)
        with self.timings.phase("candidate"):
            reused = rows_in(self.state.storage, REUSED)
            rows = self.rows(difference)
            return make_candidate(rows, difference, result, reused)

    def _reuse(self) -> None:
        """Unstage rows whose vectors an older version has, before a run reads them."""
        if self._recomputes_bits or self.state.storage.names(SCORED):
            return
        known = reusable_vectors(self.state, self.pointer, self.plan)
        if known and rows_in(self.state.storage, CHANGED):
            with self.timings.phase("reuse"):
                reuse(self.state, self.plan, known)

    @property
    def _recomputes_bits(self) -> bool:
        return self.plan.recompute and not self.plan.new_space


def refresh_source(plan: RefreshPlan) -> RefreshSource:
    """Return the input as the difference takes it."""
    assert plan.table is not None  # noqa: S101  (a plan without input is one of a staged refresh)
    return RefreshSource(
        table=plan.table,
        reader=plan.reader,
        feature_columns=plan.feature_columns,
        inputs=plan.resolved.inputs,
        keys=plan.layout.keys,
        carried=plan.layout.carried,
        mode=plan.store.mode,
        delete_column=plan.store.delete_column,
        invalid=plan.job.input.invalid,
        find_unfit=functools.partial(find_unfit, plan.job.publish, plan.layout.keys),
    )


@dataclass(frozen=True)
class StagingOptions:
    """Options of a refresh that leave its result as it is.

    Attributes:
        progress: How far it is.
        timings: What its phases take.
        run_id: What this attempt is known by.
    """

    progress: Progress = field(default_factory=SilentProgress)
    timings: PhaseTimings = field(default_factory=PhaseTimings)
    run_id: str = ""


@dataclass(frozen=True)
class StagedRefresh(SealedRecord):
    """What is staged.

    Attributes:
        fingerprint: Of all that its result depends on.
        plan: What it is asked to do.
        started: ``started`` and ``run_id``.
    """

    fingerprint: Annotated[str, stored_as("question")]
    plan: RefreshPlan
    started: dict[str, str]


def begin(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan, options: StagingOptions
) -> Staging:
    """Go on with the very same refresh where it is staged; otherwise start over.

    A candidate of another refresh that waits is superseded: nothing of it stays but its record.
    """
    fingerprint = plan.staging_fingerprint(pointer)
    noted = read_staged(state)
    if noted is None or noted.fingerprint != fingerprint:
        pointer = discard_staged(state, pointer)
        noted = None
    started = {"started": noted.started["started"] if noted else now(), "run_id": options.run_id}
    # The limits of its plan may be others.
    state.storage.put(STAGING_PATH, StagedRefresh(fingerprint, plan, started).to_json())
    return Staging(state, pointer, plan, started, options.progress, options.timings)


def resume(state: StoreDirectory, pointer: StorePointer, options: StagingOptions) -> Staging | None:
    """Return the candidate that waits, as it was staged; its input is not needed any more."""
    noted = read_staged(state)
    if noted is None or pointer.waiting is None:
        return None
    return Staging(state, pointer, noted.plan, noted.started, options.progress, options.timings)


def read_staged(state: StoreDirectory) -> StagedRefresh | None:
    """Return what is staged; ``None`` where nothing is."""
    return StagedRefresh.from_json(state.storage.get(STAGING_PATH))


def staged_plan(state: StoreDirectory) -> RefreshPlan | None:
    """Return the plan of the refresh that is staged; ``None`` where nothing is."""
    noted = read_staged(state)
    return None if noted is None else noted.plan


def discard_staged(
    state: StoreDirectory, pointer: StorePointer, outcome: str = SUPERSEDED
) -> StorePointer:
    """Let go what is staged; the record of a candidate that waited says so."""
    # Also the record of one that a kill kept from being given its number.
    for version in {pointer.waiting or 0, pointer.next_version}:
        record = state.record(version)
        if record is not None and record.state == WAITING:
            state.put_record(replace(record, state=outcome))
    # First: what is staged under a number must not be found under another one.
    state.storage.remove(STAGING)
    if pointer.waiting is not None:
        pointer = pointer.with_changes(waiting=None)
        state.put_pointer(pointer)
    discard_uncommitted(state, pointer)
    return pointer
