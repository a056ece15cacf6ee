"""Rows by the ids of their keys in files, each of which fits into memory."""

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

ENTRY = np.dtype(
    [
        ("row", np.int64),
        ("id", np.uint64, 2),
        ("features", np.uint8, 16),
        ("passthrough", np.uint8, 8),
        ("mark", np.bool_),
    ]
)
"""A row of tonight's (``mark``: to be deleted) or of the live version (quarantined)."""

KEY_ENTRY = np.dtype([("row", np.int64), ("id", np.uint64, 2)])

# Of both sides together: an entry, its sorted copies, and what is found.
_JOIN_BYTES = 200
_MOST_BITS = 10
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads every bit (Knuth 6.4)


def bucket_bits(rows: int, memory_bytes: int) -> int:
    """The binary logarithm of the number of buckets, so that each is joined within the memory."""
    wanted = (rows * _JOIN_BYTES // max(1, memory_bytes)).bit_length()
    return min(max(1, wanted), _MOST_BITS)


@contextlib.contextmanager
def bucket_directory() -> Iterator[Path]:
    """A temporary directory, gone afterwards.

    Raises:
        WorkFailed: It cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="batchnorm-tool-difference-") as directory:
            yield Path(directory)
    except OSError as error:
        msg = (
            f"Writing the keys' hashes to `{tempfile.gettempdir()}` failed: {error.strerror}. "
            "Free some space, or set TMPDIR to another directory, and run it again."
        )
        raise WorkFailed(msg) from error


class Buckets:
    """Entries in files, by what their ids begin with; threads may share it.

    Args:
        directory: Where the files lie.
        name: What their names begin with.
        bits: Binary logarithm of their number.
        dtype: `ENTRY` or `KEY_ENTRY`.
    """

    def __init__(self, directory: Path, name: str, bits: int, dtype: np.dtype) -> None:
        self._paths = [directory / f"{name}-{number:04d}" for number in range(1 << bits)]
        self._shift = np.uint64(64 - bits)
        self._dtype = dtype
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, entries: np.ndarray) -> None:
        """Take in entries, in any order."""
        mixed = (entries["id"][:, 0] * _MULTIPLIER) ^ entries["id"][:, 1]
        numbers = mixed * _MULTIPLIER >> self._shift
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(len(self._paths)), side="right")
        with self._lock:
            for path, found in zip(self._paths, np.split(entries[order], ends[:-1]), strict=True):
                if len(found):
                    with path.open("ab") as file:
                        file.write(found.tobytes())

    def take(self, number: int) -> np.ndarray:
        """The entries of one bucket in the order of their rows; they are forgotten."""
        path = self._paths[number]
        if not path.exists():
            return np.zeros(0, self._dtype)
        entries = np.fromfile(path, self._dtype)
        path.unlink()
        return entries[np.argsort(entries["row"])]
