"""Which rows of a base are the queries, and how what was found is stored, for every contender."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def query_rows(base_rows: int, queries: int) -> np.ndarray:
    """Rows at equal distances, ``int64[queries]``: as good as drawn, since the rows are random.

    Example:
        >>> query_rows(11, 3)
        array([0, 3, 6])
    """
    return np.arange(queries) * (base_rows // queries)


def save_neighbours(found: Mapping[str, np.ndarray], output: str) -> None:
    """Write ``LABEL.npy`` for each norm, ``int64[q, k]``, into a new directory."""
    directory = Path(output)
    directory.mkdir(parents=True)
    for label, rows in found.items():
        np.save(directory / f"{label}.npy", rows)
