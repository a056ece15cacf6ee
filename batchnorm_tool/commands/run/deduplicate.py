"""Rows of a run that have the same features, found before the work so that it does each once."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from batchnorm_tool.chunk import Chunk
from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.inputs.row_hash import feature_hashes
from batchnorm_tool.pipeline.plan import Plan
from batchnorm_tool.pipeline.repeats import Repeats
from batchnorm_tool.pipeline.worker import ChunkReader
from batchnorm_tool.storage import Storage

_NO_EFFECT = "`input.deduplicate` has no effect"


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
