"""Run a job: plan it, let an engine work through its parts, publish the result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from batchnorm_tool.chunk import INPUT_REASONS, Reason
from batchnorm_tool.commands.progress import Progress, SilentProgress
from batchnorm_tool.commands.run.contracts import contract_of, find_canaries
from batchnorm_tool.commands.run.execute import deduplicate, execute
from batchnorm_tool.commands.run.fit import is_fitted
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.commands.run.retry import Retry, begin_retry, check_reasons, plan_retry
from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.display import plural
from batchnorm_tool.errors import RECREATE, BadRows, Damaged, JobError, Lines
from batchnorm_tool.features.matching import names_in
from batchnorm_tool.formats import format_named, parquet
from batchnorm_tool.inputs.reading import check_all_rows
from batchnorm_tool.job import Job, check_job, is_staged
from batchnorm_tool.pipeline import manifest as manifests
from batchnorm_tool.pipeline import output_state, part_output
from batchnorm_tool.pipeline.output_state import OutputState
from batchnorm_tool.pipeline.plan import Plan, ResolvedOptions
from batchnorm_tool.pipeline.scored_chunk import ACTIONS, Policies
from batchnorm_tool.pipeline.timing import Profile
from batchnorm_tool.storage import Storage, open_storage
from batchnorm_tool.storage.checked_json import canonical_json

_NAMED_ROWS = 5
_FITTED_LATER = (
    "What `normalize` fits over all rows is fitted when the run begins: a dry run reads only a few."
)
_OF_FEATURES = {reason.label for reason in INPUT_REASONS}
_OTHER_ACTIONS = [action for action in ACTIONS if action != "fail"]


def check_policies(storage: Storage, plan: Plan) -> manifests.Totals:
    """Add up the records of all parts, and let the policies have their say on the whole."""
    refused = list(manifests.read_refusals(storage))
    if refused:
        raise _broken_policy(refused, plan)
    totals = manifests.total(storage, range(plan.part_count))
    if totals.counts.rows_in != plan.rows:
        raise Damaged(
            f"The records of finished parts cover {totals.counts.rows_in:,} "
            f"of {plural(plan.rows, 'row')}: this version does not write such records. "
            f"{RECREATE.capitalize()}."
        )
    if totals.counts.bad > plan.job.normalize.max_bad_fraction * max(1, plan.rows):
        raise _too_many(totals, plan)
    return totals


def _broken_policy(refused: list[manifests.PartRecord], plan: Plan) -> BadRows:
    failed = sum(record.counts.failed for record in refused)
    policies = [name for name, value in plan.identity.policies.items() if value == "fail"]
    choices = "; or ".join(f"set `{name}` to {_alternatives(name)}" for name in policies)
    return _refusal(
        f"{failed:,} of {plural(plan.rows, 'row')} broke a row policy",
        [row for record in refused for row in record.first_bad_rows],
        plan,
        f"{choices}. Parts without bad rows are kept for the next run.",
    )


def _alternatives(policy: str) -> str:
    """Return what a policy can be instead of ``fail``: a bad input has no prediction to keep."""
    actions = [a for a in _OTHER_ACTIONS if not (a == "keep" and policy == "input.invalid")]
    return f"{', '.join(actions[:-1])} or {actions[-1]}"


def _too_many(totals: manifests.Totals, plan: Plan) -> BadRows:
    most = plan.job.normalize.max_bad_fraction
    bad = Policies.of(plan.job).bad
    counts = {reason.label: totals.reasons[reason.label] for reason in Reason if bad[reason]}
    counted = ", ".join(f"{count:,} {label}" for label, count in counts.items() if count)
    return _refusal(
        f"{totals.counts.bad:,} bad of {plural(plan.rows, 'row')} ({counted}), more than "
        f"`normalize.max_bad_fraction: {most:g}` allows",
        totals.first_bad_rows,
        plan,
        "raise the limit: the next run then keeps all parts and only publishes.",
    )


def _refusal(what: str, rows: list[manifests.BadRow], plan: Plan, otherwise: str) -> BadRows:
    """Return the error that names the first bad rows, and what to fix or else to allow."""
    first = [f"  {row}" for row in rows[:_NAMED_ROWS]]
    fix = f"Fix {_input(rows, plan)}, or {otherwise}"
    return BadRows(Lines(f"{what}; nothing was published. The first are:", *first, fix))


def _input(rows: list[manifests.BadRow], plan: Plan) -> str:
    """Say what is to fix: of rows with bad features, the columns that hold these."""
    names = names_in(plan.resolved.features)
    if not names or not {row.reason for row in rows} & _OF_FEATURES:
        return "the input"
    more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED_ROWS])
    return f"the input (its features: {shown}{more})"


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        path: The output directory.
        record: The manifest of the finished run.
        nothing_to_do: Whether the output already held this result.
        parts_kept: Parts that an earlier attempt had finished.
        rows_done: Rows that were worked on this time.
        seconds: Wall time of the work, without imports, planning and loading the model.
        profile: Where that time went; ``None`` where there was nothing to work on.
        retried: Quarantined rows that were read again, for each reason's label; ``None`` where that
            was not asked.
    """

    path: str
    record: manifests.Manifest = field(repr=False)
    nothing_to_do: bool = False
    parts_kept: int = 0
    rows_done: int = 0
    seconds: float = 0.0
    profile: Profile | None = field(default=None, repr=False)
    retried: Mapping[str, int] | None = None

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the finished run, as plain data."""
        return self.record.to_dict()

    @property
    def rows(self) -> dict[str, int]:
        """Rows ``in``, ``out``, ``bad``, ``zero``, ``nullified``, ``dropped``, ``quarantined``.

        Where ``input.deduplicate`` is true, ``predicted`` and ``reused`` too.
        """
        return self.record.rows.to_dict()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of this result."""
        return self.record.warnings


