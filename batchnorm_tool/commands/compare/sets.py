"""Two sets of vectors side by side: one in memory, the other one streamed past it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import python_values
from batchnorm_tool.comparison.drift import Gaussian, pair_cosines
from batchnorm_tool.comparison.metrics import intervals, overlap
from batchnorm_tool.comparison.neighbours import ArrayBase, Base, Queries, nearest
from batchnorm_tool.comparison.norm_survey import NormSurvey, SetFacts, measured
from batchnorm_tool.comparison.scores import Metric, Score
from batchnorm_tool.display import plural
from batchnorm_tool.errors import InputError
from batchnorm_tool.inputs.reading import describe_key
from batchnorm_tool.inputs.row_hash import key_ids, plain_array, type_name
from batchnorm_tool.inputs.row_ids import IdLookup, repeats
from batchnorm_tool.norms.norm import L2, MAX, Anything, Float64s, row_blocks, widen
from batchnorm_tool.pipeline.output_schema import ROW_COLUMN
from batchnorm_tool.readers.source import PredictionBatch, VectorSource
from batchnorm_tool.storage.files import save_report

Int64s = np.ndarray
METRIC = Metric.COSINE
"""Neighbours of the raw vectors by direction, which do not depend on the norm."""
# What a search in memory looks at first; more of them make it no faster.
_PROBED_ROWS = 4096


@dataclass(frozen=True)
class Figures:
    """The document of a comparison or a difference, as the caller gets it."""

    _document: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return str(self._document["verdict"]["words"])

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data, fit for JSON."""
        return dict(self._document)

    def _save(self, directory: str | os.PathLike[str], name: str, page: str) -> None:
        text = json.dumps(self._document, indent=2, allow_nan=False, ensure_ascii=False)
        save_report(directory, {f"{name}.json": f"{text}\n", f"{name}.html": page})


def set_facts(source: VectorSource, survey: NormSurvey) -> SetFacts:
    """Return what is known of a set once its norms are measured."""
    return {
        **source.facts(),
        "zero": survey.zero,
        "nonfinite": survey.nonfinite,
        "missing": survey.missing,
    }


