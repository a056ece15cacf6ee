"""A night on its way to a candidate, in steps that are each kept: a killed one goes on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool.commands.refresh.candidate import Candidate, NightRows, make_candidate
from batchnorm_tool.commands.refresh.changes.detect import find_difference
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.changes.source import Tonight
from batchnorm_tool.commands.refresh.changes.worker import CHANGED
from batchnorm_tool.commands.refresh.commit import discard_night, now
from batchnorm_tool.commands.refresh.plan import NightPlan
from batchnorm_tool.commands.refresh.record import SUPERSEDED, WAITING, NightClock
from batchnorm_tool.commands.refresh.scoring import (
    REUSED,
    SCORED,
    known_vectors,
    reuse,
    rows_in,
    score,
)
from batchnorm_tool.progress import Progress, Quiet
from batchnorm_tool.publish import find_unfit
from batchnorm_tool.storage import checked_json
from batchnorm_tool.store.state import NIGHT, NIGHT_PATH, index_path

if TYPE_CHECKING:
    from batchnorm_tool.store.state import StoreFacts, StoreState


@dataclass
class Staging:
    """The night under way.

    Attributes:
        state: The store; the caller holds its lock.
        facts: What stands in it.
        plan: What the night is asked to do.
        started: ``run_id`` and ``started`` of the night.
        progress: Who is told how far the work is.
        clock: What each phase takes.
    """

    state: StoreState
    facts: StoreFacts
    plan: NightPlan
    started: dict[str, str]
    progress: Progress = field(default_factory=Quiet)
    clock: NightClock = field(default_factory=NightClock)

    @property
    def version(self) -> int:
        """The number of the night; it is given once the night waits or is published."""
        return self.facts.waiting or self.facts.next_version

    def rows(self, difference: ChangeSet) -> NightRows:
        """The staged rows."""
        return NightRows(self.state, self.facts, self.plan, self.version, difference.reason)

    def difference(self) -> ChangeSet:
        """What differs from the live version, found once."""
        found = ChangeSet.load(self.state.storage)
        if found is not None:
            return found
        with self.clock.phase("difference"):
            return self._find()

    def _find(self) -> ChangeSet:
        index = None if self.facts.live is None else index_path(self.facts.live)
        tonight = tonight_of(self.plan)
        with self.progress.work(tonight.table.rows, 0):
            return find_difference(
                tonight,
                index,
                self.state.storage,
                recompute=self.plan.recompute,
                advance=self.progress.advance,
            )

    def candidate(self, difference: ChangeSet) -> Candidate:
        """The night made ready to be merged: scored and put together, once."""
        found = Candidate.load(self.state.storage)
        if found is not None:
            return found
        self._reuse()
        with self.clock.phase("prediction"):
            result = score(self.state, self.plan, difference, self.progress)
        with self.clock.phase("candidate"):
            reused = rows_in(self.state.storage, REUSED)
            rows = self.rows(difference)
            return make_candidate(rows, difference, result, reused)

    def _reuse(self) -> None:
        """Take rows whose vectors an older version has out of the spool, before a run reads it."""
        if self._recomputes_bits or self.state.storage.names(SCORED):
            return
        known = known_vectors(self.state, self.facts, self.plan)
        if known and rows_in(self.state.storage, CHANGED):
            with self.clock.phase("reuse"):
                reuse(self.state, self.plan, known)

    @property
    def _recomputes_bits(self) -> bool:
        return self.plan.recompute and not self.plan.new_space


def tonight_of(plan: NightPlan) -> Tonight:
    """Tonight's input as the difference takes it."""
    assert plan.table is not None  # noqa: S101  (a plan without input is one of a staged night)
    return Tonight(
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
    """Who is told of a night.

    Attributes:
        progress: How far it is.
        clock: What its phases take.
        run_id: What this attempt is known by.
    """

    progress: Progress = field(default_factory=Quiet)
    clock: NightClock = field(default_factory=NightClock)
    run_id: str = ""


def begin(
    state: StoreState, facts: StoreFacts, plan: NightPlan, options: StagingOptions
) -> Staging:
    """Go on with the very same night where it is staged; otherwise begin anew.

    A candidate of another night that waits is superseded: nothing of it stays but its record.
    """
    question = plan.question(facts)
    noted = read_night(state)
    if noted is None or noted["question"] != question:
        facts = supersede(state, facts)
        noted = {"question": question, "started": {"started": now()}}
    started = {**noted["started"], "run_id": options.run_id}
    noted = {**noted, "started": started, "plan": plan.to_dict()}  # its limits may be others
    state.storage.put(NIGHT_PATH, checked_json.sealed_json(noted))
    return Staging(state, facts, plan, noted["started"], options.progress, options.clock)


def resume(state: StoreState, facts: StoreFacts, options: StagingOptions) -> Staging | None:
    """The candidate that waits, as it was staged; its input is not needed any more."""
    noted = read_night(state)
    if noted is None or facts.waiting is None:
        return None
    plan = NightPlan.from_dict(noted["plan"])
    return Staging(state, facts, plan, noted["started"], options.progress, options.clock)


def read_night(state: StoreState) -> dict[str, Any] | None:
    """What is staged: ``question``, ``plan`` and ``started``; ``None`` where nothing is."""
    text = state.storage.get(NIGHT_PATH)
    return None if text is None else checked_json.opened_json(text)


def staged_plan(state: StoreState) -> NightPlan | None:
    """The plan of the night that is staged; ``None`` where nothing is."""
    noted = read_night(state)
    return None if noted is None else NightPlan.from_dict(noted["plan"])


def supersede(state: StoreState, facts: StoreFacts, fate: str = SUPERSEDED) -> StoreFacts:
    """Let go what is staged; the record of a candidate that waited says so."""
    # Also the record of one that a kill kept from being given its number.
    for version in {facts.waiting or 0, facts.next_version}:
        record = state.record(version)
        if record is not None and record["state"] == WAITING:
            state.put_record({**record, "state": fate})
    # First: what is staged under a number must not be found under another one.
    state.storage.remove(NIGHT)
    if facts.waiting is not None:
        facts = facts.with_changes(waiting=None)
        state.put_facts(facts)
    discard_night(state, facts)
    return facts
