"""A search for neighbours under several norms, by the label of each."""

from collections.abc import Sequence

import numpy as np

from batchnorm_tool.comparison.neighbours import Base, Queries, nearest
from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.norms.norm import Norm


def neighbours(
    queries: Queries, base: Base, norms: Sequence[Norm], metric: Metric, k: int
) -> dict[str, np.ndarray]:
    return nearest(queries, base, {norm.label: Score.of(metric, norm) for norm in norms}, k)
