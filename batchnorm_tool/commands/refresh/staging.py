"""A refresh on its way to a candidate, in steps that are each kept: a killed one goes on.

What is known of changed rows is reused, and the rest is scored: staged features travel the line of
every run to staged vectors, so that parts, commit records and resuming are those of `run`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.refresh.candidate import (
    CANDIDATE,
    REUSED,
    SCORED,
    Assembly,
    Candidate,
    StagedRows,
)
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.changes.result import BAD, CHANGED, TOUCHED, ChangeSet
from batchnorm_tool.commands.refresh.changes.source import Callbacks
from batchnorm_tool.commands.refresh.plan import ALLOWED, RefreshPlan
from batchnorm_tool.commands.refresh.record import PhaseTimings, now
from batchnorm_tool.commands.refresh.survey import Survey
from batchnorm_tool.commands.run.contracts import contract_of, find_canaries
from batchnorm_tool.commands.run.execute import execute
from batchnorm_tool.commands.run.run import result_warnings
from batchnorm_tool.contract import Canary, Contract
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BadRows, BatchnormToolError, Lines, WorkFailed
from batchnorm_tool.gate.findings import SHOWN_ROWS
from batchnorm_tool.gate.record import WAITING
from batchnorm_tool.inputs.row_hash import as_ids, bytes_of
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input, Job
from batchnorm_tool.models.batching import Predictor
from batchnorm_tool.pipeline.manifest import PartRecord, Totals, read_refusals, total
from batchnorm_tool.pipeline.output_schema import carried_schema
from batchnorm_tool.pipeline.output_state import RECORDS
from batchnorm_tool.pipeline.plan import PLAN_PATH, Plan, choose_part_rows, written_bytes
from batchnorm_tool.pipeline.repeats import Repeats
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord, stored_as
from batchnorm_tool.storage.files import fault_in
from batchnorm_tool.store.index import read_index
from batchnorm_tool.store.rows import NOWHERE, Addresses, addresses_of_hashes, at_addresses
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    STAGING,
    STAGING_PATH,
    STATUS,
    StoreDirectory,
    StorePointer,
    StoreSchema,
    contract_path,
    index_path,
    sample_path,
)


@dataclass(frozen=True)
class Attempt:
    """The last call that works on a refresh, and when the first one was ``started``."""

    run_id: str
    started: str


@dataclass
class Staging:
    """The unfinished refresh; whoever has it holds the store's lock."""

    state: StoreDirectory
    pointer: StorePointer
    plan: RefreshPlan
    attempt: Attempt
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
            found = self._find()
            # Nobody reads it where nothing is to be done, and it took a fiftieth of the time.
            if not self.is_unchanged(found):
                found.save(self.state.storage)
        return found

    def is_unchanged(self, difference: ChangeSet) -> bool:
        """Tell whether the live version is what this refresh would make."""
        before = self.pointer.layout
        return (
            self.pointer.live is not None
            and difference.counts.is_empty
            and not self.plan.recompute
            and before is not None
            and before.schema == self.plan.layout.schema
        )

    def _find(self) -> ChangeSet:
        detector = ChangeDetector.of(
            self.plan, self.pointer.live, self.state, callbacks=Callbacks(self.progress.advance)
        )
        with self.progress.work(detector.source.table.rows, 0):
            return detector.run()

    def candidate(self, staged: StagedRows, difference: ChangeSet) -> tuple[Candidate, Survey]:
        """Return the refresh made ready to be merged: scored and put together, once."""
        found = Candidate.load(self.state.storage)
        if found is not None:
            with self.timings.phase("gate"):
                return found, staged.surveyed(difference.counts)
        waits = self.state.record(self.pointer.waiting)
        if waits is not None:  # what is staged changes from here on
            self.state.put_record(replace(waits, files=()))
        with Assembly(staged, difference.counts) as assembly:
            self._reuse()
            with self.timings.phase("prediction"):
                totals = score(self.state, self.plan, difference, self.progress, assembly.take)
            with self.timings.phase("candidate"):
                return assembly.finish(totals, put_contract(staged, totals))

    def _reuse(self) -> None:
        """Unstage rows whose vectors the store has, before a run reads them."""
        if self.state.storage.names(SCORED):
            return
        with self.timings.phase("reuse"):
            for known in reusable_vectors(self.state, self.pointer, self.plan):
                reuse(self.state, self.plan, known)


@dataclass(frozen=True)
class StagedRefresh(SealedRecord):
    """What is staged; ``fingerprint`` is of all that its result depends on."""

    fingerprint: Annotated[str, stored_as("question")]
    plan: RefreshPlan
    attempt: Annotated[Attempt, stored_as("started")]


