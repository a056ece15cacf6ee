"""Judge a candidate: what the gate is shown of it, and what follows from what the gate says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from batchnorm_tool.commands.refresh.candidate import Candidate, StagedRows
from batchnorm_tool.commands.refresh.changes.classify import RowDisposition
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.commit import deliver_live, publish_candidate
from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.refresh.record import RefreshResult, now
from batchnorm_tool.commands.refresh.staging import Staging
from batchnorm_tool.commands.refresh.survey import Survey, blas
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Held, Lines
from batchnorm_tool.features.statistics import InputSummary
from batchnorm_tool.gate import input_limits, output_limits
from batchnorm_tool.gate.findings import Finding, broken, refusal_text
from batchnorm_tool.gate.record import (
    WAITING,
    Acceptance,
    FileOfInput,
    GateRecord,
    InputRecord,
    ModelRecord,
)
from batchnorm_tool.norms.stats import NormStats, finite_or_none, quantile_column
from batchnorm_tool.store.state import STAGING, Basis, StoredRecord


def evaluate_input(
    plan: RefreshPlan, difference: ChangeSet, live: StoredRecord | None
) -> list[Finding]:
    """Hold the input against the limits of the job, and against that of the live version."""
    return input_limits.evaluate_input(
        plan.job.gate.input,
        difference.counts,
        difference.statistics,
        live.input.reference if live else None,
        mode=plan.store.mode,
        new_space=plan.new_space,
    )


def evaluate_output(staged: StagedRows, candidate: Candidate, survey: Survey) -> list[Finding]:
    """Hold what is written against what must always hold, and against the limits of the job."""
    rows, dispositions = candidate.rows, staged.dispositions
    facts = output_limits.AuditFacts(
        mode=staged.plan.store.mode,
        rows=rows,
        before=len(dispositions),
        gone=int((dispositions == RowDisposition.DELETED).sum()),
        distinct_keys=candidate.keys,
    )
    findings = output_limits.audit(facts, survey.audit)
    bad = output_limits.BadCounts(
        changed_rows=rows.predicted + rows.reused + rows.bad,
        changed_bad=candidate.bad[0],
        whole_rows=rows.live + rows.quarantined,
        whole_bad=candidate.bad[1],
        rows=candidate.bad_rows,
    )
    limits, changed, live = staged.plan.job.gate.output, survey.changed, survey.live
    # Without a live version that vectors can be compared with, nothing is said of the whole.
    whole, before = (survey.whole, live.every) if live else (changed, None)
    return findings + output_limits.evaluate_output(limits, changed, whole, before, bad)


def staged_record(staging: Staging, difference: ChangeSet) -> StoredRecord:
    """Return the record of a refresh before anything of it is judged."""
    plan, live, statistics = staging.plan, staging.pointer.live, difference.statistics
    model, unknown = plan.job.model, difference.counts.unknown_deletes
    cause = (difference.cause,) if difference.cause else ()
    lost = (f"Not in the store: {plural(unknown, 'row')} to be deleted.",) if unknown else ()
    files: Any = plan.identity.result["input"]
    read = tuple(FileOfInput(file["path"], file["rows"], file["bytes"]) for file in files)
    return StoredRecord(
        version=staging.version,
        base=live,
        kind="load" if live is None else "refresh",
        new_space=plan.new_space,
        state=WAITING,
        run_id=staging.attempt.run_id,
        started=staging.attempt.started,
        space=plan.identity.space_id,
        bits=plan.identity.bits_id,
        settings=plan.identity.bits,
        model=ModelRecord(model.path, plan.resolved.model_content) if model else None,
        input=InputRecord(
            read,
            statistics,
            _reference(staging) or statistics,
            difference.types,
            difference.content,
        ),
        basis=Basis(plan.layout, plan.identity, plan.resolved, plan.options_fingerprint),
        publish=tuple(target.model_dump(exclude_none=True) for target in plan.job.publish),
        keep=plan.store.keep,
        warnings=(*plan.notes, *cause, *difference.warnings, *lost),
        rows=difference.counts,
    )


def _reference(staging: Staging) -> InputSummary | None:
    """Return what a later delta is compared with: the last input that had all rows."""
    live = staging.state.record(staging.pointer.live)
    return live.input.reference if live and staging.plan.store.mode != "full" else None


def conclude(
    staging: Staging,
    difference: ChangeSet,
    record: StoredRecord,
    accepted: Acceptance | None = None,
) -> RefreshResult:
    """Judge a refresh, and publish it or let it wait."""
    plan, live = staging.plan, staging.state.record(staging.pointer.live)
    with staging.timings.phase("gate"):
        findings = evaluate_input(plan, difference, live)
    action = plan.job.gate.action
    record = replace(record, gate=GateRecord.of(action, findings))
    # Before the model runs: hours of work may depend on an input that has to be fixed.
    if _stops(staging, findings) and accepted is None:
        raise await_approval(staging, record, "gate", findings)
    # A person who accepts a refresh that stopped before its vectors were made has not seen them.
    seen = record.norms is not None
    staged = staging.rows(difference)
    candidate, survey = staging.candidate(staged, difference)
    with staging.timings.phase("gate"), ThreadPoolExecutor(1, "beside the gate") as beside:
        # While one core judges, another does what is needed either way, and leaves no trace.
        prepared = beside.submit(staged.prepare, survey.sample, whole=candidate.whole)
        # Small products on several threads wait for one another: ten times slower on busy cores.
        with blas().limit(limits=1, user_api="blas"):
            found = evaluate_output(staged, candidate, survey)
        prepared.result()
    findings += found
    record = replace(
        record,
        gate=GateRecord.of(action, findings),
        rows=candidate.rows,
        norms=_norm_figures(candidate.norms),
        warnings=tuple(dict.fromkeys([*record.warnings, *candidate.warnings])),
    )
    # An audit is never waived: what it finds is a fault of ours or of a disk.
    unseen = [finding for finding in found if finding.scope == "audit" or not seen]
    reason = _reason(staging, unseen if accepted else findings, accepted=accepted is not None)
    if reason is not None:
        raise await_approval(staging, record, reason, findings)
    return publish_candidate(staging, staged, candidate, record, accepted)


def _norm_figures(norms: NormStats) -> dict[str, float | int | None]:
    """Return the norms of a version as a record has them."""
    return {
        "count": norms.count,
        "min": norms.min,
        "max": norms.max,
        "mean": norms.mean,
        "std": finite_or_none(norms.std),
        **{quantile_column(q): value for q, value in norms.quantiles().items()},
    }


def _stops(staging: Staging, findings: list[Finding]) -> bool:
    return bool(broken(findings)) and staging.plan.job.gate.action == "hold"


def _reason(staging: Staging, findings: list[Finding], *, accepted: bool) -> str | None:
    """Return why a refresh waits; ``None`` where it may be published."""
    plan = staging.plan
    if any(finding.scope == "audit" for finding in broken(findings)):
        return "audit"
    if _stops(staging, findings):
        return "gate"
    if accepted:
        return None
    if staging.pointer.hold is not None:
        return "hold"
    return "new space" if plan.new_space and plan.store.on_new_space == "hold" else None


def await_approval(
    staging: Staging, record: StoredRecord, reason: str, findings: list[Finding]
) -> Held:
    """Let a refresh wait: its record says why, and its version is given away."""
    state, pointer, version = staging.state, staging.pointer, record.version
    seconds = staging.timings.seconds
    record = replace(
        record,
        state=WAITING,
        reason=reason,
        finished=now(),
        seconds=dict(seconds),
        files=state.files_of(version, state.record(record.base), [STAGING]),
    )
    state.put_record(record)
    next_version = max(pointer.next_version, version + 1)
    pointer = replace(pointer, waiting=version, next_version=next_version)
    state.put_pointer(pointer)
    # A target may be behind the live version, whatever becomes of this refresh.
    with staging.timings.phase("targets"):
        targets = deliver_live(state, pointer, staging.plan.job.publish, was_live=True)
    record = replace(record, targets=targets, seconds=dict(seconds))
    return Held(_why(staging, reason, version, findings), RefreshResult(state.path, record))


def _why(staging: Staging, reason: str, version: int, findings: list[Finding]) -> str:
    """Say on the first line that a refresh waits and why, and then how to go on."""
    store, hold = staging.state.path, staging.pointer.hold
    waits, accept = f"Version {version} of `{store}` is waiting:", f"accept {store} {version}"
    if reason in {"gate", "audit"}:
        first, *more = refusal_text(findings, f"batchnorm-tool {accept}").split("\n")
        return Lines(f"{waits} {first}", *more)
    if reason == "hold" and hold is not None:
        return Lines(
            f"{waits} the store has been on hold since {hold.since} ({hold.reason}).",
            f"Next: publish it with `batchnorm-tool {accept}`, or run `batchnorm-tool release "
            f"{store}` so that the next refresh publishes.",
        )
    return Lines(
        f"{waits} its vector space is new; nothing was published.",
        "Next: queries must switch to the new model at the same time. Publish it with "
        f"`batchnorm-tool {accept}` when they do; `store.on_new_space: publish` skips this step.",
    )
