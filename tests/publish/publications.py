"""A store in memory: versions made of Arrow tables, as publish targets get them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.gate.record import RefreshRecord
from batchnorm_tool.store.state import BOOKKEEPING, StoreSchema
from tests.refresh_records import record_of

BATCH_ROWS = 7
PASSTHROUGH = (
    pa.field("title", pa.string()),
    pa.field("price", pa.float64()),
    pa.field("tags", pa.list_(pa.string())),
    pa.field("day", pa.date32()),
)


@dataclass(frozen=True)
class Section:
    """An item of `publish` in a job."""

    to: str
    path: str | None = None
    keep: int | None = 3
    table: str | None = None
    dsn_env: str | None = "BATCHNORM_TOOL_PGVECTOR_DSN"
    rebuild_above: float | None = 0.5
    index: str | None = None
    sample: int | None = 50
    name: str | None = None

    @property
    def label(self) -> str:
        return self.name or self.to


@dataclass(frozen=True)
class Changes:
    upserted: pa.Table
    deleted: pa.Table

    @property
    def upserts(self) -> int:
        return self.upserted.num_rows

    @property
    def deletes(self) -> int:
        return self.deleted.num_rows

    def upsert_batches(self) -> Iterator[pa.RecordBatch]:
        return batches(self.upserted)

    def delete_batches(self) -> Iterator[pa.RecordBatch]:
        return batches(self.deleted)


@dataclass(frozen=True)
class Publication:
    store: Store
    version: int

    @property
    def table(self) -> pa.Table:
        return self.store.versions[self.version]

    @property
    def rows(self) -> int:
        return self.table.num_rows

    @property
    def layout(self) -> StoreSchema:
        return self.store.layout_of(self.table)

    @property
    def record(self) -> RefreshRecord:
        run_id = f"{self.store.name}-{self.version}"
        return record_of(version=self.version, run_id=run_id, space="abc", finished="now")

    @property
    def contract(self) -> bytes:
        return f'{{"contract of":"{self.store.name} {self.version}"}}'.encode()

    def can_start_from(self, base: int | None) -> bool:
        return base in self.store.versions and self.store.versions[base].schema == self.table.schema

    def changes(self, base: int) -> Changes:
        before = self.store.rows_by_key(self.store.versions[base])
        after = self.store.rows_by_key(self.table)
        changed = [key not in before or before[key] != version for key, version in after.items()]
        gone = [key not in after for key in before]
        base_keys = self.store.versions[base].select(self.store.keys)
        return Changes(
            self.table.filter(pa.array(changed, pa.bool_())),
            base_keys.filter(pa.array(gone, pa.bool_())),
        )

    def all_batches(self) -> Iterator[pa.RecordBatch]:
        return batches(self.table)


@dataclass
class Store:
    """Versions of a store; `put` makes one.

    Attributes:
        keys: Names of the key columns.
        name: Goes into run ids.
        norm: What vectors were divided by.
    """

    keys: list[str]
    name: str = "store"
    norm: str = "l2"
    versions: dict[int, pa.Table] = field(default_factory=dict)

    def put(self, version: int, table: pa.Table) -> Publication:
        self.versions[version] = table
        return Publication(self, version)

    def layout_of(self, table: pa.Table) -> StoreSchema:
        ours = {*self.keys, "vector", "norm", *(column.name[1:] for column in BOOKKEEPING)}
        others = tuple(name for name in table.column_names if name not in ours)
        return StoreSchema(tuple(self.keys), others, "vector", "norm", self.norm, table.schema)

    def rows_by_key(self, table: pa.Table) -> dict[tuple[Any, ...], int]:
        columns = [table[name].to_pylist() for name in self.keys]
        written = table["version"].to_pylist()
        return dict(zip(zip(*columns, strict=True), written, strict=True))


def batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches(max_chunksize=BATCH_ROWS)


def rows(keys: Mapping[str, pa.Array], version: int, width: int = 4, dtype: Any = "f4") -> pa.Table:
    """Rows that were all written in one version; their content follows from it."""
    count = len(next(iter(keys.values())))
    random = np.random.default_rng([count, version, width])
    raw = random.normal(size=(count, width))
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = pa.array((raw / norms).astype(dtype).ravel())
    own = {
        "vector": pa.FixedSizeListArray.from_arrays(unit, width),
        "norm": pa.array(norms[:, 0]),
        "feature_hash": pa.array([bytes(16)] * count, pa.binary(16)),
        "passthrough_hash": pa.array([bytes(8)] * count, pa.binary(8)),
        "status": pa.array(["good" if row % 5 else "stale: nan" for row in range(count)]),
        "version": pa.array([version] * count, pa.int64()),
    }
    return pa.table({**keys, **own, **passed_through(count, version)})


def passed_through(count: int, version: int) -> dict[str, pa.Array]:
    values = range(count)
    titles = [None if row % 4 == 0 else f"ítem '{row}'\t\"{version}\"" for row in values]
    tags = [None if row % 3 == 0 else ["a", None, f"{version}"] for row in values]
    return {
        "title": pa.array(titles, pa.string()),
        "price": pa.array([float("nan") if row % 7 == 1 else row / 3 for row in values]),
        "tags": pa.array(tags, pa.list_(pa.string())),
        "day": pa.array([date(2026, 1, 1 + row % 28) for row in values]),
    }


def integers(*numbers: int) -> dict[str, pa.Array]:
    return {"id": pa.array(numbers, pa.int64())}


def texts(*words: str) -> dict[str, pa.Array]:
    return {"id": pa.array(words, pa.string())}


def pairs(*keys: tuple[str, int]) -> dict[str, pa.Array]:
    shops, numbers = zip(*keys, strict=True)
    return {"shop": pa.array(shops, pa.string()), "number": pa.array(numbers, pa.int32())}


def replaced(table: pa.Table, changed: pa.Table, deleted: list[Any] | None = None) -> pa.Table:
    """A table with rows changed or added, and some removed, by the first column."""
    key = table.column_names[0]
    gone = {*changed[key].to_pylist(), *(deleted or [])}
    kept = [value not in gone for value in table[key].to_pylist()]
    return pa.concat_tables([table.filter(pa.array(kept, pa.bool_())), changed]).combine_chunks()


def shown(table: pa.Table) -> pa.Table:
    """What a target shows of rows, in the order of the keys."""
    table = table.drop_columns(["feature_hash", "passthrough_hash"])
    keys = table.column_names[: table.column_names.index("vector")]
    return table.sort_by([(name, "ascending") for name in keys]).combine_chunks()


def a_month(keys: Any = integers) -> tuple[Store, list[Publication]]:
    """Load, change, delete, rollback, two small nights, another width."""
    names = [f"k{number:03d}" for number in range(60)] if keys is texts else [*range(60)]
    store = Store(list(keys(*names[:1])))
    load = rows(keys(*names[:40]), 1)
    store.put(1, load)
    store.put(2, replaced(load, rows(keys(*names[38:43]), 2)))
    store.put(3, replaced(store.versions[2], rows(keys(names[3]), 3), names[:2]))
    # A rollback restores rows with the version in which they were written.
    store.put(4, store.versions[1])
    store.put(5, replaced(store.versions[4], rows(keys(*names[50:53]), 5), names[30:32]))
    store.put(6, replaced(store.versions[5], rows(keys(names[50], names[0]), 6)))
    store.put(7, rows(keys(*names[:45]), 7, width=6))
    return store, [Publication(store, version) for version in store.versions]
