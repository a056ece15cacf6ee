"""Whether two results hold the same: vectors and norms by id, or neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOLERANCE = 1e-5
_BATCH_ROWS = 1 << 14


class Disagreement(Exception):  # noqa: N818  (it is a finding)
    """Two results differ; the message says where and by how much."""


def check_agreement(ours: Path, other: Path, rows: int, *, norms_too: bool = True) -> None:
    """Compare two results by id, whatever the order of their rows.

    Args:
        ours: A directory of Parquet files with ``id`` (0 to ``rows - 1``), ``vector``, ``norm``.
        other: Another one.
        rows: How many rows each must have.
        norms_too: Whether norms must agree, and not vectors alone.

    Raises:
        Disagreement: A row is missing, there twice or unknown, or a component or a norm differs by
            more than 1e-5 (norms: relative to their size).
    """
    vectors, norms = _by_id(ours, rows)
    seen = np.zeros(rows, bool)
    for ids, others, lengths in _batches(other):
        _mark(seen, ids, other)
        off = np.abs(others - vectors[ids]).max(axis=1)
        off_norm = np.abs(lengths - norms[ids]) / np.maximum(np.abs(norms[ids]), 1.0)
        worst = np.maximum(off, off_norm) if norms_too else off
        if not (worst <= TOLERANCE).all():  # NaN is no agreement
            at = int(np.argmax(~(worst <= TOLERANCE)))
            msg = f"{other}: id {ids[at]} differs from {ours} by {worst[at]:.3g}."
            raise Disagreement(msg)
    _check_all_seen(seen, other)


def check_same_neighbours(ours: Path, other: Path, least: float = 0.999) -> None:
    """Compare two searches: how many neighbours of a query both found, whatever their order.

    In float32 two rows that are nearly as near come out in either order, so that the last neighbour
    of a query may differ.

    Args:
        ours: A directory with ``LABEL.npy`` for each norm, ``int64[q, k]``.
        other: Another one.
        least: The mean share of neighbours in common that is asked for, under every norm.

    Raises:
        Disagreement: Norms or shapes differ, or fewer neighbours are in common.
    """
    found, others = _neighbours(ours), _neighbours(other)
    if not found or found.keys() != others.keys():
        msg = f"{other}: holds {sorted(others)}. Expected the norms of {ours}: {sorted(found)}."
        raise Disagreement(msg)
    for label, rows in found.items():
        if rows.shape != others[label].shape:
            msg = f"{other}: {label} has shape {others[label].shape}. Expected: {rows.shape}."
            raise Disagreement(msg)
        pairs = zip(rows, others[label], strict=True)
        share = np.mean([len(np.intersect1d(one, two)) for one, two in pairs]) / rows.shape[1]
        if not share >= least:
            msg = f"{other}: shares {share:.5f} of the neighbours under {label} with {ours}."
            raise Disagreement(msg)


def _neighbours(path: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.load(file) for file in sorted(path.glob("*.npy"))}


def _by_id(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    vectors: np.ndarray | None = None
    norms, seen = np.empty(rows), np.zeros(rows, bool)
    for ids, found, lengths in _batches(path):
        _mark(seen, ids, path)
        if vectors is None:
            vectors = np.empty((rows, found.shape[1]), found.dtype)
        vectors[ids], norms[ids] = found, lengths
    _check_all_seen(seen, path)
    return np.empty((rows, 0)) if vectors is None else vectors, norms


def _mark(seen: np.ndarray, ids: np.ndarray, path: Path) -> None:
    if ids.min() < 0 or ids.max() >= len(seen):
        msg = f"{path}: has an id beyond {len(seen) - 1}, which nobody gave it."
        raise Disagreement(msg)
    if seen[ids].any() or len(np.unique(ids)) < len(ids):
        msg = f"{path}: has an id twice."
        raise Disagreement(msg)
    seen[ids] = True


def _check_all_seen(seen: np.ndarray, path: Path) -> None:
    if not seen.all():
        msg = f"{path}: {int((~seen).sum())} ids are missing; the first is {int(np.argmin(seen))}."
        raise Disagreement(msg)


def _batches(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, vectors and norms, batch by batch, of all files."""
    files = sorted(path.glob("*.parquet"))
    if not files:
        msg = f"{path}: holds no Parquet files."
        raise Disagreement(msg)
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, columns=["id", "vector", "norm"]):
                lists = batch.column("vector")
                yield (
                    batch.column("id").to_numpy(),
                    _rows_of(lists, file),
                    batch.column("norm").to_numpy().astype(np.float64),
                )


def _rows_of(lists: pa.Array, file: Path) -> np.ndarray:
    flat: np.ndarray = lists.flatten().to_numpy()
    if lists.null_count or len(flat) % max(1, len(lists)):
        msg = f"{file}: has vectors that are null or of different lengths."
        raise Disagreement(msg)
    return flat.reshape(len(lists), -1)
