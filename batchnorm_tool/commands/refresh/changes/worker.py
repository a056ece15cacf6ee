"""Read, judge, count and write one part of the input, and the files that parts write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.commands.refresh.changes.classify import FOR_THE_MODEL, ChangeType, Classifier
from batchnorm_tool.commands.refresh.changes.result import InputStatistics, statistics_of
from batchnorm_tool.commands.refresh.changes.source import HashedChunk, RefreshSource, read_chunks
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import Interrupted, capture_warnings
from batchnorm_tool.formats import Layout, Sink
from batchnorm_tool.formats.arrow import Arrow
from batchnorm_tool.formats.arrow_columns import free_name, vector_field
from batchnorm_tool.inputs.reading import Part, describe_key, locate
from batchnorm_tool.storage import OutputFile, Storage
from batchnorm_tool.store.index import fixed_binary
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH, STAGING

SHOWN_ROWS = 5
_Result = TypeVar("_Result")
CHANGED = f"{STAGING}/changed"
TOUCHED = f"{STAGING}/touched"
BAD = f"{STAGING}/bad"
_REASON = "reason"


@dataclass(frozen=True)
class Callbacks:
    """Callbacks of the work on slices.

    Attributes:
        advance: Called with the number of rows of each finished chunk, from several threads.
        stopped: Asked between chunks whether to give up, from several threads.
    """

    advance: Callable[[int], None] = lambda _: None
    stopped: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Give up if asked to."""
        if self.stopped():
            raise Interrupted("Stopped while comparing the input; run again to restart that step.")


