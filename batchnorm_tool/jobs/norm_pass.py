"""The first pass over the base of a comparison: all norms, and rows picked up by the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.comparison.norm_survey import NormSurvey, measured, norms_to_measure
from batchnorm_tool.jobs.neighbour_overlap import evenly_spread
from batchnorm_tool.machine import available_cores

if TYPE_CHECKING:
    from batchnorm_tool.jobs.comparison_queries import Asking
    from batchnorm_tool.jobs.pairing import Sample
    from batchnorm_tool.norms import Float64s, Norm
    from batchnorm_tool.predictions import PredictionBatch

# Ranks of more rows than that tell no more: their correlation is known to 0.002.
RANKED_ROWS = 262_144


@dataclass(frozen=True)
class FirstPass:
    """What the first pass over the base brings.

    Attributes:
        survey: Norms of all rows.
        probe: Rows spread evenly, by which the search begins.
        lengths: Norms of single rows by label: of all rows where all are wanted, else of some.
    """

    survey: NormSurvey
    probe: Sample
    lengths: Mapping[str, Float64s]


def first_pass(
    asking: Asking, asked: Sample, compared: Sequence[Norm], *, all_lengths: bool
) -> FirstPass:
    """Measure all rows of the base once; reading goes on meanwhile.

    Args:
        asking: The base, and where queries come from.
        asked: The queries; picked up here, where they are rows of the base.
        compared: Norms that are compared; L1, L2 and max are measured in any case.
        all_lengths: Whether the norms of every row are wanted, 8 bytes each.
    """
    base = asking.base
    norms = norms_to_measure(compared)
    samples = [evenly_spread(base), *([asked] if asking.is_base else [])]
    step = 1 if all_lengths else max(1, -(-base.rows // RANKED_ROWS))

    def measure(batch: PredictionBatch) -> tuple[NormSurvey, dict[str, Float64s]]:
        lengths = measured(batch.vectors, norms)
        for sample in samples:
            sample.add(batch)
        some = slice(-batch.first_row % step, None, step)
        return NormSurvey.of(lengths, batch.missing), {
            label: values[some].copy() for label, values in lengths.items()
        }

    nothing = measured(np.empty((0, base.width)), norms)
    survey = NormSurvey.of(nothing, np.zeros(0, bool))
    lengths = {label: [values] for label, values in nothing.items()}
    for found, some in _in_threads(measure, base.batches()):
        survey += found
        for label, values in some.items():
            lengths[label].append(values)
    joined = {label: np.concatenate(values) for label, values in lengths.items()}
    return FirstPass(survey, samples[0], joined)


def _in_threads(
    act: Callable[[PredictionBatch], Any], batches: Iterator[PredictionBatch]
) -> Iterator[Any]:
    """What ``act`` makes of each batch, in order; reading goes on meanwhile."""
    threads = available_cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="norms") as pool:
        under_way: deque[Future[Any]] = deque()
        for batch in batches:
            under_way.append(pool.submit(act, batch))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        for each in under_way:
            yield each.result()
