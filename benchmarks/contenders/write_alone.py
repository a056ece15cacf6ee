"""Writing alone: vectors of the same shape from memory, with the tool's writer settings.

Settings: ``output``, ``rows``, ``width``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.contenders.writer_settings import group_rows, open_writer

# So many different rows are written again and again: more do not fit into a cache, which is enough.
_DIFFERENT_ROWS = 1 << 18


def main() -> None:
    """Write all rows once."""
    wanted = settings()
    rows, each = wanted["rows"], group_rows(wanted["width"])
    table = unit_vectors(min(rows, _DIFFERENT_ROWS), wanted["width"])
    output = Path(wanted["output"])
    output.mkdir(parents=True)
    path = output / "vectors.parquet"
    with Stopwatch() as watch, open_writer(path, table.schema, ["vector", "norm"]) as writer:
        for first in range(0, rows, each):
            start = first % max(1, table.num_rows - each)
            group = table.slice(start, min(each, rows - first)).combine_chunks()
            writer.write_table(group, row_group_size=each)
    watch.say(rows=rows)


def unit_vectors(rows: int, width: int) -> pa.Table:
    """Random unit vectors with ids and norms."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((rows, width), dtype=np.float32)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    flat = pa.array((vectors / norms).astype(np.float32).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table({"id": np.arange(rows), "vector": lists, "norm": norms[:, 0]})


if __name__ == "__main__":
    main()
