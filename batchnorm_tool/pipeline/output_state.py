"""What stands in an output before a run: nothing, a finished result, one under way, or neither."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from batchnorm_tool.chunk import Reason
from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.errors import FRESH, RECREATE, Damaged, InputError, OutputError
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline import manifest as manifests
from batchnorm_tool.pipeline.differences import differences
from batchnorm_tool.pipeline.manifest import MANIFEST_PATH, SUCCESS_PATH, Manifest, PartRecord
from batchnorm_tool.pipeline.plan import PLAN_PATH, Identity, Plan, ResolvedOptions
from batchnorm_tool.pipeline.scored_chunk import Policies
from batchnorm_tool.storage import STATE, Storage
from batchnorm_tool.storage.checked_json import canonical_json

RECORDS = f"{STATE}/records"
_REOPENED = f"{STATE}/reopened.json"
_STATISTICS = "_stats"
_ANY_RESULT = {"vectors", "norms", "keys", "_quarantine", _STATISTICS}
# What lies in `_state` beside the directories that will be published.
_NOT_STAGED = ("records", "refused", "tmp")


@dataclass(frozen=True)
class OutputState:
    """What stands in an output: a finished run's manifest, the plan of one under way, or neither.

    ``names`` is what lies in its directory, ``parts_done`` how many parts of the run under way are
    finished.
    """

    path: str
    manifest: Manifest | None
    plan: Plan | None
    names: tuple[str, ...]
    parts_done: int = 0

    @property
    def directories(self) -> set[str]:
        """Those of the finished result, or those that any has where its manifest is gone."""
        if self.manifest is None:
            return _ANY_RESULT & set(self.names)
        return {_STATISTICS, *self.manifest.directories}

    def choices(self, request: str) -> ResolvedOptions | None:
        """Return the choices that were made here for the same ``request``, so that they stay."""
        if self.plan is not None and self.plan.options_fingerprint == request:
            return self.plan.resolved
        if self.manifest is not None and self.manifest.options_fingerprint == request:
            return self.manifest.resolved
        return None


def inspect_output(storage: Storage, path: str, *, fresh: bool = False) -> OutputState:
    """See what stands in ``storage``; a publication that was interrupted is finished first."""
    # First of all: half published, neither what was there nor what is coming can be judged.
    if storage.publishing():
        finish_publishing(storage)
    return read_output(storage, path, fresh=fresh)


def read_output(storage: Storage, path: str, *, fresh: bool = False) -> OutputState:
    """See what stands in ``storage``, and leave it as it is."""
    return OutputState(
        path=path,
        manifest=_manifest(storage, path, fresh=fresh),
        plan=Plan.from_json(storage.get(PLAN_PATH)),
        names=tuple(storage.names()),
        parts_done=len(storage.names(RECORDS)),
    )


def _manifest(storage: Storage, path: str, *, fresh: bool) -> Manifest | None:
    try:
        return manifests.read_manifest(storage, path)
    except (Damaged, InputError):
        if not fresh:
            raise
        return None


def finish_publishing(storage: Storage) -> None:
    """Make a staged result the visible one; may be repeated after a kill at any point of it."""
    text = storage.get(storage.staged(MANIFEST_PATH))
    success = storage.get(storage.staged(SUCCESS_PATH))
    contract = storage.get(storage.staged(CONTRACT))
    if text is None or success is None:
        raise OutputError("Nothing is staged for publication.")
    # Readers trust the mark: it goes before anything moves, and comes back after everything is
    # there.
    storage.remove(SUCCESS_PATH)
    storage.finish_publish()
    if contract is None:  # staged by an earlier version
        storage.remove(CONTRACT)
    else:
        storage.put(CONTRACT, contract)
    storage.put(MANIFEST_PATH, text)
    storage.put(SUCCESS_PATH, success)
    discard_state(storage)


def discard_state(storage: Storage) -> None:
    """Remove all that a run keeps while it is under way."""
    # The plan goes first, for without it the run is over; then the note of a publication, which
    # must not outlive what it would publish.
    storage.remove(PLAN_PATH)
    storage.end_publish()
    storage.remove(STATE)


def is_finished(state: OutputState, plan: Plan) -> bool:
    """Tell whether the very result of ``plan`` stands there, finished, its directories in place."""
    manifest = state.manifest
    if manifest is None or manifest.result != plan.identity.result_id:
        return False
    return manifest.directories <= set(state.names)


def check_may_begin(state: OutputState, plan: Plan, *, fresh: bool) -> bool:
    """Tell whether the run under way can go on as ``plan``; otherwise it starts over."""
    check_ours(state)
    if state.plan is not None and continues(state.plan.identity, plan):
        return True
    # A plan without a finished part is no work: it may be replaced without being asked.
    loses_work = state.manifest is not None or state.parts_done > 0
    if not fresh and (loses_work or state.plan is None):
        refuse_other(state, plan, keeps_parts=state.plan is not None)
    return False


def check_ours(state: OutputState) -> None:
    """Refuse a directory in which something else than a run's result lies."""
    foreign = [name for name in state.names if name != STATE]
    ours = state.plan is not None or MANIFEST_PATH in foreign
    if foreign and not ours:
        raise OutputError(
            f"The output directory `{state.path}` contains files that are not part of a run of "
            f"batchnorm_tool: {', '.join(foreign[:5])}. Choose an empty directory or a new one."
        )


