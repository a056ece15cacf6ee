"""The tool's search for nearest neighbours, of a base in memory.

Settings: ``input`` (NPY), ``output``, ``queries``, ``k``, ``norms``. The base is loaded first, and
stays as it is: the work is one pass over it for all norms.
"""

from __future__ import annotations

import numpy as np

from batchnorm_tool.comparison.neighbours import ArrayBase, Queries, nearest
from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.norms.norm import Norm
from benchmarks.contenders.neighbour_files import query_rows, save_neighbours
from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Search under all norms at once."""
    wanted = settings()
    base = np.load(wanted["input"])
    rows = query_rows(len(base), wanted["queries"])
    scores = {name: Score.of(Metric.DOT, Norm.parse(name)) for name in wanted["norms"]}
    with Stopwatch() as watch:
        queries = Queries.of(base[rows], rows)
        found = nearest(queries, ArrayBase(base), scores, wanted["k"])
    save_neighbours(found, wanted["output"])
    watch.say(base_bytes=base.nbytes)


if __name__ == "__main__":
    main()
