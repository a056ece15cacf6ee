"""What lies beside a store: which version is live, what waits, every refresh's record, the types.

::

    items.lance              the dataset, which readers open; nothing of ours lies in it
    items.lance.state/
        store.json           the switch: live version, hold, what waits, the layout of rows
        nights/000012.json   the record of a night, of a rollback or of a candidate
        index/000012.parquet keys and hashes of the live version: all, or what its base lacks
        nights/000012.base.parquet  that base: an older index, under a second name
        files.json           checksums of the dataset's files
        contract.json        what a query of the live version must do alike
        contracts/000012.json  that of a version
        night/               the night under way, or the candidate that waits
        targets/NAME.json    what a publish target holds

A *version* is a number of this store, given once to each refresh that reached the gate and to each
rollback. Lance counts otherwise: `StorePointer.versions` tells which of its versions is which.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.errors import Damaged, InputError, WorkFailed
from batchnorm_tool.formats.arrow_columns import shape_of
from batchnorm_tool.gate.record import Hold, RefreshRecord
from batchnorm_tool.job import STATE_SUFFIX
from batchnorm_tool.job.refresh_sections import Keep
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.output_schema import StoredOutput
from batchnorm_tool.pipeline.plan import Identity, ResolvedOptions
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.storage.checked_json import (
    LEFT_OUT_IF_NONE,
    ArrowSchema,
    Positive,
    Record,
    SealedRecord,
    stored_as,
)
from batchnorm_tool.storage.files import read_errors, record_of

_Seen = TypeVar("_Seen")
STORE_PATH = "store.json"
RECORDS = "nights"
INDEX = "index"
STAGING = "night"
STAGING_PATH = f"{STAGING}/night.json"
TARGETS_DIRECTORY = "targets"
CONTRACTS = "contracts"
CHECKSUMS_PATH = "files.json"
BATCH_ROWS = 65_536
"""Rows of a store that are in memory at a time."""
# What these columns are called in the state: no column of a store has a dot in its name.
FEATURE_HASH = ".feature_hash"
PASSTHROUGH_HASH = ".passthrough_hash"
STATUS = ".status"
VERSION = ".version"
NORM = ".norm"
HASHES = (pa.field(FEATURE_HASH, pa.binary(16)), pa.field(PASSTHROUGH_HASH, pa.binary(8)))
BOOKKEEPING = (*HASHES, pa.field(STATUS, pa.string()), pa.field(VERSION, pa.int64()))
"""The columns that every store has beside keys, vector, norm and passed-through columns."""
GOOD = "good"
STALE = "stale: "
QUARANTINED = "quarantined: "
# Where the files of a version lie, below the state's root: its record, its index and that one's
# base, a sample of its vectors, the hashes of what it replaced, its quarantined rows, its contract.
record_path: Callable[[int], str] = f"{RECORDS}/{{:06d}}.json".format
index_path: Callable[[int], str] = f"{INDEX}/{{:06d}}.parquet".format
base_path: Callable[[int], str] = f"{RECORDS}/{{:06d}}.base.parquet".format
sample_path: Callable[[int], str] = f"{RECORDS}/{{:06d}}.sample.arrow".format
replaced_path: Callable[[int], str] = f"{RECORDS}/{{:06d}}.replaced.npy".format
quarantined_path: Callable[[int], str] = f"{RECORDS}/{{:06d}}.quarantined.arrow".format
contract_path: Callable[[int], str] = f"{CONTRACTS}/{{:06d}}.json".format


@dataclass(frozen=True)
class StoreSchema(Record):
    """What the rows of a store look like: names of columns, and the schema of the whole dataset.

    The vectors were divided by ``norm_label``, such as ``l2``; ``norm`` holds their lengths before,
    ``bookkeeping`` says what the columns of `BOOKKEEPING` are called in the dataset, ``output``
    what else was done to the vectors, ``None`` for nothing.
    """

    keys: tuple[str, ...]
    passthrough: tuple[str, ...]
    vector: str
    norm: str
    norm_label: str
    schema: ArrowSchema
    bookkeeping: tuple[str, ...] = tuple(field.name[1:] for field in BOOKKEEPING)
    output: Annotated[StoredOutput | None, LEFT_OUT_IF_NONE] = None

    def stored(self, *names: str) -> list[str]:
        """Say what columns are called in the dataset that the state calls so; keys as they are."""
        known = dict(zip((field.name for field in BOOKKEEPING), self.bookkeeping, strict=True))
        known[NORM] = self.norm
        return [known.get(name, name) for name in names]

    @property
    def normalization(self) -> Normalization:
        """What was done to the vectors."""
        only_norm = Normalization(Norm.parse(self.norm_label))
        return self.output.normalization if self.output else only_norm

    @property
    def spec(self) -> OutputSpec:
        """How the vectors are stored, as the only output of a model, named after their column."""
        field = self.schema.field(self.vector)
        shape = self.output.shape if self.output else shape_of(field)
        axis: int | str = -1 if len(shape) == 1 else "all"
        return OutputSpec(self.vector, shape, axis, self.normalization, self.vector, self.norm)

    @property
    def as_floats(self) -> StoreSchema:
        """The same with vectors of floats, as readers and targets get them."""
        return replace(self, schema=output_schema.decoded_schema(self.schema, [self.spec]))

    @property
    def width(self) -> int:
        """Components of a vector."""
        if self.output:
            return math.prod(self.output.shape)
        return int(self.schema.field(self.vector).type.list_size)

    @property
    def dtype(self) -> str:
        """NumPy's name of the type of a vector's components, once it is decoded."""
        if self.normalization.dtype:
            return "float32"
        return str(self.schema.field(self.vector).type.value_type.to_pandas_dtype().__name__)

    @property
    def key_schema(self) -> pa.Schema:
        """The key columns alone."""
        return pa.schema([self.schema.field(name) for name in self.keys])

    @property
    def carried(self) -> pa.Schema:
        """Key and passed-through columns."""
        return pa.schema([self.schema.field(name) for name in (*self.keys, *self.passthrough)])

    @property
    def staged(self) -> pa.Schema:
        """What every staged row has: keys, passed-through columns, and hashes of the row."""
        return pa.schema([*self.carried, *HASHES])

    def __post_init__(self) -> None:
        """Check that it names columns that there are."""
        named = {*self.keys, *self.passthrough, self.vector, self.norm}
        missing = sorted(named - {*self.schema.names})
        if missing:
            raise ValueError(f"the schema lacks the columns {', '.join(missing)}")
        if len(self.bookkeeping) != len(BOOKKEEPING):
            raise ValueError(f"it names {len(self.bookkeeping)} columns of its own")
        if not pa.types.is_fixed_size_list(self.schema.field(self.vector).type):
            raise ValueError(f"the column {self.vector} holds no vectors")


@dataclass(frozen=True)
class StorePointer(SealedRecord):
    """What ``store.json`` says: replacing that file is what switches a store.

    ``live`` is the version that readers get, ``None`` before the first, ``waiting`` the candidate
    that waits for a decision; ``versions`` has Lance's number of each kept version. What comes
    after it tells of the live version what `Basis` does.
    """

    next_version: Positive = 1
    live: int | None = None
    waiting: int | None = None
    hold: Hold | None = None
    versions: dict[int, int] = field(default_factory=dict)
    layout: StoreSchema | None = None
    identity: Identity | None = None
    hash_version: str | None = None
    resolved: ResolvedOptions | None = None
    options_fingerprint: Annotated[str | None, stored_as("request")] = None
    format: Literal[1] = 1

    @property
    def lance_version(self) -> int | None:
        """Lance's number of the live version."""
        return None if self.live is None else self.versions[self.live]


