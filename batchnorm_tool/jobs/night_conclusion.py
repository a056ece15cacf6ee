"""The end of a night: judged, then published or left to wait for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from batchnorm_tool import gate
from batchnorm_tool.errors import Held, Lines
from batchnorm_tool.jobs import night_gate
from batchnorm_tool.jobs.night import (
    PUBLISHED,
    WAITING,
    Night,
    begin_record,
    counted,
    gate_figures,
    norm_figures,
)
from batchnorm_tool.jobs.night_delivery import deliver_live, finish_night
from batchnorm_tool.jobs.night_publication import merge, now
from batchnorm_tool.row_hash import HASH_VERSION

if TYPE_CHECKING:
    from batchnorm_tool.difference import Difference
    from batchnorm_tool.gate import Finding
    from batchnorm_tool.jobs.night import NightClock
    from batchnorm_tool.jobs.night_candidate import Candidate
    from batchnorm_tool.jobs.night_plan import NightPlan
    from batchnorm_tool.jobs.night_staging import Staging
    from batchnorm_tool.store.state import StoreFacts, StoreState


def staged_record(staging: Staging, difference: Difference) -> dict[str, Any]:
    """The record of a night whose difference is known."""
    record = begin_record(staging.plan, staging.facts, staging.version, staging.started)
    statistics = difference.statistics.to_dict()
    record["input"] = {
        **record["input"],
        "statistics": statistics,
        "reference": _reference(staging) or statistics,
    }
    record["warnings"] += difference.warnings
    unknown = difference.counts.unknown_deletes
    if unknown:
        record["warnings"].append(f"{unknown:,} rows to be deleted are not in the store.")
    return {**record, "rows": counted(difference), "norms": None}


def _reference(staging: Staging) -> dict[str, Any] | None:
    """After a delta, what a later night is held against: the last input that had all rows."""
    if staging.plan.store.mode == "full" or staging.facts.live is None:
        return None
    live = staging.state.record(staging.facts.live)
    reference: dict[str, Any] | None = live["input"]["reference"] if live else None
    return reference


def conclude(
    staging: Staging, difference: Difference, record: dict[str, Any], *, accepted: bool = False
) -> Night:
    """Judge a night, and publish it or let it wait.

    Args:
        staging: The night under way.
        difference: What differs from the live version.
        record: What is known of it.
        accepted: Whether a person has said that it is right, broken limits or not.

    Raises:
        Held: It waits for a person.
        TargetFailed: It is published, and a target is behind.
    """
    findings = _input_findings(staging, difference)
    record = _judged(staging, record, findings)
    if _stops(staging, findings) and not accepted:
        raise hold(staging, record, "gate", findings)
    # A person who accepts a night that stopped before its vectors were made has not seen them.
    seen = record["norms"] is not None
    candidate = staging.candidate(difference)
    # Small products on several threads wait for one another: ten times slower on busy cores.
    with staging.clock.phase("gate"), threadpool_limits(1, user_api="blas"):
        found = night_gate.judge_output(staging.rows(difference), candidate, difference)
    findings += found
    record = _judged(staging, record, findings)
    record = {
        **record,
        "rows": candidate.rows,
        "norms": norm_figures(candidate.norms),
        "warnings": list(dict.fromkeys([*record["warnings"], *candidate.warnings])),
    }
    unseen = [finding for finding in found if finding.scope == "audit" or not seen]
    reason = _reason(staging, unseen if accepted else findings, accepted=accepted)
    if reason is not None:
        raise hold(staging, record, reason, findings)
    return _publish(staging, candidate, record, accepted=accepted)


def _input_findings(staging: Staging, difference: Difference) -> list[Finding]:
    live = staging.facts.live
    last = staging.state.record(live) if live is not None else None
    with staging.clock.phase("gate"):
        return night_gate.judge_input(staging.plan, difference, last["input"] if last else None)


def _judged(staging: Staging, record: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    return {**record, "gate": gate_figures(staging.plan.job.gate.action, findings)}


def _stops(staging: Staging, findings: list[Finding]) -> bool:
    return bool(gate.broken(findings)) and staging.plan.job.gate.action == "hold"


def _reason(staging: Staging, findings: list[Finding], *, accepted: bool) -> str | None:
    """Why a night waits; ``None`` where it may be published."""
    plan = staging.plan
    if any(finding.scope == "audit" for finding in gate.broken(findings)):
        return "audit"
    if _stops(staging, findings):
        return "gate"
    if accepted:
        return None
    if staging.facts.hold is not None:
        return "hold"
    return "new space" if plan.new_space and plan.store.on_new_space == "hold" else None


def hold(staging: Staging, record: dict[str, Any], reason: str, findings: list[Finding]) -> Held:
    """Let a night wait: its record says why, and its version is given away.

    Returns:
        The outcome, to be raised.
    """
    state, facts, version = staging.state, staging.facts, record["version"]
    record = {
        **record,
        "state": WAITING,
        "reason": reason,
        "finished": now(),
        "seconds": staging.clock.seconds,
        "files": state.files_of(version, staged=True),
    }
    state.put_record(record)
    next_version = max(facts.next_version, version + 1)
    facts = facts.with_changes(waiting=version, next_version=next_version)
    state.put_facts(facts)
    # A target may be behind the live version, whatever becomes of this night.
    with staging.clock.phase("targets"):
        targets = deliver_live(state, facts, staging.plan.job.publish)
    night = Night(state.path, WAITING, version, record, targets)
    return Held(_why(staging, reason, version, findings), night.to_dict())


def _why(staging: Staging, reason: str, version: int, findings: list[Finding]) -> str:
    store = staging.state.path
    accept = f"batchnorm-tool accept {store} {version}"
    if reason in {"gate", "audit"}:
        first, *more = gate.refusal_text(findings, "hold", accept).split("\n")
        return Lines(f"Version {version} of `{store}` waits: {first}", *more)
    if reason == "hold":
        since = staging.facts.hold or {}
        return (
            f"Version {version} of `{store}` is ready and waits: the store is on hold since "
            f"{since.get('since')} ({since.get('reason')}). Publish it with `{accept}`, or end the "
            f"hold with `batchnorm-tool release {store}`: the next refresh then publishes."
        )
    return (
        f"Version {version} of `{store}` is ready and waits: its space is new, and whoever asks "
        "the store must ask with the new model from the same moment on. Publish it with "
        f"`{accept}` when they do; `store.on_new_space: publish` does not wait."
    )


def _publish(
    staging: Staging, candidate: Candidate, record: dict[str, Any], *, accepted: bool
) -> Night:
    state, plan = staging.state, staging.plan
    if accepted:
        record = {**record, "accepted": now()}
    record = {**record, "reason": None, "seconds": staging.clock.seconds}
    with staging.clock.phase("merge"):
        after = _facts_after(staging.facts, plan, candidate.version, accepted=accepted)
        facts = merge(state, staging.facts, after, record, whole=candidate.whole)
    with staging.clock.phase("targets"):
        targets = deliver_live(state, facts, plan.job.publish)
    record = timed(state, record["version"], staging.clock)
    night = Night(state.path, PUBLISHED, candidate.version, record, targets)
    return finish_night(night, state, plan.store.keep)


def timed(state: StoreState, version: int, clock: NightClock) -> dict[str, Any]:
    """The record of a published version, with what the phases after its commit took."""
    record = {**(state.record(version) or {}), "seconds": clock.seconds}
    state.put_record(record)
    return record


def _facts_after(facts: StoreFacts, plan: NightPlan, version: int, *, accepted: bool) -> StoreFacts:
    """What stands in the store when the version is live, but for Lance's number of it."""
    return facts.with_changes(
        next_version=max(facts.next_version, version + 1),
        live=version,
        waiting=None,
        hold=None if accepted else facts.hold,
        layout=plan.layout,
        identity=plan.identity.to_dict(),
        hash_version=HASH_VERSION,
        resolved=plan.resolved.to_dict(),
        request=plan.request,
    )
