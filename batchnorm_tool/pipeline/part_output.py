"""What a part leaves: its files, its bad rows by key and reason, its commit record, statistics."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk import INPUT_REASONS, Chunk, Reason, python_values
from batchnorm_tool.errors import RECREATE, Damaged
from batchnorm_tool.formats import Layout, Sink, format_named
from batchnorm_tool.formats.arrow_columns import free_name
from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.inputs.row_hash import BlockHash
from batchnorm_tool.norms.histogram import CoarseHistogram
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import QUANTILES, NormStats, VectorStats, quantile_column
from batchnorm_tool.pipeline import manifest, output_schema
from batchnorm_tool.pipeline.manifest import BadRow, PartRecord, RowCounts
from batchnorm_tool.pipeline.output_schema import StoredOutput
from batchnorm_tool.pipeline.plan import Plan
from batchnorm_tool.pipeline.repeats import Repeats
from batchnorm_tool.pipeline.scored_chunk import DROP, FAIL, NULLIFY, QUARANTINE, Policies, Scored
from batchnorm_tool.storage import FileRecord, OutputFile, Storage
from batchnorm_tool.storage.checked_json import canonical_json

QUARANTINE_DIRECTORY = "_quarantine"
_ORIGIN = (("file", pa.string()), ("file_row", pa.int64()), ("reason", pa.string()))
CHUNKS_PATH = "_stats/chunks.parquet"
_PARQUET = {"compression": "zstd", "write_page_checksum": True}
# A row group holds the chunks of so many parts; 62 of one part each took 0.3 s to write.
_PARTS_AT_ONCE = 256
_BUCKET = pa.struct([("lower", pa.float64()), ("upper", pa.float64()), ("count", pa.int64())])
_COUNTS = ("rows", "vectors", "zero", "nonfinite")
_MOMENTS = ("min", "max", "mean", "std")
CHUNK_SCHEMA = pa.schema(
    [
        ("part", pa.int32()),
        ("chunk", pa.int32()),
        ("output", pa.string()),
        ("norm", pa.string()),
        ("first_row", pa.int64()),
        *((name, pa.int64()) for name in _COUNTS),
        *((name, pa.float64()) for name in (*_MOMENTS, *map(quantile_column, QUANTILES))),
        ("histogram", pa.list_(_BUCKET)),
    ]
)
PARTS_PATH = "_stats/parts.parquet"
PARTS_SCHEMA = pa.schema([("part", pa.int32()), ("record", pa.binary())])
_HISTOGRAM_PLACE = CHUNK_SCHEMA.get_field_index("histogram")


class PartWriter:
    """The open files of a part; nothing of it can be seen before `commit`."""

    def __init__(
        self, plan: Plan, storage: Storage, part: Part, layouts: Sequence[OutputSpec]
    ) -> None:
        self._plan, self._storage, self._part, self._layouts = plan, storage, part, layouts
        self._files: list[tuple[str, OutputFile]] = []
        self._sinks: list[Sink] = []
        self._quarantine: Sink | None = None
        try:
            self._vectors = self._open_vectors()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        for _, file in self._files:
            file.discard()

    def write(self, scored: Scored, actions: np.ndarray) -> None:
        """Write the rows of a chunk, each as its action (``uint8[n]``) says."""
        nulls = actions == NULLIFY
        table = output_schema.output_table(
            scored.chunk.carried, self._layouts, scored.results, nulls
        )
        gone = (actions == DROP) | (actions == QUARANTINE)
        # Rows leave after normalization, not before: a row's place in its batch, and with it the
        # bits of the others, must not depend on a policy.
        self._vectors.write(table.filter(pa.array(~gone)) if gone.any() else table)
        if (actions == QUARANTINE).any():
            self._write_quarantine(scored, np.flatnonzero(actions == QUARANTINE))

    def commit(self) -> tuple[FileRecord, ...]:
        """Close and commit all files; their records have the paths that readers will see."""
        for sink in self._sinks:
            sink.close()
        committed = [(path, file.commit()) for path, file in self._files]
        return tuple(replace(record, path=path) for path, record in committed)

    def _create(self, path: str) -> OutputFile:
        file = self._storage.create(self._storage.staged(path))
        self._files.append((path, file))
        return file

    def _open(self, kind: str, directory: str, schema: pa.Schema, shape: Layout) -> Sink:
        sink = format_named(kind).open_sink(
            self._create, f"{directory}/{self._part.stem}", schema, shape
        )
        self._sinks.append(sink)
        return sink

    def _open_vectors(self) -> Sink:
        job = self._plan.job
        schema = output_schema.output_schema(self._plan.resolved.carried, self._layouts)
        shape = Layout(
            byte_stream_split=job.output.byte_stream_split,
            compression=job.output.compression,
            vector_columns=tuple(output.vector_column for output in self._layouts),
            norm_columns=tuple(output.norm_column for output in self._layouts),
            rows=self._part.rows,
            metadata=self._provenance(),
        )
        return self._open(job.output.format, "vectors", schema, shape)

    def _provenance(self) -> dict[str, str]:
        """Return what a lone file tells of its origin; a function of plan and part alone."""
        provenance = {
            "space": self._plan.identity.space_id,
            "bits": self._plan.identity.bits_id,
            "part": self._part.number,
            "first_row": self._part.first_row,
            "outputs": [StoredOutput.of(output).to_dict() for output in self._layouts],
        }
        return {"batchnorm_tool": canonical_json(provenance).decode()}

    def _write_quarantine(self, scored: Scored, offsets: np.ndarray) -> None:
        if self._quarantine is None:
            # Opened with the first such row: a file without rows would say that something was set
            # aside.
            schema = _quarantine_schema(self._plan, self._layouts)
            predictions = tuple(schema.names[-len(self._layouts) :])
            shape = Layout(vector_columns=predictions, rows=self._part.rows)
            self._quarantine = self._open("parquet", QUARANTINE_DIRECTORY, schema, shape)
        self._quarantine.write(self._quarantine_table(scored, offsets))

    def _quarantine_table(self, scored: Scored, offsets: np.ndarray) -> pa.Table:
        located = [self._part.locate(scored.chunk.first_row + int(row)) for row in offsets]
        reasons = [Reason(code) for code in scored.faults[offsets]]
        no_prediction = np.array([reason in INPUT_REASONS for reason in reasons])
        columns = [
            *scored.chunk.carried.take(pa.array(offsets)).columns,
            pa.array([self._plan.files[file].path for file, _ in located], pa.string()),
            pa.array([row for _, row in located], pa.int64()),
            pa.array([reason.label for reason in reasons], pa.string()),
        ]
        for output in self._layouts:
            raw = scored.predictions[output.name][offsets].reshape(len(offsets), -1)
            columns.append(output_schema.fixed_size_list(np.ascontiguousarray(raw), no_prediction))
        return pa.table(columns, schema=_quarantine_schema(self._plan, self._layouts))


def _quarantine_schema(plan: Plan, layouts: Sequence[OutputSpec]) -> pa.Schema:
    """Return the schema of quarantined rows: carried columns, origin and reason, predictions.

    Ours are called ``file``, ``file_row``, ``reason``, and ``prediction`` or, of several outputs,
    ``NAME_prediction``. Where a carried column has that name, ours ends in ``_`` (or more of them).
    Predictions are raw: in the model's own dtype, flat, their shape in the field's metadata.
    """
    schema = plan.resolved.carried
    for name, kind in _ORIGIN:
        schema = schema.append(pa.field(free_name(name, schema.names), kind))
    for output, stored in zip(layouts, plan.resolved.outputs, strict=True):
        name = "prediction" if len(layouts) == 1 else f"{output.name}_prediction"
        free = free_name(name, schema.names)
        schema = schema.append(output_schema.flat_field(free, stored.dtype, output.predicted_shape))
    return schema.remove_metadata()


class ChunkStatistics:
    """The statistics of a part's chunks: a row for each of them, its outputs and their norms."""

    def __init__(self) -> None:
        self._chunks = 0
        self._rows: list[dict[str, Any]] = []
        self._histograms: list[CoarseHistogram] = []

    def add(self, part: Part, scored: Scored) -> None:
        """Take in the next chunk."""
        for output, stats in scored.statistics.items():
            counts = {name: getattr(stats, name) for name in _COUNTS}
            for norm, lengths in stats.norms.items():
                place = {"part": part.number, "chunk": self._chunks, "output": output, "norm": norm}
                first_row = {"first_row": scored.chunk.first_row}
                self._rows.append({**place, **first_row, **counts, **_distribution(lengths)})
                self._histograms.append(lengths.histogram.coarse())
        self._chunks += 1

    def to_text(self) -> str:
        """Return the rows as an Arrow IPC stream in base 64, for the record of the part."""
        plain = pa.Table.from_pylist(self._rows, CHUNK_SCHEMA.remove(_HISTOGRAM_PLACE))
        histograms = _histogram_lists(self._histograms)
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, CHUNK_SCHEMA) as writer:
            kind = CHUNK_SCHEMA.field(_HISTOGRAM_PLACE)
            writer.write_table(plain.append_column(kind, histograms))
        return base64.b64encode(stream.getvalue()).decode()


