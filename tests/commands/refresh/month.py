"""A small shop whose items change from night to night, and all that is to hold after each night."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import lance
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from batchnorm_tool import Job, RefreshResult, history, read, refresh, run, show, verify
from batchnorm_tool.errors import Held
from batchnorm_tool.store.state import StoreDirectory
from tests.kill_points import tree
from tests.publish.replaying import Loader
from tests.refresh_records import stored_record

WIDTH = 8
MARK = WIDTH - 1
"""The feature that makes the model of `encoder` answer with infinity where it is 1."""

Row = tuple[Any, ...]
Rows = dict[int, Row]


@dataclass(frozen=True)
class Item:
    """One row of the input."""

    features: bytes
    price: float = 0.0
    tag: str | None = None

    @classmethod
    def of(cls, features: np.ndarray, price: float = 0.0) -> Item:
        return cls(features.astype(np.float32).tobytes(), price)

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.features, np.float32).copy()

    @property
    def seen(self) -> bytes:
        """What a night knows of the features: rows that the model cannot take are all alike."""
        return b"" if np.isnan(self.array).any() else self.features

    def with_feature(self, place: int, value: float) -> Item:
        array = self.array
        array[place] = value
        return replace(self, features=array.tobytes())


World = dict[int, Item]


@dataclass
class Shop:
    """The items as they are, and changes to them that a seed decides."""

    random: np.random.Generator
    items: World = field(default_factory=dict)
    _next: int = 0

    def add(self, count: int) -> None:
        for _ in range(count):
            self.items[self._next] = self._drawn()
            self._next += 1

    def _drawn(self) -> Item:
        features = self.random.normal(size=WIDTH)
        features[MARK] = 0
        return Item.of(features, float(self.random.integers(1, 99)))

    def some(self, most: int) -> list[int]:
        keys = np.array(sorted(self.items))
        return self.random.permutation(keys)[: self.random.integers(0, most + 1)].tolist()

    def change(self) -> None:
        """What happens on any day: items come, change, go, and are spoilt or fixed."""
        for key in self.some(4):
            del self.items[key]
        self.add(int(self.random.integers(0, 6)))
        for key in self.some(12):
            self.items[key] = replace(self._drawn(), price=self.items[key].price)
        for key in self.some(8):
            price = float(self.random.integers(100, 999))
            self.items[key] = replace(self.items[key], price=price, tag=f"{price:.0f}")
        for key in self.some(2):
            self.items[key] = self.items[key].with_feature(3, np.nan)
        for key in self.some(2):
            self.items[key] = self.items[key].with_feature(MARK, 1)

    def table(self, keys: Iterable[int] | None = None) -> pa.Table:
        chosen = sorted(self.items) if keys is None else list(keys)
        items = [self.items[key] for key in chosen]
        flat = np.frombuffer(b"".join(item.features for item in items), np.float32)
        return pa.table(
            {
                "id": pa.array(chosen, pa.int64()),
                "x": pa.FixedSizeListArray.from_arrays(pa.array(flat), WIDTH),
                "price": pa.array([item.price for item in items], pa.float64()),
                "tag": pa.array([item.tag for item in items], pa.string()),
            }
        )


def lay_out(folder: Path, table: pa.Table, random: np.random.Generator) -> None:
    """Write rows as nobody has before: in other files, row groups, order, and compression."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    table = table.take(pa.array(random.permutation(table.num_rows)))
    table = table.select(random.permutation(table.column_names).tolist())
    cuts = sorted(random.integers(0, table.num_rows + 1, size=random.integers(0, 4)).tolist())
    for first, last in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
        pq.write_table(
            table.slice(first, last - first),
            folder / f"{random.integers(10**9)}-{first}.parquet",
            row_group_size=int(random.integers(20, 500)),
            compression=str(random.choice(["none", "snappy", "zstd", "gzip"])),
            use_dictionary=bool(random.integers(2)),
        )


def encoder(path: Path, seed: int) -> str:
    """A model of 8 features and 16 outputs, infinite where feature `MARK` is 1."""
    import keras

    keras.utils.set_random_seed(seed)
    source = keras.Input((WIDTH,), name="x")
    hidden = keras.layers.Dense(16, activation="tanh")(source)
    mark = keras.layers.Dense(16, activation="exponential", use_bias=False)
    product = keras.layers.Multiply()([keras.layers.Dense(16)(hidden), mark(source)])
    weights = np.zeros((WIDTH, 16), np.float32)
    weights[MARK] = 200
    mark.set_weights([weights])
    keras.Model(source, product).save(path)
    return str(path)


