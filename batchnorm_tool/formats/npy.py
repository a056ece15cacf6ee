"""NPY: arrays as Arrow columns in blocks of rows, and parts written as arrays.

Blocks are read, not mapped: a mapped file that is truncated by someone else kills the process
with SIGBUS, and its pages count as this process's memory. Reading costs one copy (5 GB/s).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format

from batchnorm_tool import formats
from batchnorm_tool.errors import InputError, OutputError
from batchnorm_tool.formats import CreateFile, Format, Inspected, Layout, Sink, files
from batchnorm_tool.formats.arrow_columns import rows_of, shape_of, vector_field
from batchnorm_tool.formats.parquet import Parquet, ParquetSink
from batchnorm_tool.storage import OutputFile

COLUMN = "data"
MAGIC = b"\x93NUMPY"
# NumPy's own limit (`max_header_size`); a longer one may be made to exhaust the parser.
MOST_HEADER_BYTES = 10_000
_LENGTH_ENDS = len(MAGIC) + 2 + 4  # after the version, and a length of two or four bytes
# Arrow counts the items of a list of fixed size with 32 bits.
MOST_ROW_ITEMS = 2**31 - 1
# What NumPy's parser raises for garbled headers; the last one by way of a filter for Python 2.
_PARSE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_Parsed = tuple[tuple[int, ...], bool, np.dtype]
# NumPy compiles a header's text, and CPython 3.11 raises SystemError ("AST constructor recursion
# depth mismatch") where two threads do so at once: twice in a day of test runs with three workers.
_ONE_AT_A_TIME = threading.Lock()
# What parses the header of each version.
_PARSERS: dict[tuple[int, int], Callable[..., _Parsed]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
KEYS = "keys"
_LONGEST_NAME = 255  # bytes in the name of a directory, on every file system in common use


@dataclass(frozen=True)
class Npy(Format):
    """The NPY format: one file is one column, ``data``; ``|V2`` can be meant as ``"bfloat16"``."""

    dtype: str | None = None
    is_table = False

    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Tell whether a file begins as an NPY file does."""
        del tail
        return head.startswith(MAGIC)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """Return the size in bytes, and SHA-256 of the header with samples of the data."""
        size, header = self._header(path)
        with files.refusing(path), Path(path).open("rb") as file:
            description = header.sha256.encode()
            return size, files.sampled_sha256(file, description, header.offset, size)

    def inspect(self, path: str) -> Inspected:
        """Read the header, which must agree with the size of the file."""
        size, header = self._header(path)
        details: dict[str, object] = {
            "shape": list(header.shape),
            "dtype": "bfloat16" if header.bfloat16 else header.dtype.str,
            "fortran_order": header.fortran,
        }
        schema = pa.schema([_field(header)])
        return Inspected(schema, header.shape[0], self.fingerprint(path)[1], size, details)

    def read(
        self, path: str, columns: Sequence[str], start: int, stop: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows ``start`` to ``stop``; one block is held at a time."""
        _, header = self._header(path)
        files.check_columns(path, columns, [COLUMN])
        files.check_range(path, start, stop, header.shape[0])
        schema = pa.schema([_field(header)])
        row = start
        with files.working(path, lambda: row), Path(path).open("rb", buffering=0) as file:
            for row in range(start, stop, batch_rows):
                block = _read_block(file, header, row, min(row + batch_rows, stop))
                column = _to_arrow(block, header, schema.field(0).type)
                yield pa.RecordBatch.from_arrays([column], schema=schema).select(list(columns))

    def open_sink(self, create: CreateFile, stem: str, schema: pa.Schema, layout: Layout) -> Sink:
        """Open an array for each vector and norm column, and Parquet for the others."""
        return NpySink(create, stem, schema, layout)

    def check_storable(self, schema: pa.Schema) -> None:
        """Refuse a type that Parquet does not have, in which keys lie beside the arrays."""
        Parquet().check_storable(schema)

    def directories(
        self, names: Sequence[str], vectors: Sequence[str], norms: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        """Return one for each array, and one for the other columns."""
        arrays = _array_directories(vectors, norms)
        others = tuple(name for name in names if name not in arrays)
        return {**{directory: (name,) for name, directory in arrays.items()}, KEYS: others}

    def _header(self, path: str) -> tuple[int, _Header]:
        size = files.regular_file(path).st_size
        return size, _read_header(path, size, self.dtype)


def _field(header: _Header) -> pa.Field:
    if header.dtype.kind in "SU":
        dtype = pa.string()
    elif header.bfloat16:
        dtype = pa.float32()
    else:
        dtype = pa.from_numpy_dtype(header.dtype.newbyteorder("="))
    return vector_field(COLUMN, dtype, header.shape[1:])


def _read_block(file: BinaryIO, header: _Header, start: int, stop: int) -> np.ndarray:
    """Return rows as stored dtype ``[n, items of a row]`` in C order."""
    rows, items = stop - start, header.row_items
    if not header.fortran:
        block = np.empty((rows, items), header.dtype)
        _read_into(file, block, header.offset + start * items * header.dtype.itemsize)
        return block
    # First axis fastest: one stretch for each item of a row, in Fortran order of the other axes.
    stretches = np.empty((items, rows), header.dtype)
    total = header.shape[0]
    for item in range(items):
        place = header.offset + (item * total + start) * header.dtype.itemsize
        _read_into(file, stretches[item], place)
    shaped = stretches.T.reshape((rows, *header.shape[1:]), order="F")
    return np.ascontiguousarray(shaped).reshape(rows, items)


def _read_into(file: BinaryIO, array: np.ndarray, offset: int) -> None:
    # As bytes: a memoryview of float16 in foreign byte order, or of strings, cannot be made.
    target = memoryview(array.reshape(-1).view(np.uint8).data)
    while target:
        count = os.preadv(file.fileno(), [target], offset)
        if count == 0:
            raise OSError(f"the file ends at byte {offset}, {len(target)} bytes too early")
        target, offset = target[count:], offset + count


def _to_arrow(block: np.ndarray, header: _Header, dtype: pa.DataType) -> pa.Array:
    values = _native(block.reshape(-1), header)
    items = pa.array(values)
    if values.dtype.kind == "S":
        items = items.cast(pa.string())
    if pa.types.is_fixed_size_list(dtype):
        return pa.FixedSizeListArray.from_arrays(items, type=dtype)
    return items


def _native(values: np.ndarray, header: _Header) -> np.ndarray:
    if header.bfloat16:
        # A bfloat16 is the upper half of a float32.
        return (values.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind == "b":
        return values.view(np.uint8) != 0
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class _Header:
    """What an NPY file holds: at least one axis, the rows, and from byte ``offset`` on the data.

    ``bfloat16`` says whether items of two bytes without a type are to be read as such; `sha256` is
    that of the bytes before the data.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int
    bfloat16: bool
    sha256: str

    @property
    def row_items(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)  # Python's integers do not wrap


def _read_header(path: str, size: int, dtype: str | None) -> _Header:
    """Read the header of a file, which must agree with its ``size`` in bytes exactly."""
    with files.refusing(path), Path(path).open("rb") as file:
        # No more of it: a length of four bytes may claim four gigabytes.
        head = io.BytesIO(file.read(_LENGTH_ENDS + MOST_HEADER_BYTES))
    shape, fortran, stored = _parse(path, head)
    raw = head.getvalue()[: head.tell()]
    is_bfloat16 = dtype == "bfloat16" and stored == np.dtype("V2")
    sha256 = hashlib.sha256(raw).hexdigest()
    header = _Header(shape, stored, fortran, len(raw), is_bfloat16, sha256)
    # First the dtype: what holds Python objects has a size, but must never get as far as data.
    _check_dtype(path, header)
    _check_shape(path, header, size)
    return header


def _parse(path: str, head: BinaryIO) -> _Parsed:
    """Parse what comes before the data, and no more."""
    try:
        with _ONE_AT_A_TIME:
            shape, fortran, dtype = _PARSERS[npy_format.read_magic(head)](head)
    except _PARSE_ERRORS as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        most = f"of at most {MOST_HEADER_BYTES} bytes"
        expected = f"a whole and readable header of NPY version 1.0 or 2.0, {most}"
        raise _refusal(path, expected, words) from error
    return tuple(int(length) for length in shape), bool(fortran), dtype


def _check_dtype(path: str, header: _Header) -> None:
    dtype = header.dtype
    if dtype.hasobject:
        raise InputError(
            f"{path}: contains Python objects, which can run code when loaded and are never read. "
            f"Expected numbers or strings. Received: dtype {dtype}. Save it as an array of "
            "numbers."
        )
    if dtype == np.dtype("V2") and not header.bfloat16:
        expected = "a known dtype; set `input.dtype: bfloat16` if it is bfloat16"
        raise _refusal(path, expected, "dtype |V2")
    is_number = dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8)
    is_string = dtype.kind in "SU" and dtype.itemsize > 0
    if not (is_number or is_string or header.bfloat16):
        expected = "booleans, integers, float16, float32, float64, bfloat16 or strings"
        raise _refusal(path, expected, f"dtype {dtype}")


