"""The changed rows of a refresh through the model: what is known is reused, the rest is scored.

The rows travel the line of every run, from the staged features to staged vectors, so that parts,
commit records and resuming are those of `run`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.changes.worker import CHANGED
from batchnorm_tool.commands.refresh.plan import ALLOWED, RefreshPlan
from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BadRows, Lines, WorkFailed
from batchnorm_tool.inputs.row_hash import IdLookup, as_ids, bytes_of
from batchnorm_tool.job import Input, Job, Output
from batchnorm_tool.pipeline.manifest import read_refusals
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.rows import (
    NOWHERE,
    Addresses,
    addresses_of_hashes,
    at_addresses,
    read_directory,
    read_rows,
    write_rows,
)
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    PASSTHROUGH_HASH,
    STAGING,
    STATUS,
    StoreDirectory,
    StorePointer,
    StoreSchema,
    replaced_path,
)

REUSED = f"{STAGING}/reused"
SCORED = f"{STAGING}/scored"
_NAMED_ROWS = 5


@dataclass(frozen=True)
class ReusableVectors:
    """Where the vectors lie of rows that a kept version had, and the live one has no more.

    Attributes:
        lance_version: Lance's number of the version that has them.
        hashes: ``uint8[n, 16]``, their feature hashes.
    """

    lance_version: int
    hashes: np.ndarray


def reusable_vectors(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan
) -> list[ReusableVectors]:
    """Return vectors of the new space that only older kept versions have, newest first."""
    # Each version notes the feature hashes of the rows that it replaced or removed; their vectors
    # lie in the version that it was built on.
    found = []
    for version in sorted(pointer.versions, reverse=True):
        record = state.record(version)
        base = record.base if record else None
        if base is None or base not in pointer.versions or not _fits(state, base, plan):
            continue
        path = state.storage.root / replaced_path(version)
        if path.exists():
            hashes = np.load(path, allow_pickle=False)
            found.append(ReusableVectors(pointer.versions[base], hashes))
    return [each for each in found if len(each.hashes)]


def _fits(state: StoreDirectory, version: int, plan: RefreshPlan) -> bool:
    """Tell whether vectors of a version can stand among the new."""
    record = state.record(version)
    if record is None or record.space != plan.identity.space_id:
        return False
    if not _has_columns(record.basis.layout, plan.layout):
        return False
    return plan.store.on_new_bits == "keep" or record.bits == plan.identity.bits_id


def _has_columns(layout: StoreSchema, wanted: StoreSchema) -> bool:
    """Tell whether vectors and their bookkeeping lie in columns of the names that are wanted."""
    names = [(each.vector, each.norm, each.dtype, each.bookkeeping) for each in (layout, wanted)]
    return names[0] == names[1]


def reuse(state: StoreDirectory, plan: RefreshPlan, known: list[ReusableVectors]) -> None:
    """Unstage rows whose vectors are known; they are written with these vectors."""
    for each in known:
        places = IdLookup(as_ids(each.hashes))
        wanted = [
            hashes[places.find(as_ids(hashes)) >= 0]
            for table in read_directory(state.storage, CHANGED)
            for hashes in [bytes_of(table[FEATURE_HASH])]
        ]
        if not sum(map(len, wanted)):
            continue
        columns = plan.layout.stored(FEATURE_HASH, STATUS)
        hashes = np.concatenate(wanted)
        addresses = addresses_of_hashes(state.path, each.lance_version, hashes, columns)
        for name in state.storage.names(CHANGED):
            _reuse_file(state, plan, (each.lance_version, addresses), name)


def _reuse_file(
    state: StoreDirectory, plan: RefreshPlan, known: tuple[int, Addresses], name: str
) -> None:
    tables = list(read_rows(state.storage, f"{CHANGED}/{name}"))
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
    rows = plan.layout
    kept = [*rows.keys, *rows.passthrough, FEATURE_HASH, PASSTHROUGH_HASH]
    reused = staged.select(kept).filter(pa.array(hits))
    for column in (rows.vector, rows.norm):
        reused = reused.append_column(rows.schema.field(column), vectors[column])
    write_rows(state.storage, f"{REUSED}/{lance_version:06d}-{name}", reused.schema, [reused])
    rest = staged.filter(pa.array(~hits))
    write_rows(state.storage, f"{CHANGED}/{name}", staged.schema, [rest])


def _stored(path: str, lance_version: int, addresses: np.ndarray, layout: StoreSchema) -> pa.Table:
    """Return vectors and norms of the rows at some addresses of a version."""
    columns = [layout.vector, layout.norm]
    schema = pa.schema([layout.schema.field(name) for name in columns])
    tables = at_addresses(path, lance_version, addresses, columns)
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])


def score(
    state: StoreDirectory, plan: RefreshPlan, difference: ChangeSet, progress: Progress
) -> RunResult | None:
    """Predict and normalize what is staged; ``None`` where nothing is.

    Raises:
        BadRows: A row met the policy ``fail``.
        WorkFailed: Something failed half way; the same command resumes.
    """
    if not rows_in(state.storage, CHANGED):
        return None
    try:
        result = run(scoring_job(state, plan, difference), progress=progress)
    except BadRows as error:
        raise BadRows(_broken_policy(state.storage.root / SCORED, plan.job)) from error
    content = result.record.identity.space["model"]
    if content != plan.resolved.model_content:
        raise WorkFailed(
            "The model file changed during the refresh. Expected the "
            f"content {plan.resolved.model_content}. Received: {content}. Run the same command "
            "again."
        )
    return result


def _broken_policy(scored: Path, job: Job) -> str:
    """Name the rows by their keys: where they are staged is of no use to a reader."""
    refused = list(read_refusals(Storage(scored)))
    rows = [row for record in refused for row in record.first_bad_rows][:_NAMED_ROWS]
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


def rows_in(storage: Storage, directory: str) -> int:
    """Return rows in all files of a directory of the refresh."""
    return sum(table.num_rows for table in read_directory(storage, directory))


def scoring_job(state: StoreDirectory, plan: RefreshPlan, difference: ChangeSet) -> Job:
    """Return the run that scores the staged rows with the job's model and norm."""
    rows, job, root = plan.layout, plan.job, state.storage.root
    source = Input(
        path=str(root / CHANGED),
        format="arrow",
        key=list(rows.keys),
        features={name: [column] for name, column in difference.features.items()},
        passthrough=[*rows.passthrough, FEATURE_HASH, PASSTHROUGH_HASH],
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
