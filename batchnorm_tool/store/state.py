"""What lies beside a store: which version is live, what waits, every night's record, the types.

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
rollback. Lance counts otherwise: `StorePointer.versions` tells which of its versions is which.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from batchnorm_tool.errors import Damaged, InputError
from batchnorm_tool.formats.arrow_columns import plain_type, with_children
from batchnorm_tool.inputs.row_hash import is_any, type_name
from batchnorm_tool.job import STATE_SUFFIX
from batchnorm_tool.storage import LocalStorage, checked_json
from batchnorm_tool.storage.files import read_errors, record_of

STORE_PATH = "store.json"
RECORDS = "nights"
STAGING = "night"
STAGING_PATH = f"{STAGING}/night.json"
TARGETS_DIRECTORY = "targets"
CHECKSUMS_PATH = "files.json"
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
# Parquet, through which rows pass, gives these back as others: the values fit exactly.
_THROUGH_PARQUET = {
    pa.date64(): pa.date32(),
    pa.time32("s"): pa.time32("ms"),
}


@dataclass(frozen=True)
class StoreSchema:
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
            >>> layout = StoreSchema(("id",), (), "vector", "length", "l2", pa.schema([]))
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
        """Return the layout as plain data."""
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
    def from_dict(cls, data: Mapping[str, Any]) -> StoreSchema:
        """Return the layout that `to_dict` gave."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["schema"])))
        lists = {name: tuple(data[name]) for name in ("keys", "passthrough", "bookkeeping")}
        return cls(**{**data, **lists, "schema": schema})


@dataclass(frozen=True)
class StorePointer:
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
        resolved: Every open choice of its job, made, as `ResolvedOptions.to_dict` gives it.
        request: Hash of what these choices were made from.
    """

    next_version: int = 1
    live: int | None = None
    waiting: int | None = None
    hold: dict[str, Any] | None = None
    versions: dict[int, int] = field(default_factory=dict)
    layout: StoreSchema | None = None
    identity: dict[str, Any] | None = None
    hash_version: str | None = None
    resolved: dict[str, Any] | None = None
    request: str | None = None

    @property
    def lance_version(self) -> int | None:
        """Lance's number of the live version."""
        return None if self.live is None else self.versions[self.live]

    def with_changes(self, **changes: Any) -> StorePointer:
        """Return the same facts, but for these."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        versions = {str(version): lance for version, lance in self.versions.items()}
        layout = self.layout.to_dict() if self.layout else None
        return {"format": FORMAT, **data, "versions": versions, "layout": layout}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StorePointer:
        """Return the facts that `to_dict` gave."""
        known = {name: value for name, value in data.items() if name != "format"}
        versions = {int(version): lance for version, lance in data["versions"].items()}
        layout = StoreSchema.from_dict(data["layout"]) if data["layout"] else None
        return cls(**{**known, "versions": versions, "layout": layout})


@dataclass(frozen=True)
class StoreDirectory:
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

    def pointer(self) -> StorePointer:
        """Return what ``store.json`` says; where there is none, what holds of a new store."""
        text = self.storage.get(STORE_PATH)
        if text is None:
            return StorePointer()
        return StorePointer.from_dict(_opened(text, f"{self.root}/{STORE_PATH}"))

    def put_pointer(self, pointer: StorePointer) -> None:
        """Replace ``store.json``: from here on, the store is what ``pointer`` say."""
        self.storage.put(STORE_PATH, checked_json.dump_checked_json(pointer.to_dict()))

    def record(self, version: int) -> dict[str, Any] | None:
        """Return the record of a night, or ``None`` where there is none."""
        path = record_path(version)
        text = self.storage.get(path)
        return None if text is None else _opened(text, f"{self.root}/{path}")

    def put_record(self, record: Mapping[str, Any]) -> None:
        """Write the record of a night under its version."""
        self.storage.put(
            record_path(record["version"]), checked_json.dump_checked_json(dict(record))
        )

    def files_of(self, version: int, *, staged: bool = False) -> list[dict[str, Any]]:
        """Return checksums of what a version has in the state, but for its record.

        Args:
            version: Its index, if it has one, and what it replaced are looked at.
            staged: Also all that is staged, but for what says how it was asked for: that changes
                whenever it is asked for again.
        """
        root = self.storage.root
        night = sorted((root / STAGING).rglob("*")) if staged else []
        places = [root / index_path(version), root / replaced_path(version), *night]
        with read_errors(root):
            return [
                record_of(root, place.relative_to(root).as_posix()).to_dict()
                for place in places
                if place.is_file() and place != root / STAGING_PATH
            ]

    def documents(self) -> list[str]:
        """Return paths of all documents, each with a checksum of its own."""
        directories = (RECORDS, STAGING, TARGETS_DIRECTORY)
        names = [f"{each}/{name}" for each in directories for name in self.storage.names(each)]
        return [STORE_PATH, CHECKSUMS_PATH, *(name for name in names if name.endswith(".json"))]

    def recorded(self) -> list[int]:
        """Return the versions that have a record, in order."""
        names = self.storage.names(RECORDS)
        return sorted(int(name[:6]) for name in names if name.endswith(".json"))


def is_store(path: str) -> bool:
    """Tell whether a store lies at ``path``: its state lies beside it."""
    # Not `Path.is_file`, which raises for a name that is too long.
    return os.path.isfile(os.path.join(StoreDirectory(path).root, STORE_PATH))  # noqa: PTH113, PTH118


@checked_json.explain_unreadable_records
def open_store(path: str) -> tuple[StoreDirectory, StorePointer]:
    """Return the state of an existing store, and what it says."""
    state = StoreDirectory(path)
    if not is_store(path):
        msg = (
            f"`{path}` is not a store of batchnorm_tool. Expected `{state.root}/{STORE_PATH}`, "
            "which `batchnorm-tool refresh` writes. Use the path in the job's `store.path`."
        )
        raise InputError(msg)
    return state, state.pointer()


def record_path(version: int) -> str:
    """Return where the record of a night lies, below the state's root."""
    return f"{RECORDS}/{version:06d}.json"