def begin(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan, progress: Progress, run_id: str
) -> Staging:
    """Go on with the very same refresh where it is staged; otherwise start over.

    A candidate of another refresh that waits is superseded: nothing of it stays but its record.
    """
    fingerprint = plan.staging_fingerprint(pointer)
    noted = read_staged(state)
    if noted is None or noted.fingerprint != fingerprint or staged_fault(state, pointer):
        pointer = discard_staged(state, pointer)
        noted = None
    attempt = Attempt(run_id, noted.attempt.started if noted else now())
    # The limits of its plan may be others.
    state.storage.put(STAGING_PATH, StagedRefresh(fingerprint, plan, attempt).to_json())
    return Staging(state, pointer, plan, attempt, progress)


def resume(state: StoreDirectory, pointer: StorePointer, progress: Progress) -> Staging | None:
    """Return the candidate that waits, as it was staged; its input is not needed any more."""
    noted = read_staged(state)
    if noted is None or pointer.waiting is None:
        return None
    return Staging(state, pointer, noted.plan, noted.attempt, progress)


def staged_fault(state: StoreDirectory, pointer: StorePointer) -> str | None:
    """Say what is wrong with what another call has staged; ``None`` where nothing is."""
    storage, record = state.storage, state.record(pointer.waiting)
    candidate, found = Candidate.load(storage), ChangeSet.load(storage)
    files = (candidate.files if candidate else ()) or (record.files if record else ())
    # The sample is made again before it is used.
    faults = (
        fault_in(storage.root, file, "record of it")[0]
        for file in files
        if file.path != sample_path(pointer.waiting or 0)
    )
    fault = next(filter(None, faults), None)
    if fault or candidate or not found:
        return fault
    if (record and record.norms) or storage.size(CANDIDATE) is not None:
        return f"`{CANDIDATE}` is missing or damaged."
    rows = found.counts
    expected = rows.for_the_model + rows.touched + rows.bad
    try:
        staged = sum(map(state.rows_in, (CHANGED, REUSED, TOUCHED, BAD)))
    except WorkFailed as error:
        return error.message
    missing = f"{expected - staged:,} of {expected:,} rows are missing."
    return missing if staged < expected else None


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
    """Remove what is staged; the record of a candidate that waited says so."""
    # Also the record of one that a kill kept from being given its number.
    for version in {pointer.waiting or 0, pointer.next_version}:
        record = state.record(version)
        if record is not None and record.state == WAITING:
            state.put_record(replace(record, state=outcome))
    # First: what is staged under a number must not be found under another one.
    state.storage.remove(STAGING)
    if pointer.waiting is not None:
        pointer = replace(pointer, waiting=None)
        state.put_pointer(pointer)
    state.discard_uncommitted(pointer)
    return pointer


@dataclass(frozen=True)
class ReusableVectors:
    """Vectors of the space that a version has.

    ``lance_version`` is Lance's number of it, and ``hashes`` yields feature hashes that it has,
    ``uint8[n, 16]`` each; some of their rows may have no good vector.
    """

    lance_version: int
    hashes: Iterable[np.ndarray]


def reusable_vectors(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan
) -> Iterator[ReusableVectors]:
    """Yield what versions of the space have: the live one, then older kept ones, newest first."""
    if pointer.live is not None and _fits(state, pointer.live, plan):
        index = read_index(state.storage, index_path(pointer.live), [FEATURE_HASH])
        hashes = (bytes_of(table[FEATURE_HASH]) for table in index)
        yield ReusableVectors(pointer.versions[pointer.live], hashes)
    # Each version notes the feature hashes of the rows that it replaced or removed; their vectors
    # lie in the version that it was built on.
    for version in sorted(pointer.versions, reverse=True):
        record = state.record(version)
        base = record.base if record else None
        if base is not None and base in pointer.versions and _fits(state, base, plan):
            yield ReusableVectors(pointer.versions[base], [state.replaced(version)])


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


