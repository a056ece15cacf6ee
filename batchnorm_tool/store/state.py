"""What lies beside a store: which version is live, what waits, and a record of every night.

::

    items.lance              the dataset, which readers open; nothing of ours lies in it
    items.lance.state/
        store.json           the switch: live version, hold, what waits, the layout of rows
        nights/000012.json   the record of a night, of a rollback or of a candidate
        index/000012.parquet keys and hashes of the live version
        files.json           checksums of the dataset's files
        night/               the night under way, or the candidate that waits
        targets/NAME.json    what a publish target holds

A *version* is a number of this store, given once to each night that reached the gate and to each
rollback. Lance counts otherwise: `StoreFacts.versions` tells which of its versions is which.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchnorm_tool import canonical
from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.job import STATE_SUFFIX
from batchnorm_tool.storage import LocalStorage
from batchnorm_tool.storage.files import read_errors, record_of

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

STORE_PATH = "store.json"
NIGHTS = "nights"
NIGHT = "night"
NIGHT_PATH = f"{NIGHT}/night.json"
TARGETS = "targets"
LEDGER_PATH = "files.json"
FORMAT = 1

# What these columns are called in the state: no column of a store has a dot in its name.
FEATURE_HASH = ".feature_hash"
PASSTHROUGH_HASH = ".passthrough_hash"
STATUS = ".status"
VERSION = ".version"
NORM = ".norm"
BOOKKEEPING = (
    pa.field(FEATURE_HASH, pa.binary(16)),
    pa.field(PASSTHROUGH_HASH, pa.binary(8)),
    pa.field(STATUS, pa.string()),
    pa.field(VERSION, pa.int64()),
)
"""The columns that every store has beside keys, vector, norm and passed-through columns."""

GOOD = "good"
STALE = "stale: "
QUARANTINED = "quarantined: "


@dataclass(frozen=True)
class StoreLayout:
    """What the rows of a store look like.

    Attributes:
        keys: Names of the key columns.
        passthrough: Names of the passed-through columns.
        vector: Name of the column of vectors.
        norm: Name of the column of their lengths before normalization.
        norm_label: The norm that they were divided by, such as ``l2``.
        schema: Of the whole dataset: keys, vector, norm, `BOOKKEEPING`, passed-through columns.
        bookkeeping: What the columns of `BOOKKEEPING` are called in the dataset.
    """

    keys: tuple[str, ...]
    passthrough: tuple[str, ...]
    vector: str
    norm: str
    norm_label: str
    schema: pa.Schema
    bookkeeping: tuple[str, ...] = tuple(field.name[1:] for field in BOOKKEEPING)

    def stored(self, *names: str) -> list[str]:
        """Say what columns are called in the dataset that the state calls so; keys as they are.

        Example:
            >>> layout = StoreLayout(("id",), (), "vector", "length", "l2", pa.schema([]))
            >>> layout.stored("id", STATUS, NORM)
            ['id', 'status', 'length']
        """
        known = dict(zip((field.name for field in BOOKKEEPING), self.bookkeeping, strict=True))
        known[NORM] = self.norm
        return [known.get(name, name) for name in names]

    @property
    def width(self) -> int:
        """Components of a vector."""
        size: int = self.schema.field(self.vector).type.list_size
        return size

    @property
    def dtype(self) -> str:
        """NumPy's name of the components' type."""
        return str(self.schema.field(self.vector).type.value_type.to_pandas_dtype().__name__)

    @property
    def key_schema(self) -> pa.Schema:
        """The key columns alone."""
        return pa.schema([self.schema.field(name) for name in self.keys])

    @property
    def carried(self) -> pa.Schema:
        """Key and passed-through columns."""
        return pa.schema([self.schema.field(name) for name in (*self.keys, *self.passthrough)])

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain data."""
        encoded = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {
            "keys": list(self.keys),
            "passthrough": list(self.passthrough),
            "vector": self.vector,
            "norm": self.norm,
            "norm_label": self.norm_label,
            "schema": encoded,
            "bookkeeping": list(self.bookkeeping),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoreLayout:
        """The layout that `to_dict` gave."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["schema"])))
        lists = {name: tuple(data[name]) for name in ("keys", "passthrough", "bookkeeping")}
        return cls(**{**data, **lists, "schema": schema})


@dataclass(frozen=True)
class StoreFacts:
    """What ``store.json`` says: replacing that file is what switches a store.

    Attributes:
        next_version: The number of the next night.
        live: The version that readers get; ``None`` before the first.
        waiting: The candidate that waits for a decision.
        hold: Since when and why nothing is published, after a rollback.
        versions: Lance's number of each kept version.
        layout: What the rows of the live version look like.
        identity: What the live version is made of, as `Identity.to_dict` gives it.
        hash_version: How its rows were hashed.
        resolved: Every open choice of its job, made, as `Resolved.to_dict` gives it.
        request: Hash of what these choices were made from.
    """

    next_version: int = 1
    live: int | None = None
    waiting: int | None = None
    hold: dict[str, Any] | None = None
    versions: dict[int, int] = field(default_factory=dict)
    layout: StoreLayout | None = None
    identity: dict[str, Any] | None = None
    hash_version: str | None = None
    resolved: dict[str, Any] | None = None
    request: str | None = None

    @property
    def lance_version(self) -> int | None:
        """Lance's number of the live version."""
        return None if self.live is None else self.versions[self.live]

    def with_changes(self, **changes: Any) -> StoreFacts:
        """The same facts, but for these."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        versions = {str(version): lance for version, lance in self.versions.items()}
        layout = self.layout.to_dict() if self.layout else None
        return {"format": FORMAT, **data, "versions": versions, "layout": layout}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoreFacts:
        """The facts that `to_dict` gave."""
        known = {name: value for name, value in data.items() if name != "format"}
        versions = {int(version): lance for version, lance in data["versions"].items()}
        layout = StoreLayout.from_dict(data["layout"]) if data["layout"] else None
        return cls(**{**known, "versions": versions, "layout": layout})


@dataclass(frozen=True)
class StoreState:
    """The state of the store at ``path``; whoever changes it holds `lock`."""

    path: str

    @property
    def root(self) -> str:
        """The directory of the state."""
        return self.path.rstrip("/") + STATE_SUFFIX

    @cached_property
    def storage(self) -> LocalStorage:
        """The directory of the state, as something to write through."""
        return LocalStorage(self.root)

    def lock(self, wait_seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Hold the store alone; `Busy` if another run still holds it after ``wait_seconds``."""
        return self.storage.lock(wait_seconds)

    def facts(self) -> StoreFacts:
        """What ``store.json`` says; where there is none, what holds of a new store.

        Raises:
            Damaged: It is not what its checksum says.
        """
        text = self.storage.get(STORE_PATH)
        if text is None:
            return StoreFacts()
        return StoreFacts.from_dict(_opened(text, f"{self.root}/{STORE_PATH}"))

    def put_facts(self, facts: StoreFacts) -> None:
        """Replace ``store.json``: from here on, the store is what ``facts`` say."""
        self.storage.put(STORE_PATH, canonical.sealed_json(facts.to_dict()))

    def record(self, version: int) -> dict[str, Any] | None:
        """The record of a night, or ``None`` where there is none.

        Raises:
            Damaged: It is not what its checksum says.
        """
        path = record_path(version)
        text = self.storage.get(path)
        return None if text is None else _opened(text, f"{self.root}/{path}")

    def put_record(self, record: Mapping[str, Any]) -> None:
        """Write the record of a night under its version."""
        self.storage.put(record_path(record["version"]), canonical.sealed_json(dict(record)))

    def files_of(self, version: int, *, staged: bool = False) -> list[dict[str, Any]]:
        """Checksums of what a version has in the state, but for its record.

        Args:
            version: Its index, if it has one, and what it replaced are looked at.
            staged: Also all that is staged, but for what says how it was asked for: that changes
                whenever it is asked for again.
        """
        root = self.storage.root
        night = sorted((root / NIGHT).rglob("*")) if staged else []
        places = [root / index_path(version), root / replaced_path(version), *night]
        with read_errors(root):
            return [
                record_of(root, place.relative_to(root).as_posix()).to_dict()
                for place in places
                if place.is_file() and place != root / NIGHT_PATH
            ]

    def documents(self) -> list[str]:
        """Return paths of all documents, each with a checksum of its own."""
        directories = (NIGHTS, NIGHT, TARGETS)
        names = [f"{each}/{name}" for each in directories for name in self.storage.names(each)]
        return [STORE_PATH, LEDGER_PATH, *(name for name in names if name.endswith(".json"))]

    def recorded(self) -> list[int]:
        """The versions that have a record, in order."""
        names = self.storage.names(NIGHTS)
        return sorted(int(name[:6]) for name in names if name.endswith(".json"))


def is_store(path: str) -> bool:
    """Whether a store lies at ``path``: its state lies beside it."""
    # Not `Path.is_file`, which raises for a name that is too long.
    return os.path.isfile(os.path.join(StoreState(path).root, STORE_PATH))  # noqa: PTH113, PTH118


@canonical.told_of_records
def open_store(path: str) -> tuple[StoreState, StoreFacts]:
    """The state of an existing store, and what it says.

    Raises:
        InputError: No store lies there.
        Damaged: Its ``store.json`` is not what its checksum says.
    """
    state = StoreState(path)
    if not is_store(path):
        msg = (
            f"`{path}` is no store of batchnorm_tool. Expected `{state.root}/{STORE_PATH}`, which "
            "`batchnorm-tool refresh` writes. Name the path that the job has in `store.path`."
        )
        raise InputError(msg)
    return state, state.facts()


def record_path(version: int) -> str:
    """Where the record of a night lies, below the state's root."""
    return f"{NIGHTS}/{version:06d}.json"


def index_path(version: int) -> str:
    """Where the index of a live version lies, below the state's root."""
    return f"index/{version:06d}.parquet"


def replaced_path(version: int) -> str:
    """Where the hashes lie of what a version replaced, below the state's root."""
    return f"{NIGHTS}/{version:06d}.replaced.npy"


def _opened(text: bytes, path: str) -> dict[str, Any]:
    data = canonical.opened_json(text)
    if data is None:
        msg = (
            f"`{path}` is damaged: its checksum disagrees. Restore it from a backup of the store, "
            "or begin a new store with another `store.path`."
        )
        raise Damaged(msg)
    return data
