"""NPY: arrays as Arrow columns in blocks of rows, and parts written as arrays.

Blocks are read, not mapped: a mapped file that is truncated by someone else kills the process
with SIGBUS, and its pages count as this process's memory. Reading costs one copy (5 GB/s).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from batchnorm_tool.formats import local_file
from batchnorm_tool.formats.contract import Inspected, Layout, OutputFile
from batchnorm_tool.formats.npy_header import MAGIC, NpyHeader, read_header
from batchnorm_tool.formats.npy_sink import NpySink
from batchnorm_tool.formats.vectors import vector_field

COLUMN = "data"


@dataclass(frozen=True)
class Npy:
    r"""The NPY format: one file is one column, called ``data``.

    Attributes:
        dtype: How ``|V2`` is meant: ``"bfloat16"`` or nothing.

    Example:
        >>> Npy().recognises(b"\x93NUMPY\x01\x00", b"")
        True
    """

    dtype: str | None = None
    name: str = "npy"

    def recognises(self, head: bytes, tail: bytes) -> bool:
        """Whether a file begins as an NPY file does."""
        del tail
        return head.startswith(MAGIC)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """Size in bytes, and SHA-256 of the header with samples of the data."""
        size, header = self._header(path)
        with local_file.refusing(path), Path(path).open("rb") as file:
            description = header.header_sha256.encode()
            return size, local_file.sampled_sha256(file, description, header.offset, size)

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
        local_file.check_columns(path, columns, [COLUMN])
        local_file.check_range(path, start, stop, header.shape[0])
        schema = pa.schema([_field(header)])
        row = start
        with local_file.working(path, lambda: row), Path(path).open("rb", buffering=0) as file:
            for row in range(start, stop, batch_rows):
                block = _read_block(file, header, row, min(row + batch_rows, stop))
                column = _to_arrow(block, header, schema.field(0).type)
                yield pa.RecordBatch.from_arrays([column], schema=schema).select(list(columns))

    def open_sink(
        self, files: Callable[[str], OutputFile], stem: str, schema: pa.Schema, layout: Layout
    ) -> NpySink:
        """Open an array for each vector and norm column, and Parquet for the others."""
        return NpySink(files, stem, schema, layout)

    def _header(self, path: str) -> tuple[int, NpyHeader]:
        size = local_file.regular_file(path).st_size
        return size, read_header(path, size, self.dtype)


def _field(header: NpyHeader) -> pa.Field:
    if header.dtype.kind in "SU":
        dtype = pa.string()
    elif header.bfloat16:
        dtype = pa.float32()
    else:
        dtype = pa.from_numpy_dtype(header.dtype.newbyteorder("="))
    return vector_field(COLUMN, dtype, header.shape[1:])


def _read_block(file: BinaryIO, header: NpyHeader, start: int, stop: int) -> np.ndarray:
    """Rows as stored dtype ``[n, items of a row]`` in C order."""
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


def _to_arrow(block: np.ndarray, header: NpyHeader, dtype: pa.DataType) -> pa.Array:
    values = _native(block.reshape(-1), header)
    if values.dtype.kind == "S":
        items = pa.array(values, pa.binary()).cast(pa.string())
    elif values.dtype.kind == "U":
        items = pa.array(values, pa.string())
    else:
        items = pa.array(values)
    if pa.types.is_fixed_size_list(dtype):
        return pa.FixedSizeListArray.from_arrays(items, type=dtype)
    return items


def _native(values: np.ndarray, header: NpyHeader) -> np.ndarray:
    if header.bfloat16:
        # A bfloat16 is the upper half of a float32.
        return (values.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind == "b":
        return values.view(np.uint8) != 0
    return values.astype(values.dtype.newbyteorder("="), copy=False)