@dataclass
class Known:
    """An item as the live version, or its index, knows it."""

    features: bytes
    passed: Mapping[str, Any]
    row: Row | None


@dataclass
class Month:
    """A store with every kind of target, and what it should hold.

    Attributes:
        folder: Where all of it lies.
        models: The files of two models.
        database: Where the target `pgvector` publishes.
        shop: The items as they are.
        model: Which of the models is asked for.
        passthrough: The columns asked for beside the vector.
        sections: What else the job says.
        known: What the live version knows of each item.
        kept: The same of earlier versions.
        states: What the record of each version should say.
    """

    folder: Path
    models: Sequence[str]
    database: psycopg.Connection
    shop: Shop
    model: int = 0
    passthrough: tuple[str, ...] = ("price",)
    sections: dict[str, Any] = field(default_factory=dict)
    known: dict[int, Known] = field(default_factory=dict)
    kept: dict[int, dict[int, Known]] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    loader: Loader = field(default_factory=Loader)

    @property
    def store(self) -> str:
        return str(self.folder / "items.lance")

    @property
    def live(self) -> int | None:
        return StoreDirectory(self.store).pointer().live

    def job(self) -> Job:
        data: dict[str, Any] = {
            "input": {
                "path": "in",
                "key": "id",
                "features": "x",
                "passthrough": list(self.passthrough),
                "invalid": "quarantine",
            },
            "model": {"path": self.models[self.model]},
            "engine": {"workers": 1},
            "store": {"path": "items.lance", "keep": {"count": 5}},
            "gate": {"input": {"changed": 0.5, "mean_shift": 2.0}, "output": {"bad": 0.1}},
            "publish": [
                {"to": "changes", "path": "feed", "keep": 4},
                {"to": "parquet", "path": "snapshots", "keep": 2},
                {"to": "pgvector", "table": "items"},
                {"to": "faiss", "path": "items.faiss"},
            ],
        }
        return Job.from_dict({**data, **self.sections}, self.folder)

    def refresh(self) -> RefreshResult:
        return refresh(self.job())

    def lay_out(self, table: pa.Table | None = None) -> None:
        lay_out(self.folder / "in", self.shop.table() if table is None else table, self.shop.random)

    def held(self) -> Mapping[str, Any]:
        """A night that waits: its report. Store and targets are what they were, to the byte."""
        before, rows = self.places(), self.rows_in_database()
        with pytest.raises(Held) as caught:
            self.refresh()
        night = caught.value.night
        assert night is not None
        assert self.places() == before
        assert self.rows_in_database() == rows
        for version, state in self.states.items():
            self.states[version] = "superseded" if state == "waiting" else state
        self.states[night["version"]] = "waiting"
        return night

    def places(self) -> dict[str, bytes]:
        names = ("items.lance", "feed", "snapshots")
        files = {
            f"{name}/{path}": data
            for name in names
            for path, data in tree(self.folder / name).items()
        }
        return files | {"items.faiss": (self.folder / "items.faiss").read_bytes()}

    def from_scratch(self) -> dict[int, tuple[bytes, float]]:
        """What `run` makes of all items: key -> bits of the vector, norm; bad ones left out."""
        folder = self.folder / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        pq.write_table(self.shop.table(), folder / "all.parquet")
        settings = self.record()["settings"]
        job = Job.from_dict(
            {
                "input": {
                    "path": "all.parquet",
                    "key": "id",
                    "features": "x",
                    "invalid": "quarantine",
                },
                "model": {"path": self.models[self.model], "batch_size": settings["batch_size"]},
                "normalize": {"max_bad_fraction": 1.0},
                "output": {"path": "out"},
                "engine": {"workers": 1},
            },
            folder,
        )
        run(job)
        keys, vectors, norms = read(folder / "out").to_numpy()
        return {
            key: (vector.tobytes(), norm)
            for key, vector, norm in zip(keys.tolist(), vectors, norms.tolist(), strict=True)
        }

    def record(self) -> dict[str, Any]:
        record = stored_record(StoreDirectory(self.store), self.live or 0)
        assert record is not None
        return record

    def publishes(self, version: int, *, anew: bool = False) -> None:
        """A version was published of the items as they are: say what it should hold.

        Args:
            version: Its number.
            anew: Whether every row is written, whatever it was before.
        """
        good, before, self.known = self.from_scratch(), self.known, {}
        for key, item in self.shop.items.items():
            passed = {name: getattr(item, name) for name in self.passthrough}
            last = None if anew else before.get(key)
            row = self._row((version, *passed.values()), item, good.get(key), last)
            if last is not None and (last.features, last.passed) == (item.seen, passed):
                row = last.row
            self.known[key] = Known(item.seen, passed, row)
        self.kept[version] = self.known
        self.states[version] = "published"

    @staticmethod
    def _row(
        others: Row, item: Item, good: tuple[bytes, float] | None, last: Known | None
    ) -> Row | None:
        """What should be written of an item, if anything was to be."""
        if good is not None:
            return (*good, "good", *others)
        if last is None or last.row is None:
            return None
        spoilt = "nonfinite_feature" if np.isnan(item.array).any() else "nonfinite_prediction"
        return (*last.row[:2], f"stale: {spoilt}", *others)

    def returns_to(self, version: int, now: int) -> None:
        """A rollback to a version was published as another."""
        kept = self.kept[version]
        self.known = {key: known for key, known in kept.items() if known.row is not None}
        self.kept[now] = self.known
        self.states = {
            number: "discarded" if state == "waiting" else state
            for number, state in self.states.items()
        }
        self.states[now] = "published"

    def check(self) -> None:
        """The store, all targets and all reports agree with what should be there."""
        expected = {key: known.row for key, known in self.known.items() if known.row is not None}
        columns = ["vector", "norm", "status", "version", *self.passthrough]
        table = lance.dataset(self.store).to_table()
        assert_same(rows_of(table, columns), expected)
        self.loader.catch_up(self.folder / "feed")
        assert self.loader.version == self.live
        assert_same(rows_of(self.loader.table(), columns), expected)
        pointer = (self.folder / "snapshots" / "current").read_text().strip()
        snapshot = ds.dataset(self.folder / "snapshots" / pointer).to_table()
        assert_same(rows_of(snapshot, columns), expected)
        assert_same(self.rows_in_database(), expected)
        assert vectors_in_index(self.folder / "items.faiss") == {
            key: row[0] for key, row in expected.items()
        }
        self._check_reports(len(expected))

    def _check_reports(self, rows: int) -> None:
        told = history(self.store)
        assert {night["version"]: night["state"] for night in told["nights"]} == self.states
        assert told["live"] == self.live
        live = next(night for night in told["nights"] if night["version"] == self.live)
        assert live["rows"]["live"] == rows
        shown = show(self.store).to_dict()
        assert (shown["rows"], shown["stale"]) == (rows, live["rows"]["stale"])
        verified = verify(self.store)
        assert (verified.rows, verified.parts) == (rows, len(told["kept"]))

    def rows_in_database(self) -> Rows:
        columns = map(sql.Identifier, ["norm", "status", "version", *self.passthrough])
        query = sql.SQL("SELECT id, vector::real[], {} FROM items")
        found = self.database.execute(query.format(sql.SQL(", ").join(columns))).fetchall()
        return {row[0]: (np.array(row[1], np.float32).tobytes(), *row[2:]) for row in found}


def rows_of(table: pa.Table, columns: Sequence[str]) -> Rows:
    """Rows by their key, the bits of their vectors."""
    vectors = table["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy().reshape(len(table), -1)
    others = [table[name].to_pylist() for name in columns[1:]]
    keys = table["id"].to_pylist()
    assert len(set(keys)) == len(keys)
    lists = zip(keys, flat, *others, strict=True)
    return {key: (vector.tobytes(), *values) for key, vector, *values in lists}


def assert_same(found: Rows, expected: Rows) -> None:
    """Two sets of rows are the same; the first that are not are told: found, and expected."""
    pairs = {key: (found.get(key), expected.get(key)) for key in found.keys() | expected.keys()}
    other = {key: pair for key, pair in sorted(pairs.items()) if pair[0] != pair[1]}
    assert not other, f"{len(other)} rows: {list(other.items())[:2]}"


def vectors_in_index(path: Path) -> dict[int, bytes]:
    index = faiss.read_index(str(path))
    ids = faiss.vector_to_array(index.id_map).tolist()
    vectors = faiss.downcast_index(index.index).reconstruct_n(0, index.ntotal)
    return {key: vector.tobytes() for key, vector in zip(ids, vectors, strict=True)}
