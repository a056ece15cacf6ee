"""Vectors in data files, read as a run without a model reads them, and in arrays."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from batchnorm_tool import features
from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.comparison.norm_survey import Provenance
from batchnorm_tool.errors import Damaged, InputError, WorkFailed, warn
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import VECTOR, names_of
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs.files import Table
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input
from batchnorm_tool.norms.array import array_of
from batchnorm_tool.norms.norm import Anything, Norm
from batchnorm_tool.pipeline.output_schema import OutputSpec, fixed_size_list, flat_field
from batchnorm_tool.readers.source import VectorSource, check_columns, check_key, check_rank

# Rows by which the width of lists of open length is told, as a run does.
_SAMPLE_ROWS = 256
# The key under which the footer of a run's part tells where it came from.
_PROVENANCE = b"batchnorm_tool"
_NAME = "array"


@dataclass(frozen=True, kw_only=True)
class FileVectors(VectorSource):
    """Vectors in data files, in a column that is stored or made of several scalar ones.

    Of these, the schema has one in their place, called as the first of them.
    """

    table: Table
    stored: tuple[str, ...]
    reader: FeatureReader

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.table.rows

    @property
    def column(self) -> tuple[str, ...]:
        """The stored columns."""
        return self.stored

    @cached_property
    def provenance(self) -> Provenance | None:
        """What the footer of a lone part of a run tells of these vectors."""
        text = (self.table.schema.metadata or {}).get(_PROVENANCE)
        try:
            written = json.loads(text or b"null")
            outputs = {one["vector_column"]: one for one in written["outputs"]}
            made = outputs[self.column[0]]
            found = Provenance(space=written["space"], output=made["name"], norm=made["norm"])
        except (ValueError, TypeError, KeyError):  # another program's metadata, or another column
            return None
        if found["norm"] != "none":
            warn(
                f"{self.name}: is a part of a finished run, and contains unit vectors "
                f"(norm {found['norm']}). Use the directory of the run to get its raw predictions."
            )
        return found

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows, in batches of at most ``batch_rows``."""
        vector, schema = self.column[0], self.schema_of(columns)
        wanted = [name for name in columns if name != vector]
        stored = tuple(dict.fromkeys([*(self.column if vector in columns else ()), *wanted]))
        self.table.check(stored)
        for file in self.table.files:
            try:
                for batch in reading.read_rows(file, stored, 0, file.rows, batch_rows):
                    found = dict(zip(stored, batch.columns, strict=True))
                    if vector in columns:
                        found[vector] = self._vectors(batch)
                    yield pa.RecordBatch.from_arrays([found[n] for n in columns], schema=schema)
            except (Damaged, WorkFailed) as error:  # nothing was written that could be resumed
                raise InputError(error.message) from error

    def _vectors(self, batch: pa.RecordBatch) -> pa.Array:
        arrays, faults = self.reader.read(pa.Table.from_batches([batch]))
        return fixed_size_list(arrays[VECTOR], faults != Reason.GOOD)

    def locate(self, row: int) -> str:
        """Say where a row lies, for messages."""
        file, place = reading.locate(self.table.files, row)
        return f"{file.path}, row {place}"


def open_files(path: str, column: tuple[str, ...], key: tuple[str, ...]) -> FileVectors:
    """Open data files; see `batchnorm_tool.readers.vectors.open_predictions`."""
    table = open_table(Input(path=path, key=list(key) or None))
    with _naming(path):
        column = names_of(table.schema, column, key)
    spec = Input(path=path, key=list(key) or None, features=list(column) or None)
    check_columns(path, column, table.schema.names, "column")
    check_key(path, key, table.schema)
    table.check(key)
    matched, vectors = _vectors(table, spec, path)
    field = flat_field(matched[0], vectors.dtype, (int(vectors.shape[0] or 0),))
    others = [table.schema.field(name) for name in table.columns if name not in matched]
    return FileVectors(
        path=path,
        name=path,
        kind="data",
        dtype=vectors.dtype,
        schema=pa.schema([*others, field]),
        keys=key,
        outputs=(_raw(field),),
        table=table,
        stored=matched,
        reader=FeatureReader({VECTOR: matched}, (vectors,), spec, check_nonfinite=False),
    )


def _raw(field: pa.Field) -> OutputSpec:
    width = field.type.list_size
    return OutputSpec(field.name, (width,), 1, width, Norm("none"), -1, field.name, "")


def _vectors(table: Table, spec: Input, path: str) -> tuple[tuple[str, ...], Field]:
    """Return the columns of the vectors, and what they hold."""
    with _naming(path):
        columns = features.match_features(table.schema, (), spec)
        (stored,) = features.stored_fields(table.schema, columns)
        check_rank(path, columns[VECTOR][0], stored.shape)
        head = reading.head_with_lists(table, columns[VECTOR], _SAMPLE_ROWS)
        _check_holds_vectors(head, columns[VECTOR])
        (vectors,) = features.infer_fields(head, columns, (), spec)
    return columns[VECTOR], vectors


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
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
            raise InputError(
                f"The column `{name}` does not contain vectors. Expected lists of numbers. "
                "Received: only nulls and empty lists. Choose another column with `column`."
            )


@dataclass(frozen=True, kw_only=True)
class ArrayVectors(VectorSource):
    """Vectors of an array ``[n, d]``."""

    array: Anything

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.array)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in batches of at most ``batch_rows``; there is one column."""
        for start in range(0, len(self.array), batch_rows):
            vectors = np.ascontiguousarray(self.array[start : start + batch_rows], self.dtype)
            yield pa.RecordBatch.from_arrays([fixed_size_list(vectors)] * len(columns), columns)


def predictions_of_array(array: Anything) -> VectorSource:
    """Take an array ``[n, d]`` of real numbers for stored predictions; integers become float64."""
    vectors = array_of(array)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(
            "An array of predictions must have one row per vector. Expected the shape (rows, "
            f"width). Received: {vectors.shape}. Reshape it."
        )
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        vectors = vectors.astype(np.float64 if vectors.dtype.kind in "iub" else np.float32)
    dtype = str(vectors.dtype.newbyteorder("="))
    field = flat_field(_NAME, dtype, (vectors.shape[1],))
    return ArrayVectors(
        path=_NAME,
        name=_NAME,
        kind="data",
        dtype=dtype,
        schema=pa.schema([field]),
        keys=(),
        outputs=(_raw(field),),
        array=vectors,
    )
