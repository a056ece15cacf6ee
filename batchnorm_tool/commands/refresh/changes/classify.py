"""What the input's rows are beside the live version: new, changed, touched, the same, or to go.

Where the live version is too large for memory, a first pass writes the hashes of the input's rows
to bucket files; each bucket is joined with its share of the live version, and what the rows are
goes to a file, from which the second pass reads it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.commands.refresh.changes.source import Callbacks, Hashes, RefreshSource
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError, capture_warnings
from batchnorm_tool.inputs import reading, row_hash, row_ids
from batchnorm_tool.inputs.reading import Part
from batchnorm_tool.inputs.row_hash import bytes_of
from batchnorm_tool.inputs.row_ids import Buckets, IdLookup
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.index import (
    IS_JUDGED_AGAIN,
    KEY_ID,
    JudgedAgain,
    LiveIndex,
    index_rows,
    read_index,
)
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH

ENTRY = np.dtype(
    [
        ("row", np.int64),
        ("id", np.uint64, 2),
        ("features", np.uint8, 16),
        ("passthrough", np.uint8, 8),
        ("mark", np.uint8),
    ]
)
"""A row of the input (``mark``: to be deleted) or of the live version (`JudgedAgain.marks`)."""


class ChangeType(IntEnum):
    """What a row of the input is beside the live version; the first three are for the model."""

    NEW = 0
    CHANGED = 1
    RECOMPUTED = 2
    TOUCHED = 3
    SAME = 4
    DELETED = 5
    UNKNOWN_DELETES = 6


class RowDisposition(IntEnum):
    """What becomes of a row of the live version: a value of ``fates.npy``."""

    SAME = 0
    REPLACED = 1
    DELETED = 2
    RECOMPUTED = 3
    """Replaced, with the same features; written as ``REPLACED``."""
    UNMATCHED = 255
    """No row of the input has its key; never written."""


_DISPOSITIONS = np.array([255, 1, 3, 1, 0, 2, 255], np.uint8)  # by kind
# Returns the `ChangeType` of each row, ``uint8[n]``; threads share one.
Classifier = Callable[[Hashes], np.ndarray]


def classify_rows(
    live: LiveIndex, hashes: Hashes, *, recompute: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `ChangeType` of each row, ``uint8[n]``, and its place in the live index or -1."""
    positions = live.places.find(hashes.ids)
    known = positions >= 0
    kinds = np.full(len(hashes), ChangeType.NEW, np.uint8)
    if len(live):
        # An unknown row looks at row 0, which has another key; `known` leaves it out below.
        at = np.maximum(positions, 0)
        # `take` copies rows as wholes: of 1 M hashes in 1 ms, where an index takes 20.
        same = known & _rows_equal(live.feature_hash.take(at, axis=0), hashes.features)
        kinds[known] = ChangeType.CHANGED
        kinds[same] = ChangeType.RECOMPUTED if recompute else ChangeType.SAME
        if not recompute:
            moved = ~_rows_equal(live.passthrough_hash.take(at, axis=0), hashes.passthrough)
            marks = live.marks.take(at)
            # A quarantined row has no vector beside which other columns could be written.
            kinds[same & moved & (marks == 0)] = ChangeType.TOUCHED
            kinds[same & (marks & IS_JUDGED_AGAIN > 0)] = ChangeType.RECOMPUTED
    if hashes.deleted is not None:
        kinds[hashes.deleted] = ChangeType.UNKNOWN_DELETES
        kinds[hashes.deleted & known] = ChangeType.DELETED
    return kinds, positions


def _rows_equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    words = [np.ascontiguousarray(side).view(np.uint64) for side in (one, other)]
    same = words[0] == words[1]
    # Column by column: `all` over rows of one or two words takes several times as long.
    return np.asarray(functools.reduce(np.logical_and, same.T))


class MatchedRows:
    """Which rows of the live version the input's rows have claimed, and as what.

    Also whether any key may occur twice, without keeping the keys: known rows are counted against
    the claims, and of new rows the first words of their ids are compared. ``dispositions`` is
    ``uint8[live rows]``, at first all `RowDisposition.UNMATCHED`; ``marks`` are those of the rows.
    """

    def __init__(self, dispositions: np.ndarray, marks: np.ndarray) -> None:
        self.dispositions, self.marks = dispositions, marks
        self._known = 0
        self._new: list[np.ndarray] = []
        self._is_repeated = False
        self._lock = threading.Lock()

    def add(self, hashes: Hashes, kinds: np.ndarray, places: np.ndarray) -> None:
        """Note what rows are, and which place each claims in ``dispositions``; -1 for none."""
        known = places >= 0
        with self._lock:
            self._known += int(np.count_nonzero(known))
            if known.all():
                self.dispositions[places] = _DISPOSITIONS[kinds]
            else:
                self.dispositions[places[known]] = _DISPOSITIONS[kinds[known]]
                # First words alone, 8 bytes a row: they may agree by chance, and then the keys are
                # compared.
                self._new.append(hashes.ids[~known, 0])

    def clear_new(self) -> None:
        """Let the new rows' ids go, and note whether any may have occurred twice among them."""
        words = np.concatenate([np.zeros(0, np.uint64), *self._new])
        self._new.clear()
        words.sort()
        self._is_repeated |= bool((words[1:] == words[:-1]).any())

    def is_repeated(self) -> bool:
        """Tell whether two rows may have the same key."""
        self.clear_new()
        # Two rows that claim one place leave one mark there, and were counted twice.
        marked = int(np.count_nonzero(self.dispositions != RowDisposition.UNMATCHED))
        return self._is_repeated or self._known != marked


