"""Writes one part as NPY arrays: vectors, norms, and the other columns as Parquet beside them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format

from batchnorm_tool.errors import OutputError
from batchnorm_tool.formats.contract import Layout, OutputFile, Sink
from batchnorm_tool.formats.parquet import ParquetSink
from batchnorm_tool.formats.vectors import rows_of, shape_of

KEYS = "keys"
_LONGEST_NAME = 255  # bytes in the name of a directory, on every file system in common use


class NpySink:
    """Writes ``vectors/NAME.npy``, ``norms/NAME.npy`` and ``keys/NAME.parquet``.

    Of the stem, only the part's name counts: each array has a directory of its own, named for its
    column where there are several vector columns. Null vectors and norms become NaN.
    """

    def __init__(
        self, files: Callable[[str], OutputFile], stem: str, schema: pa.Schema, layout: Layout
    ) -> None:
        name = stem.rpartition("/")[2]
        directories = array_directories(layout.vector_columns, layout.norm_columns)
        self._arrays = {
            column: ArrayFile(files(f"{directory}/{name}.npy"), schema.field(column), layout.rows)
            for column, directory in directories.items()
        }
        self._others = [name for name in schema.names if name not in directories]
        self._keys: Sink | None = None
        if self._others:
            keys_schema = pa.schema([schema.field(n) for n in self._others], schema.metadata)
            keys_layout = Layout(layout.rows, (), metadata=layout.metadata)
            self._keys = ParquetSink(files(f"{KEYS}/{name}.parquet"), keys_schema, keys_layout)

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        for column, array in self._arrays.items():
            array.write(table.column(column))
        if self._keys is not None:
            self._keys.write(table.select(self._others))

    def close(self) -> None:
        """Correct the number of rows in the headers, and finish the keys."""
        for array in self._arrays.values():
            array.close()
        if self._keys is not None:
            self._keys.close()


class ArrayFile:
    """One NPY file that grows row by row; its bytes are those of ``numpy.save``."""

    def __init__(self, file: OutputFile, field: pa.Field, rows: int) -> None:
        value_type = field.type.value_type if pa.types.is_nested(field.type) else field.type
        self._dtype = np.dtype(value_type.to_pandas_dtype()).newbyteorder("<")
        self._row_shape = shape_of(field)
        self._file = file
        self._expected = rows
        self._rows = 0
        self._write(self._header(rows))

    def write(self, column: pa.ChunkedArray) -> None:
        """Append the rows of a column of floats, flat or in lists of fixed size."""
        for chunk in column.chunks:
            rows = np.ascontiguousarray(rows_of(chunk), dtype=self._dtype)
            self._write(rows.reshape(-1).view(np.uint8).data)
            self._rows += len(chunk)

    def close(self) -> None:
        """Write the true number of rows into the header."""
        if self._rows != self._expected:
            self._file.patch(0, self._header(self._rows))

    def _header(self, rows: int) -> bytes:
        # NumPy pads the header so that its length does not depend on the number of rows.
        header = io.BytesIO()
        description = {
            "descr": npy_format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows, *self._row_shape),
        }
        npy_format.write_array_header_1_0(header, description)
        return header.getvalue()

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def array_directories(vectors: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    """The directory of each array: ``vectors`` and ``norms`` for one vector column, else names.

    Args:
        vectors: Names of the columns of unit vectors.
        norms: Names of those of norms.

    Raises:
        OutputError: A name cannot be that of a directory, or is taken. Those that begin with ``_``
            or ``.`` are left to what else lies in an output.

    Example:
        >>> array_directories(["vector"], ["norm"])
        {'vector': 'vectors', 'norm': 'norms'}
        >>> array_directories(["a:0", "b"], ["a:0_norm", "b_norm"])
        {'a:0': 'a%3A0', 'b': 'b', 'a:0_norm': 'a%3A0_norm', 'b_norm': 'b_norm'}
    """
    columns = (*vectors, *norms)
    if len(vectors) == 1:
        return dict(zip(columns, ("vectors", *("norms" for _ in norms)), strict=True))
    directories = {column: quote(column, safe=" ") for column in columns}
    for column, directory in directories.items():
        if _is_unfit(column, directory):
            message = (
                f"An output of the model is called {column!r}, and with several outputs NPY needs "
                f"a directory of that name. Expected 1 to {_LONGEST_NAME} bytes, no `/`, no `_` or "
                f"`.` at the beginning, and not `{KEYS}`. Received: {column!r}. Write Parquet, or "
                "leave it out of `model.outputs`."
            )
            raise OutputError(message)
    return directories


def _is_unfit(column: str, directory: str) -> bool:
    return (
        column == KEYS
        or not 0 < len(directory) <= _LONGEST_NAME
        or column.startswith(("_", "."))
        or any(letter in column for letter in "/\0")
    )
