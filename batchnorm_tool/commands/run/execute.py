"""Execute a plan in a storage: an engine works through its parts until each is committed there.

Before, rows with the same features are found, so that it predicts each kind once.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from batchnorm_tool.chunk import Chunk
from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.display import plural
from batchnorm_tool.engines import RunningEngine, open_engine
from batchnorm_tool.errors import WorkFailed
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.inputs.row_hash import feature_hashes
from batchnorm_tool.models.batching import Predictor
from batchnorm_tool.pipeline import manifest as manifests
from batchnorm_tool.pipeline import output_state
from batchnorm_tool.pipeline.plan import PLAN_PATH, Plan
from batchnorm_tool.pipeline.repeats import REPEATS_PATH, Repeats
from batchnorm_tool.pipeline.timing import Profile
from batchnorm_tool.pipeline.worker import ChunkReader, Worker, make_worker
from batchnorm_tool.storage import TEMPORARY, Storage

_NO_EFFECT = "`input.deduplicate` has no effect"


@dataclass(frozen=True)
class Executed:
    """What it took to commit all parts of a plan.

    Attributes:
        parts_kept: Parts that an earlier attempt had finished.
        rows_done: Rows that were worked on this time.
        seconds: Wall time of the work, without loading the model.
        profile: Where that time went; ``None`` where there was nothing to work on.
    """

    parts_kept: int
    rows_done: int
    seconds: float
    profile: Profile | None = field(repr=False)


def execute(  # noqa: PLR0913  (what, where, with what, who hears of it)
    plan: Plan,
    storage: Storage,
    open_model: Callable[[], Predictor],
    progress: Progress,
    *,
    before: Plan | None = None,
    repeats: Repeats | None = None,
    take: Callable[[int], None] = lambda _: None,
) -> Executed:
    """Do all parts of a plan that are not done, so that each lies in ``_state`` with its record.

    Args:
        plan: What to do; it is written into the storage first.
        storage: Where to; whoever calls this holds its lock.
        open_model: Returns the model, loaded; not called where every part is done.
        progress: Receives how far the work is.
        before: The plan of an earlier attempt whose finished parts may stay; ``None`` starts over.
        repeats: Which rows of the plan have the same features, so that these are predicted once,
            and counted; each process predicts them for itself.
        take: Called with the number of each committed part, in order, while others are worked on.
    """
    storage.remove(REPEATS_PATH)  # first: they are found for one plan
    kept = _begin(storage, plan, before)
    if repeats is not None:  # read by workers in other processes
        storage.put(REPEATS_PATH, repeats.to_bytes())
    numbers = [number for number in range(plan.part_count) if number not in kept]
    worker = make_worker(storage, plan, open_model(), repeats) if numbers else None
    with contextlib.ExitStack() as stack:
        with progress.stage("starting the workers"):
            engine = stack.enter_context(open_engine(plan, len(numbers)))
        started = time.perf_counter()
        with contextlib.closing(_work(engine, worker, numbers, progress)) as done:
            for number in _in_order(kept, done):
                # A part that breaks a policy is done too, and has nothing to be taken.
                if storage.size(manifests.record_path(number)) is not None:
                    take(number)
        seconds, workers = time.perf_counter() - started, engine.workers
    return Executed(
        parts_kept=len(kept),
        rows_done=sum(plan.part(number).rows for number in numbers),
        seconds=seconds,
        profile=Profile.of(seconds, workers, worker.timings.totals()) if worker else None,
    )


def _begin(storage: Storage, plan: Plan, before: Plan | None) -> set[int]:
    """Make the state ready for ``plan``; returns the parts that need not be done again."""
    kept: dict[int, frozenset[str]] = {}
    if before is None:
        output_state.discard_state(storage)
    else:
        kept = output_state.kept_parts(storage, before, plan)
        output_state.discard_parts(storage, kept)
        storage.remove(manifests.REFUSED)
        storage.remove(TEMPORARY)
    storage.put(PLAN_PATH, plan.to_json())
    return set(kept)


def _work(
    engine: RunningEngine, worker: Worker | None, numbers: list[int], progress: Progress
) -> Generator[int, None, None]:
    """Let the engine do the parts with these ``numbers``; yields each that is done."""
    if worker is None:
        return
    plan, finished = worker.plan, 0
    rows = sum(plan.part(number).rows for number in numbers)
    with (
        progress.work(plan.rows, plan.rows - rows),
        contextlib.closing(engine.run(worker, numbers, progress.advance)) as done,
    ):
        for number in done:
            finished += 1
            yield number
    if finished != len(numbers):
        raise WorkFailed(
            f"The engine finished {finished:,} of {plural(len(numbers), 'part')}. Run again to "
            "resume."
        )


def _in_order(kept: Collection[int], done: Iterable[int]) -> Iterator[int]:
    """Yield 0, 1 and so on, each as soon as it is finished; ``done`` brings more of them."""
    finished, following = {*kept}, 0
    for number in itertools.chain([None], done):  # first those that are finished already
        if number is not None:
            finished.add(number)
        while following in finished:
            yield following
            following += 1


def deduplicate(
    preparation: Preparation, plan: Plan, before: Plan | None, storage: Storage, progress: Progress
) -> tuple[Plan, Repeats | None, float]:
    """Return which rows of a plan have the same features, where the job asks for that.

    The plan gets a warning where every row has to be predicted all the same. What the attempt
    ``before`` found stays. The last are seconds that it took, without loading the model.
    """
    if not plan.job.input.deduplicate:
        return plan, None, 0.0
    found = Repeats.stored(storage)
    # The input and the model are the same, or nothing would be resumed.
    if found and before and before.identity.bits == plan.identity.bits:
        said = (warning for warning in before.warnings if warning.startswith(_NO_EFFECT))
        return replace(plan, warnings=(*plan.warnings, *said)), found, 0.0
    preparation.predictor()
    started = time.perf_counter()
    hindrance = _hindrance(preparation, plan)
    if hindrance is not None:
        plan, found = replace(plan, warnings=(*plan.warnings, hindrance)), Repeats.none()
    else:
        found = _find(plan, progress)
    return plan, found, time.perf_counter() - started


def _hindrance(preparation: Preparation, plan: Plan) -> str | None:
    """Say why the vectors would not be the same bytes if some rows were not predicted."""
    size = plan.resolved.batch_size
    model = plan.job.model
    if model is not None and model.batch_dependent == "accept":
        return (
            f"{_NO_EFFECT} with `model.batch_dependent: accept`: a prediction may "
            "depend on the other rows of its batch, so every row is predicted."
        )
    independent = preparation.independent_batch_size(plan.resolved, (size, size * 3 // 4))
    if independent == size:
        return None
    advice = (
        "A `model.batch_size` that is a multiple of 48 usually avoids this."
        if independent is None
        else f"Set `model.batch_size: {independent}` to avoid this."
    )
    return (
        f"{_NO_EFFECT}: with a batch size of {size:,} the low-order bits of a prediction "
        "depend on the row's position in its batch, so every row is predicted. "
        f"{advice}"
    )


def _find(plan: Plan, progress: Progress) -> Repeats:
    """Hash the features of all rows, on all cores, and find those that repeat."""

    def hashes(_: Part, chunks: Iterator[Chunk]) -> np.ndarray:
        found = (feature_hashes(chunk.features, chunk.faults) for chunk in chunks)
        return np.concatenate([np.empty((0, 16), np.uint8), *found])

    parts = map(plan.part, range(plan.part_count))
    read = ChunkReader(plan, carries=False).over(parts, hashes, progress.advance)
    with progress.work(plan.rows, 0), contextlib.closing(read):
        blocks = ((plan.part(number).first_row, block) for number, block in enumerate(read))
        return Repeats.of(blocks, plan.rows)