def _distribution(lengths: NormStats) -> dict[str, float | None]:
    if not lengths.count:
        return {}
    moments = {name: getattr(lengths, name) for name in _MOMENTS}
    return moments | {quantile_column(q): value for q, value in lengths.quantiles().items()}


def _histogram_lists(histograms: Sequence[CoarseHistogram]) -> pa.Array:
    """Return coarse histograms as lists of buckets."""
    if not histograms:
        return pa.array([], CHUNK_SCHEMA.field(_HISTOGRAM_PLACE).type)
    columns = [np.concatenate(side) for side in zip(*histograms, strict=True)]
    buckets = pa.StructArray.from_arrays(list(map(pa.array, columns)), fields=list(_BUCKET))
    # Made of whole arrays: thousands of histograms as Python lists took longer than to compute
    # them.
    offsets = np.cumsum([0, *(len(counts) for _, _, counts in histograms)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), buckets)


class PartHashes:
    """Hashes of a part's rows: of those in quarantine for each reason, and of all the others.

    By these, `run --retry-quarantined` knows that of a changed file only the former have changed.
    """

    def __init__(self) -> None:
        self._hashes: dict[Reason, BlockHash] = {}

    def add(self, chunk: Chunk, quarantined: np.ndarray) -> None:
        """Take in the next chunk; of each row in quarantine, ``uint8[n]`` has the reason."""
        # Only a prediction finds that the model fails, and who compares hashes makes none.
        faults = np.where(chunk.faults == Reason.MODEL_FAILURE, Reason.GOOD, chunk.faults)
        if not quarantined.any():  # nearly every chunk
            self._of(Reason.GOOD).add(chunk.features, faults, chunk.carried)
            return
        for reason in np.unique(quarantined):
            rows = quarantined == reason
            features = {name: array[rows] for name, array in chunk.features.items()}
            self._of(reason).add(features, faults[rows], chunk.carried.filter(pa.array(rows)))

    def _of(self, reason: int) -> BlockHash:
        return self._hashes.setdefault(Reason(reason), BlockHash())

    def to_dict(self) -> dict[str, str]:
        """Return the hashes by the labels of the reasons; ``good`` are all that are not there."""
        return {reason.label: found.to_text() for reason, found in sorted(self._hashes.items())}