def classifier_in_memory(live: LiveIndex, matched: MatchedRows, *, recompute: bool) -> Classifier:
    """Return a classifier with the whole live version in memory; ``matched`` notes every row."""

    def classify(hashes: Hashes) -> np.ndarray:
        kinds, positions = classify_rows(live, hashes, recompute=recompute)
        matched.add(hashes, kinds, positions)
        return kinds

    return classify


@dataclass(frozen=True)
class BucketJoin:
    """A join in files, 50 bytes for each row of both sides; ``memory_bytes`` are for a bucket."""

    source: RefreshSource
    directory: Path
    memory_bytes: int
    recompute: bool
    again: JudgedAgain = field(default_factory=JudgedAgain)

    def run(
        self, live: tuple[Storage, str] | None, workers: int, callbacks: Callbacks
    ) -> tuple[Classifier, MatchedRows]:
        """Find what all rows are; ``live`` says where the index of the live version lies."""
        live_rows = 0 if live is None else index_rows(*live)
        bits = row_ids.bucket_bits(self.source.table.rows + live_rows, self.memory_bytes)
        ours = Buckets(self.directory, "input", bits, ENTRY)
        theirs = Buckets(self.directory, "live", bits, ENTRY)
        if live is not None:
            _add_live(*live, self.again, theirs)
        self._add_source(ours, workers, callbacks)
        kinds = self._file("kinds", self.source.table.rows)
        matched = MatchedRows(self._file("fates", live_rows), self._file("marks", live_rows))
        for mine, known in zip(ours.take(), theirs.take(), strict=True):
            callbacks.check()
            self._join(row_ids.joined(mine, ENTRY), row_ids.joined(known, ENTRY), kinds, matched)
            matched.clear_new()
        # It looks up what the input's rows are, by their place.
        return lambda some: np.array(kinds[some.first_row : some.first_row + len(some)]), matched

    def _file(self, name: str, rows: int) -> np.ndarray:
        """Return ``uint8[rows]``, unclaimed, in a file."""
        # In a file, which the system may write out: the join is for where memory does not suffice.
        found = np.memmap(self.directory / name, np.uint8, "w+", shape=(max(1, rows),))
        found[:] = RowDisposition.UNMATCHED
        return found[:rows]

    def _add_source(self, buckets: Buckets, workers: int, callbacks: Callbacks) -> None:
        def spill(part: Part, stoppable: Callbacks) -> None:
            with capture_warnings(lambda _: None):
                for chunk in self.source.chunks(part):
                    stoppable.check()
                    found, deleted = chunk.hashes, chunk.hashes.deleted
                    rows = np.arange(found.first_row, found.first_row + len(found))
                    hashes = found.ids, found.features, found.passthrough
                    mark = False if deleted is None else deleted
                    buckets.add(row_ids.entries_of(ENTRY, rows, *hashes, mark))

        # The second pass tells of progress and warnings.
        quiet = Callbacks(stopped=callbacks.stopped)
        for _ in self.source.process(spill, workers, quiet):
            pass

    def _join(
        self, ours: np.ndarray, theirs: np.ndarray, kinds: np.ndarray, matched: MatchedRows
    ) -> None:
        live = LiveIndex(
            theirs["features"], theirs["passthrough"], theirs["mark"], IdLookup(theirs["id"])
        )
        hashes = Hashes(0, ours["id"], ours["features"], ours["passthrough"], ours["mark"] > 0)
        found, positions = classify_rows(live, hashes, recompute=self.recompute)
        kinds[ours["row"]] = found
        matched.marks[theirs["row"]] = theirs["mark"]
        rows = np.append(theirs["row"], -1)  # the last one for position -1
        matched.add(hashes, found, rows[positions])


def _add_live(storage: Storage, path: str, again: JudgedAgain, buckets: Buckets) -> None:
    names = [KEY_ID, FEATURE_HASH, PASSTHROUGH_HASH, *again.columns]
    for row, table in numbered(read_index(storage, path, names)):
        rows = np.arange(row, row + table.num_rows)
        ids, *hashes = (bytes_of(table[name]) for name in names[:3])
        marks = again.marks(table)
        buckets.add(row_ids.entries_of(ENTRY, rows, row_hash.as_ids(ids), *hashes, marks))


def refuse_duplicates(source: RefreshSource, memory_bytes: int) -> None:
    """Look for keys that two rows have; reads the keys once more."""
    blocks = row_ids.find_repeated(_key_blocks(source), source.table.rows, memory_bytes)
    found = [(pairs[0].tolist(), len(pairs)) for pairs in blocks]
    if not found:
        return
    (first, second), _ = min(found, key=lambda each: each[0][1])
    file, row = reading.locate(source.table.files, second)
    keys = pa.Table.from_batches(reading.read_rows(file, source.keys, row, row + 1, 1))
    names = ", ".join(f"`{name}`" for name in source.keys)
    raise InputError(
        f"{source.place(second)}, column {names}: the key {reading.describe_key(keys, 0)} is a "
        f"duplicate of {source.place(first)}. Expected unique keys. "
        f"Received: {plural(sum(count for _, count in found), 'duplicate')}. Remove them, or add "
        "columns to `input.key`."
    )


def _key_blocks(source: RefreshSource) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in source.parts:
        for row, table in numbered(source.tables(part, source.keys), part.first_row):
            rows = np.arange(row, row + table.num_rows)
            yield rows, row_hash.key_ids(table, source.keys)
