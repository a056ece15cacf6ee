"""Rows whose features repeat: which they are, and their predictions, each made once in a process.

Whose prediction comes first is a matter of chance, and which row counts as reused is not: that
follows from the input. The bytes of a result are the same as without all this where the model gives
a row the same bits at any place in a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from batchnorm_tool.chunk import Chunk, Field
from batchnorm_tool.errors import WorkFailed
from batchnorm_tool.inputs.row_hash import as_ids
from batchnorm_tool.inputs.row_ids import find_repeated
from batchnorm_tool.models.batching import check_shape
from batchnorm_tool.storage import Storage

REPEATS_PATH = "_state/repeats"
_FINDING_BYTES = 256 * 2**20
_IN_MEMORY_BYTES = 8 * 2**20
_CHECKSUM_BYTES = 32  # SHA-256
_OPEN, _CLAIMED, _KNOWN = range(3)
# Chunks are gathered until so small a part of what the model predicts is padding, or so many wait:
# fewer where a batch is large, and a chunk more than the 8 MiB that it usually is.
_PADDING, _MOST_TOGETHER, _MOST_LARGE = 0.1, 8, 3
_TOGETHER_BYTES = 64 * 2**20

_Arrays = Mapping[str, np.ndarray]
# Raw predictions by output, ``[n, *shape]``, and what the model says of each row on which it fails.
Predicted = tuple[_Arrays, Mapping[int, str]]
Predict = Callable[[_Arrays], Predicted]


@dataclass(frozen=True, eq=False)
class Repeats:
    """The rows of an input whose features another row of it has; 16 bytes for each.

    Attributes:
        rows: ``int64[m]``, ascending: the global numbers of these rows.
        firsts: ``int64[m]``: for each of them, the first row with its features, maybe itself.
    """

    rows: np.ndarray
    firsts: np.ndarray

    @classmethod
    def of(cls, blocks: Iterable[tuple[int, np.ndarray]], rows: int) -> Self:
        """Find the repeats among rows.

        Args:
            blocks: The number of a first row, and the feature hashes ``uint8[n, 16]`` from there
                on; ascending, gaps allowed.
            rows: How many rows there are at most.
        """
        numbered = ((first + np.arange(len(hashes)), as_ids(hashes)) for first, hashes in blocks)
        found = find_repeated(numbered, rows, _FINDING_BYTES)
        pairs = np.concatenate([np.empty((0, 2), np.int64), *found])
        own = np.repeat(np.unique(pairs[:, 0])[:, np.newaxis], 2, axis=1)
        every = np.concatenate([own, pairs])
        firsts, members = every[np.argsort(every[:, 1])].T
        return cls(np.ascontiguousarray(members), np.ascontiguousarray(firsts))

    @classmethod
    def none(cls) -> Self:
        """Return those of an input in which nothing repeats, or is treated as if it did not."""
        return cls.of((), 0)

    @cached_property
    def distinct(self) -> np.ndarray:
        """The first row of each kind of features that repeats, ``int64[k]``, ascending."""
        return self.firsts[self.firsts == self.rows]

    def within(self, first_row: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets of repeating rows in a run of rows, and their places in `distinct`."""
        chosen = self._chosen(first_row, rows)
        return self.rows[chosen] - first_row, np.searchsorted(self.distinct, self.firsts[chosen])

    def has_earlier(self, first_row: int, rows: int) -> np.ndarray:
        """Return for each row whether an earlier row has its features, ``bool[n]``."""
        chosen, earlier = self._chosen(first_row, rows), np.zeros(rows, bool)
        earlier[self.rows[chosen] - first_row] = self.rows[chosen] != self.firsts[chosen]
        return earlier

    def _chosen(self, first_row: int, rows: int) -> slice:
        return slice(*np.searchsorted(self.rows, (first_row, first_row + rows)).tolist())

    @classmethod
    def stored(cls, storage: Storage) -> Self | None:
        """Return those of the run under way in an output; ``None`` where there are none."""
        return cls.from_bytes(storage.get(REPEATS_PATH))

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads: a checksum and the numbers."""
        body = self.rows.tobytes() + self.firsts.tobytes()
        return hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Self | None:
        """Read what `to_bytes` gave; ``None`` where it is missing or damaged."""
        checksum, body = (data or b"")[:_CHECKSUM_BYTES], (data or b"")[_CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        return cls(*np.frombuffer(body, np.int64).reshape(2, -1))


class SharedPredictions:
    """Raw predictions of rows whose features repeat, each made once; threads share it.

    A thread first predicts what nobody has begun, then waits for what others have begun: it never
    waits while others wait for it. What failed elsewhere it predicts itself.
    """

    def __init__(self, repeats: Repeats, outputs: Sequence[Field]) -> None:
        self.repeats = repeats
        self._states = np.full(len(repeats.distinct), _OPEN, np.uint8)
        self._changed = threading.Condition()
        self._known = {each.name: _table(len(self._states), each) for each in outputs}
        self._failing: dict[int, str] = {}

    def together(self, chunks: Iterable[Chunk], batch_size: int) -> Iterator[list[Chunk]]:
        """Yield consecutive chunks, as many together as it takes to fill the model's batches.

        What is left of a chunk of one batch would take as long to predict as the whole of it.
        """
        waiting: list[Chunk] = []
        rows = 0
        for chunk in chunks:
            if waiting and _shapes(chunk) != _shapes(waiting[0]):  # a transform may vary them
                yield waiting
                waiting, rows = [], 0
            waiting.append(chunk)
            rows += self._unknown(chunk)
            most = _MOST_LARGE if _bytes(waiting) > _TOGETHER_BYTES else _MOST_TOGETHER
            if -rows % batch_size <= _PADDING * rows or len(waiting) >= most:
                yield waiting
                waiting, rows = [], 0
        if waiting:
            yield waiting

    def _unknown(self, chunk: Chunk) -> int:
        """Return how many rows are to be predicted, as far as that can be told now."""
        offsets, kinds = self.repeats.within(chunk.first_row, chunk.rows)
        here = np.unique(kinds)
        return chunk.rows - len(offsets) + int((self._states[here] == _OPEN).sum())

    def predict(self, chunks: Sequence[Chunk], predict: Predict) -> list[Predicted]:
        """Predict consecutive chunks: with ``predict`` those rows alone that are not known yet."""
        features = chunks[0].features
        if len(chunks) > 1:
            columns = {name: [chunk.features[name] for chunk in chunks] for name in features}
            features = {name: np.concatenate(arrays) for name, arrays in columns.items()}
        predictions, failing = self._predict(chunks[0].first_row, features, predict)
        found: list[Predicted] = []
        for chunk in chunks:
            start = chunk.first_row - chunks[0].first_row
            rows = range(start, start + chunk.rows)
            own = {name: array[start : rows.stop] for name, array in predictions.items()}
            said = {row - start: text for row, text in failing.items() if row in rows}
            found.append((own, said))
        return found

    def _predict(self, first_row: int, features: _Arrays, predict: Predict) -> Predicted:
        rows = len(next(iter(features.values())))
        offsets, kinds = self.repeats.within(first_row, rows)
        if not len(offsets):
            return predict(features)
        here, places = np.unique(kinds, return_index=True)
        alone = np.delete(np.arange(rows), offsets)
        found, said = self._predict_unknown(features, alone, here, offsets[places], predict)
        predictions = {}
        for name, known in self._known.items():
            predictions[name] = np.empty((rows, *known.shape[1:]), known.dtype)
            predictions[name][offsets] = known[kinds]
            if len(alone):
                predictions[name][alone] = found[name][: len(alone)]
        failing = {int(alone[row]): text for row, text in said.items() if row < len(alone)}
        if self._failing:
            pairs = zip(offsets.tolist(), kinds.tolist(), strict=True)
            failing |= {row: self._failing[kind] for row, kind in pairs if kind in self._failing}
        return predictions, failing

    def _predict_unknown(
        self,
        features: _Arrays,
        alone: np.ndarray,
        kinds: np.ndarray,
        places: np.ndarray,
        predict: Predict,
    ) -> Predicted:
        """Make all ``kinds`` known, each at a place; return what was predicted for rows alone."""
        with self._claimed(kinds, wait=False) as mine:
            rows = np.concatenate([alone, places[mine]])
            first = self._keep(features, rows, kinds[mine], predict)
        while (self._states[kinds] != _KNOWN).any():
            with self._claimed(kinds, wait=True) as mine:
                self._keep(features, places[mine], kinds[mine], predict)
        return first

    def _keep(
        self, features: _Arrays, rows: np.ndarray, kinds: np.ndarray, predict: Predict
    ) -> Predicted:
        """Predict some rows, the last of which stand for ``kinds``, and keep what these get."""
        if not len(rows):
            return {}, {}
        found, failing = predict({name: array[rows] for name, array in features.items()})
        alone = len(rows) - len(kinds)
        for name, known in self._known.items():
            check_shape(name, found[name], known.shape[1:])
            known[kinds] = found[name][alone:]
        for row, text in failing.items():
            if row >= alone:
                self._failing[int(kinds[row - alone])] = text
        return found, failing

    @contextlib.contextmanager
    def _claimed(self, kinds: np.ndarray, *, wait: bool) -> Iterator[np.ndarray]:
        """Claim what nobody predicts, ``bool[k]``; it is known afterwards, or anybody's again."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not (self._states[kinds] == _CLAIMED).any())
            mine = self._states[kinds] == _OPEN
            self._states[kinds[mine]] = _CLAIMED
        state = _OPEN
        try:
            yield mine
            state = _KNOWN
        finally:
            with self._changed:
                self._states[kinds[mine]] = state
                self._changed.notify_all()


def _bytes(chunks: Iterable[Chunk]) -> int:
    return sum(array.nbytes for chunk in chunks for array in chunk.features.values())


def _shapes(chunk: Chunk) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in chunk.features.values()]


def _table(rows: int, output: Field) -> np.ndarray:
    """Return room for predictions ``[rows, *shape]``; where it is large, in a file without name."""
    shape = (rows, *(size or 1 for size in output.shape))
    size = math.prod(shape) * np.dtype(output.dtype).itemsize
    if size <= _IN_MEMORY_BYTES:
        return np.empty(shape, output.dtype)
    try:
        with tempfile.TemporaryFile(prefix="batchnorm-tool-") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # A full disk shows now: later, writing to the mapping would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, output.dtype, "r+", shape=shape)
    except OSError as error:
        raise WorkFailed(
            f"The predictions of repeated rows take {size:,} bytes in `{tempfile.gettempdir()}`: "
            f"{error.strerror}. Free some space, or set TMPDIR to another directory, and run it "
            "again."
        ) from error