def index_path(version: int) -> str:
    """Return where the index of a live version lies, below the state's root."""
    return f"index/{version:06d}.parquet"


def replaced_path(version: int) -> str:
    """Return where the hashes lie of what a version replaced, below the state's root."""
    return f"{RECORDS}/{version:06d}.replaced.npy"


def _opened(text: bytes, path: str) -> dict[str, Any]:
    data = checked_json.load_checked_json(text)
    if data is None:
        msg = (
            f"`{path}` is damaged: its checksum does not match. Restore it from a backup of the "
            "store, or start a new store with another `store.path`."
        )
        raise Damaged(msg)
    return data


@dataclass(frozen=True)
class Unfit:
    """A value that a target cannot take.

    Attributes:
        row: Of the table that was looked at.
        column: Its name.
        reason: Which target, why, and what to do.
    """

    row: int
    column: str
    reason: str


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a store keeps the values of a column.

    Returns:
        A type that holds the same values; ``None`` where neither Lance nor Parquet has one.

    Example:
        >>> stored_type(pa.list_(pa.date64())), stored_type(pa.month_day_nano_interval())
        (ListType(list<item: date32[day]>), None)
    """
    kind = plain_type(kind)
    if isinstance(kind, pa.BaseExtensionType):
        storage = stored_type(kind.storage_type)
        return kind if storage == kind.storage_type else storage
    if pa.types.is_nested(kind):
        return _nested_type(kind)
    if kind == pa.timestamp("s", getattr(kind, "tz", None)):
        return pa.timestamp("ms", kind.tz)
    return None if pa.types.is_interval(kind) else _THROUGH_PARQUET.get(kind, kind)


def _nested_type(kind: pa.DataType) -> pa.DataType | None:
    children = [kind.field(place) for place in range(kind.num_fields)]
    types = [held for child in children if (held := stored_type(child.type)) is not None]
    if not types or len(types) < len(children) or pa.types.is_union(kind):
        return None
    if pa.types.is_map(kind):  # its children get their standard names: two writers differ in them
        return pa.map_(*(entry.type for entry in types[0]))
    if pa.types.is_fixed_size_list(kind) and not kind.list_size:
        return None
    if pa.types.is_fixed_size_list(kind) and not _has_width(types[0]):
        return pa.list_(children[0].with_type(types[0]))  # Lance fails at those of texts or lists
    fields = [child.with_type(held) for child, held in zip(children, types, strict=True)]
    return with_children(kind, fields)


def _has_width(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_primitive,
        pa.types.is_decimal,
        pa.types.is_fixed_size_binary,
        pa.types.is_fixed_size_list,
    )
    return is_any(kind, tests)


def holds(stored: pa.DataType, kind: pa.DataType) -> bool:
    """Tell whether a stored type takes the values of another: another encoding, or only nulls.

    Example:
        >>> holds(pa.string(), pa.large_string()), holds(pa.list_(pa.int8()), pa.list_(pa.null()))
        (True, True)
        >>> holds(pa.int64(), pa.int32())
        False
    """
    if pa.types.is_null(kind) or type_name(stored) == type_name(kind):
        return True
    if not (pa.types.is_nested(kind) and stored.num_fields == kind.num_fields):
        return False
    pairs = [(stored.field(place), kind.field(place)) for place in range(kind.num_fields)]
    if pa.types.is_struct(kind) and any(one.name != other.name for one, other in pairs):
        return False
    return type(stored) is type(kind) and all(holds(one.type, other.type) for one, other in pairs)
