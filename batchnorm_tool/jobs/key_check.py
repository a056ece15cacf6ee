"""Duplicate and null keys, found in bounded memory.

Keys are hashed to 64 bits and spilled into bucket files; each bucket fits into memory. Rows whose
hashes agree are suspects, whose keys are then read again and compared exactly.
"""

from __future__ import annotations

import bisect
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.errors import Damaged, WorkFailed

if TYPE_CHECKING:
    from batchnorm_tool.jobs.findings import Findings
    from batchnorm_tool.jobs.stored_run import StoredPart, StoredRun

_BATCH_ROWS = 65_536
_ENTRY_BYTES = 16  # a hash and a row number
_BUCKET_BYTES = 64 * 2**20
_MOST_BUCKET_BITS = 10
# Between two writes to the buckets: with fewer rows, a thousand buckets would get a few bytes each.
_BUFFERED_ROWS = 2**20
# Suspects whose keys are held at a time. Two keys of the same hash are expected once in a run of
# five billion rows: nearly every suspect is a duplicate, and one round names more than enough.
_SUSPECTS = 100_000
_ROWS_OF_A_HASH = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads every bit (Knuth 6.4)


def check_keys(run: StoredRun, findings: Findings) -> None:
    """Find null keys, and keys that several rows have.

    Needs 16 bytes for each row in the system's directory for temporary files.

    Raises:
        WorkFailed: The temporary files cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="batchnorm-tool-keys-") as directory:
            buckets = _Buckets(Path(directory), run.rows)
            for rows, hashes in _hashed(run, findings):
                buckets.add(rows, hashes)
            for suspects in _rounds(buckets.suspects()):
                if _report_duplicates(run, suspects, findings):
                    return
    except Damaged as error:
        findings.add(f"Keys were not all looked at: {error.message}")
    except OSError as error:
        msg = (
            f"Writing the keys' hashes to `{tempfile.gettempdir()}` failed: {error.strerror}. "
            "Free some space, or set TMPDIR to another directory, and verify again."
        )
        raise WorkFailed(msg) from error


def _hashed(run: StoredRun, findings: Findings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and hashes of all rows that have a key; null keys are reported."""
    for part, first, batch in _key_batches(run, run.parts):
        null = np.zeros(batch.num_rows, bool)
        for column in batch.columns:
            null |= column.is_null().to_numpy(zero_copy_only=False)
        if null.any():
            names = ", ".join(f"`{name}`" for name in run.keys)
            rows = np.flatnonzero(null) + first
            findings.add_rows(run.file_of(part, run.keys[0]), rows, f"the key {names} is null.")
            batch = batch.filter(pa.array(~null))  # noqa: PLW2901
        yield np.flatnonzero(~null) + part.first + first, hash_keys(batch)


def _key_batches(
    run: StoredRun, parts: Iterable[StoredPart]
) -> Iterator[tuple[StoredPart, int, pa.RecordBatch]]:
    """Key columns of ``parts``, with the number of each batch's first row in its part."""
    for part in parts:
        first = 0
        for batch in run.read_part(part, run.keys, _BATCH_ROWS):
            yield part, first, batch
            first += batch.num_rows


def hash_keys(batch: pa.RecordBatch) -> np.ndarray:
    """A hash of each row, over all columns; equal rows have equal ones.

    Args:
        batch: ``n`` rows without nulls.

    Returns:
        ``uint64[n]``.

    Example:
        >>> batch = pa.RecordBatch.from_pydict({"shop": ["a", "b", "a"], "item": [1, 1, 1]})
        >>> hashes = hash_keys(batch)
        >>> bool(hashes[0] == hashes[2]), bool(hashes[0] == hashes[1])
        (True, False)
    """
    from pandas.util import hash_array

    hashes = np.zeros(batch.num_rows, np.uint64)
    for column in batch.columns:
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        hashes = hashes * _MULTIPLIER ^ hash_array(values, categorize=False)
    return hashes


class _Buckets:
    """Hashes and row numbers in files, each of which holds the hashes that begin alike."""

    def __init__(self, directory: Path, rows: int) -> None:
        wanted = (rows * _ENTRY_BYTES // _BUCKET_BYTES).bit_length()
        bits = min(max(1, wanted), _MOST_BUCKET_BITS)
        self._paths = [directory / f"{number:04d}" for number in range(1 << bits)]
        self._shift = np.uint64(64 - bits)
        self._waiting: list[np.ndarray] = []
        self._rows = 0

    def add(self, rows: np.ndarray, hashes: np.ndarray) -> None:
        """Take in rows with their hashes."""
        self._waiting.append(np.column_stack((hashes, rows.astype(np.uint64))))
        self._rows += len(rows)
        if self._rows >= _BUFFERED_ROWS:
            self._spill()

    def _spill(self) -> None:
        if not self._waiting:
            return
        entries = np.concatenate(self._waiting)
        self._waiting, self._rows = [], 0
        numbers = entries[:, 0] >> self._shift
        order = np.argsort(numbers, kind="stable")
        entries = entries[order]
        ends = np.searchsorted(numbers[order], np.arange(len(self._paths)), side="right")
        for path, found in zip(self._paths, np.split(entries, ends[:-1]), strict=True):
            if len(found):
                with path.open("ab") as file:
                    file.write(found.tobytes())

    def suspects(self) -> Iterator[np.ndarray]:
        """For each bucket, the rows whose hash another row has too: ``int64[m]``."""
        self._spill()
        for path in self._paths:
            if path.exists():
                yield _rows_with_equal_hashes(np.fromfile(path, np.uint64).reshape(-1, 2))
                path.unlink()


def _rows_with_equal_hashes(entries: np.ndarray) -> np.ndarray:
    """The first few rows of each hash that occurs more than once."""
    entries = entries[np.lexsort((entries[:, 1], entries[:, 0]))]
    _, starts, counts = np.unique(entries[:, 0], return_index=True, return_counts=True)
    rank = np.arange(len(entries)) - np.repeat(starts, counts)
    chosen = (np.repeat(counts, counts) > 1) & (rank < _ROWS_OF_A_HASH)
    return entries[chosen, 1].astype(np.int64)


def _rounds(suspects: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Suspects of several buckets together, as many as may be held at a time, in row order."""
    waiting: list[np.ndarray] = []
    for rows in suspects:
        waiting.append(rows)
        if sum(map(len, waiting)) >= _SUSPECTS:
            yield np.sort(np.concatenate(waiting))
            waiting = []
    if waiting:
        yield np.sort(np.concatenate(waiting))


@dataclass(frozen=True)
class _Located:
    """A row that has a certain key."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"`{self.file}` row {self.row:,}"


def _report_duplicates(run: StoredRun, suspects: np.ndarray, findings: Findings) -> bool:
    """Compare the keys of ``suspects`` exactly; returns whether any occurs twice."""
    places: dict[str, list[_Located]] = defaultdict(list)
    starts = [part.first for part in run.parts]
    wanted = {bisect.bisect_right(starts, row) - 1 for row in suspects.tolist()}
    for part, first, batch in _key_batches(run, [run.parts[number] for number in sorted(wanted)]):
        start = part.first + first
        low, high = np.searchsorted(suspects, [start, start + batch.num_rows])
        file = run.file_of(part, run.keys[0])
        for row in (suspects[low:high] - start).tolist():
            key = ", ".join(repr(column[row].as_py()) for column in batch.columns)
            places[key].append(_Located(file, first + row))
    for key, rows in places.items():
        if len(rows) > 1:
            findings.add(f"{', '.join(map(str, rows))}: have the same key, {key}.")
    return any(len(rows) > 1 for rows in places.values())
