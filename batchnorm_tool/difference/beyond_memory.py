"""The kinds of tonight's rows where the live version is too large for memory.

The first pass writes the hashes of tonight's rows to bucket files; each bucket is joined with its
share of the live version, and the kinds go to a file, from which the second pass reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.difference.buckets import ENTRY, Buckets, bucket_bits
from batchnorm_tool.difference.kinds import Claims, Fate, Hashes, kinds_of
from batchnorm_tool.difference.reading import read_chunks
from batchnorm_tool.difference.slice_work import Watch, in_order
from batchnorm_tool.input_warnings import collected
from batchnorm_tool.store.index import (
    KEY_ID,
    LiveIndex,
    binary_rows,
    is_quarantined,
    read_index,
)
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH, STATUS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchnorm_tool.difference.slices import Slice
    from batchnorm_tool.difference.tonight import Tonight
    from batchnorm_tool.storage import Storage

_WRITTEN_TOGETHER = 2**18


class KnownKinds:
    """A judge that found the kinds of all rows before.

    Args:
        kinds: ``uint8[rows]``.
    """

    def __init__(self, kinds: np.ndarray) -> None:
        self._kinds = kinds

    def kinds(self, hashes: Hashes) -> np.ndarray:
        """The `Kind` of each row, ``uint8[n]``."""
        return np.array(self._kinds[hashes.first_row : hashes.first_row + len(hashes)])


@dataclass(frozen=True)
class BucketJoin:
    """A join in files.

    Attributes:
        tonight: The input.
        slices: All of it.
        directory: Where bucket files may lie: 50 bytes for each row of both sides.
        memory_bytes: About how much a bucket may take.
        recompute: Rows with the same features are to be predicted again.
    """

    tonight: Tonight
    slices: Sequence[Slice]
    directory: Path
    memory_bytes: int
    recompute: bool

    def run(
        self, live: tuple[Storage, str, int] | None, workers: int, watch: Watch
    ) -> tuple[KnownKinds, Claims, bool]:
        """Find the kinds of all rows.

        Args:
            live: Where the index of the live version lies, and its rows.
            workers: Threads that read.
            watch: Who looks on.

        Returns:
            The kinds, the claims on the live version, and whether a new key may occur twice.
        """
        live_rows = 0 if live is None else live[2]
        bits = bucket_bits(self.tonight.table.rows + live_rows, self.memory_bytes)
        ours = Buckets(self.directory, "tonight", bits, ENTRY)
        theirs = Buckets(self.directory, "live", bits, ENTRY)
        if live is not None:
            _add_live(live[0], live[1], theirs)
        self._add_tonight(ours, workers, watch)
        kinds = self._file("kinds", self.tonight.table.rows)
        claims = Claims(self._file("fates", live_rows))
        repeated = False
        for number in range(len(ours)):
            watch.check()
            self._join(ours.take(number), theirs.take(number), kinds, claims)
            repeated |= claims.forget_new()
        return KnownKinds(kinds), claims, repeated

    def _file(self, name: str, rows: int) -> np.ndarray:
        """``uint8[rows]``, unclaimed, in a file."""
        found = np.memmap(self.directory / name, np.uint8, "w+", shape=(max(1, rows),))
        found[:] = Fate.UNCLAIMED
        return found[:rows]

    def _add_tonight(self, buckets: Buckets, workers: int, watch: Watch) -> None:
        quiet = Watch(stopped=watch.stopped)  # the second pass tells of progress and warnings

        def spill(piece: Slice, watched: Watch) -> None:
            with collected(lambda _: None):
                entries = []
                for chunk in read_chunks(self.tonight, piece):
                    watched.check()
                    entries.append(_entries(chunk.hashes))
                # Not chunk by chunk: each of a thousand files would get a few bytes at a time.
                buckets.add(np.concatenate(entries))

        for _ in in_order(self.slices, spill, workers, quiet):
            pass

    def _join(
        self, ours: np.ndarray, theirs: np.ndarray, kinds: np.ndarray, claims: Claims
    ) -> None:
        live = LiveIndex.of(theirs["id"], theirs["features"], theirs["passthrough"], theirs["mark"])
        hashes = Hashes(0, ours["id"], ours["features"], ours["passthrough"], ours["mark"])
        found, positions = kinds_of(live, hashes, recompute=self.recompute)
        kinds[ours["row"]] = found
        rows = np.append(theirs["row"], -1)  # the last one for position -1
        claims.add(hashes, found, rows[positions])


def _entries(hashes: Hashes) -> np.ndarray:
    entries = np.zeros(len(hashes), ENTRY)
    entries["row"] = np.arange(hashes.first_row, hashes.first_row + len(hashes))
    entries["id"], entries["features"] = hashes.ids, hashes.features
    entries["passthrough"] = hashes.passthrough
    entries["mark"] = False if hashes.deleted is None else hashes.deleted
    return entries


def _add_live(storage: Storage, path: str, buckets: Buckets) -> None:
    row = 0
    names = [KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH, STATUS]
    for table in read_index(storage, path, names, _WRITTEN_TOGETHER):
        columns = [column.combine_chunks() for column in table.columns]
        entries = np.zeros(table.num_rows, ENTRY)
        entries["row"] = np.arange(row, row + table.num_rows)
        entries["id"] = np.ascontiguousarray(binary_rows(columns[0])).view(np.uint64)
        entries["features"], entries["passthrough"] = map(binary_rows, columns[1:3])
        entries["mark"] = is_quarantined(columns[3])
        buckets.add(entries)
        row += table.num_rows
