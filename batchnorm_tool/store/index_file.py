"""Keys and hashes of a store's live version in a Parquet file, written and read in a stream."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.formats.contract import MEBIBYTE
from batchnorm_tool.formats.row_groups import RowGroups
from batchnorm_tool.formats.vectors import plain_schema
from batchnorm_tool.row_hash import HASH_VERSION, key_ids
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


def index_schema(keys: pa.Schema) -> pa.Schema:
    """The schema of an index.

    Args:
        keys: The key columns; dictionary-encoded ones are stored decoded.
    """
    plain = [field.remove_metadata() for field in plain_schema(keys)]
    return pa.schema([*plain, *INDEX_FIELDS])


class IndexWriter:
    """Writes an index in a stream; it appears whole when it is committed.

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

    Args:
        storage: The state of the store.
        path: The index.
        columns: Key columns, or of `INDEX_FIELDS`.
        batch_rows: Most rows of a table.

    Yields:
        Tables of at least one row; ``status`` is dictionary-encoded.

    Raises:
        Damaged: The index is missing or cannot be read.
        OutputError: It was made with hashes of another version.
    """
    names = list(columns)
    with _opened(storage, path) as file:
        _check_version(path, file.schema_arrow.metadata)
        for batch in file.iter_batches(batch_rows, columns=names, use_threads=False):
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).select(names)


def index_rows(storage: Storage, path: str) -> int:
    """Number of rows of an index."""
    with _opened(storage, path) as file:
        return int(file.metadata.num_rows)


def read_key_schema(storage: Storage, path: str) -> pa.Schema:
    """The schema of an index's key columns."""
    known = {field.name for field in INDEX_FIELDS}
    with _opened(storage, path) as file:
        return pa.schema([field for field in file.schema_arrow if field.name not in known])


@contextlib.contextmanager
def _opened(storage: Storage, path: str) -> Iterator[Any]:
    """The index as a `pyarrow.parquet.ParquetFile`; what is wrong with it becomes our error."""
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
    """``bool[n]`` of a dictionary-encoded status: remembered as bad, and not in the dataset."""
    words = [str(word).startswith(QUARANTINED) for word in status.dictionary.to_pylist()]
    return np.array([*words, False])[status.indices.to_numpy()]


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """The rows of ``uint8[n, w]`` as a column of binary values of fixed width."""
    count, width = rows.shape
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, data])


def binary_rows(array: pa.Array) -> np.ndarray:
    """A column of binary values of fixed width, without nulls, as ``uint8[n, w]``."""
    width = array.type.byte_width
    data = array.buffers()[1] or b""
    found = np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
    return found.reshape(len(array), width)
