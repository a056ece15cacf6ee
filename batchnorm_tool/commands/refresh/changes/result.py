"""What was found, as data: counts, columns, statistics; and the document that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field
from batchnorm_tool.formats.arrow_columns import is_list
from batchnorm_tool.gate.input_limits import ColumnNulls, ComponentSummary, InputSummary
from batchnorm_tool.inputs.row_hash import HASH_VERSION
from batchnorm_tool.norms.histogram import merged_moments, moments, reduced
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.state import STAGING

DOCUMENT = f"{STAGING}/difference.json"
DISPOSITIONS = f"{STAGING}/fates.npy"
SAMPLED_EVERY = 8
"""Of so many rows, counted from the start of the input, one is in the sample of mean and std."""
MOST_COMPONENTS = 4096
"""An input with more components (an image) is taken as one component with all their values."""


@dataclass(frozen=True)
class ComponentStatistics:
    """Statistics of one numeric input, ``float64[components]`` each.

    Attributes:
        rows: Valid rows; ``low`` and ``high`` are over all of them.
        count: Values of each component in the sample; ``mean`` and ``m2`` are over it.
        low: The smallest values.
        high: The largest values.
        mean: The means.
        m2: The sums of squared deviations from the mean.
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
    """Statistics of an input.

    Attributes:
        columns: Nulls, for each stored column that feeds the model.
        inputs: Extremes and moments, for each numeric input of the model, over valid rows.
    """

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
    """Measure the statistics of a chunk.

    Args:
        table: The stored columns that feed the model, ``n`` rows.
        arrays: What the model sees of them.
        valid: ``bool[n]``: the rows that it can take.
        first_row: Global number of the first row, by which rows are sampled.
    """
    columns = {
        name: ColumnNulls(table.num_rows, nulls_in(table[name])) for name in table.schema.names
    }
    # By the row's number in the input: the sample is the same however slices and chunks are cut.
    sampled = valid[-first_row % SAMPLED_EVERY :: SAMPLED_EVERY]
    inputs = {}
    for name in sorted(arrays):
        if arrays[name].dtype != object:
            flat = _components(arrays[name])
            sample = flat[-first_row % SAMPLED_EVERY :: SAMPLED_EVERY][sampled]
            inputs[name] = _measured(flat if valid.all() else flat[valid], sample)
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
class ChangeCounts:
    """Rows by what they are.

    ``rows_in`` is the sum of ``new``, ``changed``, ``recomputed``, ``touched``, ``same``,
    ``deleted`` and ``unknown_deletes``.

    Attributes:
        rows_in: Rows of the input.
        new: Rows whose key the live version does not know.
        changed: Known rows with other features.
        recomputed: Rows with the same features that are to be predicted again.
        touched: Rows with the same features and other passed-through values.
        same: Rows that stay as they are.
        deleted: Known rows that the input says to delete.
        unknown_deletes: Unknown rows that the input says to delete.
        bad: Of the new, changed and recomputed rows, those that the model cannot take.
        vanished: Rows of the dataset that are to go: not in the input, or deleted by it.
        forgotten: Rows that are to go and were only remembered as bad, not in the dataset.
    """

    rows_in: int
    new: int
    changed: int
    recomputed: int
    touched: int
    same: int
    deleted: int
    unknown_deletes: int
    bad: int
    vanished: int
    forgotten: int

    @property
    def for_the_model(self) -> int:
        """Rows that the model is to predict."""
        return self.new + self.changed + self.recomputed - self.bad

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done: the live version is what the input says."""
        kept = self.same + self.unknown_deletes
        return kept == self.rows_in and not self.vanished and not self.forgotten


@dataclass(frozen=True)
class ChangeSet(SealedRecord):
    """The input against the live version; the rows themselves lie in ``night/``.

    Attributes:
        counts: Rows by what they are.
        live_rows: Rows of the live version that are in the dataset.
        features: For each input of the model, the column of ``night/changed`` that holds it.
        reason: The column of ``night/bad`` that says why.
        inputs: The inputs of the model, every size known.
        statistics: Of the input.
        warnings: What the features gave reason to warn of.
        hash_version: How rows were hashed.
    """

    counts: ChangeCounts
    live_rows: int
    features: dict[str, str]
    reason: str
    inputs: tuple[Field, ...]
    statistics: InputSummary
    warnings: tuple[str, ...] = ()
    hash_version: str = HASH_VERSION

    def save(self, storage: Storage) -> None:
        """Write the document: from here on the difference is found."""
        storage.put(DOCUMENT, self.to_json())

    @classmethod
    def load(cls, storage: Storage) -> ChangeSet | None:
        """Return what was found; ``None`` where nothing was, or its document is damaged."""
        return cls.from_json(storage.get(DOCUMENT))
