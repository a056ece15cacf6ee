"""The rows that a night writes: those with new vectors, and those that keep what they have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.difference import BAD, TOUCHED
from batchnorm_tool.formats import FORMATS
from batchnorm_tool.jobs.night_scoring import REUSED, SCORED
from batchnorm_tool.jobs.stored_run import open_run
from batchnorm_tool.row_hash import key_ids
from batchnorm_tool.store.index import LiveIndex
from batchnorm_tool.store.rows import (
    Addresses,
    addresses_of_keys,
    at_addresses,
    check_found,
)
from batchnorm_tool.store.rows_file import BATCH_ROWS, read_directory
from batchnorm_tool.store.state import (
    BOOKKEEPING,
    FEATURE_HASH,
    GOOD,
    NORM,
    PASSTHROUGH_HASH,
    QUARANTINED,
    STALE,
    STATUS,
    VERSION,
    index_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchnorm_tool.jobs.night_plan import NightPlan
    from batchnorm_tool.store.state import StoreFacts, StoreState


@dataclass(frozen=True)
class NightRows:
    """The staged rows of one night.

    Attributes:
        state: The store.
        facts: What stands in it.
        plan: What the night is asked to do.
        version: The number that the night will have.
        reason: The column that says why a row is bad.
    """

    state: StoreState
    facts: StoreFacts
    plan: NightPlan
    version: int
    reason: str

    @property
    def schema(self) -> pa.Schema:
        """Of every row of the dataset."""
        return self.plan.layout.schema

    @cached_property
    def live(self) -> LiveIndex | None:
        """The live version by key; ``None`` before the first one."""
        if self.facts.live is None:
            return None
        return LiveIndex.load(self.state.storage, index_path(self.facts.live))

    def predicted(self) -> Iterator[pa.Table]:
        """Rows whose vectors are new, from the model or from an older version."""
        for table in (*self._scored(), *read_directory(self.state.storage, REUSED)):
            yield self._complete(table, GOOD)

    def _scored(self) -> Iterator[pa.Table]:
        if not self._was_scored:
            return
        run = open_run(str(self.state.storage.root / SCORED))
        for part in run.parts:
            for batch in run.read_part(part, run.schema.names, BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    @property
    def _was_scored(self) -> bool:
        return bool(self.state.storage.names(SCORED))

    def touched(self) -> Iterator[pa.Table]:
        """Rows with other passed-through values, and the vectors that they have."""
        for table in read_directory(self.state.storage, TOUCHED):
            yield self._with_live_vectors(table, STATUS)

    @cached_property
    def bad(self) -> pa.Table:
        """Rows that tonight's features or prediction make bad, and the column ``reason``."""
        kept = [*self._carried, self.reason]
        found = [table.select(kept) for table in read_directory(self.state.storage, BAD)]
        hashes = (field for field in BOOKKEEPING if field.name in self._carried)
        reason = pa.field(self.reason, pa.string())
        schema = pa.schema([*self.plan.layout.carried, *hashes, reason])
        found += [table.select(kept) for table in self._quarantined_by_run()]
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in found)])

    def _quarantined_by_run(self) -> Iterator[pa.Table]:
        if not self._was_scored:
            return
        run, form = open_run(str(self.state.storage.root / SCORED)), FORMATS["parquet"]
        for part in run.parts:
            file = run.quarantine_of(part)
            if file is None:
                continue
            path = str(run.locate(file))
            inspected = form.inspect(path)
            names = [*self._carried, inspected.schema.names[-2]]  # reason, and then the prediction
            for batch in form.read(path, names, 0, inspected.rows, BATCH_ROWS):
                yield pa.Table.from_batches([batch]).rename_columns([*self._carried, self.reason])

    @property
    def _carried(self) -> list[str]:
        layout = self.plan.layout
        return [*layout.keys, *layout.passthrough, FEATURE_HASH, PASSTHROUGH_HASH]

    @cached_property
    def _is_in_dataset(self) -> np.ndarray:
        """``bool[n]``: which of the bad rows have a row in the live version."""
        # Reading the index takes long, and a sound night has no use for it.
        if not self.bad.num_rows or self.live is None:
            return np.zeros(self.bad.num_rows, bool)
        at = self.live.lookup(key_ids(self.bad, self.plan.layout.keys))
        known = at >= 0
        known[known] = ~self.live.quarantined[at[known]]
        return known

    @cached_property
    def _stays(self) -> np.ndarray:
        """``bool[n]``: which of the bad rows keep their last good vector."""
        keeps = self.plan.store.bad_rows == "keep" and not self.plan.new_space
        return self._is_in_dataset & keeps

    def stale(self) -> Iterator[pa.Table]:
        """Bad rows with the last good vector that they have."""
        rows = self.bad.filter(pa.array(self._stays))
        for start in range(0, rows.num_rows, BATCH_ROWS):
            table = self._with_live_vectors(rows.slice(start, BATCH_ROWS))
            reasons = pa.array(
                [STALE + reason for reason in table[self.reason].to_pylist()], pa.string()
            )
            yield self._ordered(table.append_column(STATUS, reasons))

    @cached_property
    def quarantined(self) -> pa.Table:
        """Bad rows that have no vector: remembered, and not in the dataset; with ``status``."""
        rows = self.bad.filter(pa.array(~self._stays))
        reasons = [QUARANTINED + reason for reason in rows[self.reason].to_pylist()]
        return rows.append_column(STATUS, pa.array(reasons, pa.string()))

    def unfit(self) -> pa.Table:
        """The keys of bad rows that leave the dataset."""
        leaves = self._is_in_dataset & ~self._stays
        return self.bad.select(list(self.plan.layout.keys)).filter(pa.array(leaves))

    def _with_live_vectors(self, table: pa.Table, *more: str) -> pa.Table:
        """Rows that are in the live version, with the vectors and norms that they have there."""
        layout = self.plan.layout
        before = self.facts.layout or layout
        columns = [before.vector, *before.stored(NORM, *more)]
        keys = table.select(list(layout.keys))
        at = self._live_addresses.find(key_ids(keys, layout.keys))
        check_found(self.state.path, keys, at)
        found = at_addresses(self.state.path, self.facts.lance_version, at, columns)
        vectors = pa.concat_tables(found)
        for name, stored in zip((layout.vector, layout.norm, *more), columns, strict=True):
            kind = self.schema.field(*layout.stored(name)).type
            table = table.append_column(name, vectors[stored].cast(kind))
        return self._ordered(table) if more else table

    @cached_property
    def _live_addresses(self) -> Addresses:
        """Where the rows lie in the live version whose vectors stay."""
        keys = list(self.plan.layout.keys)
        tables = [
            *read_directory(self.state.storage, TOUCHED),
            self.bad.filter(pa.array(self._stays)),
        ]
        ids = [key_ids(table.select(keys), keys) for table in tables]
        version = self.facts.lance_version
        return addresses_of_keys(self.state.path, version, np.concatenate(ids), keys)

    def _complete(self, table: pa.Table, status: str) -> pa.Table:
        """A table with keys, hashes, vectors and passed-through columns as rows of the dataset."""
        statuses = pa.array([status] * table.num_rows, pa.string())
        return self._ordered(table.append_column(STATUS, statuses))

    def _ordered(self, table: pa.Table) -> pa.Table:
        versions = pa.array(np.full(table.num_rows, self.version))
        table = table.append_column(VERSION, versions)
        named = table.rename_columns(self.plan.layout.stored(*table.column_names))
        return named.select(self.schema.names).cast(self.schema)
