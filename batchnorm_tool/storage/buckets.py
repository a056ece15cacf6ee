"""Rows in temporary files by the ids of their keys: each file, a bucket, fits into memory."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.errors import WorkFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of an entry, its sorted copies, and what is found.
_ENTRY_BYTES = 200
_MOST_BITS = 10
# Between two writes: with fewer rows, a thousand files would get a few bytes each.
_BUFFERED_ROWS = 2**18
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads every bit (Knuth 6.4)


def bucket_bits(rows: int, memory_bytes: int) -> int:
    """Return the binary logarithm of how many buckets it takes for each to fit the memory."""
    wanted = (rows * _ENTRY_BYTES // max(1, memory_bytes)).bit_length()
    return min(max(1, wanted), _MOST_BITS)


@contextlib.contextmanager
def bucket_directory(retry: str) -> Iterator[Path]:
    """Open a temporary directory, gone afterwards; ``retry`` is what to do again if that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="batchnorm-tool-keys-") as directory:
            yield Path(directory)
    except OSError as error:
        msg = (
            f"Writing the keys' hashes to `{tempfile.gettempdir()}` failed: {error.strerror}. "
            f"Free some space, or set TMPDIR to another directory, and {retry} again."
        )
        raise WorkFailed(msg) from error


class Buckets:
    """Entries in files, by what their ids begin with; threads may share it.

    Args:
        directory: Where the files lie.
        name: What their names begin with.
        bits: Binary logarithm of their number.
        dtype: Of an entry, with the fields ``row`` and ``id`` (``uint64[1]`` or ``uint64[2]``).
    """

    def __init__(self, directory: Path, name: str, bits: int, dtype: np.dtype) -> None:
        self._paths = [directory / f"{name}-{number:04d}" for number in range(1 << bits)]
        self._shift = np.uint64(64 - bits)
        self._dtype = dtype
        self._lock = threading.Lock()
        self._waiting: list[np.ndarray] = []
        self._rows = 0

    def add(self, entries: np.ndarray) -> None:
        """Take in entries, in any order."""
        with self._lock:
            self._waiting.append(entries)
            self._rows += len(entries)
            if self._rows >= _BUFFERED_ROWS:
                self._write()

    def _write(self) -> None:
        entries = np.concatenate([np.zeros(0, self._dtype), *self._waiting])
        self._waiting, self._rows = [], 0
        mixed = (entries["id"][:, 0] * _MULTIPLIER) ^ entries["id"][:, -1]
        numbers = mixed * _MULTIPLIER >> self._shift
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(len(self._paths)), side="right")
        for path, found in zip(self._paths, np.split(entries[order], ends[:-1]), strict=True):
            if len(found):
                with path.open("ab") as file:
                    file.write(found.tobytes())

    def take(self) -> Iterator[np.ndarray]:
        """Yield the entries of one bucket after another by their rows; they are forgotten."""
        self._write()
        for path in self._paths:
            entries = np.fromfile(path, self._dtype) if path.exists() else np.zeros(0, self._dtype)
            path.unlink(missing_ok=True)
            yield entries[np.argsort(entries["row"])]
