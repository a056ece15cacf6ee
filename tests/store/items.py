"""Small embedding stores for tests, and a plain model of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnorm_tool.inputs.row_hash import key_ids
from batchnorm_tool.pipeline.plan import Identity, ResolvedOptions
from batchnorm_tool.store import rows, transaction
from batchnorm_tool.store.checksums import record_files
from batchnorm_tool.store.index import INDEX_FIELDS, IndexWriter
from batchnorm_tool.store.state import (
    BOOKKEEPING,
    Basis,
    StoreDirectory,
    StoredRecord,
    StorePointer,
    StoreSchema,
    index_path,
)
from tests.refresh_records import record_of

WIDTH = 4
OURS = [field.with_name(field.name[1:]) for field in BOOKKEEPING]
Row = dict[str, Any]


def layout_of(keys: Sequence[pa.Field], *, width: int = WIDTH) -> StoreSchema:
    vector = pa.field("vector", pa.list_(pa.float32(), width))
    norm = pa.field("norm", pa.float64())
    label = pa.field("label", pa.string())
    return StoreSchema(
        keys=tuple(field.name for field in keys),
        passthrough=("label",),
        vector="vector",
        norm="norm",
        norm_label="l2",
        schema=pa.schema([*keys, vector, norm, *OURS, label]),
    )


ITEMS = layout_of([pa.field("id", pa.int64())])
SHOPS = layout_of([pa.field("shop", pa.string()), pa.field("day", pa.date32())])


def row(key: Mapping[str, Any], version: int, seed: int, layout: StoreSchema = ITEMS) -> Row:
    """A row whose values follow from its key, version and seed."""
    generator = np.random.default_rng([seed, version, len(repr(key))])
    raw = generator.normal(size=layout.width).astype(np.float32)
    norm = float(np.linalg.norm(raw.astype(np.float64)))
    return {
        **key,
        "vector": (raw / norm).astype(np.float32).tolist(),
        "norm": norm,
        "feature_hash": generator.bytes(16),
        "passthrough_hash": generator.bytes(8),
        "status": "good",
        "version": version,
        "label": None if seed % 5 == 0 else f"it's {seed}",
    }


def item(number: int, version: int = 1, seed: int | None = None) -> Row:
    return row({"id": number}, version, number if seed is None else seed)


def batches(
    found: Sequence[Row], layout: StoreSchema = ITEMS, size: int = 7
) -> list[pa.RecordBatch]:
    return pa.Table.from_pylist(list(found), layout.schema).to_batches(max_chunksize=size)


def keys_of(found: Sequence[Mapping[str, Any]], layout: StoreSchema = ITEMS) -> pa.Table:
    plain = [{name: each[name] for name in layout.keys} for each in found]
    return pa.Table.from_pylist(plain, layout.key_schema)


def write(path: Path | str, found: Sequence[Row], layout: StoreSchema = ITEMS) -> int:
    return transaction.commit(
        transaction.prepare_whole(str(path), layout.schema, batches(found, layout))
    )


def merge(
    path: Path | str,
    found: Sequence[Row],
    deleted: Sequence[Mapping[str, Any]] = (),
    layout: StoreSchema = ITEMS,
) -> int:
    gone = pa.concat_tables([keys_of(found, layout), keys_of(deleted, layout)])
    replaced = transaction.addresses_to_delete(str(path), key_ids(gone, layout.keys), layout.keys)
    change = transaction.prepare_merge(
        str(path), layout.schema, layout.keys, batches(found, layout), replaced
    )
    return transaction.commit(change)


def stored(path: Path | str, version: int | None = None, layout: StoreSchema = ITEMS) -> list[Row]:
    """All rows of a version, by key."""
    found: Iterator[pa.RecordBatch] = rows.rows(str(path), version, layout.schema.names)
    return by_key((each for batch in found for each in batch.to_pylist()), layout)


def by_key(found: Any, layout: StoreSchema = ITEMS) -> list[Row]:
    return sorted(found, key=lambda each: tuple(str(each[name]) for name in layout.keys))


SPACE = {"model": "c0ffee", "outputs": ["embedding"], "norms": {}, "features": {}}
IDENTITY = Identity(SPACE, {"versions": {"keras": "3"}}, policies={}, result={})


def publish(
    path: Path | str,
    found: Sequence[Row],
    deleted: Sequence[Mapping[str, Any]] = (),
    layout: StoreSchema = ITEMS,
) -> int:
    """Play a whole night: merge, records, tags, checksums, switch; returns the new version."""
    state = StoreDirectory(str(path))
    facts = state.pointer()
    version = facts.next_version
    lance_version = (
        merge(path, found, deleted, layout) if facts.live else write(path, found, layout)
    )
    return switch(state, facts, version, lance_version, layout)


def indexed(table: pa.Table) -> pa.Table:
    """Rows of a dataset with the names that an index has."""
    ours = [field.name[1:] for field in INDEX_FIELDS]
    return table.rename_columns([f".{n}" if n in ours else n for n in table.column_names])


def switch(
    state: StoreDirectory,
    facts: StorePointer,
    version: int,
    lance_version: int,
    layout: StoreSchema,
) -> int:
    now = stored(state.path, lance_version, layout)
    with IndexWriter(state.storage, index_path(version), layout.key_schema) as index:
        index.add(indexed(pa.Table.from_pylist(now, layout.schema)))
        index.commit()
    if facts.live is not None:
        state.storage.remove(index_path(facts.live))
    kept = record(version, len(now), lance_version, layout=layout)
    state.put_record(replace(kept, files=state.files_of(version)))
    versions = {**facts.versions, version: lance_version}
    transaction.tag(state.path, version, lance_version)
    transaction.move_live_tag(state.path, lance_version)
    record_files(state.path, state.storage, versions.values())
    state.put_pointer(
        replace(
            facts,
            next_version=version + 1,
            live=version,
            versions=versions,
            layout=layout,
            identity=IDENTITY,
            hash_version="xxh3-128/1",
        )
    )
    return version


def record(
    version: int, live: int, lance_version: int, space: str = "5ace", layout: StoreSchema = ITEMS
) -> StoredRecord:
    resolved = ResolvedOptions(
        batch_size=1,
        chunk_rows=1,
        part_rows=1,
        inputs=(),
        outputs=(),
        features={},
        carried=layout.key_schema,
        device="cpu",
        threads=1,
        model_content="c0ffee",
        transform=None,
    )
    told = record_of(
        version=version,
        finished=f"2026-01-{version:02d}T03:00:00+00:00",
        lance_version=lance_version,
        rows={"live": live},
        space=space,
        model={"path": "encoder.keras", "content": "c0ffee"},
        norms={"count": live, "q50": 2.0},
        gate={"action": "hold", "passed": True, "findings": []},
    )
    basis = Basis(layout, IDENTITY, resolved, options_fingerprint="a job's")
    return StoredRecord(**vars(told), basis=basis, publish=(), keep=None)
