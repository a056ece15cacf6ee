"""A store of a few items and its nights: inputs by key and edit, jobs, what readers find."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import Job, RefreshResult, read, refresh, run
from batchnorm_tool.errors import Held
from batchnorm_tool.job.loader import set_values
from batchnorm_tool.store.state import StoreDirectory
from tests.kill_points import tree
from tests.refresh_records import stored_record

WIDTH = 8
LOOSE = {
    "input": {
        "changed": None,
        "vanished": None,
        "null_shift": None,
        "constant_feature": "ignore",
        "mean_shift": None,
        "deviation_ratio": None,
    },
    "output": {"bad": None},
}

Row = dict[str, Any]
Edits = Mapping[Any, int]


def features(key: object, edit: int = 0) -> np.ndarray:
    """The features of an item after so many edits: float32 [8], another first one for each."""
    seed = [edit, *str(key).encode()]
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def lists(rows: Iterable[np.ndarray]) -> pa.Array:
    flat = np.array([*rows], np.float32).reshape(-1, WIDTH)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), WIDTH)


def items(edits: Edits, **columns: Any) -> pa.Table:
    """A night's input: the features `x` of each key at its edit, a `label`, other columns."""
    labels = pa.array([f"label {key}" for key in edits], pa.string())
    x = lists([features(key, edit) for key, edit in edits.items()])
    keys = pa.array([*edits], None if edits else pa.int64())
    return pa.table({"id": keys, "x": x, "label": labels, **columns})


def firsts(edits: Edits) -> set[float]:
    """The first features, by which rows are known again."""
    return {float(features(key, edit)[0]) for key, edit in edits.items()}


@dataclass
class Nightly:
    """A store in a directory of its own, without a model unless a test names one."""

    path: Path
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> str:
        return str(self.path / "items.lance")

    @property
    def state(self) -> StoreDirectory:
        return StoreDirectory(self.store)

    def put(self, table: pa.Table | Edits, **columns: Any) -> None:
        """Lay tonight's input down, as one file where last night's was."""
        found = table if isinstance(table, pa.Table) else items(table, **columns)
        (self.path / "in").mkdir(exist_ok=True)
        for old in (self.path / "in").iterdir():
            old.unlink()
        pq.write_table(found, self.path / "in" / "items.parquet")

    def job(self, *overrides: Mapping[str, Any], **values: Any) -> Job:
        """The job; keys such as `store__keep__count` change it."""
        data: dict[str, Any] = {
            "input": {"path": "in", "key": "id", "features": {"x": "x"}, "passthrough": ["label"]},
            "engine": {"workers": 1},
            "store": {"path": "items.lance"},
            "gate": LOOSE,
            **self.sections,
        }
        for section in overrides:
            data |= section
        texts = [f"{key.replace('__', '.')}=null" for key in values]
        for text, value in zip(texts, values.values(), strict=True):
            data = _replaced(set_values(data, [text]), text.partition("=")[0].split("."), value)
        return Job.from_dict(data, self.path)

    def night(
        self, table: pa.Table | Edits | None = None, *overrides: Mapping[str, Any], **values: Any
    ) -> RefreshResult:
        """Lay down an input and refresh."""
        if table is not None:
            self.put(table)
        return refresh(self.job(*overrides, **values))

    def held(
        self, table: pa.Table | Edits | None = None, *overrides: Mapping[str, Any], **values: Any
    ) -> dict[str, Any]:
        """A night that waits: its report, and that readers see nothing of it."""
        before, live = tree(Path(self.store)), self.state.pointer().live
        with pytest.raises(Held) as caught:
            self.night(table, *overrides, **values)
        assert tree(Path(self.store)) == before
        found = {**(caught.value.night or {}), "message": caught.value.message}
        facts = self.state.pointer()
        assert (facts.live, facts.waiting) == (live, found["version"])
        return found

    def rows(self, without: Collection[str] = ()) -> dict[Any, Row]:
        """What a reader without a tag finds, by key."""
        return rows_of(lance.dataset(self.store).to_table(), without)

    def vectors(self) -> dict[Any, tuple[bytes, float]]:
        """The bits of every vector, and its norm."""
        return {key: (row["vector"], row["norm"]) for key, row in self.rows().items()}

    def from_scratch(self, table: pa.Table | Edits, **values: Any) -> dict[Any, Any]:
        """What `run` makes of an input, with the batch size that the store's nights have."""
        self.put(table)
        facts = self.state.pointer()
        out = self.path / f"scratch-{len(list(self.path.iterdir()))}"
        values["output__path"] = str(out)
        if self.job(**values).model is not None:
            record = stored_record(self.state, facts.live or 0) or {}
            values["model__batch_size"] = record["settings"]["batch_size"]
        run(self.job(**values))
        keys, vectors, norms = read(out).to_numpy()
        found = zip(keys.tolist(), vectors, norms.tolist(), strict=True)
        return {key: (vector.tobytes(), norm) for key, vector, norm in found}

    def staged(self) -> list[str]:
        """Names of all files of the night under way."""
        root = Path(self.state.root) / "night"
        return sorted(tree(root)) if root.exists() else []


def rows_of(table: pa.Table, without: Collection[str] = ()) -> dict[Any, Row]:
    """The rows of a store by their key, the bits of their vectors."""
    key = "id" if "id" in table.schema.names else ("shop", "day")
    vectors = table["vector"].combine_chunks()
    assert vectors.null_count == 0
    flat = vectors.flatten().to_numpy().reshape(len(table), vectors.type.list_size)
    rows = table.drop_columns(["vector", *without]).to_pylist()
    found = {}
    for row, vector in zip(rows, flat, strict=True):
        name = row[key] if isinstance(key, str) else tuple(row[part] for part in key)
        assert name not in found
        found[name] = {**row, "vector": vector.tobytes()}
    return found


def unit(row: np.ndarray, dtype: str = "float32") -> tuple[bytes, float]:
    """The unit vector and the norm of a stored prediction, as a plain script has them."""
    wide = row.astype(np.float64)
    norm = np.linalg.norm(wide[np.newaxis], axis=-1)[0]
    return (wide / (norm or 1)).astype(dtype).tobytes(), float(norm)


def units(edits: Edits) -> dict[Any, tuple[bytes, float]]:
    """What a store without a model holds of an input."""
    return {key: unit(features(key, edit)) for key, edit in edits.items()}


def _replaced(data: Mapping[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    return {**data, first: _replaced(data[first], rest, value) if rest else value}
