"""Where each of many 128-bit ids stands in a list: what rows are joined by."""

from __future__ import annotations

import numpy as np


class KeyPlaces:
    """Places of ids in a list of them; takes 24 bytes for each beside the list.

    Args:
        ids: ``uint64[m, 2]``.

    Example:
        >>> places = KeyPlaces(np.array([[7, 1], [5, 0], [7, 0]], np.uint64))
        >>> places.find(np.array([[7, 0], [5, 1], [5, 0]], np.uint64))
        array([ 2, -1,  1])
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._order = np.argsort(ids[:, 0], kind="stable")
        if _has_repetitions(ids[self._order, 0]):  # otherwise the second words decide nothing
            self._order = np.lexsort((ids[:, 1], ids[:, 0]))
        self._first = ids[self._order, 0]
        self._second = ids[self._order, 1]

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Look ids up.

        Args:
            ids: ``uint64[n, 2]``.

        Returns:
            ``int64[n]``, the place of each in the list, the first of several; -1: it is not there.
        """
        found = np.full(len(ids), -1, np.int64)
        place = np.searchsorted(self._first, ids[:, 0])
        asking = np.arange(len(ids))
        while len(asking):  # once, but where two ids begin alike
            at = place[asking]
            inside = at < len(self._first)
            asking, at = asking[inside], at[inside]
            begins = self._first[at] == ids[asking, 0]
            asking, at = asking[begins], at[begins]
            same = self._second[at] == ids[asking, 1]
            found[asking[same]] = self._order[at[same]]
            asking = asking[~same]
            place[asking] += 1
        return found

    def repeated(self) -> np.ndarray:
        """``int64[r]``: places of ids that stand further ahead in the list too, in order."""
        same = self._first[1:] == self._first[:-1]
        same &= self._second[1:] == self._second[:-1]
        return np.sort(self._order[1:][same])


def _has_repetitions(ascending: np.ndarray) -> bool:
    return bool((ascending[1:] == ascending[:-1]).any())
