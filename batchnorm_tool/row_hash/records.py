"""Values as canonical bytes: the same for every encoding, chunk and slice of the same values."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import JobError

_DIGEST_BYTES = 16
BINARY = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
_LISTS = (pa.types.is_list, pa.types.is_large_list)


def load_xxhash() -> Any:
    """The module; `JobError` where it is not installed."""
    try:
        import xxhash
    except ImportError as error:
        msg = (
            "Hashing rows needs xxhash, which is not installed. "
            "Run `pip install 'batchnorm-tool[refresh]'`."
        )
        raise JobError(msg) from error
    return xxhash


def type_name(kind: pa.DataType) -> str:
    """The name of a type that is the same for all encodings of the same values.

    Example:
        >>> type_name(pa.dictionary(pa.int32(), pa.large_string()))
        'string'
        >>> type_name(pa.large_list(pa.int8()))
        'list<int8>'
    """
    if isinstance(kind, pa.BaseExtensionType):
        return type_name(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if is_any(kind, BINARY):
        return "string" if is_any(kind, BINARY[:3]) else "binary"
    return _nested_name(kind) if pa.types.is_nested(kind) else str(kind)


def _nested_name(kind: pa.DataType) -> str:
    if is_any(kind, _LISTS):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        return f"struct<{', '.join(f'{f.name!r}: {type_name(f.type)}' for f in fields)}>"
    return str(kind)


def joined(digests: Iterable[bytes], size: int) -> np.ndarray:
    """Digests of ``size`` bytes each, as ``uint8[n, size]``, writable."""
    return np.frombuffer(bytearray(b"".join(digests)), np.uint8).reshape(-1, size)


def plain_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array without dictionaries and extension types at its top."""
    return _decoded(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def _decoded(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def is_any(kind: pa.DataType, tests: Iterable[Callable[[pa.DataType], bool]]) -> bool:
    """Whether a type is one of several kinds, such as `BINARY`."""
    return any(test(kind) for test in tests)


def is_exact(kind: pa.DataType) -> bool:
    """Whether a value fits 8 bytes, and equal values have equal bits."""
    return _width(kind) in range(1, 9) and not pa.types.is_floating(kind)


def _width(kind: pa.DataType) -> int:
    """Bytes of a value of a type that is neither nested nor of variable length, else 0."""
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        return 0
    if pa.types.is_boolean(kind):
        return 1
    try:
        return int(kind.bit_width) // 8
    except ValueError:
        return 0


def nulls_of(array: pa.Array) -> np.ndarray:
    """``bool[n]``: where a null is."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def binary_values(array: pa.Array) -> np.ndarray:
    """Strings as an object array of `bytes`, ``b""`` in the place of a null."""
    if not pa.types.is_large_binary(array.type):
        array = array.cast(pa.large_binary())
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    if array.null_count:
        values[nulls_of(array)] = b""
    return values


def fixed_bytes(array: pa.Array) -> np.ndarray:
    """The bytes of values of fixed width, ``uint8[n, w]``, possibly a read-only view."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    width = _width(array.type)
    data = array.buffers()[1] or b""
    found = np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
    return found.reshape(len(array), width)


def records_of(array: pa.Array) -> np.ndarray:
    """A canonical record of each value, ``uint8[n, w]``: a byte for null, then the value or zeros.

    The width depends on the type alone; values of variable length are there by their xxh3-128.
    """
    array = _decoded(array)
    record = _values(array)
    marked = np.ones((len(array), 1 + record.shape[1]), np.uint8)
    marked[:, 1:] = record
    if array.null_count:
        marked[nulls_of(array)] = 0
    return marked


def _values(array: pa.Array) -> np.ndarray:
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros((len(array), 0), np.uint8)
    if _width(kind):
        return fixed_bytes(array)
    if is_any(kind, BINARY):
        return _hashed(binary_values(array))
    return _nested_values(array)


def _nested_values(array: pa.Array) -> np.ndarray:
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        items = records_of(array.values.slice(array.offset * size, len(array) * size))
        return items.reshape(len(array), size * items.shape[1])
    if is_any(kind, _LISTS):
        return _list_values(array)
    if pa.types.is_struct(kind):
        return _struct_values(array)
    return _hashed(repr(value).encode() for value in array.to_pylist())


def _list_values(array: pa.Array) -> np.ndarray:
    offsets = array.offsets.to_numpy()
    start, stop = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    # Of a slice: the rest of the values may be a thousand times as many.
    items = records_of(array.values.slice(start, stop - start))
    data, places = items.tobytes(), ((offsets - start) * items.shape[1]).tolist()
    return _hashed(
        struct.pack("<Q", length) + data[begin:end]
        for length, (begin, end) in zip(
            np.diff(offsets).tolist(), itertools.pairwise(places), strict=True
        )
    )


def _struct_values(array: pa.Array) -> np.ndarray:
    fields = [records_of(child) for child in array.flatten()]
    return np.concatenate([np.zeros((len(array), 0), np.uint8), *fields], axis=1)


def _hashed(values: Iterable[bytes]) -> np.ndarray:
    return joined(map(load_xxhash().xxh3_128_digest, values), _DIGEST_BYTES)
