"""What a part comes to: its rows by outcome, its bad rows by key and reason, its statistics."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk import Reason
from batchnorm_tool.errors import RECREATE, Damaged
from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.norms.histogram import CoarseHistogram
from batchnorm_tool.norms.stats import QUANTILES, NormStats, VectorStats, quantile_column
from batchnorm_tool.pipeline.manifest import (
    FIRST_BAD_ROWS,
    BadRow,
    PartRecord,
    RowCounts,
    existing_record,
    record_path,
)
from batchnorm_tool.pipeline.scored_chunk import DROP, FAIL, NULLIFY, QUARANTINE, Policies, Scored
from batchnorm_tool.storage import FileRecord, Storage

CHUNKS_PATH = "_stats/chunks.parquet"
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
        *((quantile_column(q), pa.float64()) for q in QUANTILES),
        ("histogram", pa.list_(_BUCKET)),
    ]
)
_HISTOGRAM_PLACE = CHUNK_SCHEMA.get_field_index("histogram")


@dataclass
class PartSummary:
    """What a part has come to so far.

    Args:
        part: The part.
        files: All input files of the plan.
        policies: What becomes of bad rows.
        keys: How many of the carried columns, from the left, identify a row.
        warnings: What a person should know of the rows, each text once.
    """

    part: Part
    files: Sequence[InputFile]
    policies: Policies
    keys: int
    counts: RowCounts = field(default_factory=RowCounts)
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad_rows: list[BadRow] = field(default_factory=list)
    first_failed_rows: list[BadRow] = field(default_factory=list)
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin the statistics of the part's chunks."""
        self.chunks = ChunkStatistics(self.part.number)

    def add(self, scored: Scored, actions: np.ndarray) -> None:
        """Count the rows of a chunk, of which each meets one of ``actions`` (``uint8[n]``)."""
        self.counts = self.counts + self._counts(scored.faults, actions)
        self.chunks.add(scored)
        for name, stats in scored.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = stats if known is None else known.merge(stats)
        self._remember(scored, self.policies.bad[scored.faults], self.first_bad_rows)
        self._remember(scored, actions == FAIL, self.first_failed_rows)

    def record(self, bits: str, files: tuple[FileRecord, ...]) -> PartRecord:
        """Return the commit record of the part, whose ``files`` are in place.

        Of a part that broke a policy, it names the rows that did.
        """
        return PartRecord(
            part=self.part.number,
            first_row=self.part.first_row,
            bits=bits,
            counts=self.counts,
            reasons=dict(self.reasons),
            first_bad_rows=tuple(self.first_failed_rows or self.first_bad_rows),
            files=files,
            statistics=self.statistics,
            warnings=tuple(sorted(self.warnings)),
            chunks=self.chunks.to_text(),
        )

    def _remember(self, scored: Scored, chosen: np.ndarray, rows: list[BadRow]) -> None:
        """Add the first of the ``chosen`` rows (``bool[n]``) to ``rows``, until it is full."""
        space_left = FIRST_BAD_ROWS - len(rows)
        offsets = np.flatnonzero(chosen)[:space_left]
        rows += [self._bad_row(scored, int(offset)) for offset in offsets]

    def _counts(self, faults: np.ndarray, actions: np.ndarray) -> RowCounts:
        rows = len(faults)
        # Nearly every chunk is so: all that follows would be done for nothing.
        if not faults.any():
            return RowCounts(rows_in=rows, rows_out=rows)
        by_reason = np.bincount(faults, minlength=len(Reason))
        by_action = np.bincount(actions, minlength=FAIL + 1)
        counted = {reason: int(by_reason[reason]) for reason in Reason if by_reason[reason]}
        counted.pop(Reason.GOOD, None)
        self.reasons.update({reason.label: count for reason, count in counted.items()})
        return RowCounts(
            rows_in=rows,
            rows_out=rows - int(by_action[[DROP, QUARANTINE, FAIL]].sum()),
            bad=int(by_reason[self.policies.bad].sum()),
            zero=counted.get(Reason.ZERO_VECTOR, 0),
            nullified=int(by_action[NULLIFY]),
            dropped=int(by_action[DROP]),
            quarantined=int(by_action[QUARANTINE]),
            failed=int(by_action[FAIL]),
        )

    def _bad_row(self, scored: Scored, offset: int) -> BadRow:
        row = scored.chunk.first_row + offset
        file, file_row = self.part.locate(row)
        key = key_text(scored.chunk.carried, offset, self.keys)
        return BadRow(row, self.files[file].path, file_row, key, scored.reason(offset))


def key_text(carried: pa.Table, offset: int, keys: int) -> str:
    """Return the key of one row as a person reads it: the first ``keys`` columns, at least one."""
    columns = carried.columns[: max(1, keys)]
    return ", ".join(str(column[offset].as_py()) for column in columns)


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
        """Return the rows as an Arrow IPC stream in base 64, for the record of the part."""
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
        **{quantile_column(q): value for q, value in lengths.quantiles().items()},
    }


def _histograms(histograms: Sequence[CoarseHistogram]) -> pa.Array:
    """Return coarse histograms as lists of buckets, made of whole arrays: there are thousands."""
    if not histograms:
        return pa.array([], CHUNK_SCHEMA.field(_HISTOGRAM_PLACE).type)
    columns = [np.concatenate(side) for side in zip(*histograms, strict=True)]
    buckets = pa.StructArray.from_arrays(list(map(pa.array, columns)), fields=list(_BUCKET))
    # Made of whole arrays: thousands of histograms as Python lists took longer than to compute
    # them.
    offsets = np.cumsum([0, *(len(counts) for _, _, counts in histograms)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), buckets)


def gather(storage: Storage, parts: Sequence[int]) -> FileRecord:
    """Write the chunk statistics of all ``parts``, in order, into one staged Parquet file."""
    with storage.create(storage.staged(CHUNKS_PATH)) as file:
        with pq.ParquetWriter(file, CHUNK_SCHEMA, **_PARQUET) as writer:
            for start in range(0, len(parts), _PARTS_AT_ONCE):
                tables = [_read(storage, part) for part in parts[start : start + _PARTS_AT_ONCE]]
                writer.write_table(pa.concat_tables(tables).combine_chunks())
        return replace(file.commit(), path=CHUNKS_PATH)


def _read(storage: Storage, part: int) -> pa.Table:
    text = existing_record(storage, part).chunks
    try:
        stream = base64.b64decode(text)
        return pa.ipc.open_stream(stream).read_all().cast(CHUNK_SCHEMA)
    except (OSError, ValueError) as error:
        raise Damaged(
            f"`{record_path(part)}` is not as this version writes it: `chunks`: {error}. "
            f"{RECREATE.capitalize()}."
        ) from error
