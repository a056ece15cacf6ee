"""A refresh on its way to a candidate, in steps that are each kept: a killed one goes on.

What is known of changed rows is reused, and the rest is scored: staged features travel the line of
every run to staged vectors, so that parts, commit records and resuming are those of `run`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.refresh.candidate import REUSED, SCORED, Candidate, StagedRows
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.changes.result import CHANGED, ChangeSet
from batchnorm_tool.commands.refresh.changes.source import Callbacks
from batchnorm_tool.commands.refresh.plan import ALLOWED, RefreshPlan
from batchnorm_tool.commands.refresh.record import PhaseTimings, now
from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BadRows, Lines, WorkFailed
from batchnorm_tool.gate.findings import SHOWN_ROWS
from batchnorm_tool.gate.record import WAITING
from batchnorm_tool.inputs.row_hash import as_ids, bytes_of
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.job import Input, Job, Output
from batchnorm_tool.pipeline.manifest import read_refusals
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord, stored_as
from batchnorm_tool.store.rows import NOWHERE, Addresses, addresses_of_hashes, at_addresses
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    STAGING,
    STAGING_PATH,
    STATUS,
    StoreDirectory,
    StorePointer,
    StoreSchema,
    index_path,
)


@dataclass
class Staging:
    """The unfinished refresh; whoever has it holds the store's lock.

    ``started`` has its ``run_id``, and when it was ``started``.
    """

    state: StoreDirectory
    pointer: StorePointer
    plan: RefreshPlan
    started: dict[str, str]
    progress: Progress
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
        source = self.plan.source
        with self.progress.work(source.table.rows, 0):
            return ChangeDetector(
                source,
                index,
                self.state.storage,
                recompute=self.plan.recompute,
                again=self.plan.judged_again,
                callbacks=Callbacks(self.progress.advance),
            ).run()

    def candidate(self, difference: ChangeSet) -> Candidate:
        """Return the refresh made ready to be merged: scored and put together, once."""
        found = Candidate.load(self.state.storage)
        if found is not None:
            return found
        self._reuse()
        with self.timings.phase("prediction"):
            result = score(self.state, self.plan, difference, self.progress)
        with self.timings.phase("candidate"):
            return Candidate.make(self.rows(difference), difference, result)

    def _reuse(self) -> None:
        """Unstage rows whose vectors an older version has, before a run reads them."""
        recomputes_bits = self.plan.recompute and not self.plan.new_space
        if recomputes_bits or self.state.storage.names(SCORED):
            return
        known = reusable_vectors(self.state, self.pointer, self.plan)
        if known and self.state.rows_in(CHANGED):
            with self.timings.phase("reuse"):
                reuse(self.state, self.plan, known)


@dataclass(frozen=True)
class StagedRefresh(SealedRecord):
    """What is staged; ``fingerprint`` is of all that its result depends on."""

    fingerprint: Annotated[str, stored_as("question")]
    plan: RefreshPlan
    started: dict[str, str]


def begin(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan, progress: Progress, run_id: str
) -> Staging:
    """Go on with the very same refresh where it is staged; otherwise start over.

    A candidate of another refresh that waits is superseded: nothing of it stays but its record.
    """
    fingerprint = plan.staging_fingerprint(pointer)
    noted = read_staged(state)
    if noted is None or noted.fingerprint != fingerprint:
        pointer = discard_staged(state, pointer)
        noted = None
    started = {"started": noted.started["started"] if noted else now(), "run_id": run_id}
    # The limits of its plan may be others.
    state.storage.put(STAGING_PATH, StagedRefresh(fingerprint, plan, started).to_json())
    return Staging(state, pointer, plan, started, progress)


def resume(state: StoreDirectory, pointer: StorePointer, progress: Progress) -> Staging | None:
    """Return the candidate that waits, as it was staged; its input is not needed any more."""
    noted = read_staged(state)
    if noted is None or pointer.waiting is None:
        return None
    return Staging(state, pointer, noted.plan, noted.started, progress)


def read_staged(state: StoreDirectory) -> StagedRefresh | None:
    """Return what is staged; ``None`` where nothing is."""
    return StagedRefresh.from_json(state.storage.get(STAGING_PATH))


def staged_plan(state: StoreDirectory) -> RefreshPlan | None:
    """Return the plan of the refresh that is staged; ``None`` where nothing is."""
    noted = read_staged(state)
    return None if noted is None else noted.plan


def discard_staged(
    state: StoreDirectory,
    pointer: StorePointer,
    outcome: Literal["superseded", "discarded"] = "superseded",
) -> StorePointer:
    """Let go what is staged; the record of a candidate that waited says so."""
    # Also the record of one that a kill kept from being given its number.
    for version in {pointer.waiting or 0, pointer.next_version}:
        record = state.record(version)
        if record is not None and record.state == WAITING:
            state.put_record(record.never_published(outcome))
    # First: what is staged under a number must not be found under another one.
    state.storage.remove(STAGING)
    if pointer.waiting is not None:
        pointer = pointer.with_changes(waiting=None)
        state.put_pointer(pointer)
    state.discard_uncommitted(pointer)
    return pointer


def reusable_vectors(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan
) -> list[tuple[int, np.ndarray]]:
    """Return which vectors of the new space only older kept versions have, newest first.

    That is, of each version, its number in Lance, and the rows' feature hashes ``uint8[n, 16]``.
    """
    # Each version notes the feature hashes of the rows that it replaced or removed; their vectors
    # lie in the version that it was built on.
    found = []
    for version in sorted(pointer.versions, reverse=True):
        record = state.record(version)
        base = record.base if record else None
        if base is None or base not in pointer.versions or not _fits(state, base, plan):
            continue
        found.append((pointer.versions[base], state.replaced(version)))
    return [(lance_version, hashes) for lance_version, hashes in found if len(hashes)]


def _fits(state: StoreDirectory, version: int, plan: RefreshPlan) -> bool:
    """Tell whether vectors of a version can stand among the new."""
    record = state.record(version)
    if record is None or record.space != plan.identity.space_id:
        return False
    theirs, ours = (
        (each.vector, each.norm, each.dtype, each.bookkeeping)
        for each in (record.basis.layout, plan.layout)
    )
    return theirs == ours and (
        plan.store.on_new_bits == "keep" or record.bits == plan.identity.bits_id
    )


def reuse(state: StoreDirectory, plan: RefreshPlan, known: list[tuple[int, np.ndarray]]) -> None:
    """Unstage rows whose vectors are known; they are written with these vectors."""
    for lance_version, old in known:
        places = IdLookup(as_ids(old))
        found = (bytes_of(table[FEATURE_HASH]) for table in state.read_directory(CHANGED))
        wanted = [hashes[places.find(as_ids(hashes)) >= 0] for hashes in found]
        if not sum(map(len, wanted)):
            continue
        columns = plan.layout.stored(FEATURE_HASH, STATUS)
        hashes = np.concatenate(wanted)
        addresses = addresses_of_hashes(state.path, lance_version, hashes, columns)
        for name in state.storage.names(CHANGED):
            _reuse_file(state, plan, (lance_version, addresses), name)


def _reuse_file(
    state: StoreDirectory, plan: RefreshPlan, known: tuple[int, Addresses], name: str
) -> None:
    tables = list(state.read_rows(f"{CHANGED}/{name}"))
    if not tables:  # a newer version had all of its rows
        return
    staged = pa.concat_tables(tables)
    lance_version, addresses = known
    found = addresses.find(as_ids(bytes_of(staged[FEATURE_HASH])))
    hits = found != NOWHERE
    if not hits.any():
        return
    vectors = _stored(state.path, lance_version, found[hits], plan.layout)
    if plan.job.normalize.zero != "keep":
        # A vector of zeros may have been welcome then: what becomes of it now, the run decides.
        fit = vectors[plan.layout.norm].to_numpy() != 0
        hits[hits], vectors = fit, vectors.filter(pa.array(fit))
    reused = staged.select(plan.layout.staged.names).filter(pa.array(hits))
    for column in vectors.schema:
        reused = reused.append_column(column, vectors[column.name])
    state.write_rows(f"{REUSED}/{lance_version:06d}-{name}", reused.schema, [reused])
    state.write_rows(f"{CHANGED}/{name}", staged.schema, [staged.filter(pa.array(~hits))])


def _stored(path: str, lance_version: int, addresses: np.ndarray, layout: StoreSchema) -> pa.Table:
    """Return vectors and norms of the rows at some addresses of a version."""
    columns = [layout.vector, layout.norm]
    schema = pa.schema([layout.schema.field(name) for name in columns])
    tables = at_addresses(path, lance_version, addresses, columns)
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])


def score(
    state: StoreDirectory, plan: RefreshPlan, difference: ChangeSet, progress: Progress
) -> RunResult | None:
    """Predict and normalize what is staged; ``None`` where nothing is."""
    if not state.rows_in(CHANGED):
        return None
    try:
        result = run(scoring_job(state, plan, difference), progress=progress)
    except BadRows as error:
        raise BadRows(_broken_policy(Storage(state.storage.root / SCORED), plan.job)) from error
    content = result.record.identity.space["model"]
    if content != plan.resolved.model_content:
        raise WorkFailed(
            "The model file changed during the refresh. Expected the "
            f"content {plan.resolved.model_content}. Received: {content}. Run the same command "
            "again."
        )
    return result


def _broken_policy(scored: Storage, job: Job) -> str:
    """Name the rows by their keys: where they are staged is of no use to a reader."""
    refused = list(read_refusals(scored))
    rows = [row for record in refused for row in record.first_bad_rows][:SHOWN_ROWS]
    choices = [
        f"set `{section}.{key}` to {' or '.join(policy for policy in policies if policy != 'fail')}"
        for (section, key), policies in ALLOWED.items()
        if getattr(getattr(job, section), key) == "fail"
    ]
    return Lines(
        f"{plural(sum(record.counts.failed for record in refused), 'row')} broke a row policy; "
        "nothing was published. The first are:",
        *(f"  key {row.key}: {row.reason}" for row in rows),
        f"Fix the input, or {'; or '.join(choices)}.",
    )


def scoring_job(state: StoreDirectory, plan: RefreshPlan, difference: ChangeSet) -> Job:
    """Return the run that scores the staged rows with the job's model and norm."""
    layout, job, root = plan.layout, plan.job, state.storage.root
    source = Input(
        path=str(root / CHANGED),
        format="arrow",
        key=list(layout.keys),
        features={name: [column] for name, column in difference.features.items()},
        passthrough=[name for name in layout.staged.names if name not in layout.keys],
        invalid=job.input.invalid,
    )
    output = Output(
        path=str(root / SCORED),
        dtype=job.output.dtype,
        columns=job.output.columns,
        part_rows=job.output.part_rows,
    )
    model = job.model
    if model is not None:
        model = model.model_copy(update={"batch_size": plan.resolved.batch_size})
    # Bad rows are the gate's to judge, beside all the others.
    normalize = job.normalize.model_copy(update={"max_bad_fraction": 1.0})
    return Job(input=source, model=model, normalize=normalize, output=output, engine=job.engine)
