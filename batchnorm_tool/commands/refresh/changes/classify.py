"""What tonight's rows are beside the live version: new, changed, touched, the same, or to go."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.store.index import LiveIndex


class Kind(IntEnum):
    """What a row of tonight's input is beside the live version."""

    NEW = 0
    CHANGED = 1
    RECOMPUTED = 2
    TOUCHED = 3
    SAME = 4
    DELETED = 5
    UNKNOWN_DELETE = 6


class Fate(IntEnum):
    """What becomes of a row of the live version: a value of ``fates.npy``."""

    SAME = 0
    REPLACED = 1
    GONE = 2
    UNCLAIMED = 255
    """No row of tonight's input has its key; never written."""


FOR_THE_MODEL = (Kind.NEW, Kind.CHANGED, Kind.RECOMPUTED)
_UNKNOWN = (Kind.NEW, Kind.UNKNOWN_DELETE)
_FATES = np.array([255, 1, 1, 1, 0, 2, 255], np.uint8)  # by kind


@dataclass(frozen=True)
class Hashes:
    """What tells a chunk of tonight's rows from last night's.

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


class Judge(Protocol):
    """Tells the kinds of tonight's rows; threads share one."""

    def kinds(self, hashes: Hashes) -> np.ndarray:
        """The `Kind` of each row, ``uint8[n]``."""


def kinds_of(live: LiveIndex, hashes: Hashes, *, recompute: bool) -> tuple[np.ndarray, np.ndarray]:
    """The `Kind` of each row, and where it lies in the live version.

    Args:
        live: Keys and hashes of the live version.
        hashes: Of ``n`` rows.
        recompute: Rows with the same features are to be predicted again.

    Returns:
        ``uint8[n]`` and ``int64[n]``, a position in the live index or -1.
    """
    positions = live.lookup(hashes.ids)
    known = positions >= 0
    kinds = np.full(len(hashes), Kind.NEW, np.uint8)
    if len(live):
        at = np.maximum(positions, 0)
        # `take` copies rows as wholes: of 1 M hashes in 1 ms, where an index takes 20.
        same = _rows_equal(live.feature_hash.take(at, axis=0), hashes.features)
        kinds[known] = Kind.CHANGED
        kinds[known & same] = Kind.RECOMPUTED if recompute else Kind.SAME
        if not recompute:
            moved = ~_rows_equal(live.passthrough_hash.take(at, axis=0), hashes.passthrough)
            kinds[known & same & moved & ~live.quarantined[at]] = Kind.TOUCHED
    if hashes.deleted is not None:
        kinds[hashes.deleted] = Kind.UNKNOWN_DELETE
        kinds[hashes.deleted & known] = Kind.DELETED
    return kinds, positions


def _rows_equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    words = [np.ascontiguousarray(side).view(np.uint64) for side in (one, other)]
    same = words[0] == words[1]
    # Column by column: `all` over rows of one or two words takes several times as long.
    return np.asarray(functools.reduce(np.logical_and, same.T))


class Claims:
    """Which rows of the live version tonight's rows have claimed, and as what.

    Also whether any key may occur twice, without keeping the keys: known rows are counted against
    the claims, and of new rows the first words of their ids are compared.

    Args:
        fates: ``uint8[live rows]``, all `Fate.UNCLAIMED`.
    """

    def __init__(self, fates: np.ndarray) -> None:
        self.fates = fates
        self._known = 0
        self._new: list[np.ndarray] = []
        self._lock = threading.Lock()

    def add(self, hashes: Hashes, kinds: np.ndarray, places: np.ndarray) -> None:
        """Note what rows are.

        Args:
            hashes: Of ``n`` rows.
            kinds: ``uint8[n]``.
            places: ``int64[n]``, the row of ``fates`` that each claims; -1 for none.
        """
        known = places >= 0
        with self._lock:
            self._known += int(np.count_nonzero(known))
            if known.all():
                self.fates[places] = _FATES[kinds]
            else:
                self.fates[places[known]] = _FATES[kinds[known]]
                self._new.append(hashes.ids[~known, 0])

    def forget_new(self) -> bool:
        """Let the new rows' ids go, and say whether any may have occurred twice among them."""
        words = np.concatenate([np.zeros(0, np.uint64), *self._new])
        self._new.clear()
        words.sort()
        return bool((words[1:] == words[:-1]).any())

    def is_repeated(self) -> bool:
        """Whether two known rows had the same key."""
        return self._known != int(np.count_nonzero(self.fates != Fate.UNCLAIMED))


class LiveJudge:
    """Judges with the whole live version in memory.

    Args:
        live: Keys and hashes of the live version.
        claims: Told of every row.
        recompute: Rows with the same features are to be predicted again.
    """

    def __init__(self, live: LiveIndex, claims: Claims, *, recompute: bool) -> None:
        self._live, self._claims, self._recompute = live, claims, recompute

    def kinds(self, hashes: Hashes) -> np.ndarray:
        """The `Kind` of each row, ``uint8[n]``."""
        kinds, positions = kinds_of(self._live, hashes, recompute=self._recompute)
        self._claims.add(hashes, kinds, positions)
        return kinds
