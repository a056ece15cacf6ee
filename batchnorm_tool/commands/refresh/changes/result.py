"""What was found: statistics of the input, the rows that need work, counts, and their document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.commands.refresh.changes.source import HashedChunk, RefreshSource
from batchnorm_tool.display import plural
from batchnorm_tool.formats import Layout, Sink
from batchnorm_tool.formats.arrow import Arrow
from batchnorm_tool.formats.arrow_columns import free_name, is_list, vector_field
from batchnorm_tool.gate.input_limits import ColumnNulls, ComponentSummary, InputSummary
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.row_hash import HASH_VERSION
from batchnorm_tool.norms.histogram import merged_moments, moments, reduced
from batchnorm_tool.storage import OutputFile, Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.index import fixed_binary
from batchnorm_tool.store.state import STAGING, with_hashes

DOCUMENT = f"{STAGING}/difference.json"
DISPOSITIONS = f"{STAGING}/fates.npy"
CHANGED = f"{STAGING}/changed"
TOUCHED = f"{STAGING}/touched"
BAD = f"{STAGING}/bad"
SAMPLED_EVERY = 8
"""Of so many rows, counted from the start of the input, one is in the sample of mean and std."""
MOST_COMPONENTS = 4096
"""An input with more components (an image) is taken as one component with all their values."""


@dataclass(frozen=True)
class ComponentStatistics:
    """Statistics of one numeric input, ``float64[components]`` each.

    ``low`` and ``high`` are over all ``rows`` that are valid, ``mean`` and ``m2`` (the sum of
    squared deviations from it) over the ``count`` values of each component in the sample.
    """

    rows: int
    count: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    def merged(self, other: ComponentStatistics) -> ComponentStatistics:
        """Merge those of two sets of rows."""
        if not (self.rows and other.rows):
            return self if self.rows else other
        return ComponentStatistics(
            self.rows + other.rows,
            self.count + other.count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            *self._merged_moments(other),
        )

    def _merged_moments(self, other: ComponentStatistics) -> tuple[np.ndarray, np.ndarray]:
        if not (self.count and other.count):
            chosen = self if self.count else other
            return chosen.mean, chosen.m2
        return merged_moments((self.count, self.mean, self.m2), (other.count, other.mean, other.m2))

    @property
    def std(self) -> np.ndarray:
        """The standard deviations of the sample as a population."""
        return np.asarray(np.sqrt(self.m2 / max(1, self.count)))

    @property
    def summary(self) -> ComponentSummary:
        """What is kept of them; numbers beyond float64 are its largest."""
        values = (self.low, self.high, self.mean, self.std)
        lists = (tuple(np.nan_to_num(each).tolist()) for each in values)
        return ComponentSummary(self.rows, self.count, *lists)


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of an input: for each stored column its nulls, for each numeric input the rest."""

    columns: Mapping[str, ColumnNulls]
    inputs: Mapping[str, ComponentStatistics]

    def merged(self, other: InputStatistics) -> InputStatistics:
        """Merge those of two sets of rows."""
        columns, inputs = dict(self.columns), dict(self.inputs)
        for name, nulls in other.columns.items():
            columns[name] = columns[name].merged(nulls) if name in columns else nulls
        for name, found in other.inputs.items():
            inputs[name] = inputs[name].merged(found) if name in inputs else found
        return InputStatistics(columns, inputs)

    @property
    def summary(self) -> InputSummary:
        """What is kept of them."""
        inputs = {name: found.summary for name, found in self.inputs.items()}
        return InputSummary(dict(self.columns), inputs, SAMPLED_EVERY)


def statistics_of(
    table: pa.Table, arrays: Mapping[str, np.ndarray], valid: np.ndarray, first_row: int
) -> InputStatistics:
    """Measure a chunk: stored columns, what the model sees of them, which rows it can take."""
    columns = {
        name: ColumnNulls(table.num_rows, nulls_in(table[name])) for name in table.schema.names
    }
    # By the row's number in the input: the sample is the same however slices and chunks are cut.
    sampled = valid[-first_row % SAMPLED_EVERY :: SAMPLED_EVERY]
    inputs = {}
    for name in sorted(arrays):
        if arrays[name].dtype != object:
            flat = _components(arrays[name])
            sample = flat[-first_row % SAMPLED_EVERY :: SAMPLED_EVERY]
            if not valid.all():
                flat, sample = flat[valid], sample[sampled]
            inputs[name] = _measured(flat, sample)
    return InputStatistics(columns, inputs)


def nulls_in(column: pa.ChunkedArray) -> int:
    """Count nulls of a column, and of the lists in it; what is hidden under a null is not one.

    Example:
        >>> nulls_in(pa.chunked_array([[[1, None], None, []]]))
        2
    """
    return sum(_nulls_in(chunk) for chunk in column.chunks)


def _nulls_in(array: pa.Array) -> int:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type) and array.dictionary.null_count:
        array = array.dictionary_decode()
    inner = _nulls_in(array.flatten()) if is_list(array.type) else 0
    return int(array.null_count) + inner


