"""The header of an NPY file, read with suspicion: nothing is believed that the size belies."""

from __future__ import annotations

import hashlib
import io
import math
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import local_file

MAGIC = b"\x93NUMPY"

# NumPy's own limit (`max_header_size`); a longer one may be made to exhaust the parser.
MOST_HEADER_BYTES = 10_000

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

_PARSERS: dict[tuple[int, int], tuple[int, Callable[..., tuple[tuple[int, ...], bool, np.dtype]]]]
_PARSERS = {
    (1, 0): (2, npy_format.read_array_header_1_0),
    (2, 0): (4, npy_format.read_array_header_2_0),
}


@dataclass(frozen=True)
class NpyHeader:
    """What an NPY file holds.

    Attributes:
        shape: Rows first; at least one axis.
        dtype: As stored, byte order included.
        fortran: Whether the first axis varies fastest.
        offset: Where the data begins, in bytes.
        bfloat16: Whether items of two bytes without a type are to be read as bfloat16.
        header_sha256: Of the bytes before the data.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int
    bfloat16: bool
    header_sha256: str

    @property
    def row_items(self) -> int:
        """Items of one row."""
        return math.prod(self.shape[1:])

    @property
    def data_bytes(self) -> int:
        """Bytes of the data; Python's integers do not wrap."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def read_header(path: str, size: int, dtype: str | None) -> NpyHeader:
    """Read and check the header of an NPY file.

    Args:
        path: A regular file.
        size: Its size in bytes, which the header must agree with exactly.
        dtype: ``"bfloat16"`` if that is how ``|V2`` is to be read.

    Returns:
        The header.

    Raises:
        InputError: If it is damaged, too long, disagrees with the file's size, or describes an
            array that is not read: objects, structures, complex numbers, no axis at all.
    """
    with local_file.refusing(path), Path(path).open("rb") as file:
        raw = _raw_header(path, file, size)
    shape, fortran, stored = _parse(path, raw)
    is_bfloat16 = dtype == "bfloat16" and stored == np.dtype("V2")
    header = NpyHeader(
        shape, stored, fortran, len(raw), is_bfloat16, hashlib.sha256(raw).hexdigest()
    )
    _check_dtype(path, header)
    _check_shape(path, header, size)
    return header


def _raw_header(path: str, file: BinaryIO, size: int) -> bytes:
    start = file.read(len(MAGIC) + 2)
    version = tuple(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or version not in _PARSERS:
        raise _refusal(path, "NPY version 1.0 or 2.0", f"magic bytes {start!r}")
    width, _ = _PARSERS[version]
    length_bytes = file.read(width)
    length = int.from_bytes(length_bytes, "little")
    if length > MOST_HEADER_BYTES:
        expected = f"a header of at most {MOST_HEADER_BYTES} bytes"
        raise _refusal(path, expected, f"one that claims {length} bytes")
    text = file.read(length)
    if len(length_bytes) < width or len(text) < length:
        raise _refusal(path, "a whole header", f"{size} bytes; the file is truncated")
    return start + length_bytes + text


def _parse(path: str, raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    _, parse = _PARSERS[(raw[len(MAGIC)], raw[len(MAGIC) + 1])]
    try:
        shape, fortran, dtype = parse(io.BytesIO(raw[len(MAGIC) + 2 :]))
    except _PARSE_ERRORS as error:
        words = " ".join(str(error).split())[:200]
        raise _refusal(path, "a readable header", words or type(error).__name__) from error
    return tuple(int(length) for length in shape), bool(fortran), dtype


def _check_dtype(path: str, header: NpyHeader) -> None:
    dtype = header.dtype
    if dtype.hasobject:
        message = (
            f"{path}: holds Python objects, which can run code when they are loaded and are never "
            f"read. Expected numbers or strings. Received: dtype {dtype}. "
            "Save it as an array of numbers."
        )
        raise InputError(message)
    if dtype == np.dtype("V2") and not header.bfloat16:
        expected = "a dtype with a meaning; set `input.dtype: bfloat16` if it is that"
        raise _refusal(path, expected, "dtype |V2")
    is_number = dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8)
    is_string = dtype.kind in "SU" and dtype.itemsize > 0
    if not (is_number or is_string or header.bfloat16):
        expected = "booleans, integers, float16, float32, float64, bfloat16 or strings"
        raise _refusal(path, expected, f"dtype {dtype}")


def _check_shape(path: str, header: NpyHeader, size: int) -> None:
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
    message = (
        f"{path}: is not an NPY array that can be read. Expected {expected}. "
        f"Received: {received}. Save the array again with `numpy.save`."
    )
    return InputError(message)