def _check_shape(path: str, header: _Header, size: int) -> None:
    shape = header.shape
    if not shape:
        raise _refusal(path, "at least one axis, the rows", "a 0-d array")
    if min(shape) < 0:
        raise _refusal(path, "lengths of at least 0", f"shape {shape}")
    if len(shape) > 1 and not 0 < header.row_items <= MOST_ROW_ITEMS:
        expected = f"1 to {MOST_ROW_ITEMS} values in a row"
        raise _refusal(path, expected, f"{header.row_items} (shape {shape})")
    data, expected_bytes = size - header.offset, header.data_bytes
    if data != expected_bytes:
        fault = "truncated" if data < expected_bytes else "followed by other bytes"
        expected = f"{expected_bytes} bytes of data for shape {shape} of {header.dtype}"
        raise _refusal(path, expected, f"{data} bytes; the array is {fault}")


def _refusal(path: str, expected: str, received: str) -> InputError:
    return InputError(
        f"{path}: cannot be read as an NPY array. Expected {expected}. Received: {received}. Save "
        "the array again with `numpy.save`."
    )


class NpySink:
    """A writer of ``vectors/NAME.npy``, ``norms/NAME.npy`` and ``keys/NAME.parquet``.

    Of the stem, only the part's name counts: each array has a directory of its own, named for its
    column where there are several vector columns. Null vectors and norms become NaN.
    """

    def __init__(self, create: CreateFile, stem: str, schema: pa.Schema, layout: Layout) -> None:
        name = stem.rpartition("/")[2]
        directories = _array_directories(layout.vector_columns, layout.norm_columns)
        self._arrays = {
            column: _ArrayFile(create(f"{directory}/{name}.npy"), schema.field(column), layout.rows)
            for column, directory in directories.items()
        }
        self._others = [name for name in schema.names if name not in directories]
        self._keys: ParquetSink | None = None
        if self._others:
            keys_schema = pa.schema([schema.field(n) for n in self._others], schema.metadata)
            keys_layout = Layout(layout.rows, (), metadata=layout.metadata)
            self._keys = ParquetSink(create(f"{KEYS}/{name}.parquet"), keys_schema, keys_layout)

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


class _ArrayFile:
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


def _array_directories(vectors: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    """Name the directory of each column's array: ``vectors`` and ``norms`` for one vector column.

    Of several, ``a:0`` is ``a%3A0``.
    """
    columns = (*vectors, *norms)
    if len(vectors) == 1:
        return dict(zip(columns, (formats.DATA_DIRECTORY, *("norms" for _ in norms)), strict=True))
    directories = {column: quote(column, safe=" ") for column in columns}
    for column, directory in directories.items():
        if _is_unfit(column, directory):
            raise OutputError(
                f"The model's output {column!r} cannot be stored as NPY, where each of several "
                f"outputs needs a directory of its name. Expected 1 to {_LONGEST_NAME} bytes, no "
                f"`/`, no `_` or `.` at the beginning, and not `{KEYS}`. Received: {column!r}. "
                "Write Parquet, or remove it from `model.outputs`."
            )
    return directories


def _is_unfit(column: str, directory: str) -> bool:
    return (
        column == KEYS
        or not 0 < len(directory) <= _LONGEST_NAME
        or column.startswith(("_", "."))
        or any(letter in column for letter in "/\0")
    )
