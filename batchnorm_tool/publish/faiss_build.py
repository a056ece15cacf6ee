"""What a FAISS index is made with: its kind, the ids of its rows, and the recall of its search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered
from batchnorm_tool.errors import OutputError
from batchnorm_tool.formats.arrow_columns import free_name
from batchnorm_tool.store.rows import Publication

# Below this, looking at every row takes about a millisecond a query.
EXACT_BELOW = 50_000
WANTED_RECALL = 0.95
# FAISS warns below 39 rows for each list, or for each of the 256 codes that PQ mostly has.
_TRAINING_ROWS_A_LIST = 40
_TRAINING_ROWS = 1 << 14
_LONGEST_LIST_OF_CANDIDATES = 1024
NEIGHBOURS = 10
# True neighbours that are remembered: more than ten, because any of equal score is right.
_REMEMBERED = 64
# Two ways to add up one float32 product of unit vectors differ by less.
_TOLERANCE = 1e-6
ROW_BITS = 40
ID_COLUMN = "faiss_id"
NO_RESULT = -1  # what FAISS returns where it found nothing


@dataclass(frozen=True)
class IndexBatch:
    """A stretch of a version as an index takes it: ``float32[n, d]`` and ``int64[n]``."""

    batch: pa.RecordBatch
    first_row: int
    vectors: np.ndarray
    ids: np.ndarray


def rows_of(publication: Publication, scheme: IdScheme) -> Iterator[IndexBatch]:
    """Yield all rows of a version, batch by batch."""
    vector = publication.layout.vector
    for first_row, batch in numbered(publication.all_batches()):
        if batch.num_rows:
            flat = batch.column(vector).flatten().to_numpy(zero_copy_only=False)
            vectors = np.ascontiguousarray(flat.reshape(batch.num_rows, -1), np.float32)
            yield IndexBatch(batch, first_row, vectors, scheme.ids(batch, first_row))


def factory_text(wanted: str, rows: int) -> str:
    """Return FAISS's text for the index, such as ``IVF4000,Flat`` for a million rows."""
    if not rows or (wanted == "auto" and rows < EXACT_BELOW):
        return "Flat"
    if wanted == "auto":
        # FAISS's own guidelines: 4 to 16 times the square root of the rows.
        return f"IVF{round(4 * rows**0.5)},Flat"
    return f"IVF{wanted},Flat" if wanted.isdigit() else wanted


def trained(publication: Publication, scheme: IdScheme, text: str) -> Any:
    """Return an index with ids, without rows, trained on a sample if it needs that."""
    import faiss

    inner = faiss.index_factory(publication.layout.width, text, faiss.METRIC_INNER_PRODUCT)
    if not inner.is_trained:
        lists = faiss.try_extract_index_ivf(inner)
        wanted = lists.nlist * _TRAINING_ROWS_A_LIST if lists else 0
        sample = RecallSample(publication.rows, max(wanted, _TRAINING_ROWS))
        for rows in rows_of(publication, scheme):
            sample.take(rows.first_row, rows.vectors, rows.ids)
        inner.train(sample.queries().vectors)
    # Unlike `IndexIDMap` it gives a vector back for its id, which readers may ask for.
    return faiss.IndexIDMap2(inner)


def tune(index: Any, neighbours: Neighbours) -> tuple[float | None, dict[str, int]]:
    """Search with the least effort that reaches `WANTED_RECALL`, or with the most; return both."""
    import faiss

    recall, effort = None, dict[str, int]()
    for effort in _efforts(index):
        for name, value in effort.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        recall = neighbours.recall(index)
        if recall is None or recall >= WANTED_RECALL:
            break
    return recall, effort


def _efforts(index: Any) -> Iterator[dict[str, int]]:
    """Yield the parameters that can be tried, the least effort first."""
    import faiss

    inner = faiss.downcast_index(index.index)
    lists = faiss.try_extract_index_ivf(inner)
    if lists is not None:
        name, value, most = "nprobe", 1, lists.nlist
    elif hasattr(inner, "hnsw"):
        name, value, most = "efSearch", 16, _LONGEST_LIST_OF_CANDIDATES
    else:
        yield {}
        return
    while value < most:
        yield {name: value}
        value *= 2
    yield {name: most}


@contextlib.contextmanager
def mapped_errors(text: str) -> Iterator[None]:
    """Map what FAISS says to an error of ours."""
    try:
        yield
    except RuntimeError as error:
        raise OutputError(refusal(text, error)) from error


def refusal(text: str, error: RuntimeError) -> str:
    """Say what FAISS says of an index, without where in its source."""
    said = str(error).partition(" at /")[0].strip()
    reason = str(error).rpartition("Error: ")[2]
    return f"FAISS refused an index `{text}`: {reason or said}. Choose another `index`."


