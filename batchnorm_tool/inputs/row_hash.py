"""Hashes of rows: of their keys, of the features that a model sees, of what is passed through.

Hashes depend on the values and nothing else: not on how rows are cut into chunks, sliced, encoded
or compressed. They are stored, and compared with those of other refreshes; `HASH_VERSION` changes
whenever the hash of any row would.
"""

import itertools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from batchnorm_tool.formats.arrow_columns import BINARY, LISTS, STRINGS, is_any

HASH_VERSION = "xxh3-128/1"
_DIGEST_BYTES = 16
_PASSTHROUGH_BYTES = 8
# Rows that become `bytes` objects at a time: 2,048 rows of 512 bytes stay in the cache.
_BLOCK_ROWS = 2048
# Called with the bytes and the seed by position: with `seed=` by name it takes half as long
# again.
_Digest = Callable[[bytes, int], bytes]


def key_ids(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Return a 128-bit number for the key of each row, ``uint64[n, 2]``, C-ordered.

    Null keys are the caller's to find. Not promised: that the same number in columns of different
    types, such as int32 and int64, has the same id. Dictionaries and the two kinds of strings make
    no difference.

    Example:
        >>> key_ids(pa.table({"item": [7, -1]}), ["item"]).tolist()
        [[7, 0], [18446744073709551615, 0]]
    """
    # Of one column of integers, dates, times or booleans it is the value's bits, so that two keys
    # never have the same; of other keys the xxh3-128 of their values.
    arrays = [plain_array(table.column(name)) for name in keys]
    if len(arrays) > 1 or not is_exact(arrays[0].type):
        return as_ids(_value_hashes(arrays, xxh3_128_digest, _DIGEST_BYTES, 0))
    ids = np.zeros((table.num_rows, 2), np.uint64)
    values = bytes_of(arrays[0])
    ids.view(np.uint8)[:, : values.shape[1]] = values
    return ids


def _value_hashes(arrays: Sequence[pa.Array], digest: _Digest, size: int, seed: int) -> np.ndarray:
    """Return ``uint8[n, size]``; of a lone column of strings, nulls are the caller's to mark."""
    if _is_lone_binary(arrays):
        found = map(digest, binary_values(arrays[0]), itertools.repeat(seed))
        return joined(found, size)
    records = np.concatenate([records_of(array) for array in arrays], axis=1)
    return _digests(records, digest, size, seed)


def _is_lone_binary(arrays: Sequence[pa.Array]) -> bool:
    return len(arrays) == 1 and is_any(arrays[0].type, BINARY)


def feature_hashes(arrays: Mapping[str, np.ndarray], faults: np.ndarray) -> np.ndarray:
    """Return the xxh3-128 of what a model sees of each row, ``uint8[n, 16]``.

    It is over the inputs in the order of their names, numbers by their bits (so that 0.0 and -0.0
    differ), strings as UTF-8 after their length; a reason in ``faults`` is hashed too.
    """
    digest = xxh3_128_digest
    columns = [arrays[name] for name in sorted(arrays)]
    if any(column.dtype == object for column in columns):
        rows = [b"".join(pieces) for pieces in zip(*map(_pieces, columns), strict=True)]
        hashes = joined(map(digest, rows), _DIGEST_BYTES)
    else:
        flat = [_row_bytes(column) for column in columns]
        together = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
        hashes = _digests(together, digest, _DIGEST_BYTES)
    for row in np.flatnonzero(faults).tolist():
        # A bad row counts as changed when its reason is another: it is judged again.
        marked = hashes[row].tobytes() + bytes([faults[row]])
        hashes[row] = np.frombuffer(digest(marked), np.uint8)
    return hashes


def passthrough_hashes(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return the xxh3-64 of values of some columns, with their names and types: ``uint8[n, 8]``.

    Zeros where there are no columns. Another set or order of columns, another type or another value
    gives another hash; a null is no value. Chunks, dictionaries and the widths of offsets (string,
    large_string) make no difference.
    """
    if not columns:
        return np.zeros((table.num_rows, _PASSTHROUGH_BYTES), np.uint8)
    seed = _seed(table.schema, columns)
    arrays = [plain_array(table.column(name)) for name in columns]
    digest = xxh3_64_digest
    hashes = _value_hashes(arrays, digest, _PASSTHROUGH_BYTES, seed)
    if _is_lone_binary(arrays) and arrays[0].null_count:
        # Under another seed than any value's: the text "null" is no null.
        hashes[nulls_of(arrays[0])] = np.frombuffer(digest(b"null", seed ^ 1), np.uint8)
    return hashes


def _seed(schema: pa.Schema, columns: Sequence[str]) -> int:
    # Names and types are in the seed: the value 1 of a column that was int32 and is int64 now has
    # to be written again.
    described = repr([(name, type_name(schema.field(name).type)) for name in columns])
    return int(xxh3_64_intdigest(described.encode()))


def _digests(rows: np.ndarray, digest: _Digest, size: int, seed: int = 0) -> np.ndarray:
    """Return the digest of each row of ``uint8[n, w]``, as ``uint8[n, size]``."""
    count, width = rows.shape
    if not width:
        return joined([digest(b"", seed)] * count, size)
    whole = np.ascontiguousarray(rows).view(f"V{width}").reshape(count)
    blocks = (
        b"".join(map(digest, whole[start : start + _BLOCK_ROWS].tolist(), itertools.repeat(seed)))
        for start in range(0, count, _BLOCK_ROWS)
    )
    return np.frombuffer(bytearray(b"".join(blocks)), np.uint8).reshape(count, size)


def _row_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of each row, ``uint8[n, w]``: a view where the array is C-ordered."""
    width = array[:1].nbytes if len(array) else 0
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(len(array), width)


def _pieces(array: np.ndarray) -> list[bytes]:
    """Return the bytes of each row; of strings, each after its length."""
    if array.dtype != object:
        return [row.tobytes() for row in array]
    rows = array.reshape(len(array), math.prod(array.shape[1:])).tolist()
    return [b"".join(map(_prefixed, row)) for row in rows]


def _prefixed(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    # After its length: "ab", "c" and "a", "bc" are different rows.
    return struct.pack("<Q", len(data)) + data


class BlockHash:
    """The xxh3-128 of many rows: of what a model sees of them, and of columns beside it.

    It takes blocks of rows, at the speed of memory, and depends on where they are cut; else, as all
    hashes here, on the values alone.
    """

    def __init__(self) -> None:
        self._hash = xxh3_128()

    def add(self, arrays: Mapping[str, np.ndarray], faults: np.ndarray, table: pa.Table) -> None:
        """Take in the next rows: arrays ``[n, ...]``, reasons ``uint8[n]`` and a table."""
        self._hash.update(struct.pack("<Q", len(faults)))
        self._hash.update(np.ascontiguousarray(faults).data)
        for name in sorted(arrays):
            array = arrays[name]
            if array.dtype == object:
                self._add_texts(array.ravel().tolist())
            else:
                self._hash.update(_row_bytes(array).data)
        self.add_table(table)

    def add_table(self, table: pa.Table) -> None:
        """Take in the next rows of a table alone."""
        for column in table.columns:
            for block in _blocks(plain_array(column)):
                self._hash.update(block)

    def _add_texts(self, texts: list[Any]) -> None:
        # All at once: each by itself takes 3.6 s for a million, this 0.1 s.
        self._hash.update(np.fromiter(map(len, texts), np.int64, len(texts)).data)
        try:
            self._hash.update("".join(texts).encode())
        except TypeError:  # bytes are among them
            self._hash.update(b"".join(map(_prefixed, texts)))

    def to_text(self) -> str:
        """Return the hash of all rows so far, in hexadecimal digits."""
        return str(self._hash.hexdigest())


def _blocks(array: pa.Array) -> Iterator[Any]:
    """Yield where nulls are, then the values in buffers; whatever lies under a null is no value."""
    nulls = nulls_of(array) if array.null_count else None
    yield b"\0" if nulls is None else b"\1" + nulls.tobytes()
    if is_any(array.type, BINARY):
        yield from _binary_blocks(array)
    elif _width(array.type):
        values = bytes_of(array)
        yield values if nulls is None else np.where(nulls[:, None], np.uint8(0), values)
    elif is_any(array.type, (*LISTS, pa.types.is_fixed_size_list)):
        yield array.value_lengths().fill_null(0).to_numpy()
        yield from _blocks(_decoded(array.flatten()))  # without what lies under a null
    else:
        yield records_of(array)


def _binary_blocks(array: pa.Array) -> Iterator[Any]:
    """Yield the lengths of strings and their bytes, a null as an empty one."""
    array = array.cast(pa.large_binary())
    if array.null_count:  # otherwise it would only have Arrow import pandas
        array = array.fill_null(b"")
    if len(array):
        _, places, data = array.buffers()
        offsets = np.frombuffer(places, np.int64, len(array) + 1, 8 * array.offset)
        yield np.diff(offsets)
        yield memoryview(data or b"")[offsets[0] : offsets[-1]]


def type_name(kind: pa.DataType) -> str:
    """Return the name of a type, such as ``list<int8>``: the same for all encodings of values."""
    if isinstance(kind, pa.BaseExtensionType):
        return type_name(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if is_any(kind, BINARY):
        return "string" if is_any(kind, STRINGS) else "binary"
    return _nested_name(kind) if pa.types.is_nested(kind) else str(kind)


def _nested_name(kind: pa.DataType) -> str:
    if is_any(kind, LISTS):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        return f"struct<{', '.join(f'{f.name!r}: {type_name(f.type)}' for f in fields)}>"
    return str(kind)


def joined(digests: Iterable[bytes], size: int) -> np.ndarray:
    """Return digests of ``size`` bytes each, as ``uint8[n, size]``, writable."""
    return np.frombuffer(bytearray(b"".join(digests)), np.uint8).reshape(-1, size)


def plain_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array without dictionaries and extension types at its top."""
    if column.num_chunks < 2:
        return _decoded(column.chunk(0) if column.num_chunks else column.combine_chunks())
    return pa.concat_arrays([_large(_decoded(chunk)) for chunk in column.chunks])


def _large(array: pa.Array) -> pa.Array:
    """Return texts with offsets of 64 bits: together, chunks may hold more than 2 GiB of them."""
    if not is_any(array.type, BINARY):
        return array
    return array.cast(pa.large_string() if is_any(array.type, STRINGS) else pa.large_binary())


def _decoded(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def is_exact(kind: pa.DataType) -> bool:
    """Tell whether a value fits 8 bytes, and equal values have equal bits."""
    return _width(kind) in range(1, 9) and not pa.types.is_floating(kind)


def _width(kind: pa.DataType) -> int:
    """Return bytes of a value of a type that is neither nested nor of variable length, else 0."""
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        return 0
    if pa.types.is_boolean(kind):
        return 1
    try:
        return int(kind.bit_width) // 8
    except ValueError:
        return 0


def nulls_of(array: pa.Array) -> np.ndarray:
    """Return ``bool[n]``: where a null is."""
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def binary_values(array: pa.Array) -> np.ndarray:
    """Return strings as an object array of `bytes`, ``b""`` in the place of a null."""
    if not pa.types.is_large_binary(array.type):
        array = array.cast(pa.large_binary())
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    if array.null_count:
        values[nulls_of(array)] = b""
    return values


def as_ids(hashes: np.ndarray) -> np.ndarray:
    """Return hashes ``uint8[n, 16]`` as ids ``uint64[n, 2]``."""
    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)


def bytes_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the bytes of values of fixed width, ``uint8[n, w]``, possibly a read-only view."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    width = _width(array.type)
    data = array.buffers()[1] or b""
    found = np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
    return found.reshape(len(array), width)


def records_of(array: pa.Array) -> np.ndarray:
    """Return a canonical record of each value, ``uint8[n, w]``: null byte, value or zeros.

    The width depends on the type alone; values of variable length are there by their xxh3-128.
    """
    array = _decoded(array)
    record = _values(array)
    # A byte says whether there is a value: otherwise a null would be a 0, and an empty list one
    # that is not there.
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
        return bytes_of(array)
    if is_any(kind, BINARY):
        return _hashed(binary_values(array))
    return _nested_values(array)


def _nested_values(array: pa.Array) -> np.ndarray:
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        items = records_of(array.values.slice(array.offset * size, len(array) * size))
        return items.reshape(len(array), size * items.shape[1])
    if is_any(kind, LISTS):
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
    return joined(map(xxh3_128_digest, values), _DIGEST_BYTES)