class MeasuredSet:
    """What is known of a set once all of its batches came by.

    Its ``norms``, ``float64[rows]``, are the L2 norms, not finite where a vector is missing or not
    finite; its ``gaussian`` fits the finite vectors.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.gaussian = Gaussian.of(np.zeros((0, width)))
        self.norms = np.full(rows, np.nan)
        self._missing = np.zeros(rows, bool)
        self._peaks = np.full(rows, np.nan)

    def add(self, batch: PredictionBatch) -> None:
        """Take in the next batch."""
        place = slice(batch.first_row, batch.first_row + batch.rows)
        lengths = measured(batch.vectors, [L2])
        self.norms[place], self._peaks[place] = lengths[L2.label], lengths[MAX.label]
        self._missing[place] = batch.missing
        finite = np.isfinite(self.norms[place])
        vectors = batch.vectors if finite.all() else batch.vectors[finite]
        self.gaussian += Gaussian.of(widen(vectors))

    @property
    def finite(self) -> np.ndarray:
        """Which rows have a finite vector, ``bool[rows]``."""
        return np.isfinite(self.norms)

    @property
    def survey(self) -> NormSurvey:
        """Counts of rows, and the statistics of their L2 norms."""
        return NormSurvey.of({L2.label: self.norms, MAX.label: self._peaks}, self._missing)


def load(predictions: VectorSource) -> tuple[Anything, MeasuredSet]:
    """Load all vectors in their own dtype ``[n, d]``, and measure them."""
    vectors = np.empty((predictions.rows, predictions.width), predictions.dtype)
    found = MeasuredSet(*vectors.shape)
    for batch in predictions.batches():
        vectors[batch.first_row : batch.first_row + batch.rows] = batch.vectors
        found.add(batch)
    return vectors, found


@dataclass(frozen=True)
class Sample:
    """Rows of a streamed set, ascending, whose vectors are picked up as they come by."""

    rows: Int64s
    vectors: Anything

    @classmethod
    def of(cls, source: VectorSource, rows: Int64s) -> Sample:
        """Return a sample without vectors yet."""
        return cls(rows, np.empty((len(rows), source.width), source.dtype))

    def add(self, batch: PredictionBatch) -> None:
        """Pick up what is in a batch."""
        start, stop = np.searchsorted(self.rows, [batch.first_row, batch.first_row + batch.rows])
        self.vectors[start:stop] = batch.vectors[self.rows[start:stop] - batch.first_row]


@dataclass
class Pairs:
    """Rows of a streamed set, each held against its partner in memory, -1 for none.

    The set in memory is ``vectors``, ``[m, d]``, with its L2 ``norms``. Pairs are ``identical`` bit
    for bit, once both are float64; ``cosines`` are NaN where there is no partner, or no direction
    on one side.
    """

    partners: Int64s
    vectors: Anything
    norms: Float64s
    identical: int = 0
    cosines: Float64s = field(init=False)

    def __post_init__(self) -> None:
        self.cosines = np.full(len(self.partners), np.nan)

    def add(self, batch: PredictionBatch, norms: Float64s) -> None:
        """Compare the rows of the next batch, whose L2 norms are ``float64[n]``."""
        partners = self.partners[batch.first_row : batch.first_row + batch.rows]
        usable = (partners >= 0) & np.isfinite(norms)
        usable[usable] = np.isfinite(self.norms[partners[usable]])
        rows = np.flatnonzero(usable)
        for block in row_blocks(len(rows), batch.vectors.shape[1]):
            some = rows[block]
            one, other = widen(batch.vectors[some]), widen(self.vectors[partners[some]])
            equal = (one.view(np.int64) == other.view(np.int64)).all(axis=1)
            cosines = pair_cosines(one, other, norms[some], self.norms[partners[some]])
            cosines[equal & (norms[some] > 0)] = 1.0  # exactly, whatever rounding says
            self.cosines[batch.first_row + some] = cosines
            self.identical += int(np.count_nonzero(equal))


def stream(predictions: VectorSource, pairs: Pairs, *samples: Sample) -> MeasuredSet:
    """Let all batches of a set come by, and hold each row against its partner."""
    found = MeasuredSet(predictions.rows, predictions.width)
    for batch in predictions.batches():
        found.add(batch)
        for sample in samples:
            sample.add(batch)
        pairs.add(batch, found.norms[batch.first_row : batch.first_row + batch.rows])
    return found


@dataclass(frozen=True)
class NeighbourSearch:
    """How many nearest neighbours are looked for, ascending, of a sample drawn with a seed."""

    ks: tuple[int, ...]
    sample: int
    seed: int


def check_depth(search: NeighbourSearch, *sets: VectorSource) -> None:
    """Refuse to look for more neighbours than a set has."""
    most = search.ks[-1]
    for side in sets:
        if search.sample and most >= side.rows:
            raise InputError(
                f"{side.name}: has {plural(side.rows, 'row')}, too few for the {most:,} nearest "
                f"neighbours of each. Expected: `k` of at most {max(0, side.rows - 1):,}. "
                f"Received: {most:,}. Use a smaller `k`, or skip neighbours with `sample` 0."
            )


def draw(join: Join, pairs: Pairs, search: NeighbourSearch) -> Sample:
    """Draw common rows whose neighbours are looked for."""
    common = join.common
    candidates = common[np.isfinite(pairs.norms[join.partners[common]])]
    size = min(search.sample, len(candidates))
    chosen = np.random.default_rng(search.seed).choice(candidates, size, replace=False)
    return Sample(np.sort(chosen), np.empty((size, pairs.vectors.shape[1])))


@dataclass(frozen=True)
class StreamedBase:
    """A set that is read again whenever its rows are asked for, as a base for `neighbours`.

    The ``probe`` are rows of it, spread evenly.
    """

    predictions: VectorSource
    probe: Sample

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.predictions.rows

    def blocks(self) -> Iterator[Anything]:
        """Return the rows in order."""
        return (batch.vectors for batch in self.predictions.batches())

    def sample(self, rows: int) -> Anything:  # noqa: ARG002  (a hint)
        """Return some rows, spread evenly."""
        return self.probe.vectors


def evenly_spread(predictions: VectorSource) -> Sample:
    """Return rows of a set at equal distances, about 4,096 of them."""
    step = -(-predictions.rows // _PROBED_ROWS)
    return Sample.of(predictions, np.arange(0, predictions.rows, max(1, step)))


def measure_overlap(
    base: Base, sample: Sample, pairs: Pairs, search: NeighbourSearch
) -> tuple[dict[str, dict[str, float]] | None, int]:
    """Measure how many nearest neighbours a row has in common within A and within B.

    Mean and interval are by the number of neighbours, None without queries, which are counted.
    """
    is_finite = np.isfinite(sample.vectors).all(axis=1)
    rows, queries, most = sample.rows[is_finite], sample.vectors[is_finite], search.ks[-1]
    if not len(rows):
        return None, 0
    partners, other = pairs.partners[rows], ArrayBase(pairs.vectors)
    by_direction = {"": Score.of(METRIC, L2)}
    of_a = nearest(Queries.of(queries, rows), base, by_direction, most)[""]
    of_b = nearest(Queries.of(pairs.vectors[partners], partners), other, by_direction, most)[""]
    # Rows of A as those of B; one that B lacks gets a number that no row of B has.
    as_b = pairs.partners[of_a]
    as_b = np.where(of_a < 0, -1, np.where(as_b < 0, len(pairs.vectors) + of_a, as_b))
    shares = overlap(as_b, of_b, search.ks)
    return intervals([str(k) for k in search.ks], shares, search.seed), len(rows)


@dataclass(frozen=True)
class Join:
    """Which row of one set is which of another.

    Keys are a column for each part. ``partners`` are, for each row of the first set, ``int64[n]``,
    the row of the second that has its key; -1 for none.
    """

    a_keys: pa.Table
    b_keys: pa.Table
    partners: Int64s

    @property
    def common(self) -> Int64s:
        """Rows of the first set that have a partner, ascending."""
        return np.flatnonzero(self.partners >= 0)

    @property
    def removed(self) -> Int64s:
        """Rows of the first set without a partner, ascending."""
        return np.flatnonzero(self.partners < 0)

    @property
    def added(self) -> Int64s:
        """Rows of the second set without a partner, ascending."""
        is_added = np.ones(self.b_keys.num_rows, bool)
        is_added[self.partners[self.common]] = False
        return np.flatnonzero(is_added)


def join_keys(a: VectorSource, b: VectorSource) -> Join:
    """Find the rows of two sets that have the same key."""
    # Where one of them has no key, its rows go by their number. Keys of different types are equal
    # if their texts are: 17 and "17".
    a_keys, b_keys = _keys(a), _keys(b)
    if a.keys or b.keys:
        for side, keys in ((a, a_keys), (b, b_keys)):
            _refuse_nulls(side, keys)
        a_ids, b_ids = _ids(a_keys, b_keys)
        for side, keys, ids in ((a, a_keys, a_ids), (b, b_keys, b_ids)):
            if len(pairs := repeats(ids)):
                first, row = pairs[0].tolist()
                raise InputError(
                    f"{side.locate(row)}: the key {describe_key(keys, row)} is a duplicate "
                    f"of {side.locate(first)}. Expected unique keys. Received: "
                    f"{plural(len(pairs), 'duplicate')}. Remove them, or add columns to `key`."
                )
        partners = IdLookup(b_ids).find(a_ids)
    else:
        rows = np.arange(a.rows)
        partners = np.where(rows < b.rows, rows, -1)
    if not (partners >= 0).any():
        raise InputError(
            "The two sets have no key in common. Expected rows of both with the same key. "
            f"Received: {_example(a_keys)} in {a.name} and {_example(b_keys)} in {b.name}. "
            "Choose the columns that identify a row with `key`."
        )
    return Join(a_keys, b_keys, partners)


def _keys(predictions: VectorSource) -> pa.Table:
    if not predictions.keys:
        return pa.table({ROW_COLUMN: np.arange(predictions.rows)})
    return predictions.read_columns(predictions.keys)


def _ids(a: pa.Table, b: pa.Table) -> tuple[np.ndarray, ...]:
    """Return ids ``uint64[n, 2]`` and ``uint64[m, 2]``, equal where the keys are."""
    columns = []
    for one, other in zip(a.columns, b.columns, strict=True):
        arrays = plain_array(one), plain_array(other)
        is_same = type_name(one.type) == type_name(other.type)
        columns.append(arrays if is_same else tuple(map(_texts, arrays)))
    names = a.column_names
    return tuple(key_ids(pa.table(side, names), names) for side in zip(*columns, strict=True))


def _texts(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array(map(str, python_values(column)), pa.large_string())


def _refuse_nulls(side: VectorSource, keys: pa.Table) -> None:
    for name in keys.column_names:
        if keys[name].null_count:
            row = int(keys[name].is_null().index(value=True).as_py())
            raise InputError(
                f"{side.locate(row)}: the key `{name}` is null. Expected a key in every row. "
                f"Received: {plural(keys[name].null_count, 'null key')}. Fill them in, or choose "
                "another column with `key`."
            )


def _example(keys: pa.Table) -> str:
    if not keys.num_rows:
        return "no rows"
    kinds = ", ".join(str(kind) for kind in keys.schema.types)
    return f"{describe_key(keys, 0)} ({kinds})"


def keys_to_json(keys: pa.Table, rows: Int64s | Sequence[int]) -> list[Any]:
    """Return the keys of some rows as JSON has them, lists where a key has several parts."""
    chosen = keys.take(pa.array(rows, pa.int64()))
    columns = [[*map(_to_json_value, python_values(column))] for column in chosen.columns]
    return columns[0] if len(columns) == 1 else [list(key) for key in zip(*columns, strict=True)]


def _to_json_value(value: Any) -> Any:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