@dataclass
class PartSummary:
    """What a part has come to so far; of the carried columns, the first ``keys`` identify a row.

    Rows predicted and reused are counted where it is known which rows repeat.
    """

    part: Part
    files: Sequence[InputFile]
    policies: Policies
    keys: int
    repeats: Repeats | None = None
    counts: RowCounts = field(default_factory=RowCounts)
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad_rows: list[BadRow] = field(default_factory=list)
    first_failed_rows: list[BadRow] = field(default_factory=list)
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)
    chunks: ChunkStatistics = field(default_factory=ChunkStatistics)
    hashes: PartHashes = field(default_factory=PartHashes)

    def add(self, scored: Scored, actions: np.ndarray) -> None:
        """Count the rows of a chunk, of which each meets one of ``actions`` (``uint8[n]``)."""
        self.counts = self.counts + self._counts(scored.faults, actions) + self._reuse(scored)
        self.counts += RowCounts(clipped=scored.clipped or None)
        self.chunks.add(self.part, scored)
        self.hashes.add(scored.chunk, np.where(actions == QUARANTINE, scored.faults, Reason.GOOD))
        for name, stats in scored.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = stats if known is None else known.merge(stats)
        self._remember(scored, self.policies.bad[scored.faults], self.first_bad_rows)
        self._remember(scored, actions == FAIL, self.first_failed_rows)

    def record(self, bits: str, files: tuple[FileRecord, ...]) -> PartRecord:
        """Return the commit record; of a part that broke a policy, it names the rows that did."""
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
            hashes=self.hashes.to_dict(),
        )

    def _remember(self, scored: Scored, chosen: np.ndarray, rows: list[BadRow]) -> None:
        """Add the first of the ``chosen`` rows (``bool[n]``) to ``rows``, until it is full."""
        space_left = manifest.FIRST_BAD_ROWS - len(rows)
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

    def _reuse(self, scored: Scored) -> RowCounts:
        """Count good rows, apart those that have an earlier row's features."""
        if self.repeats is None:
            return RowCounts()
        good = ~np.isin(scored.faults, list(INPUT_REASONS))
        earlier = self.repeats.has_earlier(scored.chunk.first_row, scored.chunk.rows)
        reused = int((good & earlier).sum())
        return RowCounts(predicted=int(good.sum()) - reused, reused=reused)

    def _bad_row(self, scored: Scored, offset: int) -> BadRow:
        row = scored.chunk.first_row + offset
        file, file_row = self.part.locate(row)
        columns = scored.chunk.carried.columns[: max(1, self.keys)]  # without a key, of the number
        key = ", ".join(str(*python_values(column.slice(offset, 1))) for column in columns)
        return BadRow(row, self.files[file].path, file_row, key, scored.reason(offset))


