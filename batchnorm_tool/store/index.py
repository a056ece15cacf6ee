"""Keys and hashes of a store's live version, in Parquet files and in memory.

A refresh with nothing to do needs nothing else of the store. Readers of the store need none of it.

The index of a version is one file with all its rows; or one with those that are not in its *base*,
an older index that lies beside it under a second name, and the places of the rows there that are
out of date. So a refresh writes what changed. The rows of the base come first.
"""

from __future__ import annotations

import base64
import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import Damaged, OutputError
from batchnorm_tool.formats import MEBIBYTE
from batchnorm_tool.formats.arrow_columns import RowGroups, plain_schema
from batchnorm_tool.formats.parquet import group_sizes
from batchnorm_tool.inputs.row_hash import HASH_VERSION, as_ids, bytes_of, key_ids
from batchnorm_tool.inputs.row_ids import IdLookup
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.store.state import (
    FEATURE_HASH,
    NORM,
    PASSTHROUGH_HASH,
    STATUS,
    StoreDirectory,
    base_path,
    by_word,
    index_path,
    is_quarantined,
    quarantined_path,
)

KEY_ID = ".key_id"
INDEX_FIELDS = (
    pa.field(KEY_ID, pa.binary(16)),
    pa.field(FEATURE_HASH, pa.binary(16)),
    pa.field(PASSTHROUGH_HASH, pa.binary(8)),
    pa.field(STATUS, pa.string()),
    pa.field(NORM, pa.float64()),
)
"""The columns of an index beside the keys."""
IS_QUARANTINED, IS_JUDGED_AGAIN, IS_UNWANTED = 1, 2, 4
"""The bits of a row's mark: `JudgedAgain.marks`."""
_HASHES = (KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH)
_VERSION_KEY = "batchnorm_tool.index"
_STAYS_KEY = "batchnorm_tool.index.stays"
_CONTENT_KEY = "batchnorm_tool.index.content"
_BASE_KEY = "batchnorm_tool.index.base"
# Whoever knows no bases takes this for another version of the hashes, and refuses the file.
_OVER_BASE = " over a base"
_GROUP_BYTES = 16 * MEBIBYTE
_BATCH_ROWS = 65_536
# A smaller index is written whole in a few milliseconds.
_LEAST_BASE_ROWS = 65_536
# Of the base's rows. With 1 % changed each night it is 25 nights until all is written again.
_MOST_CHANGED = 0.25


