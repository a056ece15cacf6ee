"""What an output's normalization takes from all rows: a mean direction, and the scale of int8.

Both come out the same however the rows are split, and so do not depend on parts or threads.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Chunk, Field, Reason
from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import npy
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.job import Normalize
from batchnorm_tool.models.batching import Predictor
from batchnorm_tool.norms.normalization import DirectionSum, int8_scale, unit_direction
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline.output_schema import Fitted
from batchnorm_tool.pipeline.plan import Plan
from batchnorm_tool.pipeline.scored_chunk import kept_vectors, predict_rows
from batchnorm_tool.pipeline.worker import ChunkReader

_Measured = TypeVar("_Measured")
_Means = Mapping[str, tuple[float, ...]]


def read_means(normalize: Normalize) -> _Means:
    """Return the directions that files hold, by path, each of length 1."""
    return {path: _read_mean(path) for path in normalize.mean_paths}


def _read_mean(path: str) -> tuple[float, ...]:
    form = npy.Npy()
    found = form.inspect(path)
    received = f"shape {found.details['shape']} of {found.details['dtype']}"
    if pa.types.is_floating(found.schema.field(0).type) and found.rows:
        batches = form.read(path, (npy.COLUMN,), 0, found.rows, found.rows)
        vector = next(batches).column(0).to_numpy(zero_copy_only=False)
        if np.isfinite(vector).all() and vector.any():
            return unit_direction(vector)
        received = "NaN or infinity" if vector.any() else "zeros"
    raise InputError(
        f"`normalize.project_mean`: {path} is no direction. Expected: an array of one axis of "
        f"finite floats that are not all 0. Received: {received}. Save one with `numpy.save`, or "
        "set it to `fit`."
    )


def given(
    normalize: Normalize, outputs: Sequence[Field], means: _Means
) -> dict[str, Fitted] | None:
    """Return what is known of outputs before a row is read: the directions of files, if any."""
    asked = {each.name: normalize.options_for(each.name).project_mean or "" for each in outputs}
    return {name: Fitted(means[path]) for name, path in asked.items() if path in means} or None


def assumed_widths(normalize: Normalize, outputs: Sequence[str], means: _Means) -> dict[str, int]:
    """Return widths that fit what is kept of outputs whose own are not known yet."""
    options = {name: normalize.options_for(name) for name in outputs}
    return {
        name: each.truncate or len(means.get(each.project_mean or "", (0.0,)))
        for name, each in options.items()
    }


def fit(plan: Plan, predictor: Predictor, progress: Progress) -> dict[str, Fitted]:
    """Return what the outputs of a plan take from all rows, in one pass for each kind.

    Rows that are bad, and vectors that are zero or not finite, have no part in it.
    """
    names = [output.name for output in plan.resolved.outputs]
    options = {name: plan.job.normalize.options_for(name) for name in names}
    fitted = dict(plan.resolved.fitted or {})
    centered = [name for name in names if options[name].project_mean == "fit"]
    scaled = [name for name in names if options[name].dtype == "int8"]
    if centered:
        with progress.stage("fitting the mean direction"):
            sums = _Pass(plan, predictor, progress).over(
                centered, lambda _, kept: DirectionSum.of(kept), operator.add
            )
        fitted |= {name: Fitted(sums[name].mean() if sums else None) for name in centered}
    if scaled:
        plan = replace(plan, resolved=replace(plan.resolved, fitted=fitted))
        with progress.stage("fitting the scale of int8"):
            found = _Pass(plan, predictor, progress).over(
                scaled, lambda layout, kept: layout.normalization.largest(kept), max
            )
        for name in scaled:
            scale = int8_scale(found.get(name, 0.0))
            fitted[name] = replace(fitted.get(name, Fitted()), scale=scale)
    return dict(sorted(fitted.items()))


def is_fitted(normalize: Normalize) -> bool:
    """Tell whether anything is fitted over all rows."""
    return any(each.project_mean == "fit" or each.dtype == "int8" for each in normalize.all_options)


def missing_means(normalize: Normalize, fitted: Mapping[str, Fitted]) -> Iterator[str]:
    """Say of which outputs a mean direction was asked for, and there is none."""
    for name, found in fitted.items():
        if normalize.options_for(name).project_mean and found.mean is None:
            yield f"The vectors of `{name}` have no mean direction, so that none is projected off."


@dataclass(frozen=True)
class _Pass:
    """One pass over all rows of a plan, by threads that share the loaded model."""

    plan: Plan
    predictor: Predictor
    progress: Progress

    def over(
        self,
        names: Collection[str],
        measure: Callable[[OutputSpec, np.ndarray], _Measured],
        merge: Callable[[_Measured, _Measured], _Measured],
    ) -> dict[str, _Measured]:
        """Return what is measured of the vectors of some outputs; of no rows, nothing."""
        workers = self.plan.job.engine.workers
        model = self.predictor.with_batch_size(self.plan.resolved.batch_size)
        layouts = self.plan.resolved.layouts(self.plan.job)
        reader = ChunkReader(self.plan, carries=False)
        chosen = [layout for layout in layouts if layout.name in names]

        def both(one: list[_Measured], other: list[_Measured]) -> list[_Measured]:
            return [*map(merge, one, other)] if one and other else one or other

        def measured(_: Part, chunks: Iterator[Chunk]) -> list[_Measured]:
            found: list[_Measured] = []
            for chunk in chunks:
                raw, failing = predict_rows(model, layouts, chunk.features)
                failed = np.isin(np.arange(chunk.rows), [*failing])
                good = (chunk.faults == Reason.GOOD) & ~failed
                found = both(found, [measure(one, _kept(raw, one, good)) for one in chosen])
            return found

        threads = None if workers == "auto" else workers
        parts = map(self.plan.part, range(self.plan.part_count))
        done = reader.over(parts, measured, self.progress.advance, threads)
        with self.progress.work(self.plan.rows, 0), contextlib.closing(done):
            total = functools.reduce(both, done)
        return dict(zip([layout.name for layout in chosen], total, strict=bool(total)))


def _kept(raw: Mapping[str, np.ndarray], layout: OutputSpec, good: np.ndarray) -> np.ndarray:
    kept = kept_vectors(raw[layout.name], layout)
    return kept if good.all() else kept[np.repeat(good, layout.vectors)]
