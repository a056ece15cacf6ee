"""The kinds of the input's rows, and duplicates, where the live version is too large for memory.

The first pass writes the hashes of the input's rows to bucket files; each bucket is joined with its
share of the live version, and the kinds go to a file, from which the second pass reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.refresh.changes.classify import (
    Hashes,
    MatchedRows,
    RowDisposition,
    classify_rows,
)
from batchnorm_tool.commands.refresh.changes.source import RefreshSource, read_chunks, read_tables
from batchnorm_tool.commands.refresh.changes.worker import Callbacks, process_in_order
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError, capture_warnings
from batchnorm_tool.inputs.reading import Part, describe_key, locate, read_rows
from batchnorm_tool.inputs.row_hash import (
    Buckets,
    IdLookup,
    as_ids,
    bucket_bits,
    bucket_directory,
    bytes_of,
    key_ids,
    repeated_rows,
)
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.index import KEY_ID, LiveIndex, is_quarantined, read_index
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH, STATUS

ENTRY = np.dtype(
    [
        ("row", np.int64),
        ("id", np.uint64, 2),
        ("features", np.uint8, 16),
        ("passthrough", np.uint8, 8),
        ("mark", np.bool_),
    ]
)
"""A row of the input (``mark``: to be deleted) or of the live version (quarantined)."""
KEY_ENTRY = np.dtype([("row", np.int64), ("id", np.uint64, 2)])


class PrecomputedClassifier:
    """A classifier that found the kinds of all rows before.

    Args:
        kinds: The `ChangeType` of every row, ``uint8[rows]``.
    """

    def __init__(self, kinds: np.ndarray) -> None:
        self._kinds = kinds

    def classify(self, hashes: Hashes) -> np.ndarray:
        """Return the `ChangeType` of each row, ``uint8[n]``."""
        return np.array(self._kinds[hashes.first_row : hashes.first_row + len(hashes)])


@dataclass(frozen=True)
class BucketJoin:
    """A join in files.

    Attributes:
        source: The input.
        parts: All of it.
        directory: Where bucket files may lie: 50 bytes for each row of both sides.
        memory_bytes: About how much a bucket may take.
        recompute: Rows with the same features are to be predicted again.
    """

    source: RefreshSource
    parts: Sequence[Part]
    directory: Path
    memory_bytes: int
    recompute: bool

    def run(
        self, live: tuple[Storage, str, int] | None, workers: int, callbacks: Callbacks
    ) -> tuple[PrecomputedClassifier, MatchedRows, bool]:
        """Find the kinds of all rows.

        Args:
            live: Where the index of the live version lies, and its rows.
            workers: Threads that read.
            callbacks: Who looks on.

        Returns:
            The kinds, the claims on the live version, and whether a new key may occur twice.
        """
        live_rows = 0 if live is None else live[2]
        bits = bucket_bits(self.source.table.rows + live_rows, self.memory_bytes)
        ours = Buckets(self.directory, "tonight", bits, ENTRY)
        theirs = Buckets(self.directory, "live", bits, ENTRY)
        if live is not None:
            _add_live(live[0], live[1], theirs)
        self._add_source(ours, workers, callbacks)
        kinds = self._file("kinds", self.source.table.rows)
        matched = MatchedRows(self._file("fates", live_rows))
        repeated = False
        for mine, known in zip(ours.take(), theirs.take(), strict=True):
            callbacks.check()
            self._join(mine, known, kinds, matched)
            repeated |= matched.clear_new()
        return PrecomputedClassifier(kinds), matched, repeated

    def _file(self, name: str, rows: int) -> np.ndarray:
        """Return ``uint8[rows]``, unclaimed, in a file."""
        # In a file, which the system may write out: the join is for where memory does not suffice.
        found = np.memmap(self.directory / name, np.uint8, "w+", shape=(max(1, rows),))
        found[:] = RowDisposition.UNMATCHED
        return found[:rows]

    def _add_source(self, buckets: Buckets, workers: int, callbacks: Callbacks) -> None:
        def spill(part: Part, stoppable: Callbacks) -> None:
            with capture_warnings(lambda _: None):
                for chunk in read_chunks(self.source, part):
                    stoppable.check()
                    buckets.add(_entries(chunk.hashes))

        # The second pass tells of progress and warnings.
        quiet = Callbacks(stopped=callbacks.stopped)
        for _ in process_in_order(self.parts, spill, workers, quiet):
            pass

    def _join(
        self, ours: np.ndarray, theirs: np.ndarray, kinds: np.ndarray, matched: MatchedRows
    ) -> None:
        live = LiveIndex(
            theirs["features"], theirs["passthrough"], theirs["mark"], IdLookup(theirs["id"])
        )
        hashes = Hashes(0, ours["id"], ours["features"], ours["passthrough"], ours["mark"])
        found, positions = classify_rows(live, hashes, recompute=self.recompute)
        kinds[ours["row"]] = found
        rows = np.append(theirs["row"], -1)  # the last one for position -1
        matched.add(hashes, found, rows[positions])


def _entries(hashes: Hashes) -> np.ndarray:
    entries = np.zeros(len(hashes), ENTRY)
    entries["row"] = np.arange(hashes.first_row, hashes.first_row + len(hashes))
    entries["id"], entries["features"] = hashes.ids, hashes.features
    entries["passthrough"] = hashes.passthrough
    entries["mark"] = False if hashes.deleted is None else hashes.deleted
    return entries


def _add_live(storage: Storage, path: str, buckets: Buckets) -> None:
    names = [KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH, STATUS]
    for row, table in numbered(read_index(storage, path, names)):
        entries = np.zeros(table.num_rows, ENTRY)
        entries["row"] = np.arange(row, row + table.num_rows)
        entries["id"] = as_ids(bytes_of(table[KEY_ID]))
        entries["features"] = bytes_of(table[FEATURE_HASH])
        entries["passthrough"] = bytes_of(table[PASSTHROUGH_HASH])
        entries["mark"] = is_quarantined(table[STATUS].combine_chunks())
        buckets.add(entries)


def refuse_duplicates(source: RefreshSource, parts: Sequence[Part], memory_bytes: int) -> None:
    """Look for keys that two rows have; reads the keys once more."""
    with bucket_directory("run it") as directory:
        bits = bucket_bits(source.table.rows, memory_bytes)
        buckets = Buckets(directory, "keys", bits, KEY_ENTRY)
        for part in parts:
            _add_keys(source, part, buckets)
        pairs = np.concatenate([repeated_rows(entries) for entries in buckets.take()])
    if len(pairs):
        raise InputError(_refusal(source, pairs[pairs[:, 1].argmin()], len(pairs)))


def _add_keys(source: RefreshSource, part: Part, buckets: Buckets) -> None:
    for row, table in numbered(read_tables(source, part, source.keys), part.first_row):
        entries = np.zeros(table.num_rows, KEY_ENTRY)
        entries["row"] = np.arange(row, row + table.num_rows)
        entries["id"] = key_ids(table, source.keys)
        buckets.add(entries)


def _refusal(source: RefreshSource, pair: np.ndarray, count: int) -> str:
    files = source.table.files
    (before, first), (file, row) = (locate(files, number) for number in pair.tolist())
    keys = pa.Table.from_batches(read_rows(file, source.keys, row, row + 1, 1))
    names = ", ".join(f"`{name}`" for name in source.keys)
    return (
        f"{file.path}, row {row}, column {names}: the key {describe_key(keys, 0)} is a "
        f"duplicate of {before.path}, row {first}. Expected unique keys. "
        f"Received: {plural(count, 'duplicate')}. Remove them, or add columns to `input.key`."
    )