def run(  # noqa: PLR0913  (each is a flag of the command)
    job: Job,
    *,
    fresh: bool = False,
    limit: int | None = None,
    wait_seconds: float = 0.0,
    check_input: bool = False,
    retry_quarantined: bool = False,
    reason: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Score a table with a model and write unit vectors beside their norms and statistics.

    Without ``job.model`` the predictions are stored already, and are only normalized. The same call
    after a crash, a kill or an error goes on where the last one stopped; once finished, it does
    nothing.

    Args:
        job: What to do.
        fresh: Replace the result in the output; readers keep it until then.
        limit: Only the first so many rows, for a first try; ``None`` for all.
        wait_seconds: How long to wait while another run holds the output.
        check_input: Read all of the input first, so that a damaged file is found before anything is
            written.
        retry_quarantined: Read the quarantined rows of the finished run in the output again, after
            a change of policies, or of these rows in the input files; parts without them are kept.
            The result is that of a fresh run. Nothing is done where none is in quarantine.
        reason: Only those in quarantine for this reason, or these: names as in the manifest's
            ``reasons``.
        progress: Receives how far the work is; default: nothing does.

    Returns:
        The finished run.

    Raises:
        Refused: The job cannot be done as asked; nothing was written.
        BadRows: The data broke a row policy; nothing was published.
        Busy: Another run holds the output.
        WorkFailed: Something failed half way; the same call resumes.

    Example:
        >>> from batchnorm_tool import Job, run
        >>> result = run(Job.load("configs/quickstart.yaml"))  # doctest: +SKIP
        >>> result.rows["out"]  # doctest: +SKIP
        1797
    """
    check_job("run", job)
    _check_output(job)
    if limit is not None and limit < 1:
        raise JobError(f"`limit` must be a positive number of rows, or None. Received: {limit}.")
    reasons = check_reasons(retry_quarantined, reason, fresh=fresh, limit=limit)
    seen = progress or SilentProgress()
    preparation = Preparation(job, limit, progress=seen)
    if check_input:
        check_all_rows(preparation.table)
    storage = open_storage(job.output.path)
    try:
        with storage.lock(wait_seconds):
            return _run_locked(preparation, storage, seen, fresh=fresh, reasons=reasons)
    finally:
        # A notebook or a scheduler lives on, and deletes the files that were read
        parquet.close_cached_files()


def _check_output(job: Job) -> None:
    if is_staged(job):
        raise JobError(
            "`output.path` is missing: this job has a store, which `batchnorm-tool refresh` "
            "updates. Run that, or set `output.path` to a directory."
        )


def plan_run(job: Job, *, limit: int | None = None, progress: Progress | None = None) -> Plan:
    """Return the plan that `run` would follow: a dry run, which leaves the output as it is.

    What is found out about a model is kept in the model cache.
    """
    _check_output(job)
    preparation = Preparation(job, limit, progress=progress or SilentProgress())
    plan = _planned(preparation, preparation.kept_choices())
    told = (_FITTED_LATER,) if is_fitted(job.normalize) else ()
    return replace(plan, warnings=(*plan.warnings, *told))


def plan_run_again(
    job: Job,
    *,
    reason: str | Sequence[str] | None = None,
    fresh: bool = False,
    limit: int | None = None,
) -> Retry:
    """Return what `run` would do with ``retry_quarantined``, without writing anything."""
    _check_output(job)
    reasons = check_reasons(retry_quarantined=True, reason=reason, fresh=fresh, limit=limit) or ()
    storage = open_storage(job.output.path)
    there = output_state.read_output(storage, job.output.path)
    return plan_retry(Preparation(job), storage, there, reasons, SilentProgress())


def _planned(preparation: Preparation, choices: ResolvedOptions | None = None) -> Plan:
    format_named(preparation.job.output.format).check_storable(preparation.carried)
    return preparation.plan(choices)


def _run_locked(
    preparation: Preparation,
    storage: Storage,
    progress: Progress,
    *,
    fresh: bool,
    reasons: Sequence[str] | None,
) -> RunResult:
    path = preparation.job.output.path
    there = output_state.inspect_output(storage, path, fresh=fresh)
    retried: Mapping[str, int] | None = None
    before: Plan | None
    if reasons is not None:
        retry = plan_retry(preparation, storage, there, reasons, progress)
        again, retried = retry.plan, retry.quarantined
        if again is None:
            if there.plan is None:
                output_state.discard_state(storage)  # what a kill left after the last step
            return RunResult(path, retry.manifest, nothing_to_do=True, retried=retried)
        plan, before = again, begin_retry(again, retry.again, storage, there)
    else:
        choices = there.choices(preparation.options_fingerprint)
        if fresh and preparation.is_fallback(choices):
            choices = None
        if choices is None and preparation.job.model is not None and not fresh:
            _refuse_other(preparation, there)
        plan = _planned(preparation, choices)
        if there.manifest and output_state.is_finished(there, plan) and not fresh:
            if there.plan is None or there.plan.identity == plan.identity:
                output_state.discard_state(storage)  # what a kill left after the last step
            return RunResult(path, there.manifest, nothing_to_do=True)
        before = there.plan if output_state.check_may_begin(there, plan, fresh=fresh) else None
    plan, repeats, seconds = deduplicate(preparation, plan, before, storage, progress)
    done = execute(plan, storage, preparation.predictor, progress, before=before, repeats=repeats)
    seconds, started = seconds + done.seconds, time.perf_counter()
    totals = check_policies(storage, plan)
    totals.count_predicted(deduplicated=plan.job.input.deduplicate)
    manifest = _publish(storage, plan, totals, there)
    return RunResult(
        path,
        manifest,
        parts_kept=done.parts_kept,
        rows_done=done.rows_done,
        seconds=seconds + time.perf_counter() - started,
        profile=done.profile,
        retried=retried,
    )


def _refuse_other(preparation: Preparation, there: OutputState) -> None:
    """Refuse an output that holds something else before the model is loaded, if that is certain."""
    output_state.check_ours(there)
    before = there.plan or there.manifest
    if before is None or (there.plan and there.manifest):
        return
    plan, same = preparation.plan_like(before.resolved), before.identity
    identity = replace(plan.identity, bits=same.bits)
    if there.plan is not None:  # a run under way may go on with other policies
        identity = replace(identity, policies=same.policies)
    if identity != same:
        output_state.check_may_begin(there, replace(plan, identity=identity), fresh=False)


def _publish(
    storage: Storage, plan: Plan, totals: manifests.Totals, before: OutputState
) -> manifests.Manifest:
    """Stage the manifest, the contract and the chunk statistics, then make everything visible."""
    layouts = plan.resolved.layouts(plan.job)
    numbers = range(plan.part_count)
    totals.files.append(part_output.gather(storage, numbers))
    if totals.counts.quarantined:  # so that these rows can be read again, and no others
        totals.files.append(part_output.gather_records(storage, numbers))
    warnings = result_warnings(plan, totals)
    canaries = find_canaries(plan, storage, totals.statistics, warnings.append)
    contract = contract_of(plan.job, plan.resolved, plan.identity, canaries)
    file = storage.put(storage.staged(CONTRACT), contract.to_bytes())
    manifest = manifests.build_manifest(plan, totals, layouts, warnings, file.sha256)
    storage.put(storage.staged(manifests.MANIFEST_PATH), canonical_json(manifest.to_dict()))
    storage.put(storage.staged(manifests.SUCCESS_PATH), f"{manifest.checksum}\n".encode())
    paths = [file.path for part in totals.parts for file in part.files]
    directories = sorted({path.partition("/")[0] for path in [*paths, part_output.CHUNKS_PATH]})
    storage.begin_publish(directories, sorted(before.directories - set(directories)))
    output_state.finish_publishing(storage)
    return manifest


def result_warnings(plan: Plan, totals: manifests.Totals) -> list[str]:
    """Return what was found while planning, and what the statistics show."""
    found = list(plan.warnings)
    if totals.counts.clipped:
        found.append(
            f"{plural(totals.counts.clipped, 'row')} had components beyond the scale that was "
            "fitted for `normalize.dtype: int8`, which were clipped."
        )
    for name, stats in totals.statistics.items():
        lengths = stats.norms["l2"]
        if lengths.count and lengths.max is not None and _is_unit(lengths.min, lengths.max):
            found.append(
                f"The predictions of `{name}` already have unit length (L2): the model normalizes "
                "its output, so that the norms carry no information."
            )
    return found


def _is_unit(least: float | None, most: float) -> bool:
    # Unit vectors in float32 stay within a few units in the last place of 1; in float16, 1e-3.
    tolerance = 1e-3
    return least is not None and abs(least - 1) < tolerance and abs(most - 1) < tolerance