@dataclass(frozen=True)
class Basis(Record):
    """What a version is built on, so that a rollback can go back to it."""

    layout: StoreSchema
    identity: Identity
    resolved: ResolvedOptions
    options_fingerprint: Annotated[str, stored_as("request")]


@dataclass(frozen=True, kw_only=True)
class StoredRecord(RefreshRecord, SealedRecord):
    """The record of a refresh as it is kept; ``files`` are those of the version in the state."""

    basis: Basis
    publish: tuple[dict[str, object], ...]
    keep: Keep | None
    files: tuple[FileRecord, ...] = ()

    @property
    def index_base(self) -> FileRecord | None:
        """The file that is the base of the version's index, or would be that of the next one."""
        files = {file.path: file for file in self.files}
        return files.get(base_path(self.version)) or files.get(index_path(self.version))

    @property
    def contract(self) -> str | None:
        """SHA-256 of the version's contract; ``None`` where it has none."""
        path = contract_path(self.version)
        return next((file.sha256 for file in self.files if file.path == path), None)


@dataclass(frozen=True)
class StoreDirectory:
    """The state of the store at ``path``; whoever changes it holds `lock`."""

    path: str

    @property
    def root(self) -> str:
        """The directory of the state."""
        return self.path.rstrip("/") + STATE_SUFFIX

    @cached_property
    def storage(self) -> Storage:
        """The directory of the state, as something to write through."""
        return Storage(self.root)

    def lock(self, wait_seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Hold the store alone; `Busy` if another run still holds it after ``wait_seconds``."""
        return self.storage.lock(wait_seconds)

    def pointer(self) -> StorePointer:
        """Return what ``store.json`` says; where there is none, what holds of a new store."""
        text = self.storage.get(STORE_PATH)
        if text is None:
            return StorePointer()
        pointer = StorePointer.opened(text, f"{self.root}/{STORE_PATH}")
        is_kept = pointer.live in pointer.versions and pointer.layout is not None
        if pointer.live is not None and not is_kept:
            raise Damaged(
                f"`{self.root}/{STORE_PATH}`: version {pointer.live} is live, and is not kept."
            )
        return pointer

    def look(self, work: Callable[[StorePointer], _Seen]) -> _Seen:
        """Read the store without holding it; again where a refresh switched it meanwhile.

        What that refresh removed would be told as damage otherwise.
        """
        for _ in range(3):
            pointer = self.pointer()
            try:
                return work(pointer)
            except Damaged:
                if self.pointer() == pointer:
                    raise
        raise WorkFailed(f"`{self.path}` was changed by a refresh meanwhile. Run it again.")

    def put_pointer(self, pointer: StorePointer) -> None:
        """Replace ``store.json``: from here on, the store is what ``pointer`` say."""
        # One small file, replaced in one rename: there is no moment at which half a switch is seen.
        self.storage.put(STORE_PATH, pointer.to_json())

    def record(self, version: int | None) -> StoredRecord | None:
        """Return the record of a refresh, or ``None`` where there is none, or no such version."""
        path = record_path(version or 0)  # there is no version 0
        text = self.storage.get(path)
        return None if text is None else StoredRecord.opened(text, f"{self.root}/{path}")

    def existing_record(self, version: int) -> StoredRecord:
        """Return the record of a version; `Damaged` where there is none."""
        record = self.record(version)
        if record is None:
            raise Damaged(
                f"The record of version {version} is missing in `{self.root}`. Restore "
                f"`{record_path(version)}` from a copy, or begin a new store."
            )
        return record

    def put_record(self, record: StoredRecord) -> None:
        """Write the record of a refresh under its version."""
        self.storage.put(record_path(record.version), record.to_json())

    def files_of(
        self,
        version: int,
        before: StoredRecord | None = None,
        staged: Iterable[str] = (),
        known: Iterable[FileRecord] = (),
    ) -> tuple[FileRecord, ...]:
        """Return checksums of what a version has in the state, but for its record.

        Files that are ``known`` are not read again, nor is the base of its index, where the record
        of the version ``before`` knows it: whatever became of it since would count as right.
        ``staged`` are files and directories that count as well.
        """
        root, base = self.storage.root, before and before.index_base
        written = {file.path: file for file in known}
        if base:
            written[base_path(version)] = replace(base, path=base_path(version))
        roots = [root / path for path in staged]
        night = sorted(place for each in roots for place in (each, *each.rglob("*")))
        places = [*(root / path for path in (*live_paths(version), *kept_paths(version))), *night]
        with read_errors(root):
            return tuple(
                written.get(path := place.relative_to(root).as_posix()) or record_of(root, path)
                for place in places
                # Not what says how it was asked for: that changes whenever it is asked for again.
                if place.is_file() and place != root / STAGING_PATH
            )

    def write_rows(self, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> FileRecord:
        """Write tables into one Arrow file of the state, which appears whole and synced."""
        with self.storage.create(path) as file:
            with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
                for table in tables:
                    writer.write_table(table.select(schema.names).cast(schema))
            return file.commit()

    def read_rows(self, *paths: str) -> Iterator[pa.Table]:
        """Yield the rows of Arrow files of the state, batch by batch."""
        for path in paths:
            yield from _arrow_tables(self.storage.root / path)

    def read_directory(self, directory: str) -> Iterator[pa.Table]:
        """Yield the rows of all Arrow files of a directory, in the order of their names."""
        return self.read_rows(*(f"{directory}/{name}" for name in self.storage.names(directory)))

    def rows_in(self, directory: str) -> int:
        """Return rows in all Arrow files of a directory."""
        return sum(table.num_rows for table in self.read_directory(directory))

    def put_replaced(self, version: int, hashes: Iterable[np.ndarray]) -> None:
        """Note feature hashes, ``uint8[n, 16]`` each, of good rows that a version replaces."""
        with self.storage.create(replaced_path(version)) as file:
            every = np.concatenate([np.empty((0, 16), np.uint8), *hashes])
            np.lib.format.write_array(file, every, allow_pickle=False)
            file.commit()

    def replaced(self, version: int) -> np.ndarray:
        """Return what `put_replaced` noted, ``uint8[n, 16]``; nothing where it noted nothing."""
        path = self.storage.root / replaced_path(version)
        if not path.exists():
            return np.empty((0, 16), np.uint8)
        try:
            found: np.ndarray = np.load(path, allow_pickle=False)
            if found.dtype == np.uint8 and found.shape[1:] == (16,):
                return found
            said = f"{found.dtype}{[*found.shape]}"
        except (OSError, EOFError, ValueError) as error:
            said = str(error)
        raise Damaged(
            f"`{path}` is damaged. Expected: hashes, uint8[n, 16]. Received: {said}. Restore it "
            "from a backup, or remove it: vectors that it leads to are then computed again."
        )

    def contract(self, version: int | None) -> bytes | None:
        """Return the contract of a version, as its file has it; ``None`` where there is none."""
        return self.storage.get(contract_path(version or 0))

    def switch_contract(self, version: int) -> None:
        """Let ``contract.json`` be that of a version."""
        contract = self.contract(version)
        if contract is None:  # a version from before there were any
            self.storage.remove(CONTRACT)
        elif contract != self.storage.get(CONTRACT):
            self.storage.put(CONTRACT, contract)

    def discard_uncommitted(self, pointer: StorePointer) -> None:
        """Remove what is staged, and what only a live version or a candidate needs of others."""
        kept, used = {*pointer.versions, pointer.waiting}, {pointer.live, pointer.waiting}
        needed = {path for each in kept if each for path in kept_paths(each)}
        needed |= {path for each in used if each for path in live_paths(each)}
        for directory in (INDEX, RECORDS, CONTRACTS):
            for name in self.storage.names(directory):
                path = f"{directory}/{name}"
                if path not in needed and (directory, path[-5:]) != (RECORDS, ".json"):
                    self.storage.remove(path)
        if pointer.waiting is None:
            self.storage.remove(STAGING)

    def documents(self) -> list[str]:
        """Return paths of all documents, each with a checksum of its own."""
        directories = (RECORDS, STAGING, TARGETS_DIRECTORY)
        names = [f"{each}/{name}" for each in directories for name in self.storage.names(each)]
        return [STORE_PATH, CHECKSUMS_PATH, *(name for name in names if name.endswith(".json"))]

    def recorded(self) -> list[int]:
        """Return the versions that have a record, in order."""
        names = self.storage.names(RECORDS)
        return sorted(int(name[:6]) for name in names if name.endswith(".json"))


def _arrow_tables(place: Path) -> Iterator[pa.Table]:
    try:
        with pa.memory_map(str(place)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
    except (pa.ArrowException, OSError) as error:
        raise WorkFailed(
            f"`{place}` cannot be read: {error}. Run the same command again; if it fails again, "
            "remove the directory of this file."
        ) from error


def is_store(path: str) -> bool:
    """Tell whether a store lies at ``path``: its state lies beside it."""
    # Not `Path.is_file`, which raises for a name that is too long.
    return os.path.isfile(os.path.join(StoreDirectory(path).root, STORE_PATH))  # noqa: PTH113, PTH118


def open_store(path: str) -> tuple[StoreDirectory, StorePointer]:
    """Return the state of an existing store, and what it says."""
    state = StoreDirectory(path)
    if not is_store(path):
        raise InputError(
            f"`{path}` is not a store of batchnorm_tool. Expected `{state.root}/{STORE_PATH}`, "
            "which `batchnorm-tool refresh` writes. Use the path in the job's `store.path`."
        )
    return state, state.pointer()


def live_paths(version: int) -> tuple[str, ...]:
    """Return the files of the state that a version may have while it is live, or waits."""
    return index_path(version), base_path(version), sample_path(version)


def kept_paths(version: int) -> tuple[str, ...]:
    """Return the files of the state that a version may have for as long as it is kept."""
    return replaced_path(version), quarantined_path(version), contract_path(version)


def is_quarantined(status: pa.ChunkedArray) -> np.ndarray:
    """Return ``bool[n]`` of an encoded status: remembered as bad, and not in the dataset."""
    return by_word(status, lambda word: word.startswith(QUARANTINED)).astype(bool)


def is_good(status: pa.ChunkedArray) -> np.ndarray:
    """Return ``bool[n]`` of an encoded status: the row has the vector that its features give."""
    return by_word(status, lambda word: word == GOOD).astype(bool)


def by_word(status: pa.ChunkedArray, value: Callable[[str], int]) -> np.ndarray:
    """Return ``uint8[n]`` of an encoded status: what each of its few words is worth."""
    column = status.combine_chunks()
    words = [value(str(word)) for word in column.dictionary.to_pylist()]
    return np.array([*words, 0], np.uint8)[column.indices.to_numpy()]


@dataclass(frozen=True)
class Unfit:
    """A value that a target cannot take; ``reason`` says which target, why, and what to do."""

    row: int
    column: str
    reason: str
