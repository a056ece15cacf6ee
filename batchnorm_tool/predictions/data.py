"""Predictions in data files: Parquet, Arrow or NPY, read as a run without a model reads them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool import features, sources
from batchnorm_tool.chunk import Reason
from batchnorm_tool.errors import Damaged, InputError, WorkFailed
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import VECTOR, names_of
from batchnorm_tool.input_warnings import warn
from batchnorm_tool.job import Input
from batchnorm_tool.predictions.checks import check_columns, check_key, check_rank
from batchnorm_tool.predictions.contract import PredictionBatch, Predictions
from batchnorm_tool.sources import sampling

if TYPE_CHECKING:
    from batchnorm_tool.chunk import Field
    from batchnorm_tool.sources import Table

# Rows by which the width of lists of open length is told, as a run does.
_SAMPLE_ROWS = 256
# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536
# The key under which the footer of a run's part tells where it came from.
_PROVENANCE = b"batchnorm_tool"


def open_data(path: str, column: tuple[str, ...], key: tuple[str, ...]) -> Predictions:
    """Open data files; see `batchnorm_tool.predictions.open_predictions`."""
    table = sources.open_table(Input(path=path, key=list(key) or None))
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
    """The columns of the vectors, and what they hold."""
    with _named(path):
        columns = features.match_features(table.schema, (), spec)
        (stored,) = features.stored_fields(table.schema, columns)
        check_rank(path, columns[VECTOR][0], stored.shape)
        head = sampling.head_with_lists(table, columns[VECTOR], _SAMPLE_ROWS)
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
        if sample.num_rows and sampling.first_list(sample[name]) is None:
            msg = (
                f"The column `{name}` holds no vectors. Expected lists of numbers. Received: "
                "nothing but nulls and empty lists. Name another column with `column`."
            )
            raise InputError(msg)


def _provenance_of_part(
    schema: pa.Schema, column: Sequence[str], path: str
) -> Mapping[str, Any] | None:
    """What the footer of a lone part of a run tells of these vectors."""
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
            {VECTOR: self.column}, (self.vectors,), self.spec, judge_nonfinite=False
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
                yield from sources.read_rows(file, names, 0, file.rows, batch_rows)
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
