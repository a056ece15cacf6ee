"""A loop that only reads columns of a Parquet file, as pyarrow does by default.

Settings: ``input``, ``columns``.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Read all rows once."""
    wanted = settings()
    rows = 0
    with Stopwatch() as watch:
        for batch in pq.ParquetFile(wanted["input"]).iter_batches(columns=wanted["columns"]):
            rows += batch.num_rows
    watch.say(rows=rows)


if __name__ == "__main__":
    main()
