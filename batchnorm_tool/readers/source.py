"""Vectors that are stored, and what can be asked of them wherever they lie."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import fitting_rows, numbered
from batchnorm_tool.comparison.norm_survey import Provenance, SourceFacts
from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.pipeline.output_schema import OutputSpec, raw_predictions
from batchnorm_tool.pipeline.plan import Identity

# Rows of a batch of vectors: as many as a core's cache holds, and at most so many.
_BATCH_ROWS = 16_384
_BATCH_BYTES = 8 * 2**20
# Rows of scalar columns, without vectors.
_COLUMN_ROWS = 65_536


@dataclass(frozen=True)
class PredictionBatch:
    """Consecutive rows of stored predictions.

    Attributes:
        first_row: The number of its first row in the source.
        vectors: ``[n, d]`` in float16, float32 or float64, C order, possibly read-only: a view of
            what was read where that is so stored. Missing rows are NaN.
        missing: ``bool[n]``, where the vector, or a component of it, is null, or where it has
            another width than the others. A NaN or an infinity in a vector makes none.
        columns: The further columns asked for.
    """

    first_row: int
    vectors: np.ndarray
    missing: np.ndarray
    columns: pa.Table

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.missing)


@dataclass(frozen=True, kw_only=True)
class VectorSource(ABC):
    """Stored vectors: of a run, a version of a store, files or an array; read when asked for.

    Attributes:
        path: The run's output directory, the store's dataset, or as ``name``.
        name: What it was called by whoever opened it.
        kind: ``"data"`` for files and arrays.
        dtype: NumPy's name of the type of the vectors' components.
        keys: The columns that name a row; none where its number does.
        chosen: The one that `batches` gives; the first one otherwise.
    """

    path: str
    name: str
    kind: Literal["run", "store", "data"]
    dtype: str
    schema: pa.Schema
    keys: tuple[str, ...]
    outputs: tuple[OutputSpec, ...]
    chosen: OutputSpec | None = None

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of rows."""

    @property
    def document(self) -> Mapping[str, Any]:
        """What was recorded when a run, or a version of a store, was made, as plain data."""
        raise NotImplementedError

    @cached_property
    def provenance(self) -> Provenance | None:
        """What made the vectors of `output`; ``None`` where nothing tells."""
        return None

    @property
    def output(self) -> OutputSpec:
        """The output that `batches` gives."""
        return self.chosen or self.outputs[0]

    @property
    def width(self) -> int:
        """Components of a vector."""
        return self.output.width

    @property
    def column(self) -> tuple[str, ...]:
        """What names its vectors: of a run or a store the output, of files a column or several."""
        return (self.output.name,)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns but the vectors, keys included."""
        vectors = {output.vector_column for output in self.outputs}
        return tuple(name for name in self.schema.names if name not in vectors)

    @abstractmethod
    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows in order, in batches of at most ``batch_rows``.

        Raises:
            InputError: An input file cannot be read, or was replaced.
            Damaged: A file of a run or a store is missing, or cannot be read.
        """

    def read_raw(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield as `read` does, with predictions in the place of unit vectors."""
        outputs = [o for o in self.outputs if o.norm_column and o.vector_column in columns]
        wanted = dict.fromkeys([*columns, *(output.norm_column for output in outputs)])
        schema = self.schema_of(columns)
        for batch in self.read(tuple(wanted), batch_rows):
            found = dict(zip(wanted, batch.columns, strict=True))
            for output in outputs:
                units, norms = found[output.vector_column], found[output.norm_column]
                found[output.vector_column] = raw_predictions(units, norms, output)
            yield pa.RecordBatch.from_arrays([found[name] for name in columns], schema=schema)

    def batches(self, columns: Sequence[str] = ()) -> Iterator[PredictionBatch]:
        """Stream the raw predictions of `output` with further columns; every call starts over.

        A batch has at most 16,384 rows, fewer where vectors are wide: memory does not depend on the
        number of rows.
        """
        check_columns(self.name, columns, self.columns)
        return self._batches([*columns])

    def _batches(self, columns: list[str]) -> Iterator[PredictionBatch]:
        row_bytes = self.width * np.dtype(self.dtype).itemsize
        most = fitting_rows(row_bytes, _BATCH_BYTES, _BATCH_ROWS)
        vector = self.output.vector_column
        for first_row, batch in numbered(self.read_raw([vector, *columns], most)):
            missing = batch[vector].is_null().to_numpy(zero_copy_only=False)
            others = pa.Table.from_batches([batch]).select(columns)
            yield PredictionBatch(first_row, rows_of(batch[vector]), missing, others)

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Load columns without vectors: keys, labels; at least one."""
        check_columns(self.name, columns, self.columns)
        return pa.Table.from_batches(self.read(columns, _COLUMN_ROWS), self.schema_of(columns))

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """Pick some columns of the schema, in the order wanted."""
        return pa.schema([self.schema.field(name) for name in columns])

    def locate(self, row: int) -> str:
        """Say where a row lies, such as ``data/a.parquet, row 7``: its number in the file."""
        return f"{self.name}, row {row}"

    def facts(self) -> SourceFacts:
        """What is known without reading rows."""
        return {
            "path": self.name,
            "kind": self.kind,
            "rows": self.rows,
            "width": self.width,
            "dtype": self.dtype,
            "key": list(self.keys),
            "column": self.column[0] if len(self.column) == 1 else list(self.column),
            "provenance": self.provenance,
        }


def provenance_of(
    source: VectorSource, identity: Identity | None, space_id: str, model: str | None
) -> Provenance:
    """Say what made the vectors of a run or a store; see `VectorSource.provenance`."""
    space = identity.space if identity else {}
    content = space.get("model")
    return {
        "space": space_id,
        "model": model,
        "model_sha256": content if isinstance(content, str) else None,
        "output": source.output.name,
        "norm": source.output.norm.label,
        "versions": identity.versions if identity else {},
        "made_of": dict(space),
    }


def check_columns(
    path: str, names: Sequence[str], stored: Sequence[str], argument: str = ""
) -> None:
    """Refuse names that are not among the stored columns."""
    for name in names:
        if name not in stored:
            named_by = f", which `{argument}` names" if argument else ""
            known = ", ".join(f"`{each}`" for each in stored)
            expected = f"Expected one of: {known}." if stored else "It has only vectors."
            raise InputError(
                f"{path}: has no column `{name}`{named_by}{near_matches(name, stored)}. {expected} "
                f"Received: `{name}`."
            )


def check_key(path: str, key: Sequence[str], schema: pa.Schema) -> None:
    """Refuse a key that is not there, or that cannot name a row."""
    check_columns(path, key, schema.names, "key")
    for name in key:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_null(kind):
            raise InputError(
                f"{path}: `key` names the column `{name}`, which cannot be a key. Expected "
                f"numbers, strings or dates. Received: {kind}. Choose another column."
            )


def check_rank(path: str, column: str, shape: Sequence[int | None]) -> None:
    """Refuse rows that hold more than one vector."""
    if len(shape) > 1:
        raise InputError(
            f"{path}: `{column}` holds an array of shape {tuple(shape)} in each row. Expected one "
            "vector per row. Received: several. Store them flat, or choose another column with "
            "`column`."
        )
