"""The merge alone: as many rows as a night changes into a copy of the store, synced.

Settings: ``base``, the store as it was the night before; ``store``, where its copy lies; ``rows``
and ``night`` of the table whose changed rows are replaced. What these hold is in memory before the
watch starts.
"""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa

from batchnorm_tool.store.state import StoreDirectory, StoreSchema
from batchnorm_tool.store.transaction import commit, prepare_merge
from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.contenders.store_copies import copy_store
from benchmarks.contenders.write_alone import unit_vectors
from benchmarks.data import Table


def main() -> None:
    """Merge once."""
    wanted = settings()
    copy_store(wanted["base"], wanted["store"])
    layout = StoreDirectory(wanted["store"]).pointer().layout
    assert layout is not None  # noqa: S101  (the base has a live version)
    ids = Table(wanted["rows"], night=wanted["night"]).changed
    batches = rows(layout, ids).to_batches()
    with Stopwatch() as watch:
        prepared = prepare_merge(wanted["store"], layout.schema, layout.keys, batches)
        prepared.sync()
        commit(prepared)
    watch.say(rows=len(ids), live=lance.dataset(wanted["store"]).count_rows())


def rows(layout: StoreSchema, ids: np.ndarray) -> pa.Table:
    """Rows of the store with random vectors."""
    count = len(ids)
    vectors = unit_vectors(count, layout.width)
    columns = [
        pa.array(ids),
        vectors["vector"],
        vectors["norm"],
        pa.array([bytes(16)] * count, pa.binary(16)),
        pa.array([bytes(8)] * count, pa.binary(8)),
        pa.array(["good"] * count),
        pa.array(np.full(count, 2)),
    ]
    return pa.table(columns, names=layout.schema.names).cast(layout.schema)


if __name__ == "__main__":
    main()