@dataclass
class PartResult:
    """What a part came to; mergeable in the order of the input.

    Attributes:
        kinds: Rows of each `ChangeType`, ``int64[7]``.
        bad: Rows bad by their input that need work.
        bad_rows: The first few of them, in words.
        statistics: Of the part.
        warnings: What the features gave reason to warn of.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.zeros(len(ChangeType), np.int64))
    bad: int = 0
    bad_rows: tuple[str, ...] = ()
    statistics: InputStatistics = field(default_factory=lambda: InputStatistics({}, {}))
    warnings: set[str] = field(default_factory=set)

    def merge(self, other: PartResult) -> None:
        """Take in what comes after this."""
        self.kinds = self.kinds + other.kinds
        self.bad += other.bad
        self.bad_rows = (*self.bad_rows, *other.bad_rows)[:SHOWN_ROWS]
        self.statistics = self.statistics.merged(other.statistics)
        self.warnings |= other.warnings


class ChangeWorker:
    """Works on parts; threads share one.

    Args:
        source: The input.
        storage: The state of the store.
        classifier: Tells the rows' kinds.
    """

    def __init__(self, source: RefreshSource, storage: Storage, classifier: Classifier) -> None:
        self._source, self._storage, self._classifier = source, storage, classifier
        self._schemas = StagingSchemas(source)

    def process(self, part: Part, callbacks: Callbacks) -> PartResult:
        """Do one part, and commit its files."""
        result = PartResult()
        with (
            capture_warnings(result.warnings.add),
            StagingWriter(self._storage, self._schemas, part.stem) as writer,
        ):
            for chunk in read_chunks(self._source, part):
                callbacks.check()
                result.merge(self._process(chunk, writer))
                callbacks.advance(len(chunk.faults))
            writer.commit()
        return result

    def _process(self, chunk: HashedChunk, writer: StagingWriter) -> PartResult:
        kinds = self._classifier.classify(chunk.hashes)
        # A row that was bad before for the same reason is unchanged: it is not reported again.
        wanted = np.isin(kinds, FOR_THE_MODEL)
        faulty = chunk.faults != Reason.GOOD
        bad = wanted & faulty
        if bad.any() and self._source.invalid == "quarantine":
            writer.add_bad(chunk, bad)
        if (wanted & ~faulty).any():
            writer.add_changed(chunk, wanted & ~faulty)
        if (kinds == ChangeType.TOUCHED).any():
            writer.add_touched(chunk, kinds == ChangeType.TOUCHED)
        return PartResult(
            np.bincount(kinds, minlength=len(ChangeType)),
            int(np.count_nonzero(bad)),
            tuple(self._describe_rows(chunk, np.flatnonzero(bad)[:SHOWN_ROWS])),
            self._measured(chunk, faulty),
        )

    def _measured(self, chunk: HashedChunk, faulty: np.ndarray) -> InputStatistics:
        deleted = chunk.hashes.deleted
        valid = ~faulty if deleted is None else ~faulty & ~deleted
        columns = chunk.table.select(list(self._source.feature_columns))
        if deleted is not None:  # their features do not matter, and may be null
            columns = columns.filter(pa.array(~deleted))
        return statistics_of(columns, chunk.arrays, valid, chunk.hashes.first_row)

    def _describe_rows(self, chunk: HashedChunk, rows: np.ndarray) -> Iterator[str]:
        keys = chunk.table.select(list(self._source.keys))
        for row in rows.tolist():
            file, place = locate(self._source.table.files, chunk.hashes.first_row + row)
            reason = Reason(chunk.faults[row]).label
            yield f"{file.path}, row {place} ({describe_key(keys, row)}): {reason}"


def process_in_order(
    parts: Iterable[Part],
    process: Callable[[Part, Callbacks], _Result],
    workers: int,
    callbacks: Callbacks,
) -> Iterator[_Result]:
    """Yield what ``process`` gives for each part, in order; see `map_in_order`."""
    stop = threading.Event()
    stoppable = Callbacks(callbacks.advance, lambda: stop.is_set() or callbacks.stopped())
    return map_in_order(lambda part: process(part, stoppable), parts, workers, stop.set)


@dataclass(frozen=True)
class StagingSchemas:
    """The columns of the files: keys, passed-through columns, two hashes, then their own."""

    source: RefreshSource

    @cached_property
    def features(self) -> dict[str, str]:
        """The column of each model input."""
        names, taken = sorted(field.name for field in self.source.inputs), self.source.carried.names
        return {name: free_name(f"feature_{n}", taken) for n, name in enumerate(names)}

    @cached_property
    def reason(self) -> str:
        """The column that says why a row is bad."""
        return free_name(_REASON, self.source.carried.names)

    @cached_property
    def touched(self) -> pa.Schema:
        """Of rows that are written without the model."""
        hashes = [pa.field(FEATURE_HASH, pa.binary(16)), pa.field(PASSTHROUGH_HASH, pa.binary(8))]
        return pa.schema([*self.source.carried, *hashes])

    @cached_property
    def changed(self) -> pa.Schema:
        """Of rows for the model."""
        inputs = sorted(self.source.inputs, key=lambda field: field.name)
        return pa.schema(
            [*self.touched, *(feature_field(self.features[f.name], f) for f in inputs)]
        )

    @cached_property
    def bad(self) -> pa.Schema:
        """Of rows that the model cannot take."""
        return self.touched.append(pa.field(self.reason, pa.string()))


def feature_field(name: str, field: Field) -> pa.Field:
    """Return the column that holds what a model input sees, to the bit.

    Example:
        >>> from batchnorm_tool.chunk import Field
        >>> feature_field("feature_0", Field("x", (2, 3), "float32")).type
        FixedSizeListType(fixed_size_list<item: float>[6])
    """
    shape = tuple(size or 0 for size in field.shape)
    return vector_field(name, _arrow_type(field.dtype), shape)


def feature_column(kind: pa.DataType, array: np.ndarray) -> pa.Array:
    """Return what a model sees of some rows as a column of type ``kind``; no number is copied.

    Args:
        kind: The type that `feature_field` gives.
        array: ``[n, *shape]``.
    """
    flat = array.reshape(-1)
    if not pa.types.is_fixed_size_list(kind):
        return _values(flat, kind)
    return pa.FixedSizeListArray.from_arrays(_values(flat, kind.value_type), type=kind)


def _arrow_type(dtype: str) -> pa.DataType:
    if dtype == "string":
        return pa.binary()  # what the model takes for text may be no UTF-8
    # Arrow has no bfloat16; every one of them is a float32.
    return pa.from_numpy_dtype(np.dtype("float32" if dtype == "bfloat16" else dtype))


def _values(flat: np.ndarray, kind: pa.DataType) -> pa.Array:
    if flat.dtype != object and flat.dtype.kind not in "fiub":
        flat = flat.astype(np.float32)
    return pa.array(flat, kind)


class StagingWriter:
    """The files of one part; a set without rows has no file.

    Args:
        storage: The state of the store.
        schemas: Of the files.
        stem: Their name without a suffix.
    """

    def __init__(self, storage: Storage, schemas: StagingSchemas, stem: str) -> None:
        self._storage, self._schemas, self._stem = storage, schemas, stem
        self._sinks: dict[str, Sink] = {}
        self._files: list[OutputFile] = []

    def add_changed(self, chunk: HashedChunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk for the model."""
        schema = self._schemas.changed
        columns = self._common(chunk, rows)
        for name in self._schemas.features:
            kind = schema.field(self._schemas.features[name]).type
            columns.append(feature_column(kind, _chosen(chunk.arrays[name], rows)))
        self._write(CHANGED, schema, columns)

    def add_touched(self, chunk: HashedChunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk that are written without the model."""
        self._write(TOUCHED, self._schemas.touched, self._common(chunk, rows))

    def add_bad(self, chunk: HashedChunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk that the model cannot take."""
        reasons = [Reason(fault).label for fault in chunk.faults[rows].tolist()]
        columns = [*self._common(chunk, rows), pa.array(reasons, pa.string())]
        self._write(BAD, self._schemas.bad, columns)

    def commit(self) -> None:
        """Let the files appear."""
        for sink in self._sinks.values():
            sink.close()
        for file in self._files:
            file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.discard()

    def _common(self, chunk: HashedChunk, rows: np.ndarray) -> list[pa.Array | pa.ChunkedArray]:
        table = chunk.table.select(self._schemas.source.carried.names)
        table = table if rows.all() else table.filter(pa.array(rows))
        hashes = (chunk.hashes.features, chunk.hashes.passthrough)
        return [*table.columns, *(fixed_binary(_chosen(h, rows)) for h in hashes)]

    def _write(
        self, directory: str, schema: pa.Schema, columns: list[pa.Array | pa.ChunkedArray]
    ) -> None:
        if directory not in self._sinks:
            self._sinks[directory] = Arrow().open_sink(
                self._create, f"{directory}/{self._stem}", schema, Layout(0, ())
            )
        self._sinks[directory].write(pa.table(columns, schema=schema))

    def _create(self, path: str) -> OutputFile:
        file = self._storage.create(path)
        self._files.append(file)
        return file


def _chosen(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return array if rows.all() else array[rows]
