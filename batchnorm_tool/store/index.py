"""Keys and hashes of a store's live version, in a Parquet file and in memory.

A night with nothing to do needs nothing else of the store. Readers of the store need none of it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.formats.arrow_columns import RowGroups, plain_schema
from batchnorm_tool.formats.base import MEBIBYTE
from batchnorm_tool.inputs.row_hash import HASH_VERSION, key_ids
from batchnorm_tool.store.state import FEATURE_HASH, NORM, PASSTHROUGH_HASH, QUARANTINED, STATUS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchnorm_tool.storage import FileRecord, Storage

KEY_ID = ".key_id"
INDEX_FIELDS = (
    pa.field(KEY_ID, pa.binary(16)),
    pa.field(FEATURE_HASH, pa.binary(16)),
    pa.field(PASSTHROUGH_HASH, pa.binary(8)),
    pa.field(STATUS, pa.string()),
    pa.field(NORM, pa.float64()),
)
"""The columns of an index beside the keys."""
_HASHES = (KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH)
_VERSION_KEY = "batchnorm_tool.index"
_GROUP_BYTES = 16 * MEBIBYTE
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class LiveIndex:
    """The rows of a live version by the ids of their keys; at most 45 bytes a row.

    Attributes:
        feature_hash: ``uint8[n, 16]`` by position.
        passthrough_hash: ``uint8[n, 8]`` by position.
        quarantined: ``bool[n]`` by position: remembered as bad, and not in the dataset.
        first: ``uint64[n]``, the first words of the ids, ascending.
        second: ``uint64[n]``, the second words in the same order; ``None`` where all are zero.
        order: ``int32[n]`` or ``int64[n]``, the positions in the same order; ``None`` where they
            ascend too.
    """

    feature_hash: np.ndarray
    passthrough_hash: np.ndarray
    quarantined: np.ndarray
    first: np.ndarray
    second: np.ndarray | None
    order: np.ndarray | None

    @classmethod
    def load(cls, storage: Storage, path: str) -> LiveIndex:
        """Read an index into memory."""
        rows = index_rows(storage, path)
        ids = np.empty((rows, 16), np.uint8)
        _fill(storage, path, {KEY_ID: ids})
        first, second, order = _sorted_ids(ids.view(np.uint64))
        del ids
        features, passthrough = np.empty((rows, 16), np.uint8), np.empty((rows, 8), np.uint8)
        quarantined = np.empty(rows, bool)
        columns = {FEATURE_HASH: features, PASSTHROUGH_HASH: passthrough, STATUS: quarantined}
        _fill(storage, path, columns)
        return cls(features, passthrough, quarantined, first, second, order)

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        feature_hash: np.ndarray,
        passthrough_hash: np.ndarray,
        quarantined: np.ndarray,
    ) -> LiveIndex:
        """Return the same from arrays."""
        return cls(feature_hash, passthrough_hash, quarantined, *_sorted_ids(ids))

    def __len__(self) -> int:
        return len(self.first)

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """Return the position of each key.

        Returns:
            ``int64[m]``: the row of the index that has this key; -1 for none.

        Example:
            >>> ids = np.array([[7, 0], [5, 0]], np.uint64)
            >>> hashes = np.zeros((2, 16), np.uint8), np.zeros((2, 8), np.uint8)
            >>> index = LiveIndex.of(ids, *hashes, np.zeros(2, bool))
            >>> index.lookup(np.array([[5, 0], [6, 0], [7, 0]], np.uint64)).tolist()
            [1, -1, 0]
        """
        words = ids[:, 0]
        if not len(self) or not len(words):
            return np.full(len(words), -1, np.int64)
        # Ascending queries find their neighbourhood in the cache: twice as fast, sorting included.
        sorting = None if _ascends(words) else np.argsort(words)
        places = self._places(ids if sorting is None else ids[sorting])
        found = places >= 0
        positions = places if self.order is None else self.order[places].astype(np.int64)
        positions = np.where(found, positions, -1)
        if sorting is None:
            return positions
        result = np.empty(len(words), np.int64)
        result[sorting] = positions
        return result

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Return places in the sorted order, ``int64[m]``; -1 for none."""
        places = np.searchsorted(self.first, ids[:, 0]).astype(np.int64)
        known = self._is_at(places, ids[:, 0])
        if self.second is None:
            return np.where(known & (ids[:, 1] == 0), places, -1)
        there = known.copy()
        there[known] = self.second[places[known]] == ids[known, 1]
        for row in np.flatnonzero(known & ~there).tolist():
            places[row] = self._search_equal(int(places[row]), ids[row])
            there[row] = True
        return np.where(there, places, -1)

    def _is_at(self, places: np.ndarray, words: np.ndarray) -> np.ndarray:
        inside = np.minimum(places, len(self) - 1)
        return np.asarray(self.first[inside] == words)

    def _search_equal(self, start: int, wanted: np.ndarray) -> int:
        """Find, among ids with the same first word, the one with the second word too."""
        assert self.second is not None  # noqa: S101  (whoever has no second words does not search)
        stop = int(np.searchsorted(self.first, wanted[0], side="right"))
        found = np.flatnonzero(self.second[start:stop] == wanted[1])
        return start + int(found[0]) if len(found) else -1


def _ascends(words: np.ndarray) -> bool:
    return bool((words[1:] >= words[:-1]).all())


