"""Stored predictions as a stream of raw vectors, from data files, a finished run or a store.

A run or a store holds unit vectors; here they come as the predictions that they were made of,
vector times norm.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool import features
from batchnorm_tool.chunk import Reason
from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import Damaged, InputError, WorkFailed, warn
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import VECTOR, names_of
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.job import Input
from batchnorm_tool.norms.array import array_of
from batchnorm_tool.pipeline.manifest import MANIFEST_PATH
from batchnorm_tool.pipeline.output_schema import raw_predictions
from batchnorm_tool.pipeline.plan import PLAN_PATH
from batchnorm_tool.readers.predictions import (
    PredictionBatch,
    Predictions,
    check_columns,
    check_key,
    check_rank,
    checked_names,
)
from batchnorm_tool.readers.run import DATA_DIRECTORY, open_run
from batchnorm_tool.readers.store import open_snapshot
from batchnorm_tool.store.state import is_store

if TYPE_CHECKING:
    from batchnorm_tool.chunk import Field
    from batchnorm_tool.inputs.files import Table
    from batchnorm_tool.norms.norm import Anything
    from batchnorm_tool.pipeline.output_schema import OutputSpec
    from batchnorm_tool.readers.run import StoredRun
    from batchnorm_tool.readers.store import Snapshot
    from batchnorm_tool.readers.vectors import Stored

# A run has one of these: finished, under way, or damaged.
_MARKS = (MANIFEST_PATH, PLAN_PATH)
# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536
# Rows by which the width of lists of open length is told, as a run does.
_SAMPLE_ROWS = 256
# The key under which the footer of a run's part tells where it came from.
_PROVENANCE = b"batchnorm_tool"
_NAME = "array"


def open_predictions(
    path: str | os.PathLike[str],
    column: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
) -> Predictions:
    """Open stored predictions; no more rows are read than it takes to tell their width.

    Args:
        path: A Parquet, Arrow or NPY file, a directory or a glob of them, or the output directory
            of a finished run, or a store, whose raw predictions are restored (see
            `batchnorm_tool.read`).
        column: The column of the vectors, or several scalar columns that make one; default: the
            only column with lists of numbers. Of a run or a store: the name of an output; default:
            the only one.
        key: The column, or columns, that name a row; default: the own key of a run or a store; of
            data none, and rows go by their number.

    Returns:
        The predictions.

    Raises:
        InputError: Nothing that can be read lies there, a column is missing or holds no vectors, or
            it is not evident which one does.
        Damaged: The manifest of the run, or the state of the store, is damaged.

    Warns:
        InputWarning: The path is a part of a run, which holds unit vectors.

    Example:
        >>> found = open_predictions("data_samples/digits_predictions.parquet", key="id")
        >>> found.rows, found.width, found.dtype, found.column, found.key
        (1797, 32, 'float32', ('prediction',), ('id',))
    """
    name = os.fspath(path)
    columns, keys = checked_names("column", column), checked_names("key", key)
    if is_store(name):
        return predictions_of_store(open_snapshot(name), name, columns, keys)
    if _is_run(name):
        return predictions_of_run(open_run(name), name, columns, keys)
    return open_data(name, columns, keys)


def _is_run(path: str) -> bool:
    root = Path(path)
    above = [root.parent] if root.name == DATA_DIRECTORY else []
    # Not `Path.is_file`, which raises for a name that is too long.
    return any(os.path.isfile(at / name) for at in [root, *above] for name in _MARKS)  # noqa: PTH113


def chosen_output(layouts: Sequence[OutputSpec], path: str, column: Sequence[str]) -> OutputSpec:
    """Return the output that ``column`` names, by its own name or by that of its column.

    Raises:
        InputError: There is no such output, or several and none is named.
    """
    if not column and len(layouts) == 1:
        return layouts[0]
    known = {one.vector_column: one for one in layouts} | {one.name: one for one in layouts}
    if len(column) == 1 and column[0] in known:
        return known[column[0]]
    received = ", ".join(f"`{name}`" for name in column)
    hint = near_matches(column[0], known) if column else ""
    msg = (
        f"{path}: which output of this run is meant is not evident. Expected `column` to be one "
        f"of: {', '.join(f'`{one.name}`' for one in layouts)}. "
        f"Received: {received or 'none'}{hint}."
    )
    raise InputError(msg)


@dataclass(frozen=True)
class RestoredStream:
    """Rows of one output, its predictions restored."""

    stored: Stored
    output: OutputSpec

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:
        """Yield all rows in order, with further columns that are there."""
        vector, norm = self.output.vector_column, self.output.norm_column
        first_row = 0
        for batch in self.stored.read(tuple(dict.fromkeys([vector, norm, *columns])), batch_rows):
            raw = raw_predictions(batch[vector], batch[norm], self.output)
            missing = raw.is_null().to_numpy(zero_copy_only=False)
            others = pa.Table.from_batches([batch]).select(list(columns))
            yield PredictionBatch(first_row, rows_of(raw), missing, others)
            first_row += batch.num_rows

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Return all rows of columns that are there."""
        schema = pa.schema([self.stored.schema.field(name) for name in columns])
        return pa.Table.from_batches(self.stored.read(columns, _COLUMN_ROWS), schema)

    def locate(self, row: int) -> tuple[str, int]:
        """Return where a row lies, and its number there."""
        return self.stored.path, row