@dataclass
class RecallQueries:
    """Rows that are searched for, ``float32[q, d]``; their own ids do not count as found."""

    vectors: np.ndarray
    ids: np.ndarray


@dataclass
class RecallSample:
    """A sample of evenly spaced rows, ``size`` at most, of the ``rows`` that pass by in batches."""

    rows: int
    size: int
    _vectors: list[np.ndarray] = field(default_factory=list)
    _ids: list[np.ndarray] = field(default_factory=list)

    def take(self, first_row: int, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Look at the rows from ``first_row`` on."""
        count = min(self.size, self.rows)
        positions = np.arange(count) * self.rows // max(count, 1) - first_row
        here = positions[(positions >= 0) & (positions < len(vectors))]
        self._vectors.append(vectors[here])
        self._ids.append(ids[here])

    def queries(self) -> RecallQueries:
        """Return what was taken."""
        if not self._ids:
            return RecallQueries(np.empty((0, 0), np.float32), np.empty(0, np.int64))
        return RecallQueries(np.concatenate(self._vectors), np.concatenate(self._ids))


class Neighbours:
    """The true neighbours of queries, found batch by batch."""

    def __init__(self, queries: RecallQueries) -> None:
        self.queries, count = queries, len(queries.ids)
        # Inner products, largest first, and whose they are: [q, k].
        self.scores = np.empty((count, 0), np.float32)
        self.ids = np.empty((count, 0), np.int64)

    def add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Take rows into account."""
        import faiss

        found = min(_REMEMBERED, len(ids))
        scores, rows = faiss.knn(
            self.queries.vectors, vectors, found, metric=faiss.METRIC_INNER_PRODUCT
        )
        own = ids[rows] == self.queries.ids[:, None]
        self._keep(np.where(own, -np.inf, scores), ids[rows])

    def _keep(self, scores: np.ndarray, ids: np.ndarray) -> None:
        scores, ids = np.hstack([self.scores, scores]), np.hstack([self.ids, ids])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :_REMEMBERED]
        self.scores = np.take_along_axis(scores, best, 1)
        self.ids = np.take_along_axis(ids, best, 1)

    def recall(self, index: Any) -> float | None:
        """Return the share of true neighbours among the ten found; ``None`` where there is none."""
        if not len(self.queries.ids):
            return None
        # One more than is wanted: the query itself is among them.
        _, found = index.search(self.queries.vectors, NEIGHBOURS + 1)
        shares = [self._share(query, ids) for query, ids in enumerate(found)]
        known = [share for share in shares if share is not None]
        return float(np.mean(known)) if known else None

    def _share(self, query: int, found: np.ndarray) -> float | None:
        scores = self.scores[query]
        wanted = min(NEIGHBOURS, int(np.isfinite(scores).sum()))
        if not wanted:
            return None
        least = scores[wanted - 1]
        # Neighbours of equal score are equally right, whichever ten an index returns.
        right = self.ids[query][scores >= least - _TOLERANCE * max(1.0, abs(least))]
        others = found[found != self.queries.ids[query]][:NEIGHBOURS]
        return min(wanted, len(set(others) & set(right))) / wanted


@dataclass(frozen=True)
class IdScheme:
    """How the rows of a version are numbered, by their key columns or where they stand."""

    version: int
    key_schema: pa.Schema

    @property
    def keys_are_ids(self) -> bool:
        """Whether there is one key column, of integers that fit into an ``int64``."""
        kinds = self.key_schema.types
        return len(kinds) == 1 and pa.types.is_integer(kinds[0]) and kinds[0] != pa.uint64()

    def ids(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        """Return the ids of rows, ``int64[n]``."""
        if not self.keys_are_ids:
            start = (self.version << ROW_BITS) + first_row
            return np.arange(start, start + batch.num_rows, dtype=np.int64)
        name = self.key_schema.names[0]
        ids: np.ndarray = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
        if (ids == NO_RESULT).any():
            raise OutputError(self.no_result)
        return ids

    @property
    def no_result(self) -> str:
        """Why a key may not be -1."""
        return (
            f"the key `{self.key_schema.names[0]}` is {NO_RESULT} in a row, which FAISS returns "
            "where it finds nothing. Expected other integers. Give that row another key, or use "
            "text keys."
        )

    @property
    def file_schema(self) -> pa.Schema:
        """The columns of the file that explains ids."""
        name = free_name(ID_COLUMN, self.key_schema.names)
        return pa.schema([pa.field(name, pa.int64()), *self.key_schema])

    def explained(self, batch: pa.RecordBatch, ids: np.ndarray) -> pa.Table:
        """Return ids with their keys."""
        keys = [batch.column(name) for name in self.key_schema.names]
        return pa.table([pa.array(ids), *keys], schema=self.file_schema)