def _sorted_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return first words ascending, second words and positions in the same order."""
    second = np.ascontiguousarray(ids[:, 1]) if ids[:, 1].any() else None
    if _ascends(ids[:, 0]):
        return np.ascontiguousarray(ids[:, 0]), second, None
    order = np.argsort(ids[:, 0])
    if len(order) < 2**31:
        order = order.astype(np.int32)
    return ids[order, 0], None if second is None else second[order], order


def _fill(storage: Storage, path: str, columns: dict[str, np.ndarray]) -> None:
    """Read columns of an index into arrays made for them."""
    row = 0
    for table in read_index(storage, path, list(columns)):
        stop = row + table.num_rows
        for name, array in columns.items():
            column = table.column(name).combine_chunks()
            array[row:stop] = is_quarantined(column) if name == STATUS else binary_rows(column)
        row = stop


def index_schema(keys: pa.Schema) -> pa.Schema:
    """Return the schema of an index."""
    plain = [field.remove_metadata() for field in plain_schema(keys)]
    return pa.schema([*plain, *INDEX_FIELDS])


class IndexWriter:
    """A writer of an index in a stream; it appears whole when it is committed.

    Args:
        storage: The state of the store.
        path: Where the index appears, such as ``index/000012.parquet``.
        keys: The schema of the key columns.
    """

    def __init__(self, storage: Storage, path: str, keys: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.schema = index_schema(keys)
        self._keys = keys.names
        self._groups = RowGroups(self.schema, _GROUP_BYTES)
        self._file = storage.create(path)
        self._writer = pq.ParquetWriter(
            self._file,
            self.schema.with_metadata({_VERSION_KEY: HASH_VERSION}),
            # Hashes do not compress.
            compression={n: "none" if n in _HASHES else "zstd" for n in self.schema.names},
            use_dictionary=[STATUS],
            write_statistics=False,
            write_page_checksum=True,
        )

    def add(self, table: pa.Table) -> None:
        """Append rows.

        Args:
            table: The key columns, and those of `INDEX_FIELDS` in any order; ``key_id`` is made
                here, whether or not there is one. A quarantined row has no norm.
        """
        ids = fixed_binary(key_ids(table, self._keys).view(np.uint8).reshape(-1, 16))
        columns = [ids if name == KEY_ID else table.column(name) for name in self.schema.names]
        for group in self._groups.add(pa.table(columns, names=self.schema.names)):
            self._write(group)

    def commit(self) -> FileRecord:
        """Let the index appear under its name, whole and synced."""
        rest = self._groups.rest()
        if rest is not None:
            self._write(rest)
        self._writer.close()
        return self._file.commit()

    def discard(self) -> None:
        """Throw the file away; harmless after `commit`."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=group.num_rows)


def read_index(
    storage: Storage, path: str, columns: Sequence[str], batch_rows: int = _BATCH_ROWS
) -> Iterator[pa.Table]:
    """Stream some columns of an index, in its order.

    Yields:
        Tables of at least one row; ``status`` is dictionary-encoded.
    """
    names = list(columns)
    with _opened(storage, path) as file:
        _check_version(path, file.schema_arrow.metadata)
        for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).select(names)


def index_rows(storage: Storage, path: str) -> int:
    """Return the number of rows of an index."""
    with _opened(storage, path) as file:
        return int(file.metadata.num_rows)


def read_key_schema(storage: Storage, path: str) -> pa.Schema:
    """Return the schema of an index's key columns."""
    known = {field.name for field in INDEX_FIELDS}
    with _opened(storage, path) as file:
        return pa.schema([field for field in file.schema_arrow if field.name not in known])


@contextlib.contextmanager
def _opened(storage: Storage, path: str) -> Iterator[Any]:
    """Open the index as a `pyarrow.parquet.ParquetFile`; map its errors to ours."""
    import pyarrow.parquet as pq

    if storage.size(path) is None:
        msg = (
            f"The index `{path}` of the store is missing. Put it back from a backup of the store's "
            "state, or begin a new store with another `store.path`."
        )
        raise Damaged(msg)
    with storage.open(path) as binary:
        try:
            yield pq.ParquetFile(
                binary,
                read_dictionary=[STATUS],
                pre_buffer=False,
                buffer_size=MEBIBYTE,
                page_checksum_verification=True,
            )
        except (OSError, pa.ArrowException) as error:
            msg = (
                f"The index `{path}` of the store is damaged. Expected a whole Parquet file. "
                f"Received: {' '.join(str(error).split())}. Check the store with "
                "`batchnorm-tool verify`."
            )
            raise Damaged(msg) from error


def _check_version(path: str, metadata: dict[bytes, bytes] | None) -> None:
    found = (metadata or {}).get(_VERSION_KEY.encode(), b"unknown").decode()
    if found != HASH_VERSION:
        msg = (
            f"The index `{path}` of the store was made with other hashes. Expected: "
            f"{HASH_VERSION}. Received: {found}. Use the version of batchnorm-tool that made it."
        )
        raise OutputError(msg)


def is_quarantined(status: pa.Array) -> np.ndarray:
    """Return ``bool[n]`` of a status column: remembered as bad, and not in the dataset."""
    words = [str(word).startswith(QUARANTINED) for word in status.dictionary.to_pylist()]
    return np.array([*words, False])[status.indices.to_numpy()]


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """Return the rows of ``uint8[n, w]`` as a column of binary values of fixed width."""
    count, width = rows.shape
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, data])


def binary_rows(array: pa.Array) -> np.ndarray:
    """Return a column of binary values of fixed width, without nulls, as ``uint8[n, w]``."""
    width = array.type.byte_width
    data = array.buffers()[1] or b""
    found = np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
    return found.reshape(len(array), width)
