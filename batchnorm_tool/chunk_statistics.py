"""Norm statistics of every chunk as rows of a table: `_stats/chunks.parquet`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.stats import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batchnorm_tool.scored import Scored
    from batchnorm_tool.stats import NormStats
    from batchnorm_tool.storage import FileRecord, Storage
    from batchnorm_tool.vector_stats import VectorStats

CHUNKS_PATH = "_stats/chunks.parquet"
_QUANTILES = {q: f"q{round(q * 100):02d}" for q in QUANTILES}
_PARQUET = {"compression": "zstd", "write_page_checksum": True}
_BUCKET = pa.struct([("lower", pa.float64()), ("upper", pa.float64()), ("count", pa.int64())])
CHUNK_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        ("chunk", pa.int32()),
        ("output", pa.string()),
        ("norm", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("vectors", pa.int64()),
        ("zero", pa.int64()),
        ("nonfinite", pa.int64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        *((name, pa.float64()) for name in _QUANTILES.values()),
        ("histogram", pa.list_(_BUCKET)),
    ]
)


def chunks_path(part: int) -> str:
    """Where the chunk statistics of one part lie while the run is under way."""
    return f"_state/chunks/{part:06d}.arrow"


def chunk_rows(part: int, chunk: int, scored: Scored) -> Iterator[dict[str, Any]]:
    """One row of `CHUNK_SCHEMA` for each output and norm of a chunk."""
    for output, stats in scored.statistics.items():
        for norm, lengths in stats.norms.items():
            yield {
                "part": part,
                "chunk": chunk,
                "output": output,
                "norm": norm,
                "first_row": scored.chunk.first_row,
                **_counts(stats),
                **_distribution(lengths),
            }


def _counts(stats: VectorStats) -> dict[str, int]:
    return {
        "rows": stats.rows,
        "vectors": stats.vectors,
        "zero": stats.zero,
        "nonfinite": stats.nonfinite,
    }


def _distribution(lengths: NormStats) -> dict[str, Any]:
    if not lengths.count:
        return {"histogram": []}
    return {
        "min": lengths.min,
        "max": lengths.max,
        "mean": lengths.mean,
        "std": lengths.std,
        **{_QUANTILES[q]: value for q, value in lengths.quantiles().items()},
        "histogram": [
            {"lower": lower, "upper": upper, "count": count}
            for lower, upper, count in lengths.coarse_histogram()
        ],
    }


def gather(storage: Storage, parts: Iterable[int]) -> FileRecord:
    """Write the chunk statistics of all ``parts``, in order, into one staged Parquet file.

    Returns:
        Its record, by the path that readers will see.
    """
    file = storage.create(storage.staged(CHUNKS_PATH))
    try:
        with pq.ParquetWriter(file, CHUNK_SCHEMA, **_PARQUET) as writer:
            for part in parts:
                with storage.open(chunks_path(part)) as stored:
                    writer.write_table(pa.ipc.open_file(stored).read_all())
        return replace(file.commit(), path=CHUNKS_PATH)
    finally:
        file.discard()
