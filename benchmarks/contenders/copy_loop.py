"""A loop that only copies a Parquet file with the tool's writer settings.

Settings: ``input``, ``output``, ``width``. It reads as pyarrow does by default, on all cores.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.contenders.writer_settings import group_rows, open_writer


def main() -> None:
    """Copy all rows once."""
    wanted = settings()
    each = group_rows(wanted["width"])
    output = Path(wanted["output"])
    output.mkdir(parents=True)
    with Stopwatch() as watch:
        file = pq.ParquetFile(wanted["input"])
        copy = output / "copy.parquet"
        with open_writer(copy, file.schema_arrow, ["features"]) as writer:
            for batch in file.iter_batches(each):
                writer.write_table(pa.Table.from_batches([batch]), row_group_size=each)
    watch.say(rows=file.metadata.num_rows)


if __name__ == "__main__":
    main()
