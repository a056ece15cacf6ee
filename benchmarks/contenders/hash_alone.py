"""Reading and hashing alone: keys and features of every row, on all cores.

Settings: ``input``, ``cores``. The hashes are the tool's own; a thread for each core takes the row
groups in turn and reads them as ``read_alone`` does.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.inputs.row_hash import feature_hashes, key_ids
from benchmarks.contenders.stopwatch import Stopwatch, settings

# Imported at the first conversion and the first hash otherwise.
AWAKE = (pd, xxhash)
# 8 MiB of 128 floats, about what the tool reads at a time.
_BATCH_ROWS = 1 << 14
_FEATURES = "features"


def main() -> None:
    """Read and hash all rows once."""
    wanted = settings()
    with Stopwatch() as watch:
        groups = range(opened(wanted["input"]).num_row_groups)
        with ThreadPoolExecutor(wanted["cores"]) as threads:
            rows = sum(threads.map(lambda group: hash_group(wanted["input"], group), groups))
    watch.say(rows=rows)


def opened(path: str) -> pq.ParquetFile:
    """The file, to be read without a buffer that takes whole column chunks."""
    return pq.ParquetFile(
        path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
    )


def hash_group(path: str, group: int) -> int:
    """Hash a row group; returns its number of rows."""
    batches = opened(path).iter_batches(
        _BATCH_ROWS, row_groups=[group], columns=["id", _FEATURES], use_threads=False
    )
    rows = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        key_ids(table, ["id"])
        feature_hashes({_FEATURES: rows_of(batch[_FEATURES])}, np.zeros(len(batch), np.uint8))
        rows += len(batch)
    return rows


if __name__ == "__main__":
    main()