def gather(storage: Storage, parts: Sequence[int]) -> FileRecord:
    """Write the chunk statistics of all ``parts``, in order, into one staged Parquet file."""
    return _gather(storage, parts, CHUNKS_PATH, CHUNK_SCHEMA, _statistics)


def gather_records(storage: Storage, parts: Sequence[int]) -> FileRecord:
    """Write the records of all ``parts``, in order, into one staged Parquet file."""
    return _gather(storage, parts, PARTS_PATH, PARTS_SCHEMA, _record)


def _gather(
    storage: Storage,
    parts: Sequence[int],
    path: str,
    schema: pa.Schema,
    read: Callable[[Storage, int], pa.Table],
) -> FileRecord:
    with storage.create(storage.staged(path)) as file:
        with pq.ParquetWriter(file, schema, **_PARQUET) as writer:
            for start in range(0, len(parts), _PARTS_AT_ONCE):
                tables = [read(storage, part) for part in parts[start : start + _PARTS_AT_ONCE]]
                writer.write_table(pa.concat_tables(tables).combine_chunks())
        return replace(file.commit(), path=path)


def _record(storage: Storage, part: int) -> pa.Table:
    record = storage.get(manifest.record_path(part))  # there, and whole: it has been added up
    return pa.table([[part], [record]], schema=PARTS_SCHEMA)


def read_records(storage: Storage) -> Iterator[PartRecord]:
    """Yield the records of all parts of a finished run that has rows in quarantine."""
    if storage.size(PARTS_PATH) is None:
        raise Damaged(f"`{PARTS_PATH}` is missing. {RECREATE.capitalize()}.")
    try:
        with storage.open(PARTS_PATH) as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            for batch in file.iter_batches(_PARTS_AT_ONCE, columns=["record"]):
                for text in batch["record"].to_pylist():
                    yield PartRecord.opened(text, PARTS_PATH)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(
            f"`{PARTS_PATH}` cannot be read: {error}. {RECREATE.capitalize()}."
        ) from error


def _statistics(storage: Storage, part: int) -> pa.Table:
    record = storage.get(manifest.record_path(part))  # as in `_record`
    try:
        stream = base64.b64decode(json.loads(record or b"{}")["chunks"])
        return pa.ipc.open_stream(stream).read_all().cast(CHUNK_SCHEMA)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"`{manifest.record_path(part)}` is not as this version writes it: `chunks`: {error}. "
            f"{RECREATE.capitalize()}."
        ) from error