def reuse(state: StoreDirectory, plan: RefreshPlan, known: ReusableVectors) -> None:
    """Unstage rows whose vectors are known; they are written with these vectors."""
    staged = [as_ids(bytes_of(table[FEATURE_HASH])) for table in state.read_directory(CHANGED)]
    if not staged:
        return
    wanted = IdLookup(np.concatenate(staged)).among(map(as_ids, known.hashes))
    if not len(wanted):
        return
    columns = plan.layout.stored(FEATURE_HASH, STATUS)
    addresses = addresses_of_hashes(state.path, known.lance_version, wanted, columns)
    for name in state.storage.names(CHANGED):
        _reuse_file(state, plan, (known.lance_version, addresses), name)


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
        # A vector of zeros may have been allowed then: what becomes of it now, the run decides.
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
    state: StoreDirectory,
    plan: RefreshPlan,
    difference: ChangeSet,
    progress: Progress,
    take: Callable[[int], None],
) -> Totals:
    """Predict and normalize what is staged, if anything is.

    ``take`` is called with the number of each part, in order, once it is committed.
    """
    if not state.rows_in(CHANGED):
        return Totals()
    place = Storage(state.storage.root / SCORED)
    model = plan.open_model()
    scoring = scoring_plan(state, plan, difference, model)
    before = Plan.from_json(place.get(PLAN_PATH))
    resumes = before if before is not None and before.files == scoring.files else None
    repeats = Repeats.of(_staged_hashes(state), scoring.rows)
    execute(scoring, place, lambda: model, progress, before=resumes, repeats=repeats, take=take)
    place.sync(RECORDS)  # a candidate may wait for days
    refused = list(read_refusals(place))
    if refused:
        raise BadRows(_broken_policy(refused, plan.job))
    totals = total(place, range(scoring.part_count))
    totals.warnings = result_warnings(scoring, totals)
    return totals


def put_contract(staged: StagedRows, totals: Totals) -> list[str]:
    """Write the contract of the version; canary rows stay while their vectors do.

    Returns:
        What a person should know of it.
    """
    state, plan, options = staged.state, staged.plan, staged.plan.job.contract
    contract = contract_of(plan.job, plan.resolved, plan.identity)
    known = map(state.contract, sorted(staged.pointer.versions, reverse=True))
    canaries = next(filter(None, (_canaries_of(text, contract) for text in known)), ())
    place = Storage(state.storage.root / SCORED)
    scoring = Plan.from_json(place.get(PLAN_PATH))
    warnings: list[str] = []
    if not canaries and scoring is not None:
        canaries = find_canaries(scoring, place, totals.statistics, warnings.append)
    kept = [each if options.keys else replace(each, key=None) for each in canaries]
    content = replace(contract, canaries=tuple(kept[: options.canaries])).to_bytes()
    state.storage.put(contract_path(staged.version), content)
    return warnings


def _canaries_of(text: bytes | None, contract: Contract) -> tuple[Canary, ...]:
    """Return the canary rows of another version, if they can stand in a contract."""
    if text is None:
        return ()
    try:
        other = Contract.from_bytes(text)
    except BatchnormToolError:  # `verify` tells; new ones are made
        return ()
    facts = ((one.space, one.features, one.outputs) for one in (other, contract))
    return other.canaries if next(facts) == next(facts) else ()


def _staged_hashes(state: StoreDirectory) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of a first row for the model, and feature hashes from there on."""
    for row, table in numbered(state.read_directory(CHANGED)):
        yield row, bytes_of(table[FEATURE_HASH])


def _broken_policy(refused: list[PartRecord], job: Job) -> str:
    """Name the rows by their keys: where they are staged is of no use to a reader."""
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


def scoring_plan(
    state: StoreDirectory, plan: RefreshPlan, difference: ChangeSet, model: Predictor
) -> Plan:
    """Return the plan by which the staged rows are scored: what is staged is its input."""
    job, layout, resolved = plan.job, plan.layout, plan.resolved
    columns = difference.features
    source = Input(
        path=str(state.storage.root / CHANGED),
        format="arrow",
        key=list(layout.keys),
        features={name: [column] for name, column in columns.items()},
        passthrough=[name for name in layout.staged.names if name not in layout.keys],
        invalid=job.input.invalid,
    )
    place = str(state.storage.root / SCORED)
    output = job.output.model_copy(update={"format": "arrow", "path": place})
    table = open_table(source)
    part_rows = resolved.part_rows
    if job.output.part_rows == "auto":
        written = written_bytes(resolved.layouts(job))
        part_rows = min(
            part_rows,
            choose_part_rows(
                resolved.batch_size, table.rows, rows_per_second=math.inf, bytes_per_row=written
            ),
        )
    return Plan(
        # Workers read the job from the plan: what is its store's would contradict such an input.
        job=job.model_copy(
            update={"input": source, "output": output, "store": None, "publish": []}
        ),
        files=table.files,
        resolved=replace(
            resolved,
            features={name: (column,) for name, column in columns.items()},
            carried=carried_schema(source, table.schema, table.rows),
            part_rows=part_rows,
            chunk_rows=min(resolved.chunk_rows, part_rows),
            # The choices may have been made on another machine.
            device=model.device,
            threads=model.threads,
        ),
        identity=plan.identity,
        options_fingerprint=plan.options_fingerprint,
        warnings=plan.warnings,
    )
