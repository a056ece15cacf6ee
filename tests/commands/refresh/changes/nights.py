"""Small nights: an input on disk, the live version that an earlier input made, what was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.changes.source import RefreshSource
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.formats import format_named
from batchnorm_tool.inputs.row_hash import feature_hashes, passthrough_hashes
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.columns import stored_type
from batchnorm_tool.store.index import IndexWriter, fixed_binary
from batchnorm_tool.store.state import FEATURE_HASH, NORM, PASSTHROUGH_HASH, STATUS

INDEX = "index/000001.parquet"
TWO_FLOATS = (Field("x", (2,), "float32"),)


def items(
    keys: Iterable[object],
    features: Iterable[object] | None = None,
    shops: Iterable[object] | None = None,
) -> pa.Table:
    """A table of items, whose features and shop follow from their key if not given."""
    keys = list(keys)
    return pa.table(
        {
            "id": pa.array(keys),
            "shop": pa.array(list(shops) if shops else [f"shop {k}" for k in keys], pa.string()),
            "x": pa.array(
                list(features) if features else [[hash(k) % 97, 0.5] for k in keys],
                pa.list_(pa.float32()),
            ),
        }
    )


@dataclass
class Nights:
    """A store's state and its inputs, in a directory."""

    root: Path
    inputs: tuple[Field, ...] = TWO_FLOATS
    features: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"x": ("x",)})
    keys: tuple[str, ...] = ("id",)
    passthrough: tuple[str, ...] = ("shop",)
    spec: Mapping[str, object] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        return Storage(self.root / "state")

    def publish(self, table: pa.Table, statuses: Mapping[object, str] | None = None) -> None:
        """Make a live version of ``table``; statuses by the first key."""
        spec = Input(path="x", **self.spec)
        arrays, faults = FeatureReader(self.features, self.inputs, spec).read(table)
        labels = [(statuses or {}).get(key, "good") for key in table[self.keys[0]].to_pylist()]
        kept = [name for name in self.passthrough if name not in self.keys]
        hashes = {
            FEATURE_HASH: fixed_binary(feature_hashes(arrays, faults)),
            PASSTHROUGH_HASH: fixed_binary(passthrough_hashes(table, kept)),
            STATUS: pa.array(labels, pa.string()),
            NORM: pa.array(np.ones(table.num_rows)),
        }
        keys = table.select(list(self.keys))
        with IndexWriter(self.storage, INDEX, keys.schema) as writer:
            writer.add(pa.table({**dict(zip(self.keys, keys.columns, strict=True)), **hashes}))
            writer.commit()

    def tonight(
        self, *tables: pa.Table, options: Mapping[str, object] | None = None
    ) -> RefreshSource:
        """An input of a file for each table."""
        directory = self.root / "input"
        directory.mkdir(exist_ok=True)
        for old in directory.iterdir():
            old.unlink()
        for number, table in enumerate(tables):
            with contextlib.suppress(KeyError):
                table = table.drop_columns(["row"])  # noqa: PLW2901
            pq.write_table(table, directory / f"{number:02d}.parquet", **(options or {}))
        return self.of(str(directory))

    def of(self, path: str) -> RefreshSource:
        spec = Input(path=path, **self.spec)
        columns = tuple(name for names in self.features.values() for name in names)
        reader = FeatureReader(self.features, self.inputs, spec)
        table, names = open_table(spec), dict.fromkeys([*self.keys, *self.passthrough])
        fields = [pa.field(name, stored_type(table.schema.field(name).type)) for name in names]
        return RefreshSource(table, reader, columns, self.inputs, self.keys, pa.schema(fields))

    def find(self, tonight: RefreshSource, **options: object) -> ChangeSet:
        """Find the difference to the live version, if there is one."""
        index = INDEX if self.storage.size(INDEX) is not None else None
        found = ChangeDetector(tonight, index, self.storage, **options).run()  # type: ignore[arg-type]
        found.save(self.storage)
        return found

    def staged(self, name: str) -> pa.Table | None:
        """All rows of ``night/NAME`` in order, or ``None`` where there are none."""
        files = sorted((self.root / "state/night" / name).glob("*.arrow"))
        tables = [pa.ipc.open_file(str(file)).read_all() for file in files]
        return pa.concat_tables(tables) if tables else None

    def keys_in(self, name: str) -> list[object]:
        table = self.staged(name)
        return [] if table is None else table[self.keys[0]].to_pylist()

    def fates(self) -> list[int]:
        found = np.load(self.root / "state/night/fates.npy")
        assert found.dtype == np.uint8
        return found.tolist()

    def night(self) -> dict[str, bytes]:
        """Every file under ``night/`` with its content."""
        night = self.root / "state/night"
        files = (path for path in night.rglob("*") if path.is_file())
        return {str(path.relative_to(night)): path.read_bytes() for path in files}


def some(counts: object) -> dict[str, int]:
    """What the input has made of its rows: the counts that are not zero."""
    return {name: number for name, number in vars(counts).items() if number and name != "live"}


def read_back(nights: Nights, found: ChangeSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a model would see of the staged rows."""
    directory = str(nights.root / "state/night/changed")
    table = open_table(Input(path=directory))
    columns = {name: (column,) for name, column in found.features.items()}
    reader = FeatureReader(columns, nights.inputs, Input(path=directory))
    batches = [
        batch
        for file in table.files
        for batch in format_named("arrow").read(file.path, table.schema.names, 0, file.rows, 10**6)
    ]
    return reader.read(pa.Table.from_batches(batches, table.schema))
