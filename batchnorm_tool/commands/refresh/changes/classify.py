"""What the input's rows are beside the live version: new, changed, touched, the same, or to go."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.store.index import LiveIndex


class ChangeType(IntEnum):
    """What a row of the input is beside the live version."""

    NEW = 0
    CHANGED = 1
    RECOMPUTED = 2
    TOUCHED = 3
    SAME = 4
    DELETED = 5
    UNKNOWN_DELETE = 6


class RowDisposition(IntEnum):
    """What becomes of a row of the live version: a value of ``fates.npy``."""

    SAME = 0
    REPLACED = 1
    DELETED = 2
    UNMATCHED = 255
    """No row of the input has its key; never written."""


FOR_THE_MODEL = (ChangeType.NEW, ChangeType.CHANGED, ChangeType.RECOMPUTED)
_DISPOSITIONS = np.array([255, 1, 1, 1, 0, 2, 255], np.uint8)  # by kind


@dataclass(frozen=True)
class Hashes:
    """What tells a chunk of the input's rows from the live version's.

    Attributes:
        first_row: Global number of the first row.
        ids: ``uint64[n, 2]``, of `key_ids`.
        features: ``uint8[n, 16]``, of `feature_hashes`.
        passthrough: ``uint8[n, 8]``, of `passthrough_hashes`.
        deleted: ``bool[n]``: the row is to be deleted; ``None`` for nowhere.
    """

    first_row: int
    ids: np.ndarray
    features: np.ndarray
    passthrough: np.ndarray
    deleted: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)


class Classifier(Protocol):
    """A classifier of the rows of an input; threads share one."""

    def classify(self, hashes: Hashes) -> np.ndarray:
        """Return the `ChangeType` of each row, ``uint8[n]``."""


def classify_rows(
    live: LiveIndex, hashes: Hashes, *, recompute: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `ChangeType` of each row, and where it lies in the live version.

    Returns:
        ``uint8[n]`` and ``int64[n]``, a position in the live index or -1.
    """
    positions = live.lookup(hashes.ids)
    known = positions >= 0
    kinds = np.full(len(hashes), ChangeType.NEW, np.uint8)
    if len(live):
        # An unknown row looks at row 0, which has another key; `known` leaves it out below.
        at = np.maximum(positions, 0)
        # `take` copies rows as wholes: of 1 M hashes in 1 ms, where an index takes 20.
        same = _rows_equal(live.feature_hash.take(at, axis=0), hashes.features)
        kinds[known] = ChangeType.CHANGED
        kinds[known & same] = ChangeType.RECOMPUTED if recompute else ChangeType.SAME
        if not recompute:
            moved = ~_rows_equal(live.passthrough_hash.take(at, axis=0), hashes.passthrough)
            # A quarantined row has no vector beside which other columns could be written.
            kinds[known & same & moved & ~live.quarantined[at]] = ChangeType.TOUCHED
    if hashes.deleted is not None:
        kinds[hashes.deleted] = ChangeType.UNKNOWN_DELETE
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
    the claims, and of new rows the first words of their ids are compared.

    Args:
        dispositions: ``uint8[live rows]``, all `RowDisposition.UNMATCHED`.
    """

    def __init__(self, dispositions: np.ndarray) -> None:
        self.dispositions = dispositions
        self._known = 0
        self._new: list[np.ndarray] = []
        self._lock = threading.Lock()

    def add(self, hashes: Hashes, kinds: np.ndarray, places: np.ndarray) -> None:
        """Note what rows are.

        Args:
            hashes: Of ``n`` rows.
            kinds: ``uint8[n]``.
            places: ``int64[n]``, the row of ``dispositions`` that each claims; -1 for none.
        """
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

    def clear_new(self) -> bool:
        """Let the new rows' ids go, and say whether any may have occurred twice among them."""
        words = np.concatenate([np.zeros(0, np.uint64), *self._new])
        self._new.clear()
        words.sort()
        return bool((words[1:] == words[:-1]).any())

    def is_repeated(self) -> bool:
        """Tell whether two known rows had the same key."""
        # Two rows that claim one place leave one mark there, and were counted twice.
        return self._known != int(np.count_nonzero(self.dispositions != RowDisposition.UNMATCHED))


class LiveClassifier:
    """A classifier with the whole live version in memory.

    Args:
        live: Keys and hashes of the live version.
        matched: Notes every row.
        recompute: Rows with the same features are to be predicted again.
    """

    def __init__(self, live: LiveIndex, matched: MatchedRows, *, recompute: bool) -> None:
        self._live, self._matched, self._recompute = live, matched, recompute

    def classify(self, hashes: Hashes) -> np.ndarray:
        """Return the `ChangeType` of each row, ``uint8[n]``."""
        kinds, positions = classify_rows(self._live, hashes, recompute=self._recompute)
        self._matched.add(hashes, kinds, positions)
        return kinds