@dataclass(frozen=True)
class JudgedAgain:
    """Which rows of a live version are judged again, although their features are as they were.

    Attributes:
        statuses: For the status of such rows, but for what the model said of them, why.
        zeros: Why rows with a vector of zeros are; ``None`` where they are allowed.
    """

    statuses: Mapping[str, str] = field(default_factory=dict)
    zeros: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an index that tell."""
        return (STATUS, NORM) if self.zeros else (STATUS,)

    @property
    def causes(self) -> tuple[str, ...]:
        """All there may be."""
        return (*dict.fromkeys(self.statuses.values()), *([self.zeros] if self.zeros else []))

    def marks(self, table: pa.Table) -> np.ndarray:
        """Return the marks of rows of an index, ``uint8[n]``.

        ``IS_QUARANTINED``: remembered as bad, and not in the dataset; ``IS_UNWANTED``: there with a
        vector of zeros, which cannot be kept.
        """
        marks = np.where(is_quarantined(table[STATUS]), np.uint8(IS_QUARANTINED), np.uint8(0))
        marks[self.by_cause(table) > 0] |= IS_JUDGED_AGAIN
        marks[self._is_zero(table)] |= IS_UNWANTED
        return marks

    def by_cause(self, table: pa.Table) -> np.ndarray:
        """Return for each row its place in `causes`, from 1 on; 0 if it is not judged again."""
        places = {status: self.causes.index(why) + 1 for status, why in self.statuses.items()}
        # A failure of the model has what it said behind it, in parentheses.
        found = by_word(table[STATUS], lambda word: places.get(word.partition(" (")[0], 0))
        found[(found == 0) & self._is_zero(table)] = len(self.causes)
        return found

    def _is_zero(self, table: pa.Table) -> np.ndarray:
        if self.zeros is None:
            return np.zeros(table.num_rows, bool)
        return np.asarray(table[NORM].to_numpy() == 0)


@dataclass(frozen=True)
class LiveIndex:
    """The rows of a live version by the ids of their keys; at most 45 bytes a row.

    By position: the hashes ``uint8[n, 16]`` and ``uint8[n, 8]``, and `JudgedAgain.marks`.
    """

    feature_hash: np.ndarray
    passthrough_hash: np.ndarray
    marks: np.ndarray
    places: IdLookup

    @classmethod
    def load(
        cls,
        storage: Storage,
        path: str,
        again: JudgedAgain | None = None,
        threads: int | None = None,
    ) -> LiveIndex:
        """Read an index into memory; default for ``threads``: one for each core."""
        again, files = again or JudgedAgain(), index_files(storage, path)
        rows = sum(map(len, files))
        ids = np.empty((rows, 16), np.uint8)
        _fill(storage, files, {KEY_ID: ids}, again, threads)
        places = IdLookup(ids.view(np.uint64))
        # Before the hashes are read: both at once would be the peak.
        del ids
        features, passthrough = np.empty((rows, 16), np.uint8), np.empty((rows, 8), np.uint8)
        marks = np.empty(rows, np.uint8)
        columns = {FEATURE_HASH: features, PASSTHROUGH_HASH: passthrough, STATUS: marks}
        _fill(storage, files, columns, again, threads)
        return cls(features, passthrough, marks, places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class IndexFile:
    """A file that rows of an index lie in.

    Attributes:
        path: Below the state's root.
        groups: Rows of each row group.
        stays: ``bool[n]``: which of its rows the index has; others are out of date.
        content: By which an index knows its base: size, and SHA-256 of all that its rows came to.
    """

    path: str
    groups: tuple[int, ...]
    stays: np.ndarray
    content: str

    def __len__(self) -> int:
        """Return how many of its rows the index has."""
        return int(np.count_nonzero(self.stays))


def index_files(storage: Storage, path: str) -> list[IndexFile]:
    """Return the files of an index in the order of its rows: the base, if it has one, and its own.

    Raises:
        Damaged: One is missing, or is not as it was written.
    """
    own, version, said = _inspected(storage, path)
    _check_version(path, version.removesuffix(_OVER_BASE))
    if not version.endswith(_OVER_BASE):
        return [own]
    base, version, _ = _inspected(storage, _base_of(path))
    _check_version(base.path, version)
    # An index that an older release wrote does not say which one it is.
    expected = said.get(_BASE_KEY.encode(), base.content.encode()).decode(errors="replace")
    if base.content != expected:
        raise Damaged(
            f"`{base.path}` of the store is not the file that the index `{path}` was written over. "
            f"Expected: {expected}. Received: {base.content}. Restore it from the same backup as "
            "the index, or start a new store with another `store.path`."
        )
    text = said.get(_STAYS_KEY.encode(), b"")
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except (ValueError, zlib.error) as error:
        raise _damaged(path, f"no list of the rows of its base that stay ({error})") from error
    rows = len(base.stays)
    if len(bits) != (rows + 7) // 8:
        raise _damaged(path, f"{8 * len(bits):,} bits for a base of {rows:,} rows")
    stays = np.unpackbits(bits, count=rows).astype(bool)
    return [replace(base, stays=stays), own]


def _inspected(storage: Storage, path: str) -> tuple[IndexFile, str, dict[bytes, bytes]]:
    """Return what a file's footer says: its row groups, which version, what it says of a base."""
    with _opened(storage, path) as file:
        groups, rows = tuple(group_sizes(file.metadata)), int(file.metadata.num_rows)
        if sum(groups) != rows or min(groups, default=0) < 0:
            raise _damaged(path, f"{rows:,} rows, in row groups of {sum(groups):,} together")
        metadata = file.metadata.metadata or {}
        version = metadata.get(_VERSION_KEY.encode(), b"unknown").decode(errors="replace")
        stays = np.broadcast_to(np.True_, rows)  # takes no memory
        content = metadata.get(_CONTENT_KEY.encode(), b"unknown").decode(errors="replace")
        content = f"{storage.size(path) or 0:,} bytes, content {content}"
        return IndexFile(path, groups, stays, content), version, metadata


def _base_of(path: str) -> str:
    return base_path(int(PurePosixPath(path).stem))


