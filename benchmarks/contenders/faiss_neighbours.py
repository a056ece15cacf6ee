"""faiss: an exact search of an ``IndexFlatIP`` for each norm, over a normalized copy of the base.

Settings: ``input`` (NPY), ``output``, ``queries``, ``k``, ``norms``, ``cores``. The work is to add
each copy to its index and to search it for ``k + 1`` rows, of which a query itself is then left
out. Not part of it: loading the base, and normalizing it.
"""

from __future__ import annotations

import faiss
import numpy as np

from benchmarks.contenders.neighbour_files import query_rows, save_neighbours
from benchmarks.contenders.stopwatch import Stopwatch, settings

_ORDERS = {"l1": 1, "l2": 2, "max": np.inf}


def main() -> None:
    """Search under each norm."""
    wanted = settings()
    faiss.omp_set_num_threads(wanted["cores"])
    base = np.load(wanted["input"])
    rows = query_rows(len(base), wanted["queries"])
    queries = base[rows]  # the length of a query changes no order
    stored = {name: normalized(base, name) for name in wanted["norms"]}
    with Stopwatch() as watch:
        found = {name: search(each, queries, wanted["k"] + 1) for name, each in stored.items()}
    kept = {name: without_own(each, rows) for name, each in found.items()}
    save_neighbours(kept, wanted["output"])
    watch.say()


def normalized(base: np.ndarray, name: str) -> np.ndarray:
    """A copy of the base, each row divided by its norm."""
    if name == "none":
        return base.copy()
    norms = np.linalg.norm(base, _ORDERS[name], axis=1, keepdims=True)
    return base / norms


def search(stored: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` rows with the largest products with each query, ``int64[q, k]``."""
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)
    rows: np.ndarray = index.search(queries, k)[1]
    return rows


def without_own(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The same without the query's own row, or without the last one where that is not there.

    Example:
        >>> without_own(np.array([[7, 4, 5], [1, 2, 3]]), np.array([4, 9]))
        array([[7, 5], [1, 2]])
    """
    drop = found == own[:, np.newaxis]
    drop[~drop.any(axis=1), -1] = True
    return found[~drop].reshape(len(found), -1)


if __name__ == "__main__":
    main()