def open_data(path: str, column: tuple[str, ...], key: tuple[str, ...]) -> Predictions:
    """Open data files; see `batchnorm_tool.readers.opening.open_predictions`."""
    table = inputs_table.open_table(Input(path=path, key=list(key) or None))
    with _named(path):
        column = names_of(table.schema, column, key)
    spec = Input(path=path, key=list(key) or None, features=list(column) or None)
    check_columns(path, column, table.schema.names, "column")
    check_key(path, key, table.schema)
    table.check(key)
    matched, vectors = _vectors(table, spec, path)
    others = tuple(name for name in table.columns if name not in matched)
    return Predictions(
        path=path,
        kind="data",
        rows=table.rows,
        width=int(vectors.shape[0] or 0),
        dtype=vectors.dtype,
        column=matched,
        key=key,
        columns=others,
        provenance=_provenance_of_part(table.schema, matched, path),
        _stream=_DataStream(table, vectors, matched, spec),
    )


def _vectors(table: Table, spec: Input, path: str) -> tuple[tuple[str, ...], Field]:
    """Return the columns of the vectors, and what they hold."""
    with _named(path):
        columns = features.match_features(table.schema, (), spec)
        (stored,) = features.stored_fields(table.schema, columns)
        check_rank(path, columns[VECTOR][0], stored.shape)
        head = reading.head_with_lists(table, columns[VECTOR], _SAMPLE_ROWS)
        _check_holds_vectors(head, columns[VECTOR])
        (vectors,) = features.infer_fields(head, columns, (), spec)
    return columns[VECTOR], vectors


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Put the path before whatever is wrong with its columns."""
    try:
        yield
    except InputError as error:
        if error.message.startswith(path):
            raise
        raise InputError(f"{path}: {error.message}") from error
    except (Damaged, WorkFailed) as error:
        raise InputError(error.message) from error


def _check_holds_vectors(sample: pa.Table, columns: Sequence[str]) -> None:
    for name in columns:
        if sample.num_rows and reading.first_list(sample[name]) is None:
            msg = (
                f"The column `{name}` holds no vectors. Expected lists of numbers. Received: "
                "nothing but nulls and empty lists. Name another column with `column`."
            )
            raise InputError(msg)


def _provenance_of_part(
    schema: pa.Schema, column: Sequence[str], path: str
) -> Mapping[str, Any] | None:
    """Return what the footer of a lone part of a run tells of these vectors."""
    text = (schema.metadata or {}).get(_PROVENANCE)
    try:
        written = json.loads(text or b"null")
        space, outputs = written["space"], {one["vector_column"]: one for one in written["outputs"]}
        output = outputs[column[0]]
        found = {"space": space, "output": output["name"], "norm": output["norm"]}
    except (ValueError, TypeError, KeyError):  # another program's metadata, or another column
        return None
    if found["norm"] != "none":
        warn(
            f"{path}: is a part of a finished run, and holds unit vectors (norm {found['norm']}). "
            "Name the directory of the run to get its raw predictions."
        )
    return found


@dataclass(frozen=True)
class _DataStream:
    """Rows of data files, read as stored predictions are in a run."""

    table: Table
    vectors: Field
    column: tuple[str, ...]
    spec: Input

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:
        names = tuple(dict.fromkeys([*self.column, *columns]))
        reader = FeatureReader(
            {VECTOR: self.column}, (self.vectors,), self.spec, check_nonfinite=False
        )
        first_row = 0
        for batch in self._read(names, batch_rows):
            table = pa.Table.from_batches([batch])
            yield _batch(reader, table, columns, first_row)
            first_row += batch.num_rows

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([self.table.schema.field(name) for name in columns])
        return pa.Table.from_batches(self._read(columns, _COLUMN_ROWS), schema)

    def locate(self, row: int) -> tuple[str, int]:
        for file in self.table.files:
            if row < file.rows:
                return file.path, row
            row -= file.rows
        msg = f"row {row} beyond the last one"
        raise IndexError(msg)

    def _read(self, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        self.table.check(names)
        for file in self.table.files:
            try:
                yield from reading.read_rows(file, names, 0, file.rows, batch_rows)
            except (Damaged, WorkFailed) as error:  # nothing was written that could be resumed
                raise InputError(error.message) from error


def _batch(
    reader: FeatureReader, table: pa.Table, columns: Sequence[str], first_row: int
) -> PredictionBatch:
    arrays, faults = reader.read(table)
    vectors, missing = arrays[VECTOR], faults != Reason.GOOD
    if missing.any():
        vectors[missing] = np.nan  # the reader copied them to put zeros there
    return PredictionBatch(first_row, vectors, missing, table.select(list(columns)))


def predictions_of_array(array: Anything) -> Predictions:
    """Take an array ``[n, d]`` of real numbers for stored predictions; integers become float64.

    Raises:
        InputError: It is no such array.
    """
    vectors = array_of(array)
    if vectors.ndim != 2 or not vectors.shape[1]:
        msg = (
            "An array of predictions has one row for each vector. Expected the shape (rows, width)."
            f" Received: {vectors.shape}. Reshape it."
        )
        raise InputError(msg)
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        vectors = vectors.astype(np.float64 if vectors.dtype.kind in "iub" else np.float32)
    return Predictions(
        path=_NAME,
        kind="data",
        rows=len(vectors),
        width=vectors.shape[1],
        dtype=str(vectors.dtype.newbyteorder("=")),
        column=(_NAME,),
        key=(),
        columns=(),
        provenance=None,
        _stream=_ArrayStream(vectors),
    )


@dataclass(frozen=True)
class _ArrayStream:
    """Rows of an array ``[n, d]``."""

    array: Anything

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[PredictionBatch]:  # noqa: ARG002  (there are none)
        nothing = pa.table({})
        for start in range(0, len(self.array), batch_rows):
            vectors = np.ascontiguousarray(self.array[start : start + batch_rows])
            yield PredictionBatch(start, vectors, np.zeros(len(vectors), bool), nothing)

    def read_columns(self, columns: Sequence[str]) -> pa.Table:  # noqa: ARG002  (there are none)
        return pa.table({})

    def locate(self, row: int) -> tuple[str, int]:
        return _NAME, row


def predictions_of_run(
    run: StoredRun, path: str, column: tuple[str, ...], key: tuple[str, ...]
) -> Predictions:
    """Take one output of a finished run; see `batchnorm_tool.readers.opening.open_predictions`."""
    output = chosen_output(run.layouts, path, column)
    check_rank(path, output.name, output.shape)
    check_key(path, key, run.schema)
    vectors = {one.vector_column for one in run.layouts}
    return Predictions(
        path=path,
        kind="run",
        rows=run.rows,
        width=output.width,
        dtype=run.job.output.dtype,
        column=(output.name,),
        key=key or run.keys,
        columns=tuple(name for name in run.schema.names if name not in vectors),
        provenance=_provenance_of_run(run, output),
        _stream=_RunStream(run, output, run),
    )


def _provenance_of_run(run: StoredRun, output: OutputSpec) -> Mapping[str, Any]:
    identity = run.manifest.identity
    return {
        "space": run.manifest.data["space"],
        "model": run.job.model.path if run.job.model else None,
        "model_sha256": identity.space["model"],
        "output": output.name,
        "norm": output.norm.label,
        "versions": dict(identity.bits["versions"]),
        "made_of": dict(identity.space),
    }


@dataclass(frozen=True)
class _RunStream(RestoredStream):
    """Rows of a finished run, its predictions restored."""

    run: StoredRun

    def locate(self, row: int) -> tuple[str, int]:
        part = next(one for one in reversed(self.run.parts) if one.first <= row)
        file = self.run.file_of(part, self.output.vector_column)
        return f"{self.run.path}/{file}", row - part.first


def predictions_of_store(
    snapshot: Snapshot, path: str, column: tuple[str, ...], key: tuple[str, ...]
) -> Predictions:
    """Take the vectors of a version; see `batchnorm_tool.readers.opening.open_predictions`."""
    output = chosen_output(snapshot.layouts, path, column)
    check_rank(path, output.name, output.shape)
    check_key(path, key, snapshot.schema)
    return Predictions(
        path=path,
        kind="store",
        rows=snapshot.rows,
        width=output.width,
        dtype=snapshot.dtype,
        column=(output.name,),
        key=key or snapshot.keys,
        columns=tuple(name for name in snapshot.schema.names if name != output.vector_column),
        provenance=_provenance(snapshot, output),
        _stream=RestoredStream(snapshot, output),
    )


def _provenance(snapshot: Snapshot, output: OutputSpec) -> Mapping[str, Any]:
    identity = snapshot.pointer.identity or {"space": {}, "bits": {}}
    record = snapshot.document
    return {
        "space": record["space"],
        "model": (record["model"] or {}).get("path"),
        "model_sha256": identity["space"].get("model"),
        "output": output.name,
        "norm": output.norm.label,
        "versions": dict(identity["bits"].get("versions", {})),
        "made_of": dict(identity["space"]),
    }
