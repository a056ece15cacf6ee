"""What stored predictions are to whoever compares them, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError, JobError

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
        """Return all rows in order, with further columns that are there."""

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Return all rows of columns that are there."""

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file that holds a row, and its number in that file."""


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
        """Return what is known of them without reading rows, as plain data."""
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


def several(given: Any) -> list[Any]:
    """Return a list of several things, or of the only one."""
    is_one = isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)
    return [given] if is_one or (isinstance(given, np.ndarray) and not given.ndim) else [*given]


def checked_names(argument: str, given: Any) -> tuple[str, ...]:
    """Return names of columns, given as one or several; none for ``None``.

    Raises:
        JobError: They are no texts, or one is there twice.
    """
    names = [] if given is None else several(given)
    if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        msg = (
            f"`{argument}` must be the name of a column, or a list of different names. "
            f"Received: {given!r}."
        )
        raise JobError(msg)
    return tuple(names)


def checked_path(argument: str, given: Any) -> str:
    """Return a path as text.

    Raises:
        JobError: It is no path.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise JobError(f"`{argument}` must be a path. Received: {given!r}.")
    return os.fspath(given)


def checked_whole(argument: str, number: Any, least: int = 0) -> int:
    """Return a whole number of a certain size at least.

    Raises:
        JobError: It is none.
    """
    if not _is_whole(number, least):
        msg = f"`{argument}` must be a whole number, {least} or more. Received: {number!r}."
        raise JobError(msg)
    return int(number)


def checked_ks(given: Any) -> tuple[int, ...]:
    """Return numbers of neighbours, given as one or several: ascending, each once.

    Raises:
        JobError: They are none.
    """
    numbers = several(given)
    if not numbers or not all(_is_whole(k, 1) for k in numbers):
        msg = f"`k` must be numbers of neighbours, 1 or more each. Received: {given!r}."
        raise JobError(msg)
    return tuple(sorted({int(k) for k in numbers}))


def _is_whole(number: Any, least: int) -> bool:
    is_number = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_number and number >= least


def check_columns(
    path: str, names: Sequence[str], stored: Sequence[str], argument: str = ""
) -> None:
    """Refuse names that are not among the stored columns.

    Args:
        path: Of the predictions.
        names: The columns wanted.
        stored: The columns that there are.
        argument: What names them, if anything does.

    Raises:
        InputError: One of them is not there.
    """
    for name in names:
        if name not in stored:
            named_by = f", which `{argument}` names" if argument else ""
            known = ", ".join(f"`{each}`" for each in stored)
            expected = f"Expected one of: {known}." if stored else "It has vectors alone."
            msg = (
                f"{path}: has no column `{name}`{named_by}{near_matches(name, stored)}. {expected} "
                f"Received: `{name}`."
            )
            raise InputError(msg)


def check_key(path: str, key: Sequence[str], schema: pa.Schema) -> None:
    """Refuse a key that is not there, or that cannot name a row.

    Raises:
        InputError: It is not there, or holds lists or structs.
    """
    check_columns(path, key, schema.names, "key")
    for name in key:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_null(kind):
            msg = (
                f"{path}: `key` names the column `{name}`, which cannot name a row. Expected "
                f"numbers, strings or dates. Received: {kind}. Name another column."
            )
            raise InputError(msg)


def check_rank(path: str, column: str, shape: Sequence[int | None]) -> None:
    """Refuse rows that hold more than one vector.

    Raises:
        InputError: The shape of a row has several axes.
    """
    if len(shape) > 1:
        msg = (
            f"{path}: `{column}` holds an array of shape {tuple(shape)} in each row. Expected one "
            "vector in each row. Received: several. Store them flat, or name another column with "
            "`column`."
        )
        raise InputError(msg)
