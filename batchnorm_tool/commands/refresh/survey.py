"""What the gate is shown of a candidate: an audit of each row that is written, and samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
from threadpoolctl import ThreadpoolController

from batchnorm_tool.commands.refresh.plan import RefreshPlan
from batchnorm_tool.commands.verify.vectors import length_tolerance
from batchnorm_tool.formats.arrow_columns import rows_of
from batchnorm_tool.gate.output_limits import RowAudit, Vectors
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.pipeline.output_schema import decoded_rows
from batchnorm_tool.storage.files import fault_in
from batchnorm_tool.store.rows import take_by_key
from batchnorm_tool.store.state import (
    NORM,
    STATUS,
    StoreDirectory,
    StorePointer,
    StoreSchema,
    is_quarantined,
    sample_path,
)

SAMPLE_ROWS = 10_000
"""Rows whose vectors are compared: a mean is then within 1 % of a standard deviation."""
SAMPLE_NORMS = 100_000
"""Norms that are compared: shares are then within 0.2 %."""


PLACE = ".place"
"""Where a row of a sample lies in the index of its version."""
_STEP, _PASSED = b"step", b"passed"


@cache
def blas() -> ThreadpoolController:
    """Return what limits the threads of matrix products; to find their library takes 20 ms."""
    return ThreadpoolController()


def sample_schema(layout: StoreSchema, step: int, passed: int = 0) -> pa.Schema:
    """Return the columns of a sample that is kept, in which one of ``step`` rows is.

    ``passed`` is how many rows were written since one was due.
    """
    names = (*layout.keys, layout.vector, layout.norm)
    fields = [pa.field(PLACE, pa.int64()), *map(layout.schema.field, names)]
    return pa.schema(fields, {_STEP: str(step), _PASSED: str(passed)})


class Sampler:
    """Takes rows at equal distances of those that pass; more of their norms than of themselves.

    Not at random: the same refresh is judged alike when it is run again. ``rows`` is how many there
    are about. Where a ``kept`` sample is half to twice as dense as one of them should be, rows are
    taken like it: a store that grows by 1 % each night would be sampled anew each time otherwise.
    One with twice its rows is not used: each night once added the first row that it wrote. Of rows
    ``beside`` those that it was taken of, the first is taken where the next one was due.
    """

    def __init__(self, rows: int, kept: pa.Table | None = None, *, beside: bool = False) -> None:
        self.step, self._norm_step = (max(1, rows // most) for most in (SAMPLE_ROWS, SAMPLE_NORMS))
        before = 0 if kept is None else int(kept.schema.metadata[_STEP])
        is_like = self.step <= 2 * before <= 4 * self.step
        is_like = is_like and kept is not None and len(kept) * before <= 2 * (rows + before)
        self.kept = kept if is_like else None
        self.step = self.step if self.kept is None else before
        metadata = self.kept.schema.metadata if self.kept and beside else {}
        self.seen, self._passed = 0, int(metadata.get(_PASSED, 0))
        self._rows: list[pa.Table] = []
        self._norms, self._places = [np.zeros(0)], [np.zeros(0, np.int64)]

    def add(self, table: pa.Table, norms: np.ndarray, places: np.ndarray) -> None:
        """Take of the next rows, of which these are the columns, the norms and the places."""
        steps = ((self.step, self.passed), (self._norm_step, self.seen))
        few, more = (np.arange(-passed % step, len(norms), step) for step, passed in steps)
        self.seen += len(norms)
        taken = table.take(pa.array(few))
        self._rows.append(taken.append_column(PLACE, pa.array(places[few])))
        self._norms.append(norms[more])
        self._places.append(places[more])

    @property
    def passed(self) -> int:
        """Rows since one was due."""
        return (self._passed + self.seen) % self.step

    def rows(self, schema: pa.Schema) -> pa.Table:
        """Return the rows that were taken."""
        taken = (table.select(schema.names).cast(schema) for table in self._rows)
        return pa.concat_tables([schema.empty_table(), *taken])

    def norms(self, stays: np.ndarray | None = None) -> np.ndarray:
        """Return the norms that were taken; only of places that stay, ``bool[n]``, if given."""
        norms = np.concatenate(self._norms)
        return norms if stays is None else norms[stays[np.concatenate(self._places)]]


@dataclass
class LiveRows:
    """The rows of the live version as they pass in the order of its index, to be sampled.

    Attributes:
        path: Of the dataset.
        lance_version: Lance's number of the version.
        layout: What its rows look like.
        sampler: Takes of them; vectors are read from the dataset, unless it has a kept sample.
        stays: ``bool[n]``: which rows of the index stay as they are.
    """

    path: str
    lance_version: int | None
    layout: StoreSchema
    sampler: Sampler
    stays: np.ndarray
    _seen: int = 0

    def add(self, table: pa.Table) -> None:
        """Take in the next rows of the index: keys, `STATUS` and `NORM` at least."""
        there = ~is_quarantined(table[STATUS])
        places = self._seen + np.flatnonzero(there)
        self._seen += len(there)
        columns = table.select([*self.layout.keys, NORM])
        rows = columns if there.all() else columns.filter(pa.array(there))
        self.sampler.add(rows, table[NORM].to_numpy()[there], places)

    @property
    def every(self) -> Vectors:
        """A sample of the version."""
        return vectors_of(self._rows, self.sampler.norms(), self.layout)

    def staying(self, schema: pa.Schema) -> pa.Table:
        """Return those rows of the sample that stay as they are, placed as in the next index."""
        names = sample_schema(self.layout, 0).names
        places = self._rows[PLACE].to_numpy()
        stays = self.stays[places]
        rows = self._rows.select(names).rename_columns(schema.names).filter(pa.array(stays))
        # Rows move up by as many as leave before them.
        left = np.searchsorted(np.flatnonzero(~self.stays), places[stays])
        return rows.set_column(0, schema.field(0), pa.array(places[stays] - left)).cast(schema)

    @cached_property
    def _rows(self) -> pa.Table:
        if self.sampler.kept is not None:
            return self.sampler.kept
        schema, keys = sample_schema(self.layout, self.sampler.step), list(self.layout.keys)
        names = [self.layout.vector, self.layout.norm]
        rows = self.sampler.rows(pa.schema([schema.field(name) for name in (PLACE, *keys)]))
        empty = pa.schema([schema.field(name) for name in names]).empty_table()
        taken = take_by_key(self.path, self.lance_version, rows, keys, names)
        for field, column in zip(empty.schema, pa.concat_tables([empty, *taken]), strict=True):
            rows = rows.append_column(field, column)
        return rows


@dataclass
class Survey:
    """The rows that a refresh writes, each looked at once.

    Attributes:
        layout: What they look like.
        audit: What must hold of each row.
        first: The place of the first of them in the next index.
        new: Takes of the rows whose vectors are new.
        written: Takes of all that are written, as densely as of the version's other rows.
        live: Takes of the live version; ``None`` where vectors cannot be compared.
    """

    layout: StoreSchema
    audit: RowAudit
    first: int
    new: Sampler
    written: Sampler
    live: LiveRows | None

    def add(self, table: pa.Table, *, new: bool) -> None:
        """Look at rows as they are stored; ``new`` tells whether their vectors are."""
        vectors, norms = vectors_and_norms(table, self.layout)
        self.audit.add(vectors, norms, table.select(list(self.layout.keys)))
        places = self.first + self.written.seen + np.arange(len(norms))
        for sampler in (self.written, self.new) if new else (self.written,):
            sampler.add(table, norms, places)

    @cached_property
    def sample(self) -> pa.Table:
        """A sample of the version that is made, to be kept with it."""
        schema = sample_schema(self.layout, self.written.step, self.written.passed)
        staying = [self.live.staying(schema)] if self.live else []
        return pa.concat_tables([*staying, self.written.rows(schema)])

    @property
    def whole(self) -> Vectors:
        """A sample of the version that is made."""
        staying = [self.live.sampler.norms(self.live.stays)] if self.live else []
        norms = np.concatenate([*staying, self.written.norms()])
        return vectors_of(self.sample, norms, self.layout)

    @property
    def changed(self) -> Vectors:
        """A sample of the rows whose vectors are new."""
        rows = self.new.rows(sample_schema(self.layout, self.new.step))
        return vectors_of(rows, self.new.norms(), self.layout)


def begin_survey(
    state: StoreDirectory,
    pointer: StorePointer,
    plan: RefreshPlan,
    stays: np.ndarray,
    rows: RefreshRows,
) -> Survey:
    """Return an empty survey for what a refresh writes.

    ``stays``, ``bool[n]``, tells which rows of the live index stay as they are.
    """
    layout, before = plan.layout, pointer.layout
    whole, kept = rows.live + rows.new - rows.vanished, _kept_sample(state, pointer, plan)
    live = None
    if before and not plan.new_space:
        sampler = Sampler(whole, kept)
        live = LiveRows(state.path, pointer.lance_version, before, sampler, stays)
    way, dtype = layout.normalization, np.dtype(layout.dtype)
    tolerance = 0 if way.norm.name == "none" else length_tolerance(way, layout.width, dtype)
    new = Sampler(rows.new + rows.changed + rows.recomputed)
    written, first = Sampler(whole, kept, beside=True), int(stays.sum())
    return Survey(layout, RowAudit(way, tolerance), first, new, written, live)


def _kept_sample(
    state: StoreDirectory, pointer: StorePointer, plan: RefreshPlan
) -> pa.Table | None:
    """Return the sample that was kept with the live version; ``None`` if it cannot be used."""
    record = state.record(pointer.live)
    if record is None or plan.new_space:
        return None
    path = sample_path(record.version)
    known = [file for file in record.files if file.path == path]
    # What is kept there has no checksum of its own.
    if not known or fault_in(state.storage.root, known[0], "record")[0]:
        return None
    tables = [*state.read_rows(path)]
    return pa.concat_tables(tables) if tables else None


def vectors_of(rows: pa.Table, norms: np.ndarray, layout: StoreSchema) -> Vectors:
    """Return sampled rows, and the norms of more, as the gate takes them."""
    return Vectors(*vectors_and_norms(rows, layout), norms, rows.select(list(layout.keys)))


def vectors_and_norms(table: pa.Table, layout: StoreSchema) -> tuple[np.ndarray, np.ndarray]:
    """Return decoded vectors ``[n, d]`` and norms ``float64[n]`` of a table."""
    stored, norms = (table[name].combine_chunks() for name in (layout.vector, layout.norm))
    return decoded_rows(stored, layout.spec), rows_of(norms)
