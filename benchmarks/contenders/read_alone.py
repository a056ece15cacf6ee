"""Reading alone: the same columns in the same batches, checksums verified, on one thread.

Settings: ``input``, ``columns``, ``batch_rows``.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from benchmarks.contenders.stopwatch import Stopwatch, settings


def main() -> None:
    """Read all rows once."""
    wanted = settings()
    rows = 0
    with Stopwatch() as watch:
        # Without a buffer whole column chunks would be read ahead, which is slower (DESIGN.md).
        file = pq.ParquetFile(
            wanted["input"], pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
        batches = file.iter_batches(
            wanted["batch_rows"], columns=wanted["columns"], use_threads=False
        )
        for batch in batches:
            rows += batch.num_rows
    watch.say(rows=rows)


if __name__ == "__main__":
    main()
