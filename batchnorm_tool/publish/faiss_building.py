"""Choosing, training and filling an index, and how hard it is searched."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.errors import OutputError
from batchnorm_tool.publish.faiss_recall import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from batchnorm_tool.publish.contract import Publication
    from batchnorm_tool.publish.faiss_ids import IdScheme
    from batchnorm_tool.publish.faiss_recall import Neighbours

# Below this, looking at every row takes about a millisecond a query.
EXACT_BELOW = 50_000
WANTED_RECALL = 0.95
# FAISS warns below 39 rows for each list, or for each of the 256 codes that PQ mostly has.
_TRAINING_ROWS_A_LIST = 40
_TRAINING_ROWS = 1 << 14
_LONGEST_LIST_OF_CANDIDATES = 1024


@dataclass(frozen=True)
class Rows:
    """A stretch of a version as an index takes it.

    Attributes:
        batch: The rows.
        first_row: The number of the first one in the version.
        vectors: ``float32[n, d]``.
        ids: ``int64[n]``.
    """

    batch: pa.RecordBatch
    first_row: int
    vectors: np.ndarray
    ids: np.ndarray


def rows_of(publication: Publication, scheme: IdScheme) -> Iterator[Rows]:
    """All rows of a version, batch by batch."""
    first_row, vector = 0, publication.layout.vector
    for batch in publication.all_batches():
        if batch.num_rows:
            flat = batch.column(vector).flatten().to_numpy(zero_copy_only=False)
            vectors = np.ascontiguousarray(flat.reshape(batch.num_rows, -1), np.float32)
            yield Rows(batch, first_row, vectors, scheme.ids(batch, first_row))
            first_row += batch.num_rows


def factory_text(wanted: str, rows: int) -> str:
    """FAISS's text for the index.

    Args:
        wanted: ``"auto"``, a number of lists, or a text for ``faiss.index_factory``.
        rows: Rows of the version.

    Example:
        >>> factory_text("auto", 1000), factory_text("auto", 1_000_000), factory_text("HNSW32", 9)
        ('Flat', 'IVF4000,Flat', 'HNSW32')
    """
    if not rows or (wanted == "auto" and rows < EXACT_BELOW):
        return "Flat"
    if wanted == "auto":
        return f"IVF{round(4 * rows**0.5)},Flat"
    return f"IVF{wanted},Flat" if wanted.isdigit() else wanted


def trained(publication: Publication, scheme: IdScheme, text: str) -> Any:
    """An index with ids, without rows, trained on a sample if it needs that."""
    import faiss

    inner = faiss.index_factory(publication.layout.width, text, faiss.METRIC_INNER_PRODUCT)
    if not inner.is_trained:
        lists = faiss.try_extract_index_ivf(inner)
        wanted = lists.nlist * _TRAINING_ROWS_A_LIST if lists else 0
        sample = Sample(publication.rows, max(wanted, _TRAINING_ROWS))
        for rows in rows_of(publication, scheme):
            sample.take(rows.first_row, rows.vectors, rows.ids)
        inner.train(sample.queries().vectors)
    return faiss.IndexIDMap2(inner)


def tune(index: Any, neighbours: Neighbours) -> tuple[float | None, dict[str, int]]:
    """Search with the least effort that reaches `WANTED_RECALL`, or with the most there is.

    Returns:
        The recall, and the parameter that was set.
    """
    import faiss

    effort: dict[str, int] = {}
    recall = None
    for name, value in _efforts(index):
        effort = {name: value} if name else {}
        if name:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        recall = neighbours.recall(index)
        if recall is None or recall >= WANTED_RECALL:
            break
    return recall, effort


def _efforts(index: Any) -> list[tuple[str, int]]:
    """What can be tried, the least first."""
    import faiss

    inner = faiss.downcast_index(index.index)
    lists = faiss.try_extract_index_ivf(inner)
    if lists is not None:
        return [("nprobe", value) for value in _doubling(1, lists.nlist)]
    if hasattr(inner, "hnsw"):
        return [("efSearch", value) for value in _doubling(16, _LONGEST_LIST_OF_CANDIDATES)]
    return [("", 0)]


def _doubling(first: int, last: int) -> list[int]:
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return [*values, last]


@contextlib.contextmanager
def mapped_errors(text: str) -> Iterator[None]:
    """Map what FAISS says to an error of ours.

    Args:
        text: The text for its factory.
    """
    try:
        yield
    except RuntimeError as error:
        raise OutputError(refusal(text, error)) from error


def refusal(text: str, error: RuntimeError) -> str:
    """Say what FAISS says of an index, without where in its source."""
    said = str(error).partition(" at /")[0].strip()
    reason = str(error).rpartition("Error: ")[2]
    return f"FAISS refused an index `{text}`: {reason or said}. Choose another `index`."