def _fill(
    storage: Storage,
    files: Sequence[IndexFile],
    columns: dict[str, np.ndarray],
    again: JudgedAgain,
    threads: int | None,
) -> None:
    """Read columns of an index into arrays made for as many rows as its footers claim.

    In the place of the status come the marks of ``again``.
    """

    def fill(work: tuple[str, IndexFile, int, int]) -> None:
        name, file, group, row = work
        array, names = columns[name], again.columns if name == STATUS else (name,)
        for table in _tables(storage, file, names, group):
            stop = row + table.num_rows
            array[row:stop] = again.marks(table) if name == STATUS else bytes_of(table[name])
            row = stop

    def works() -> Iterator[tuple[str, IndexFile, int, int]]:
        row = 0
        for file in files:
            for group in range(len(file.groups)):
                stays = file.stays[sum(file.groups[:group]) : sum(file.groups[: group + 1])]
                first, row = row, row + int(np.count_nonzero(stays))
                yield from ((name, file, group, first) for name in columns)

    for _ in map_in_order(fill, works(), threads):
        pass


def index_schema(keys: pa.Schema) -> pa.Schema:
    """Return the schema of an index."""
    plain = [field.remove_metadata() for field in plain_schema(keys)]
    return pa.schema([*plain, *INDEX_FIELDS])


def base_to_share(storage: Storage, path: str, changes: int) -> IndexFile | None:
    """Return the file whose rows the index after this one need not write again.

    ``None``: it is better written whole, with ``changes`` of its rows to be removed or added.
    """
    base, *more = index_files(storage, path)
    rows = len(base.stays)
    written = changes + rows - len(base) + sum(map(len, more))
    return base if rows >= _LEAST_BASE_ROWS and written <= _MOST_CHANGED * rows else None