def _components(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
    if flat.dtype.kind not in "fiu":  # booleans, and bfloat16, which is no float to NumPy
        flat = flat.astype(np.float32)
    return flat


def _measured(values: np.ndarray, sample: np.ndarray) -> ComponentStatistics:
    rows, count, width = len(values), len(sample), values.shape[1]
    if width > MOST_COMPONENTS:
        values, sample = values.reshape(-1, 1), sample.reshape(-1, 1)
        count, width = len(sample), 1
    if not rows or not width:
        return ComponentStatistics(rows, 0, *(np.zeros(width) for _ in range(4)))
    low, high = (reduced(each, values).astype(np.float64) for each in (np.minimum, np.maximum))
    mean, m2 = moments(np.ascontiguousarray(sample, np.float64), low, high)
    return ComponentStatistics(rows, count, low, high, mean, m2)


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
        return free_name("reason", self.source.carried.names)

    def of(self, directory: str) -> pa.Schema:
        """Return the columns of one set of files."""
        return {CHANGED: self.changed, TOUCHED: self.touched, BAD: self.bad}[directory]

    @cached_property
    def touched(self) -> pa.Schema:
        """Of rows that are written without the model."""
        return with_hashes(self.source.carried)

    @cached_property
    def changed(self) -> pa.Schema:
        """Of rows for the model."""
        inputs = sorted(self.source.inputs, key=lambda field: field.name)
        columns = (_feature_field(self.features[field.name], field) for field in inputs)
        return pa.schema([*self.touched, *columns])

    @cached_property
    def bad(self) -> pa.Schema:
        """Of rows that the model cannot take."""
        return self.touched.append(pa.field(self.reason, pa.string()))


def _feature_field(name: str, field: Field) -> pa.Field:
    """Return the column that holds what a model input sees, to the bit."""
    shape = tuple(size or 0 for size in field.shape)
    return vector_field(name, _arrow_type(field.dtype), shape)


def _feature_column(kind: pa.DataType, array: np.ndarray) -> pa.Array:
    """Return what a model sees of rows, ``[n, *shape]``, as a column; no number is copied."""
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
    """The files of one part, whose names are ``stem`` with a suffix; without rows, no file."""

    def __init__(self, storage: Storage, schemas: StagingSchemas, stem: str) -> None:
        self._storage, self._schemas, self._stem = storage, schemas, stem
        self._sinks: dict[str, Sink] = {}
        self._files: list[OutputFile] = []

    def add(self, directory: str, chunk: HashedChunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk to a set, if there are any."""
        if not rows.any():
            return
        table = chunk.table.select(self._schemas.source.carried.names)
        table = table if rows.all() else table.filter(pa.array(rows))
        hashes = (chunk.hashes.features, chunk.hashes.passthrough)
        columns = [*table.columns, *(fixed_binary(_chosen(each, rows)) for each in hashes)]
        schema = self._schemas.of(directory)
        columns += self._more_columns(directory, chunk, rows)
        self._sink(directory, schema).write(pa.table(columns, schema=schema))

    def _more_columns(self, directory: str, chunk: HashedChunk, rows: np.ndarray) -> list[pa.Array]:
        if directory == BAD:
            reasons = [Reason(fault).label for fault in chunk.faults[rows].tolist()]
            return [pa.array(reasons, pa.string())]
        features = self._schemas.features if directory == CHANGED else {}
        return [
            _feature_column(
                self._schemas.changed.field(column).type, _chosen(chunk.arrays[name], rows)
            )
            for name, column in features.items()
        ]

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

    def _sink(self, directory: str, schema: pa.Schema) -> Sink:
        if directory not in self._sinks:
            path, layout = f"{directory}/{self._stem}", Layout(0, ())
            self._sinks[directory] = Arrow().open_sink(self._create, path, schema, layout)
        return self._sinks[directory]

    def _create(self, path: str) -> OutputFile:
        file = self._storage.create(path)
        self._files.append(file)
        return file


def _chosen(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return array if rows.all() else array[rows]


@dataclass(frozen=True)
class ChangeSet(SealedRecord):
    """The input against the live version; the rows themselves lie in ``night/``.

    Attributes:
        counts: Rows before any vector was looked at: which of them need one is not known yet.
        features: For each input of the model, the column of ``night/changed`` that holds it.
        reason: The column of ``night/bad`` that says why.
        warnings: What the features gave reason to warn of.
        judged_again: Why there are recomputed rows, where not all rows are.
        types: Of the stored columns that feed the model.
        cause: Why nearly all known rows changed, where that shows.
        content: See `InputRecord`.
    """

    counts: RefreshRows
    features: dict[str, str]
    reason: str
    inputs: tuple[Field, ...]
    statistics: InputSummary
    warnings: tuple[str, ...] = ()
    judged_again: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    cause: str | None = None
    content: tuple[str, str] | None = None
    hash_version: str = HASH_VERSION

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it before the model runs."""
        said = (self.cause,) if self.cause else ()
        if not self.judged_again:
            return said
        rows, whys = plural(self.counts.recomputed, "row"), ", ".join(self.judged_again)
        return (*said, f"{rows} with unchanged features to be judged again: {whys}.")

    def save(self, storage: Storage) -> None:
        """Write the document: from here on the difference is found."""
        storage.put(DOCUMENT, self.to_json())

    @classmethod
    def load(cls, storage: Storage) -> ChangeSet | None:
        """Return what was found; ``None`` where nothing was, or its document is damaged."""
        return cls.from_json(storage.get(DOCUMENT))
