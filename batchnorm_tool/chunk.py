"""Rows in memory: the fields of a model, the chunk that travels, and why a row is bad."""

import bisect
import math
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

_Rows = TypeVar("_Rows", bound=Sized)
TEXT_BYTES = 32
"""What a value of open length is taken for where rows are counted by their bytes."""


class Reason(IntEnum):
    """Why a row is bad; ``GOOD`` where it is not.

    `INPUT_REASONS` concern the input, the others the prediction. A feature is unfit where the model
    takes integers, and it has a fraction or is too large. A model failure is a row that the
    model itself cannot take, such as an id beyond its embedding.
    """

    GOOD = 0
    NULL_FEATURE = 1
    RAGGED_FEATURE = 2
    NONFINITE_FEATURE = 3
    UNDECODABLE_IMAGE = 4
    NONFINITE_PREDICTION = 5
    NORM_OVERFLOW = 6
    ZERO_VECTOR = 7
    UNFIT_FEATURE = 8
    MODEL_FAILURE = 9

    @property
    def label(self) -> str:
        """The name that manifests and summaries use, such as ``null_feature``."""
        return self.name.lower()


INPUT_REASONS = frozenset(
    {
        Reason.NULL_FEATURE,
        Reason.RAGGED_FEATURE,
        Reason.NONFINITE_FEATURE,
        Reason.UNFIT_FEATURE,
        Reason.UNDECODABLE_IMAGE,
        Reason.MODEL_FAILURE,
    }
)


@dataclass(frozen=True)
class Field:
    """A named input or output of a model.

    Its shape is without the batch axis, ``None`` where any length will do; its dtype is a NumPy
    dtype name, ``"bfloat16"`` or ``"string"``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row takes: an open size counts as 1, a string as 32 bytes."""
        digits = "".join(filter(str.isdigit, self.dtype))
        item = int(digits) // 8 if digits else TEXT_BYTES if self.dtype == "string" else 1
        return item * math.prod(size or 1 for size in self.shape)


def numbered(blocks: Iterable[_Rows], first: int = 0) -> Iterator[tuple[int, _Rows]]:
    """Yield arrays, batches or tables of rows with the number of their first row."""
    for block in blocks:
        yield first, block
        first += len(block)


def overlaps(starts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield each piece with rows in question.

    Of each its number, the first of these rows in it, and the one after the last.

    Args:
        starts: The first row of each piece, and behind them the number of all rows.
        start: The first row.
        stop: The row after the last one.

    Example:
        >>> list(overlaps([0, 10, 10, 15], 8, 12))
        [(0, 8, 10), (2, 0, 2)]
    """
    number = bisect.bisect_right(starts, start) - 1
    while start < stop:
        before, after = starts[number], min(stop, starts[number + 1])
        if start < after:
            yield number, start - before, after - before
            start = after
        number += 1


def fitting_rows(row_bytes: int, most_bytes: int, most_rows: int = sys.maxsize) -> int:
    """Return how many rows fit, at least 1."""
    return max(1, min(most_rows, most_bytes // max(1, row_bytes)))


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive rows on their way to the model.

    Attributes:
        first_row: Global number of the first row (counted over all input files in plan order).
        carried: Key and passed-through columns, ``n`` rows.
        features: One array ``[n, ...]`` for each model input, in the model's dtype. Rows that are
            bad hold harmless filler, so that every good row keeps its place in its batch.
        faults: ``uint8[n]``, a `Reason` for each row.
    """

    first_row: int
    carried: pa.Table
    features: dict[str, np.ndarray]
    faults: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.faults)


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values as Python has them; where one is beyond its types, such as a year, numbers."""
    try:
        if column.type == pa.time64("ns"):
            column.cast(pa.time64("us"))  # fails where nanoseconds would be dropped silently
        return list(column.to_pylist())
    except (OverflowError, ValueError, pa.ArrowException):
        return [scalar.value if scalar.is_valid else None for scalar in column]
