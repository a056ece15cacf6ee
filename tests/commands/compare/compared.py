"""Predictions to compare norms over, and their neighbours by brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.compare.compare import Comparison
from tests.commands.workshop import lists

EVERYONE = {"sample": None}
ROWS, WIDTH = 200, 6
NORMS = ("none", "l1", "l2", "max")
ORDERS = {"l1": 1, "l2": 2, "max": np.inf, "lp:3": 3}


def draw(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Vectors of all lengths, no two of which are equally near to a third."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(0, 0.4, (rows, 1))
    return (rng.normal(size=(rows, WIDTH)) * lengths).astype(np.float32)


def classes(x: np.ndarray) -> np.ndarray:
    """A class for each row, which its direction tells."""
    return np.argmax(x[:, :3], axis=1)


def store(path: Path, raw: np.ndarray | pa.Array, **columns: Any) -> Path:
    column = lists(raw) if isinstance(raw, np.ndarray) else raw
    pq.write_table(pa.table({**columns, "raw": column}), path, row_group_size=77)
    return path


def labelled_rows(directory: Path) -> Path:
    """A file of vectors with ids and classes."""
    x = draw()
    return store(directory / "base.parquet", x, id=np.arange(ROWS), label=classes(x))


def with_nulls(x: np.ndarray, rows: Sequence[int]) -> pa.Array:
    """Vectors of which some are null."""
    mask = pa.array(np.isin(np.arange(len(x)), rows))
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1], mask=mask)


def divided(x: np.ndarray, norm: str) -> np.ndarray:
    """What is stored in float64; rows of zeros as they are."""
    x64 = x.astype(np.float64)
    if norm == "none":
        return x64
    lengths = np.linalg.norm(x64, ORDERS[norm], axis=1, keepdims=True)
    return x64 / np.where(lengths == 0, 1, lengths)


def nearest(
    queries: np.ndarray, base: np.ndarray, norm: str, *, k: int, metric: str = "dot"
) -> np.ndarray:
    """Nearest rows by brute force; a query's own row, where it is there, is left out."""
    one, other = divided(queries, norm), divided(base, norm)
    found = []
    for query, asked in zip(one, queries, strict=True):
        distances = np.linalg.norm(other - query, axis=1)
        scores = -distances if metric == "euclidean" else other @ query
        scores[~np.isfinite(scores) | (base == asked).all(axis=1)] = -np.inf
        found.append(np.argsort(-scores, kind="stable")[:k])
    return np.array(found)


def shared(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of rows in common."""
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


def precision(found: np.ndarray, asked: np.ndarray, base: np.ndarray) -> float:
    """Mean share of the rows found that have the class of the query."""
    return float(np.mean(base[found] == asked[:, np.newaxis]))


def figures(comparison: Comparison) -> dict[str, Any]:
    """All that must not depend on how long it took."""
    document = comparison.to_dict()
    del document["seconds"]
    return document


def values(quality: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The value of a metric for each norm."""
    return {norm: by_metric[metric]["value"] for norm, by_metric in quality.items()}


def assert_close(found: Any, expected: Any, rel: float) -> None:
    """The same keys, words and whole numbers; other numbers to rounding."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_close(found[name], value, rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rel)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12)
    else:
        assert found == expected
