"""One version of a store, read as a finished run is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from batchnorm_tool.errors import Damaged, InputError, JobError
from batchnorm_tool.formats.arrow_columns import shape_of
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.pipeline.output_schema import OutputSpec
from batchnorm_tool.storage import checked_json
from batchnorm_tool.store.lance import open_dataset
from batchnorm_tool.store.rows import rows
from batchnorm_tool.store.state import StoreDirectory, StorePointer, StoreSchema, open_store


@dataclass(frozen=True)
class Snapshot:
    """One kept version of a store.

    Attributes:
        state: The store's state.
        pointer: What its ``store.json`` said when it was opened.
        version: The store's number of the version.
        layout: What its rows look like.
    """

    state: StoreDirectory
    pointer: StorePointer
    version: int
    layout: StoreSchema

    @property
    def path(self) -> str:
        """Of the dataset."""
        return self.state.path

    @property
    def lance_version(self) -> int:
        """Lance's number of the version."""
        return self.pointer.versions[self.version]

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The record of the night that made the version.

        Raises:
            Damaged: It is missing, or not what its checksum says.
        """
        record = self.state.record(self.version)
        if record is None:
            msg = (
                f"The record of version {self.version} is missing in `{self.state.root}`. Restore "
                "it from a backup of the store."
            )
            raise Damaged(msg)
        return record

    @property
    def layouts(self) -> tuple[OutputSpec, ...]:
        """How its one output is stored."""
        shape = shape_of(self.schema.field(self.layout.vector))
        return (
            OutputSpec(
                name=self._output_name(),
                shape=shape,
                vectors=1,
                width=self.layout.width,
                norm=Norm.parse(self.layout.norm_label),
                axis=-1 if len(shape) == 1 else "all",
                vector_column=self.layout.vector,
                norm_column=self.layout.norm,
            ),
        )

    def _output_name(self) -> str:
        """Return the output's name in the model; a store has one."""
        outputs = (self.pointer.identity or {}).get("space", {}).get("outputs", ())
        return str(outputs[0]) if len(outputs) == 1 else self.layout.vector

    @property
    def dtype(self) -> str:
        """NumPy's name of the type of the vectors' components."""
        return self.layout.dtype

    @property
    def schema(self) -> pa.Schema:
        """Of all rows."""
        return self.layout.schema

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the key columns."""
        return self.layout.keys

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return int(open_dataset(self.path, self.lance_version).count_rows())

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows, in batches of at most ``batch_rows``.

        Raises:
            Damaged: A file is missing or cannot be read.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        for batch in rows(self.path, self.lance_version, columns, batch_rows):
            yield batch.cast(schema)


@checked_json.explain_unreadable_records
def open_snapshot(path: str, version: int | None = None) -> Snapshot:
    """Open a version of a store.

    Args:
        path: Of the dataset.
        version: The store's number of a kept version; default: the live one.

    Raises:
        InputError: There is no store, or nothing was published yet.
        JobError: The store does not keep that version.
        Damaged: The store's state is not what its checksum says, or the dataset cannot be opened.
    """
    state, pointer = open_store(path)
    if pointer.live is None or pointer.layout is None:
        raise InputError(_nothing_live(path, pointer))
    if version is not None and version not in pointer.versions:
        kept = ", ".join(str(each) for each in sorted(pointer.versions))
        msg = (
            f"`version` must be one that the store `{path}` keeps: {kept} ({pointer.live} is "
            f"live). Received: {version}."
        )
        raise JobError(msg)
    chosen = pointer.live if version is None else version
    return Snapshot(state, pointer, chosen, _layout_of(path, pointer.layout, pointer, chosen))


def _layout_of(path: str, live: StoreSchema, pointer: StorePointer, version: int) -> StoreSchema:
    """Return the layout of a version's rows: before a change of space it may be another width."""
    if version == pointer.live:
        return live
    schema = open_dataset(path, pointer.versions[version]).schema
    known = (*live.keys, live.vector, live.norm)
    if any(name not in schema.names for name in known):
        msg = (
            f"Version {version} of the store `{path}` has other columns than the live one. "
            f"Expected: {', '.join(known)}. Received: {', '.join(schema.names)}. Open it with Lance"
            f" (`lance.dataset(..., version={pointer.versions[version]})`)."
        )
        raise InputError(msg)
    passthrough = tuple(name for name in live.passthrough if name in schema.names)
    return replace(live, schema=schema, passthrough=passthrough)


def _nothing_live(path: str, pointer: StorePointer) -> str:
    if pointer.waiting is None:
        return f"Nothing was published in the store `{path}` yet. Run `batchnorm-tool refresh`."
    return (
        f"Nothing was published in the store `{path}` yet: version {pointer.waiting} waits. See "
        f"`batchnorm-tool history {path}`, then `batchnorm-tool accept {path} {pointer.waiting}`."
    )
