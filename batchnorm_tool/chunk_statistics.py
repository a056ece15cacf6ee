"""Norm statistics of every chunk as rows of a table: `_stats/chunks.parquet`."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.manifest import existing_record
from batchnorm_tool.stats import QUANTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchnorm_tool.histogram import CoarseHistogram
    from batchnorm_tool.scored import Scored
    from batchnorm_tool.stats import NormStats
    from batchnorm_tool.storage import FileRecord, Storage
    from batchnorm_tool.vector_stats import VectorStats

CHUNKS_PATH = "_stats/chunks.parquet"
_QUANTILES = {q: f"q{round(q * 100):02d}" for q in QUANTILES}
_PARQUET = {"compression": "zstd", "write_page_checksum": True}
# A row group holds the chunks of so many parts; 62 of one part each took 0.3 s to write.
_PARTS_AT_ONCE = 256
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
_HISTOGRAM_PLACE = CHUNK_SCHEMA.get_field_index("histogram")


class ChunkStatistics:
    """The chunk statistics of one part, one chunk after the other.

    Args:
        part: Number of the part.
    """

    def __init__(self, part: int) -> None:
        self._part = part
        self._chunks = 0
        self._rows: list[dict[str, Any]] = []
        self._histograms: list[CoarseHistogram] = []

    def add(self, scored: Scored) -> None:
        """Take in the next chunk: a row for each output and norm."""
        for output, stats in scored.statistics.items():
            for norm, lengths in stats.norms.items():
                place = {"part": self._part, "chunk": self._chunks, "output": output, "norm": norm}
                first_row = scored.chunk.first_row
                counts = _counts(stats)
                self._rows.append(
                    {**place, "first_row": first_row, **counts, **_distribution(lengths)}
                )
                self._histograms.append(lengths.histogram.coarse())
        self._chunks += 1

    def to_text(self) -> str:
        """The rows as an Arrow IPC stream in base 64, for the record of the part."""
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, CHUNK_SCHEMA) as writer:
            writer.write_table(self._table())
        return base64.b64encode(stream.getvalue()).decode()

    def _table(self) -> pa.Table:
        plain = pa.Table.from_pylist(self._rows, CHUNK_SCHEMA.remove(_HISTOGRAM_PLACE))
        return plain.append_column(
            CHUNK_SCHEMA.field(_HISTOGRAM_PLACE), _histograms(self._histograms)
        )


def _counts(stats: VectorStats) -> dict[str, int]:
    return {
        "rows": stats.rows,
        "vectors": stats.vectors,
        "zero": stats.zero,
        "nonfinite": stats.nonfinite,
    }


def _distribution(lengths: NormStats) -> dict[str, Any]:
    if not lengths.count:
        return {}
    return {
        "min": lengths.min,
        "max": lengths.max,
        "mean": lengths.mean,
        "std": lengths.std,
        **{_QUANTILES[q]: value for q, value in lengths.quantiles().items()},
    }


def _histograms(histograms: Sequence[CoarseHistogram]) -> pa.Array:
    """Coarse histograms as lists of buckets, made of whole arrays: there are thousands of them."""
    if not histograms:
        return pa.array([], CHUNK_SCHEMA.field(_HISTOGRAM_PLACE).type)
    columns = [np.concatenate(side) for side in zip(*histograms, strict=True)]
    buckets = pa.StructArray.from_arrays(list(map(pa.array, columns)), fields=list(_BUCKET))
    offsets = np.cumsum([0, *(len(counts) for _, _, counts in histograms)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), buckets)


def gather(storage: Storage, parts: Sequence[int]) -> FileRecord:
    """Write the chunk statistics of all ``parts``, in order, into one staged Parquet file.

    Args:
        storage: The run's output.
        parts: Numbers of parts, the records of which are in place.

    Returns:
        Its record, by the path that readers will see.

    Raises:
        WorkFailed: A record is missing or damaged.
    """
    file = storage.create(storage.staged(CHUNKS_PATH))
    try:
        with pq.ParquetWriter(file, CHUNK_SCHEMA, **_PARQUET) as writer:
            for start in range(0, len(parts), _PARTS_AT_ONCE):
                tables = [_read(storage, part) for part in parts[start : start + _PARTS_AT_ONCE]]
                writer.write_table(pa.concat_tables(tables).combine_chunks())
        return replace(file.commit(), path=CHUNKS_PATH)
    finally:
        file.discard()


def _read(storage: Storage, part: int) -> pa.Table:
    stream = base64.b64decode(existing_record(storage, part).chunks)
    return pa.ipc.open_stream(stream).read_all()
