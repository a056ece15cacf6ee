"""What is measured of an input: nulls of stored columns, extremes and moments of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.formats.arrow_columns import is_list
from batchnorm_tool.norms.histogram import merged_moments, moments, reduced

SAMPLED_EVERY = 8
"""Of so many rows, counted from the start of the input, one is in the sample of mean and std."""
MOST_COMPONENTS = 4096
"""An input with more components (an image) is taken as one component with all their values."""


@dataclass(frozen=True)
class ColumnNulls:
    """Rows of a stored column, and the nulls in it, those inside of lists included."""

    rows: int
    nulls: int

    def merged(self, other: ColumnNulls) -> ColumnNulls:
        """Merge those of two sets of rows."""
        return ColumnNulls(self.rows + other.rows, self.nulls + other.nulls)


@dataclass(frozen=True)
class ComponentSummary:
    """What is kept of one numeric input: a number for each component.

    Extremes are over all valid ``rows``, moments over the ``count`` rows of a sample.
    """

    rows: int
    count: int
    min: tuple[float | None, ...]
    max: tuple[float | None, ...]
    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]


@dataclass(frozen=True)
class InputSummary:
    """What is kept of the statistics of an input; of ``sampled_every`` rows, one is in the sample.

    By stored column that feeds the model, and by numeric input of the model.
    """

    columns: dict[str, ColumnNulls]
    inputs: dict[str, ComponentSummary]
    sampled_every: int


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
        sampled = [(each.count, each.mean, each.m2) for each in (self, other) if each.count]
        one = sampled[0][1:] if sampled else (self.mean, self.m2)
        return ComponentStatistics(
            self.rows + other.rows,
            self.count + other.count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            *(merged_moments(*sampled) if len(sampled) == 2 else one),
        )

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
