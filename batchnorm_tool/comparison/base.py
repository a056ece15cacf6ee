"""Queries, and the rows among which their neighbours are looked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from batchnorm_tool.norms import widen

if TYPE_CHECKING:
    from batchnorm_tool.norms import Anything, Float64s

Int64s = np.ndarray

_BLOCK_ROWS = 8192


class Base(Protocol):
    """Rows among which neighbours are looked for."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def blocks(self) -> Iterator[Anything]:
        """The rows in order, ``[n, d]`` at a time; each call begins anew."""

    def sample(self, rows: int) -> Anything:
        """About so many rows, ``[m, d]``, spread evenly; they decide on speed alone."""


@dataclass(frozen=True)
class ArrayBase:
    """Rows in memory.

    Attributes:
        array: Real numbers ``[rows, d]``.
    """

    array: Anything

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.array)

    def blocks(self) -> Iterator[Anything]:
        """The rows in blocks of 8,192."""
        for start in range(0, len(self.array), _BLOCK_ROWS):
            yield self.array[start : start + _BLOCK_ROWS]

    def sample(self, rows: int) -> Anything:
        """Every so manieth row."""
        return self.array[:: -(-len(self.array) // max(rows, 1)) or 1]


@dataclass(frozen=True)
class Queries:
    """Vectors whose neighbours are looked for.

    Attributes:
        vectors: ``float64[q, d]``, finite.
        rows: ``int64[q]``, each query's own row of the base, which is left out; -1 for none.
    """

    vectors: Float64s
    rows: Int64s

    @classmethod
    def of(cls, vectors: Anything, rows: Int64s) -> Queries:
        """Queries from real numbers ``[q, d]``, and their own rows ``int64[q]``."""
        return cls(widen(vectors), np.asarray(rows, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int64s) -> Queries:
        """Some of the queries, ``int64[m]``."""
        return Queries(self.vectors[places], self.rows[places])


def numbered(blocks: Iterable[Anything]) -> Iterator[tuple[int, Anything]]:
    """Blocks with the number of their first row.

    Example:
        >>> [first for first, _ in numbered([np.zeros((2, 1)), np.zeros((3, 1))])]
        [0, 2]
    """
    first = 0
    for block in blocks:
        yield first, block
        first += len(block)
