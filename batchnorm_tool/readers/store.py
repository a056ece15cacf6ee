"""One version of a store, read as a finished run is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from batchnorm_tool.comparison.norm_survey import Provenance
from batchnorm_tool.errors import InputError, JobError
from batchnorm_tool.readers.source import VectorSource, provenance_of
from batchnorm_tool.store import state as states
from batchnorm_tool.store.lance import open_dataset
from batchnorm_tool.store.rows import decoded, rows
from batchnorm_tool.store.state import StoreDirectory, StoredRecord, StorePointer, StoreSchema


@dataclass(frozen=True, kw_only=True)
class Snapshot(VectorSource):
    """One kept version of a store; ``version`` is the number that the store has for it."""

    state: StoreDirectory
    pointer: StorePointer
    version: int
    layout: StoreSchema
    decodes: bool = True

    @property
    def lance_version(self) -> int:
        """Lance's number of the version."""
        return self.pointer.versions[self.version]

    @cached_property
    def record(self) -> StoredRecord:
        """The record of the refresh that made the version."""
        return self.state.existing_record(self.version)

    @property
    def document(self) -> dict[str, Any]:
        """The record of the refresh that made the version, as plain data."""
        return self.record.to_dict()

    @cached_property
    def provenance(self) -> Provenance:
        """What made the vectors."""
        space, model = self.record.space, self.record.model
        return provenance_of(self, self.pointer.identity, space, model.path if model else None)

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return int(open_dataset(self.path, self.lance_version).count_rows())

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows, in batches of at most ``batch_rows``."""
        schema = self.schema_of(columns)
        stored = rows(self.path, self.lance_version, columns, batch_rows)
        for batch in decoded(stored, self.layout) if self.decodes else stored:
            yield batch.cast(schema)


def open_snapshot(path: str, version: int | None = None, *, decode: bool = True) -> Snapshot:
    """Open a kept version of the store whose dataset is at ``path``; default: the live one.

    It is read as floats or, unless it ``decode``s, as it is stored.
    """
    state, pointer = states.open_store(path)
    if pointer.live is None or pointer.layout is None:
        raise InputError(_nothing_live(path, pointer))
    if version is not None and version not in pointer.versions:
        kept = ", ".join(str(each) for each in sorted(pointer.versions))
        raise JobError(
            f"`version` must be one that the store `{path}` keeps: {kept} ({pointer.live} is "
            f"live). Received: {version}."
        )
    chosen = pointer.live if version is None else version
    layout = _layout_of(state, pointer.layout, pointer, chosen)
    names = pointer.identity.outputs if pointer.identity else ()
    output = replace(layout.spec, name=str(names[0])) if len(names) == 1 else layout.spec
    return Snapshot(
        path=state.path,
        name=path,
        kind="store",
        dtype=layout.dtype,
        schema=layout.as_floats.schema if decode else layout.schema,
        keys=layout.keys,
        outputs=(output,),
        state=state,
        pointer=pointer,
        version=chosen,
        layout=layout,
        decodes=decode,
    )


def _layout_of(
    state: StoreDirectory, live: StoreSchema, pointer: StorePointer, version: int
) -> StoreSchema:
    """Return the layout of a version's rows: before a change of space it may be another width."""
    path = state.path
    if version == pointer.live:
        return live
    schema = open_dataset(path, pointer.versions[version]).schema
    known = (*live.keys, live.vector, live.norm)
    if any(name not in schema.names for name in known):
        raise InputError(
            f"Version {version} of the store `{path}` has different columns from the live "
            f"version. Expected: {', '.join(known)}. Received: {', '.join(schema.names)}. Open it "
            f"with Lance (`lance.dataset(..., version={pointer.versions[version]})`)."
        )
    passthrough = tuple(name for name in live.passthrough if name in schema.names)
    record = state.record(version)
    made = record.basis.layout if record else live
    found = replace(live, schema=schema, passthrough=passthrough)
    return replace(found, norm_label=made.norm_label, output=made.output)


def _nothing_live(path: str, pointer: StorePointer) -> str:
    nothing = f"Nothing has been published in the store `{path}` yet"
    if pointer.waiting is None:
        return f"{nothing}. Run `batchnorm-tool refresh`."
    return (
        f"{nothing}: version {pointer.waiting} is waiting. See `batchnorm-tool history {path}`, "
        f"then `batchnorm-tool accept {path} {pointer.waiting}`."
    )