class IndexWriter:
    """A writer of an index in a stream; it appears whole when it is committed.

    With a ``base``, `keep` is called first, with all rows of the index that the base is of.
    """

    def __init__(
        self, storage: Storage, path: str, keys: pa.Schema, base: IndexFile | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self.schema = index_schema(keys)
        self._keys = keys.names
        self._groups = RowGroups(self.schema, _GROUP_BYTES)
        self._storage, self._path, self._base = storage, path, base
        # Of the rows that `keep` was given, those of the base: which stay, and how many are left.
        self._kept, self._left = [np.empty(0, bool)], len(base or ())
        self._file = storage.create(path)
        self._writer = pq.ParquetWriter(
            self._file,
            self.schema,
            # Hashes do not compress.
            compression={n: "none" if n in _HASHES else "zstd" for n in self.schema.names},
            use_dictionary=[STATUS],
            write_statistics=False,
            write_page_checksum=True,
        )

    def keep(self, table: pa.Table, stays: np.ndarray) -> None:
        """Take over those of the next rows of the index before, ``bool[n]``, that stay."""
        if self._left:
            self._kept.append(stays)
            self._left -= len(stays)
        elif stays.any():
            self.add(table if stays.all() else table.filter(pa.array(stays)))

    def add(self, table: pa.Table) -> np.ndarray:
        """Append rows: the key columns, and those of `INDEX_FIELDS` in any order.

        ``key_id`` is made where it is not there. A quarantined row has no norm. Returns the ids,
        ``uint64[n, 2]``.
        """
        if KEY_ID in table.column_names:
            ids = as_ids(bytes_of(table[KEY_ID]))
        else:
            ids = key_ids(table, self._keys)
        binary = fixed_binary(ids.view(np.uint8).reshape(-1, 16))
        columns = [binary if name == KEY_ID else table.column(name) for name in self.schema.names]
        for group in self._groups.add(pa.table(columns, names=self.schema.names)):
            self._write(group)
        return ids

    def commit(self) -> FileRecord:
        """Let the index appear under its name, whole and synced."""
        rest = self._groups.rest()
        if rest is not None:
            self._write(rest)
        version = HASH_VERSION
        if self._base is not None:
            version += _OVER_BASE
            stays, second = self._base.stays.copy(), _base_of(self._path)
            stays[stays] = np.concatenate(self._kept)
            # As text with a checksum, since no page of the file has it.
            text = base64.b64encode(zlib.compress(np.packbits(stays).tobytes(), 1))
            self._writer.add_key_value_metadata({_STAYS_KEY: text})
            self._storage.remove(second)  # that of a refresh that was killed
            self._storage.link(self._base.path, second)
            self._writer.add_key_value_metadata({_BASE_KEY: self._base.content})
        # Two indexes of as many rows differ in it, even where all else in their footers is equal.
        digest = self._file.hexdigest()
        self._writer.add_key_value_metadata({_VERSION_KEY: version, _CONTENT_KEY: digest})
        self._writer.close()
        return self._file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Throw away what was not committed."""
        self._file.discard()

    def _write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=group.num_rows)


def read_index(storage: Storage, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Stream some columns of an index, in tables of at least one row; ``status`` is encoded."""
    for file in index_files(storage, path):
        yield from _tables(storage, file, columns)


def _tables(
    storage: Storage, file: IndexFile, columns: Sequence[str], group: int | None = None
) -> Iterator[pa.Table]:
    """Stream the rows of a file, or of one of its row groups, that its index has."""
    names, row = list(columns), sum(file.groups[: group or 0])
    with _opened(storage, file.path) as opened:
        _check_types(file.path, opened.schema_arrow)
        for number in range(len(file.groups)) if group is None else [group]:
            end = row + file.groups[number]
            for batch in opened.iter_batches(_BATCH_ROWS, [number], names, use_threads=False):
                row, first = row + len(batch), row
                _check_batch(file.path, batch, end - row)
                table = pa.Table.from_batches([batch]).select(names)
                stays = file.stays[first:row]
                table = table if stays.all() else table.filter(pa.array(stays))
                if table.num_rows:
                    yield table
            if row != end:
                raise _damaged(file.path, f"a row group that lacks {end - row:,} of its rows")


def keep_quarantined(state: StoreDirectory, version: int, keys: pa.Schema) -> None:
    """Keep the quarantined rows of a version's index for as long as the version itself."""
    schema = index_schema(keys)
    tables = read_index(state.storage, index_path(version), schema.names)
    aside = (table.filter(pa.array(is_quarantined(table[STATUS]))) for table in tables)
    state.write_rows(quarantined_path(version), schema, aside)


def found_in_index(
    storage: Storage, path: str, places: IdLookup, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Stream columns of the rows whose keys are in a list, and their places there, ``int64[n]``."""
    for table in read_index(storage, path, [*columns, KEY_ID]):
        at = places.find(as_ids(bytes_of(table[KEY_ID])))
        if (at >= 0).any():
            yield at[at >= 0], table.filter(pa.array(at >= 0))


def index_rows(storage: Storage, path: str) -> int:
    """Return the number of rows of an index."""
    return sum(map(len, index_files(storage, path)))


@contextlib.contextmanager
def _opened(storage: Storage, path: str) -> Iterator[Any]:
    """Open the index as a `pyarrow.parquet.ParquetFile`; map its errors to ours."""
    import pyarrow.parquet as pq

    if storage.size(path) is None:
        raise Damaged(
            f"The index `{path}` of the store is missing. Restore it from a backup of the store's "
            "state, or start a new store with another `store.path`."
        )
    with storage.open(path) as binary:
        try:
            yield pq.ParquetFile(
                binary,
                read_dictionary=[STATUS],
                pre_buffer=False,
                buffer_size=MEBIBYTE,
                page_checksum_verification=True,
            )
        # A footer with a flipped bit may name other columns, or in no text at all.
        except (OSError, LookupError, ValueError, pa.ArrowException) as error:
            raise _damaged(path, " ".join(str(error).split())) from error


def _damaged(path: str, received: str) -> Damaged:
    return Damaged(
        f"The index `{path}` of the store is damaged. Expected a whole Parquet file. "
        f"Received: {received}. Check the store with `batchnorm-tool verify`."
    )


def _check_version(path: str, found: str) -> None:
    if found != HASH_VERSION:
        raise OutputError(
            f"The index `{path}` of the store was written with other hashes. "
            f"Expected: {HASH_VERSION}. Received: {found}. Use the version of batchnorm-tool that "
            "wrote it."
        )


def _check_types(path: str, schema: pa.Schema) -> None:
    for each in INDEX_FIELDS:
        if each.name != STATUS and schema.field(each.name).type != each.type:
            raise _damaged(path, f"the column `{each.name}` of type {schema.field(each.name).type}")


def _check_batch(path: str, batch: pa.RecordBatch, left: int) -> None:
    """Refuse what damaged headers of pages make of rows: those have no checksum in Parquet."""
    if left < 0:
        raise _damaged(path, f"a row group that has {-left:,} rows more than it says")
    if STATUS in batch.schema.names:
        batch[STATUS].validate(full=True)  # its words, and where each row's is among them
    for each in INDEX_FIELDS:
        if each.name in {*batch.schema.names} - {NORM} and batch[each.name].null_count:
            raise _damaged(path, f"the column `{each.name}` with nulls")


def fixed_binary(rows: np.ndarray) -> pa.Array:
    """Return the rows of ``uint8[n, w]`` as a column of binary values of fixed width."""
    count, width = rows.shape
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, data])
