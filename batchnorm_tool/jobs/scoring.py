"""Run a job: plan it, let an engine work through its parts, publish the result."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool import chunk_statistics, standing
from batchnorm_tool.canonical import canonical_json
from batchnorm_tool.engines import open_engine
from batchnorm_tool.errors import JobError, WorkFailed
from batchnorm_tool.formats import let_go
from batchnorm_tool.formats.parquet import check_storable
from batchnorm_tool.job import STAGED_OUTPUT
from batchnorm_tool.jobs.preparing import Preparation
from batchnorm_tool.jobs.profiling import Profile
from batchnorm_tool.jobs.settling import settle
from batchnorm_tool.layout import output_layouts
from batchnorm_tool.manifest import MANIFEST_PATH, REFUSED, SUCCESS_PATH, Totals, build_manifest
from batchnorm_tool.plan import PLAN_PATH, Plan
from batchnorm_tool.progress import Progress, Quiet
from batchnorm_tool.sources.sampling import check_all_rows
from batchnorm_tool.storage import TEMPORARY, Storage, open_storage
from batchnorm_tool.worker_opening import make_worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchnorm_tool.engines import Engine
    from batchnorm_tool.job import Job
    from batchnorm_tool.pipeline import Worker
    from batchnorm_tool.plan import Resolved


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        path: The output directory.
        manifest: The manifest of the finished run, as plain data.
        nothing_to_do: Whether the very same result stood there already.
        parts_kept: Parts that an earlier attempt had finished.
        rows_done: Rows that were worked on this time.
        seconds: Wall time of the work, without imports, planning and loading the model.
        profile: Where that time went; ``None`` where there was nothing to work on.
    """

    path: str
    manifest: Mapping[str, Any] = field(repr=False)
    nothing_to_do: bool = False
    parts_kept: int = 0
    rows_done: int = 0
    seconds: float = 0.0
    profile: Profile | None = field(default=None, repr=False)

    @property
    def rows(self) -> Mapping[str, int]:
        """Rows ``in``, ``out``, ``bad``, ``zero``, ``nullified``, ``dropped``, ``quarantined``."""
        counts: Mapping[str, int] = self.manifest["rows"]
        return counts

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of this result."""
        return tuple(self.manifest["warnings"])


@dataclass(frozen=True)
class RunOptions:
    """How a job is run, which changes nothing of what comes out.

    Attributes:
        fresh: Replace whatever result stands in the output; readers keep it until then.
        limit: Only the first so many rows, for a first try; ``None`` for all.
        progress: Who is told how far the work is.
    """

    fresh: bool = False
    limit: int | None = None
    progress: Progress = field(default_factory=Quiet)


def run(  # noqa: PLR0913  (each is a flag of the command)
    job: Job,
    *,
    fresh: bool = False,
    limit: int | None = None,
    wait_seconds: float = 0.0,
    check_input: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Score a table with a model and write unit vectors beside their norms and statistics.

    Without ``job.model`` the predictions are stored already, and are only normalized. The same call
    after a crash, a kill or an error goes on where the last one stopped; once finished, it does
    nothing.

    Args:
        job: What to do.
        fresh: Replace whatever result stands in the output; readers keep it until then.
        limit: Only the first so many rows, for a first try; ``None`` for all.
        wait_seconds: How long to wait while another run holds the output.
        check_input: Read all of the input first, so that a damaged file is found before anything is
            written.
        progress: Who is told how far the work is; nobody by default.

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
    if not hasattr(job, "output"):
        msg = f"`run` takes a Job. Received: {job!r}. Read a job file with `Job.load(path)`."
        raise JobError(msg)
    _check_output(job)
    if limit is not None and limit < 1:
        msg = f"`limit` must be a number of rows above 0, or None. Received: {limit}."
        raise JobError(msg)
    options = RunOptions(fresh, limit, progress or Quiet())
    preparation = Preparation(job, limit)
    if check_input:
        check_all_rows(preparation.table)
    storage = open_storage(job.output.path)
    try:
        with storage.lock(wait_seconds):
            return _run_locked(preparation, storage, options)
    finally:
        let_go()  # a notebook or a scheduler lives on, and deletes the files that were read


def _check_output(job: Job) -> None:
    if job.store is not None and job.output.path == job.store.path.rstrip("/") + STAGED_OUTPUT:
        msg = (
            "`output.path` is missing: this job has a store, which `batchnorm-tool refresh` keeps. "
            "Run that, or name a directory in `output.path`."
        )
        raise JobError(msg)


def plan_run(job: Job, *, limit: int | None = None) -> Plan:
    """The plan that `run` would follow, without writing anything: a dry run.

    Args:
        job: What to do.
        limit: Only the first so many rows; ``None`` for all.

    Raises:
        Refused: The job cannot be done as asked.
    """
    _check_output(job)
    return _planned(Preparation(job, limit))


def _planned(preparation: Preparation, choices: Resolved | None = None) -> Plan:
    plan = preparation.plan(choices)
    if plan.job.output.format != "arrow":
        check_storable(plan.resolved.carried)
    return plan


def _run_locked(preparation: Preparation, storage: Storage, options: RunOptions) -> RunResult:
    path = preparation.job.output.path
    there = standing.look(storage, path, fresh=options.fresh)
    plan = _planned(preparation, there.choices(preparation.request))
    if there.manifest and standing.is_finished(there, plan) and not options.fresh:
        if there.plan is None or there.plan.identity == plan.identity:
            standing.discard_state(storage)  # what a kill left after the last step
        return RunResult(path, there.manifest.data, nothing_to_do=True)
    resumes = standing.check_may_begin(there, plan, fresh=options.fresh)
    kept = _begin(storage, plan, there.plan if resumes else None)
    numbers = [number for number in range(plan.part_count) if number not in kept]
    worker = _worker(preparation, storage, plan) if numbers else None
    with open_engine(plan, len(numbers)) as engine:
        started = time.perf_counter()
        rows_done = _work(engine, worker, numbers, options.progress) if worker else 0
        workers = engine.workers
    totals = settle(storage, plan)
    manifest = _publish(storage, plan, totals, there)
    seconds = time.perf_counter() - started
    return RunResult(
        path,
        manifest,
        parts_kept=len(kept),
        rows_done=rows_done,
        seconds=seconds,
        profile=Profile.of(seconds, workers, worker.clock.totals()) if worker else None,
    )


def _begin(storage: Storage, plan: Plan, before: Plan | None) -> set[int]:
    """Make the state ready for ``plan``; returns the parts that need not be done again."""
    kept: dict[int, frozenset[str]] = {}
    if before is None:
        standing.discard_state(storage)
    else:
        kept = standing.kept_parts(storage, before, plan)
        standing.forget_parts(storage, kept)
        storage.remove(REFUSED)
        storage.remove(TEMPORARY)
    storage.put(PLAN_PATH, plan.to_json())
    return set(kept)


def _worker(preparation: Preparation, storage: Storage, plan: Plan) -> Worker:
    return make_worker(storage, plan, preparation.predictor())


def _work(engine: Engine, worker: Worker, numbers: list[int], progress: Progress) -> int:
    """Let the engine do the parts with these ``numbers``; returns their rows."""
    plan = worker.plan
    rows = sum(plan.part(number).rows for number in numbers)
    with (
        progress.work(plan.rows, plan.rows - rows),
        contextlib.closing(engine.run(worker, numbers, progress.advance)) as done,
    ):
        finished = sum(1 for _ in done)
    if finished != len(numbers):
        msg = f"The engine finished {finished} of {len(numbers)} parts. Run it again: it resumes."
        raise WorkFailed(msg)
    return rows


def _publish(
    storage: Storage, plan: Plan, totals: Totals, before: standing.Standing
) -> dict[str, Any]:
    """Stage the manifest and the chunk statistics, then make everything visible."""
    layouts = output_layouts(plan.job, plan.resolved.outputs)
    totals.files.append(chunk_statistics.gather(storage, range(plan.part_count)))
    manifest = build_manifest(plan, totals, layouts, _warnings(plan, totals))
    storage.put(storage.staged(MANIFEST_PATH), canonical_json(manifest))
    storage.put(storage.staged(SUCCESS_PATH), (manifest["checksum"] + "\n").encode())
    paths = [file["path"] for part in totals.parts for file in part["files"]]
    directories = _top_level([*paths, chunk_statistics.CHUNKS_PATH])
    storage.begin_publish(directories, sorted(before.directories - set(directories)))
    standing.complete(storage)
    return manifest


def _top_level(paths: list[str]) -> list[str]:
    return sorted({path.partition("/")[0] for path in paths})


def _warnings(plan: Plan, totals: Totals) -> list[str]:
    """What was found while planning, and what the statistics show."""
    found = list(plan.warnings)
    for name, stats in totals.statistics.items():
        lengths = stats.norms["l2"]
        if lengths.count and lengths.max is not None and _is_unit(lengths.min, lengths.max):
            found.append(
                f"The predictions of `{name}` are of unit length already (L2): the norms say "
                "nothing, and the model normalizes by itself."
            )
    return found


def _is_unit(least: float | None, most: float) -> bool:
    # Unit vectors in float32 stay within a few units in the last place of 1; in float16, 1e-3.
    tolerance = 1e-3
    return least is not None and abs(least - 1) < tolerance and abs(most - 1) < tolerance
