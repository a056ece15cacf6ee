"""The tool's first pass over stored predictions: the norms of all rows, and their statistics.

Settings: ``input``, ``queries``, ``norms``. The pass is that of `batchnorm_tool.compare` whole: it
also picks up the queries, the rows by which the search for neighbours begins, and the norms of
262,144 rows for the rank correlations.
"""

from __future__ import annotations

from batchnorm_tool.commands.compare.compare import first_pass
from batchnorm_tool.commands.compare.queries import QuerySet
from batchnorm_tool.commands.compare.sets import Sample
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.readers.vectors import open_predictions
from benchmarks.contenders.neighbour_files import query_rows
from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Open the predictions, and measure all of their norms."""
    wanted = settings()
    norms = tuple(Norm.parse(name) for name in wanted["norms"])
    with Stopwatch() as watch:
        base = open_predictions(wanted["input"])
        rows = query_rows(base.rows, wanted["queries"])
        asked = Sample.of(base, rows)
        found = first_pass(QuerySet(base, base), asked, norms, all_lengths=False)
    watch.say(counts={label: norm.count for label, norm in found.survey.norms.items()})


if __name__ == "__main__":
    main()
