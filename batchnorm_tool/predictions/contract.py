"""What stored predictions are to whoever compares them, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from batchnorm_tool.predictions.checks import check_columns

# Rows of a batch: as many as a core's cache holds vectors of, and at most so many.
_BATCH_ROWS = 16_384
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PredictionBatch:
    """Consecutive rows of stored predictions.

    Attributes:
        first_row: The number of its first row in the source.
        vectors: ``[n, d]`` in float16, float32 or float64, C order, possibly read-only: a view of
            what was read where that is so stored. Missing rows are NaN.
        missing: ``bool[n]``, where the vector, or a component of it, is null, or where it has
            another width than the others. A NaN or an infinity in a vector makes none.
        columns: The further columns asked for, ``n`` rows.
    """

    first_row: int
    vectors: np.ndarray
    missing: np.ndarray
    columns: pa.Table

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.missing)


class Stream(Protocol):
    """Where the rows come from."""

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:
        """All rows in order, with further columns that are there."""

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """All rows of columns that are there."""

    def locate(self, row: int) -> tuple[str, int]:
        """The file that holds a row, and its number in that file."""


@dataclass(frozen=True)
class Predictions:
    """Stored predictions, one vector for each row; rows are read when they are asked for.

    Attributes:
        path: As it was given.
        kind: ``"run"`` for a finished run, ``"store"`` for a store, ``"data"`` for files.
        rows: Number of rows.
        width: Components of a vector.
        dtype: Of the vectors, as `batches` gives them.
        column: The column of the vectors, or several scalar ones; of a run or a store its output.
        key: The columns that name a row; none where its number does.
        columns: All stored columns but the vectors, key included.
        provenance: What made the vectors; ``None`` where nothing tells. Of a run or a store:
            ``space`` (the id of its vector space), ``model`` (path, ``None`` where predictions were
            stored already), ``model_sha256`` (of architecture and weights), ``output``, ``norm``,
            ``versions``, and ``made_of`` (all that the space is made of). Of a lone part of a run:
            ``space``, ``output`` and ``norm``.
    """

    path: str
    kind: Literal["run", "store", "data"]
    rows: int
    width: int
    dtype: str
    column: tuple[str, ...]
    key: tuple[str, ...]
    columns: tuple[str, ...]
    provenance: Mapping[str, Any] | None
    _stream: Stream = field(repr=False)

    def batches(self, columns: Sequence[str] = ()) -> Iterator[PredictionBatch]:
        """Stream all rows in their order; every call starts over.

        Args:
            columns: Names of further columns that each batch is to hold.

        Returns:
            Batches of at most 16,384 rows, fewer where vectors are wide: memory does not depend on
            the number of rows.

        Raises:
            InputError: There is no such column, or a file cannot be read or was replaced.
            Damaged: A file of a run is missing, or cannot be read.
        """
        check_columns(self.path, columns, self.columns)
        row_bytes = self.width * np.dtype(self.dtype).itemsize
        most = _BATCH_BYTES // max(1, row_bytes)
        return self._stream.batches(tuple(columns), min(_BATCH_ROWS, max(1, most)))

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Load columns without the vectors: keys, labels.

        Args:
            columns: At least one of `columns`.

        Raises:
            InputError: There is no such column, or a file cannot be read or was replaced.
            Damaged: A file of a run is missing, or cannot be read.
        """
        check_columns(self.path, columns, self.columns)
        return self._stream.read_columns(tuple(columns))

    def locate(self, row: int) -> str:
        """Say where a row lies, for messages.

        Args:
            row: Its number, from 0.

        Returns:
            Such as ``data/a.parquet, row 7``: the number is that in the file.
        """
        file, place = self._stream.locate(row)
        return f"{file}, row {place}"

    def facts(self) -> dict[str, Any]:
        """What is known of them without reading rows, as plain data."""
        return {
            "path": self.path,
            "kind": self.kind,
            "rows": self.rows,
            "width": self.width,
            "dtype": self.dtype,
            "key": list(self.key),
            "column": self.column[0] if len(self.column) == 1 else list(self.column),
            "provenance": None if self.provenance is None else dict(self.provenance),
        }
