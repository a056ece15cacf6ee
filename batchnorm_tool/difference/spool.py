"""Tonight's rows that need work, in Arrow files: for the model, to be touched, or bad."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Reason
from batchnorm_tool.formats.arrow import Arrow
from batchnorm_tool.formats.contract import Layout
from batchnorm_tool.formats.vectors import vector_field
from batchnorm_tool.store.index import fixed_binary
from batchnorm_tool.store.state import FEATURE_HASH, NIGHT, PASSTHROUGH_HASH

if TYPE_CHECKING:
    from typing import Self

    from batchnorm_tool.chunk import Field
    from batchnorm_tool.difference.reading import Chunk
    from batchnorm_tool.difference.tonight import Tonight
    from batchnorm_tool.formats.contract import Sink
    from batchnorm_tool.storage import OutputFile, Storage

CHANGED = f"{NIGHT}/changed"
TOUCHED = f"{NIGHT}/touched"
BAD = f"{NIGHT}/bad"
_REASON = "reason"


@dataclass(frozen=True)
class SpoolSchemas:
    """The columns of the files: keys, passed-through columns, two hashes, then their own."""

    tonight: Tonight

    @cached_property
    def features(self) -> dict[str, str]:
        """The column of each model input."""
        names = sorted(field.name for field in self.tonight.inputs)
        return {name: self.tonight.name_of(f"feature_{n}") for n, name in enumerate(names)}

    @cached_property
    def reason(self) -> str:
        """The column that says why a row is bad."""
        return self.tonight.name_of(_REASON)

    @cached_property
    def touched(self) -> pa.Schema:
        """Of rows that are written without the model."""
        hashes = [pa.field(FEATURE_HASH, pa.binary(16)), pa.field(PASSTHROUGH_HASH, pa.binary(8))]
        return pa.schema([*self.tonight.carried, *hashes])

    @cached_property
    def changed(self) -> pa.Schema:
        """Of rows for the model."""
        inputs = sorted(self.tonight.inputs, key=lambda field: field.name)
        return pa.schema(
            [*self.touched, *(feature_field(self.features[f.name], f) for f in inputs)]
        )

    @cached_property
    def bad(self) -> pa.Schema:
        """Of rows that the model cannot take."""
        return self.touched.append(pa.field(self.reason, pa.string()))


def feature_field(name: str, field: Field) -> pa.Field:
    """The column that holds what a model input sees, to the bit.

    Example:
        >>> from batchnorm_tool.chunk import Field
        >>> feature_field("feature_0", Field("x", (2, 3), "float32")).type
        FixedSizeListType(fixed_size_list<item: float>[6])
    """
    shape = tuple(size or 0 for size in field.shape)
    return vector_field(name, _arrow_type(field.dtype), shape)


def feature_column(kind: pa.DataType, array: np.ndarray) -> pa.Array:
    """What a model sees of some rows as a column of type ``kind``, without a copy of numbers.

    Args:
        kind: The type that `feature_field` gives.
        array: ``[n, *shape]``.
    """
    flat = array.reshape(-1)
    if not pa.types.is_fixed_size_list(kind):
        return _values(flat, kind)
    return pa.FixedSizeListArray.from_arrays(_values(flat, kind.value_type), type=kind)


def _arrow_type(dtype: str) -> pa.DataType:
    if dtype == "string":
        return pa.binary()  # what the model takes for text may be no UTF-8
    # Arrow has no bfloat16; every one of them is a float32.
    return pa.from_numpy_dtype(np.dtype("float32" if dtype == "bfloat16" else dtype))


def _values(flat: np.ndarray, kind: pa.DataType) -> pa.Array:
    if flat.dtype != object and flat.dtype.kind not in "fiub":
        flat = flat.astype(np.float32)
    return pa.array(flat, kind)


class Spool:
    """The files of one slice; a set without rows has no file.

    Args:
        storage: The state of the store.
        schemas: Of the files.
        stem: Their name without a suffix.
    """

    def __init__(self, storage: Storage, schemas: SpoolSchemas, stem: str) -> None:
        self._storage, self._schemas, self._stem = storage, schemas, stem
        self._sinks: dict[str, Sink] = {}
        self._files: list[OutputFile] = []

    def add_changed(self, chunk: Chunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk for the model."""
        schema = self._schemas.changed
        columns = self._common(chunk, rows)
        for name in self._schemas.features:
            kind = schema.field(self._schemas.features[name]).type
            columns.append(feature_column(kind, _chosen(chunk.arrays[name], rows)))
        self._write(CHANGED, schema, columns)

    def add_touched(self, chunk: Chunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk that are written without the model."""
        self._write(TOUCHED, self._schemas.touched, self._common(chunk, rows))

    def add_bad(self, chunk: Chunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk that the model cannot take."""
        reasons = [Reason(fault).label for fault in chunk.faults[rows].tolist()]
        columns = [*self._common(chunk, rows), pa.array(reasons, pa.string())]
        self._write(BAD, self._schemas.bad, columns)

    def commit(self) -> None:
        """Let the files appear."""
        for sink in self._sinks.values():
            sink.close()
        for file in self._files:
            file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.discard()

    def _common(self, chunk: Chunk, rows: np.ndarray) -> list[pa.Array | pa.ChunkedArray]:
        table = chunk.table.select(self._schemas.tonight.carried.names)
        table = table if rows.all() else table.filter(pa.array(rows))
        hashes = (chunk.hashes.features, chunk.hashes.passthrough)
        return [*table.columns, *(fixed_binary(_chosen(h, rows)) for h in hashes)]

    def _write(
        self, directory: str, schema: pa.Schema, columns: list[pa.Array | pa.ChunkedArray]
    ) -> None:
        if directory not in self._sinks:
            self._sinks[directory] = Arrow().open_sink(
                self._create, f"{directory}/{self._stem}", schema, Layout(0, ())
            )
        self._sinks[directory].write(pa.table(columns, schema=schema))

    def _create(self, path: str) -> OutputFile:
        file = self._storage.create(path)
        self._files.append(file)
        return file


def _chosen(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return array if rows.all() else array[rows]
