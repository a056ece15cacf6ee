"""What the gate is shown of a candidate: an audit of each row that is written, and samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from batchnorm_tool.commands.verify.vectors import length_tolerance
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.gate.output_limits import RowAudit, Vectors
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.store.rows import take_by_key
from batchnorm_tool.store.state import NORM, StoreSchema

SAMPLE_ROWS = 10_000
"""Rows whose vectors are compared: a mean is then within 1 % of a standard deviation."""
SAMPLE_NORMS = 100_000
"""Norms that are compared: shares are then within 0.2 %."""


@dataclass
class VectorSample:
    """Rows at equal distances, of ``rows`` in all; more of their norms than of their vectors.

    Not at random: the same refresh is judged alike when it is run again.
    """

    layout: StoreSchema
    rows: int
    _first: int = 0
    _tables: list[pa.Table] = field(default_factory=list)
    _norms: list[np.ndarray] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The distance of two rows whose vectors are compared."""
        return max(1, self.rows // SAMPLE_ROWS)

    @property
    def norm_step(self) -> int:
        """The distance of two rows whose norms are compared."""
        return max(1, self.rows // SAMPLE_NORMS)

    def skip(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the next ``count`` rows are taken: their vectors, their norms."""
        places = [
            np.arange(-self._first % step, count, step) for step in (self.step, self.norm_step)
        ]
        self._first += count
        return places[0], places[1]

    def add(self, table: pa.Table) -> None:
        """Take of the next rows, which have the columns of the store."""
        few, more = self.skip(table.num_rows)
        self._tables.append(table.select(self._columns).take(pa.array(few)))
        self._norms.append(table[self.layout.norm].to_numpy()[more])

    @property
    def _columns(self) -> list[str]:
        return [*self.layout.keys, self.layout.vector, self.layout.norm]

    @property
    def vectors(self) -> Vectors:
        """What was taken."""
        schema = self.layout.schema
        empty = pa.schema([schema.field(name) for name in self._columns]).empty_table()
        taken = pa.concat_tables([empty, *self._tables])
        norms = np.concatenate([np.zeros(0), *self._norms])
        return Vectors(
            *vectors_and_norms(taken, self.layout), norms, taken.select(list(self.layout.keys))
        )


@dataclass
class Survey:
    """The rows that a refresh writes, each looked at once.

    Attributes:
        changed: A sample of the rows whose vectors are new.
        whole: A sample of all that are written, as dense as that of the version's other rows.
        live: A sample of the live version; ``None`` where vectors cannot be compared.
    """

    audit: RowAudit
    changed: VectorSample
    whole: VectorSample
    live: LiveSample | None = None

    @classmethod
    def of(cls, layout: StoreSchema, changed_rows: int, whole_rows: int) -> Survey:
        """Return one of ``changed_rows`` in a version of ``whole_rows``, as far as is known."""
        norm = Norm.parse(layout.norm_label)
        tolerance = 0.0
        if norm.name != "none":
            tolerance = length_tolerance(norm, layout.width, np.dtype(layout.dtype))
        changed, whole = (VectorSample(layout, rows) for rows in (changed_rows, whole_rows))
        return cls(RowAudit(norm, tolerance), changed, whole)

    def add(self, table: pa.Table, *, new: bool) -> None:
        """Look at rows as they are stored; ``new`` tells whether their vectors are."""
        layout = self.whole.layout
        vectors, norms = vectors_and_norms(table, layout)
        self.audit.add(vectors, norms, table.select(list(layout.keys)))
        self.whole.add(table)
        if new:
            self.changed.add(table)


def vectors_and_norms(table: pa.Table, layout: StoreSchema) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors ``[n, d]`` and norms ``float64[n]`` of a table."""
    columns = (table[name].combine_chunks() for name in (layout.vector, layout.norm))
    vectors, norms = (rows_of(column) for column in columns)
    return vectors, norms


@dataclass(frozen=True)
class LiveSample:
    """A sample of the live version, and of those of its rows that stay as they are."""

    every: Vectors
    staying: Vectors

    @classmethod
    def take(
        cls,
        path: str,
        lance_version: int | None,
        layout: StoreSchema,
        rows: int,
        indexed: Iterable[tuple[pa.Table, np.ndarray]],
    ) -> LiveSample:
        """Take one as dense as that of the whole of ``rows``.

        Args:
            path: Of the dataset.
            lance_version: Lance's number of the live version.
            layout: What its rows look like.
            rows: Rows of the version that is judged.
            indexed: Its rows in the dataset: keys and `NORM`, and ``bool[n]``, which of them stay.
        """
        keys, sample = list(layout.keys), VectorSample(layout, rows)
        wanted, stays = [layout.key_schema.empty_table()], [np.zeros(0, bool)]
        norms, norms_stay = [np.zeros(0)], [np.zeros(0, bool)]
        for table, staying in indexed:
            few, more = sample.skip(table.num_rows)
            wanted.append(table.select(keys).take(pa.array(few)))
            stays.append(staying[few])
            norms.append(table[NORM].to_numpy()[more])
            norms_stay.append(staying[more])
        found = pa.concat_tables(wanted)
        columns = [layout.vector, layout.norm]
        schema = pa.schema([layout.schema.field(name) for name in columns])
        taken = take_by_key(path, lance_version, found, keys, columns)
        vectors = vectors_and_norms(pa.concat_tables([schema.empty_table(), *taken]), layout)
        every = Vectors(*vectors, np.concatenate(norms), found)
        return cls(every, _chosen(every, np.concatenate(stays), np.concatenate(norms_stay)))


def _chosen(sample: Vectors, few: np.ndarray, every: np.ndarray) -> Vectors:
    """Return some rows, ``bool[n]``, and norms, ``bool[m]``, of a sample."""
    keys = sample.keys.filter(pa.array(few))
    return Vectors(sample.unit[few], sample.sample_norms[few], sample.norms[every], keys)


def joined(one: Vectors, other: Vectors) -> Vectors:
    """Return two samples of other rows as one."""
    return Vectors(
        np.concatenate([one.unit, other.unit]),
        np.concatenate([one.sample_norms, other.sample_norms]),
        np.concatenate([one.norms, other.norms]),
        pa.concat_tables([one.keys, other.keys]),
    )
