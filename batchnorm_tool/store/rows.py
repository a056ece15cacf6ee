"""Rows of a version of the dataset: all of them, those of some keys, those of some hashes.

Memory is bounded by batches, and 40 bytes for each row that is asked for by key or hash.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnorm_tool.chunk import fitting_rows
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.formats.arrow_columns import fixed_bytes
from batchnorm_tool.inputs.row_hash import IdLookup, as_ids, bytes_of, key_ids
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.lance import open_dataset, reading
from batchnorm_tool.store.state import GOOD

NOWHERE = np.uint64(np.iinfo(np.uint64).max)
"""The address of a row that is not there."""
_ADDRESS = "_rowaddr"
# Rows that are in memory at a time.
BATCH_ROWS = 65_536
_BATCH_BYTES = 16 * 2**20
# What a value of open length counts.
_OPEN_BYTES = 64
# Batches that Lance decodes ahead: by itself it takes as many as there are cores, or 16.
_READ_AHEAD = 2


def rows(
    path: str, lance_version: int | None, columns: Sequence[str], batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream rows in the order in which they are stored.

    Args:
        path: Of the dataset.
        lance_version: Lance's number of the version; ``None``: the newest.
        columns: Names of the columns, in the order wanted; at least one.
        batch_rows: A batch has at most so many rows, fewer where they are wide.
    """
    dataset = open_dataset(path, lance_version)
    yield from scan(path, dataset, columns, batch_rows)


def key_batches(
    path: str, lance_version: int | None, keys: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream where rows lie and the ids of their keys: ``uint64[n]`` and ``uint64[n, 2]``."""
    for addresses, table in addressed(path, lance_version, keys):
        yield addresses, key_ids(table, keys)


def addressed(
    path: str, lance_version: int | None, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Stream narrow columns with the address of each row, which `at_addresses` takes."""
    dataset = open_dataset(path, lance_version)
    for batch in scan(path, dataset, columns, with_row_address=True):
        table = pa.Table.from_batches([batch])
        yield batch[_ADDRESS].to_numpy(), table.select(list(columns))


def at_addresses(
    path: str, lance_version: int | None, addresses: np.ndarray, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Stream the rows at addresses ``uint64[n]``, in their order."""
    dataset = open_dataset(path, lance_version)
    most = _fitting_rows(dataset.schema, columns)
    for start in range(0, len(addresses), most):
        wanted = addresses[start : start + most]
        with reading(path):
            # Private, but nothing public takes addresses.
            table = dataset._take_rows(pa.array(wanted), columns=list(columns))  # noqa: SLF001
        yield table.select(list(columns))


@dataclass(frozen=True)
class Addresses:
    """Where the rows lie that have certain ids: found in one scan, asked for many times.

    Attributes:
        places: Of the ids that were looked for.
        addresses: ``uint64[m]`` in the order of these; `NOWHERE` where there is no such row.
    """

    places: IdLookup
    addresses: np.ndarray

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the address of the row of each id, ``uint64[n]``; `NOWHERE` for none."""
        at = self.places.find(ids)
        if not len(self.addresses):
            return np.full(len(ids), NOWHERE)
        return np.where(at >= 0, self.addresses[at], NOWHERE)


def addresses_of_keys(
    path: str, lance_version: int | None, ids: np.ndarray, keys: Sequence[str]
) -> Addresses:
    """Find the rows that have certain keys."""
    return _addresses(ids, key_batches(path, lance_version, keys))


def addresses_of_hashes(
    path: str, lance_version: int | None, hashes: np.ndarray, columns: Sequence[str]
) -> Addresses:
    """Find a good row for each feature hash that the version has: its vector can be reused."""
    return _addresses(as_ids(hashes), _good_hashes(path, lance_version, columns))


def _addresses(ids: np.ndarray, rows_by_id: Iterator[tuple[np.ndarray, np.ndarray]]) -> Addresses:
    places, found = IdLookup(ids), np.full(len(ids), NOWHERE)
    for addresses, known in rows_by_id if len(ids) else ():
        at = places.find(known)
        # Of several rows with one hash any will do: the same features have the same vector.
        found[at[at >= 0]] = addresses[at >= 0]
    return Addresses(places, found)


def _good_hashes(
    path: str, lance_version: int | None, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for addresses, table in addressed(path, lance_version, columns):
        hashes, status = table.columns
        good = pc.equal(status, GOOD).to_numpy()
        yield addresses[good], as_ids(bytes_of(hashes))[good]


def take_by_key(
    path: str,
    lance_version: int | None,
    wanted: pa.Table,
    keys: Sequence[str],
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Stream the rows that have certain keys, in the order of these."""
    ids = key_ids(wanted, keys)
    found = addresses_of_keys(path, lance_version, ids, keys).find(ids)
    check_found(path, wanted.select(list(keys)), found)
    yield from at_addresses(path, lance_version, found, columns)


def check_found(path: str, wanted: pa.Table, addresses: np.ndarray) -> None:
    """Check that every row that the index knows is in the dataset."""
    missing = np.flatnonzero(addresses == NOWHERE)
    if len(missing):
        raise Damaged(_missing_key(path, wanted, missing))


def scan(
    path: str, dataset: Any, columns: Sequence[str], batch_rows: int = BATCH_ROWS, **choices: Any
) -> Iterator[pa.RecordBatch]:
    """Stream rows of an open dataset."""
    with reading(path):
        scanner = dataset.scanner(
            columns=list(columns),
            batch_size=min(batch_rows, _fitting_rows(dataset.schema, columns)),
            batch_readahead=_READ_AHEAD,
            fragment_readahead=1,
            scan_in_order=True,
            **choices,
        )
        yield from (batch for batch in scanner.to_batches() if batch.num_rows)


def _fitting_rows(schema: pa.Schema, columns: Sequence[str]) -> int:
    """How many rows of these columns a batch may have; see `fixed_bytes`."""
    sizes = [fixed_bytes(schema.field(name).type, _OPEN_BYTES) or 1 for name in columns]
    return fitting_rows(sum(sizes), _BATCH_BYTES, BATCH_ROWS)


def _missing_key(path: str, wanted: pa.Table, missing: np.ndarray) -> str:
    first = wanted.slice(int(missing[0]), 1).to_pylist()[0]
    key = ", ".join(f"`{name}` = {value!r}" for name, value in first.items())
    return (
        f"The store `{path}` has no row with the key {key}, which is in its index. "
        f"Expected: {plural(len(wanted), 'row')}. Received: {len(wanted) - len(missing):,}. Run "
        "`batchnorm-tool verify` on the store."
    )


def write_rows(storage: Storage, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables into one Arrow file, which appears whole and synced."""
    rows = 0
    with storage.create(path) as file:
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
            for table in tables:
                writer.write_table(table.select(schema.names).cast(schema))
                rows += table.num_rows
        file.commit()
    return rows


def read_rows(storage: Storage, path: str) -> Iterator[pa.Table]:
    """Yield the rows of a file that `write_rows` wrote, batch by batch."""
    try:
        with pa.memory_map(str(storage.root / path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
    except (pa.ArrowException, OSError) as error:
        raise WorkFailed(
            f"`{storage.root / path}` cannot be read: {error}. Run the same command again; if it "
            "fails again, remove the directory of this file."
        ) from error


def read_directory(storage: Storage, directory: str) -> Iterator[pa.Table]:
    """Yield the rows of all files of a directory, in the order of their names."""
    for name in storage.names(directory):
        yield from read_rows(storage, f"{directory}/{name}")