def continues(before: Identity, plan: Plan) -> bool:
    """Tell whether parts of one can stand in the other: policies may differ, bits if allowed."""
    after = plan.identity
    same_bits = before.bits == after.bits or plan.job.engine.mixed_bits
    return before.space == after.space and before.result == after.result and same_bits


def refuse_other(state: OutputState, plan: Plan, *, keeps_parts: bool) -> None:
    """Raise for what is in an output, and cannot become the result of ``plan``.

    Args:
        state: What is there: an unfinished run, or else a result.
        plan: What is asked for.
        keeps_parts: Whether parts of it would be kept if it could.
    """
    if state.plan is not None:
        other, what = state.plan.identity, "an unfinished run"
    elif state.manifest is not None:
        other, what = state.manifest.identity, "the result"
    elif MANIFEST_PATH in state.names:
        raise OutputError(
            f"The output directory `{state.path}` contains a result without `{SUCCESS_PATH}`, "
            f"which has been removed. Choose another `output.path`, or {RECREATE}."
        )
    else:
        return
    if other == plan.identity:
        gone = sorted(state.directories - set(state.names))
        raise OutputError(
            f"The result in `{state.path}` is finished, but these files have been "
            f"removed: {', '.join(f'`{name}`' for name in gone)}. {RECREATE.capitalize()}."
        )
    unasked = _chosen_in_both(state, plan)
    found = list(differences(other, plan.identity, unasked)) or differences(other, plan.identity)
    listed = ", ".join(found)
    only_bits = other.space == plan.identity.space and other.result == plan.identity.result
    advice = f"Replace it with `{FRESH}`, or choose another `output.path`."
    if keeps_parts and only_bits:
        advice += " `--mixed-bits` resumes anyway; low-order bits of its parts may then differ."
    raise OutputError(
        f"The output directory `{state.path}` holds {what} of another job or input. "
        f"What differs: {listed}. {advice}"
    )


def _chosen_in_both(state: OutputState, plan: Plan) -> set[str]:
    """Return what both jobs left open: no person can tell why one choice came out as it did."""
    before = state.plan or state.manifest
    jobs = [plan.job] if before is None else [before.job, plan.job]
    chosen = {"chunk_rows"}
    if all(job.model is not None and job.model.batch_size == "auto" for job in jobs):
        chosen.add("batch_size")
    if all(job.output.part_rows == "auto" for job in jobs):
        chosen.add("part_rows")
    return chosen


def kept_parts(storage: Storage, before: Plan, plan: Plan) -> dict[int, frozenset[str]]:
    """Return the finished parts that stay as they are under ``plan``, with their files' paths."""
    changed, kept = reasons_judged_otherwise(before.job, plan.job), dict[int, frozenset[str]]()
    for name in storage.names(RECORDS):
        number = int(name.partition(".")[0])
        record = manifests.read_record(storage, number)
        if record is None or record.part != number:
            continue
        # A part without a row of the changed reasons would come out the same: its work is kept.
        if not changed & set(record.reasons) and _is_whole(storage, record):
            kept[number] = frozenset(file.path for file in record.files)
    return kept


def reasons_judged_otherwise(before: Job, job: Job) -> set[str]:
    """Return the labels of reasons whose rows meet another policy than before."""
    old, new = Policies.of(before), Policies.of(job)
    return {reason.label for reason in Reason if old.actions[reason] != new.actions[reason]}


def reopen(
    storage: Storage, plan: Plan, records: Iterable[PartRecord], again: Collection[int]
) -> None:
    """Make an unfinished run of ``plan`` beside a finished one: without the parts in ``again``."""
    discard_state(storage)
    storage.put(_REOPENED, canonical_json(sorted(again)))
    for record in records:
        # A part whose file is gone is made again.
        if record.part not in again and all(
            storage.link(file.path, storage.staged(file.path)) for file in record.files
        ):
            storage.put(manifests.record_path(record.part), record.to_json())
    # Last: without it nothing of all this counts.
    storage.put(PLAN_PATH, plan.to_json())


def extend_reopened(storage: Storage, again: Collection[int]) -> None:
    """Let a run that `reopen` made do more parts again: those that it only took."""
    text = storage.get(_REOPENED)
    if text is None:
        return  # a run that began with nothing
    known = set(json.loads(text))
    for number in {*again} - known:
        storage.remove(manifests.record_path(number))
    # Last: after a kill the rest is removed.
    storage.put(_REOPENED, canonical_json(sorted(known.union(again))))


def _is_whole(storage: Storage, record: PartRecord) -> bool:
    """Tell whether the part's files are there in full size; `verify` reads every byte of them."""
    return all(storage.size(storage.staged(file.path)) == file.bytes for file in record.files)


def discard_parts(storage: Storage, kept: Mapping[int, frozenset[str]]) -> None:
    """Remove all of the parts that are not ``kept``, so that they are made again."""
    for name in storage.names(RECORDS):
        number = int(name.partition(".")[0])
        if number not in kept:
            storage.remove(manifests.record_path(number))
    # Their files too: made again under another policy, a part may have fewer of them, and what
    # remained would be published with the rest of its directory.
    wanted: set[str] = set().union(*kept.values())
    for directory in {*storage.names(STATE)} - {*_NOT_STAGED}:
        for name in storage.names(storage.staged(directory)):
            if f"{directory}/{name}" not in wanted:
                storage.remove(storage.staged(f"{directory}/{name}"))
