from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.agreement import Disagreement, check_agreement, check_same_neighbours

ROWS = 40_000
RANDOM = np.random.default_rng(1)
VECTORS = RANDOM.standard_normal((ROWS, 3)).astype(np.float32)
NORMS = RANDOM.uniform(1, 9, ROWS)
IDS = np.arange(ROWS)

Change = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def write(path: Path, ids: np.ndarray, vectors: np.ndarray, norms: np.ndarray) -> Path:
    """Two files, as Spark writes them: lists of variable length, norms in float32."""
    path.mkdir()
    for number, half in enumerate(np.array_split(np.arange(len(ids)), 2)):
        columns = {"id": ids[half], "vector": list(vectors[half]), "norm": np.float32(norms[half])}
        pq.write_table(pa.table(columns), path / f"part-{number}.parquet")
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return write(tmp_path / "ours", IDS, VECTORS, NORMS)


def test_the_order_of_rows_does_not_matter(ours: Path, tmp_path: Path) -> None:
    order = RANDOM.permutation(ROWS)
    other = write(tmp_path / "other", IDS[order], VECTORS[order] + 5e-6, NORMS[order])
    check_agreement(ours, other, ROWS)


def test_vectors_under_other_ids_are_found(ours: Path, tmp_path: Path) -> None:
    swapped = IDS.copy()
    swapped[[7, 30_000]] = swapped[[30_000, 7]]
    other = write(tmp_path / "other", swapped, VECTORS, NORMS)
    with pytest.raises(Disagreement, match=r"id 30000 differs"):
        check_agreement(ours, other, ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, vectors, norms: (ids[:-1], vectors[:-1], norms[:-1]), "1 ids are missing"),
        (lambda ids, vectors, norms: (np.r_[ids[:-1], 5], vectors, norms), "an id twice"),
        (lambda ids, vectors, norms: (np.r_[ids[:-1], ROWS], vectors, norms), "beyond 39999"),
        (lambda ids, vectors, norms: (ids, vectors + 1e-4 * (ids == 9)[:, None], norms), "id 9 "),
        (lambda ids, vectors, norms: (ids, vectors, norms * (1 + 1e-4 * (ids == 8))), "id 8 "),
        (lambda ids, vectors, norms: (ids, vectors, np.where(ids == 3, np.nan, norms)), "id 3 "),
    ],
    ids=["lost", "repeated", "unknown", "wrong vector", "wrong norm", "NaN"],
)
def test_a_wrong_row_is_found(ours: Path, tmp_path: Path, change: Change, message: str) -> None:
    other = write(tmp_path / "other", *change(IDS, VECTORS, NORMS))
    with pytest.raises(Disagreement, match=message):
        check_agreement(ours, other, ROWS)


def test_nothing_agrees_with_no_files(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(Disagreement, match="no Parquet files"):
        check_agreement(ours, tmp_path / "other", ROWS)


def found(path: Path, **rows: np.ndarray) -> Path:
    path.mkdir()
    for label, array in rows.items():
        np.save(path / f"{label}.npy", array)
    return path


NEIGHBOURS = RANDOM.permuted(np.tile(np.arange(1_000), (20, 1)), axis=1)[:, :100]


def with_others(count: int) -> np.ndarray:
    """So many of the 2,000 neighbours replaced by rows that nobody found."""
    rows = NEIGHBOURS.copy()
    rows.reshape(-1)[:count] = 5_000 + np.arange(count)
    return rows


@pytest.mark.parametrize(
    "rows", [NEIGHBOURS[:, ::-1], with_others(2)], ids=["another order", "1 in 1,000"]
)
def test_nearly_the_same_neighbours_agree(tmp_path: Path, rows: np.ndarray) -> None:
    ours = found(tmp_path / "ours", l1=NEIGHBOURS, l2=NEIGHBOURS)
    check_same_neighbours(ours, found(tmp_path / "other", l1=NEIGHBOURS, l2=rows))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"l1": NEIGHBOURS, "l2": with_others(3)}, "shares 0.99850 of the neighbours under l2"),
        ({"l1": NEIGHBOURS, "l2": NEIGHBOURS[:, :99]}, r"l2 has shape \(20, 99\)"),
        ({"l1": NEIGHBOURS}, r"holds \['l1'\]. Expected the norms of .*: \['l1', 'l2'\]"),
    ],
    ids=["other neighbours", "fewer neighbours", "a norm missing"],
)
def test_other_neighbours_are_found(
    tmp_path: Path, others: dict[str, np.ndarray], message: str
) -> None:
    ours = found(tmp_path / "ours", l1=NEIGHBOURS, l2=NEIGHBOURS)
    with pytest.raises(Disagreement, match=message):
        check_same_neighbours(ours, found(tmp_path / "other", **others))


def test_searches_that_left_nothing_do_not_agree(tmp_path: Path) -> None:
    with pytest.raises(Disagreement, match="holds"):
        check_same_neighbours(found(tmp_path / "ours"), found(tmp_path / "other"))
