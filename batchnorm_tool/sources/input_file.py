"""The input as it was planned: files, files side by side, and the table that they make."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from batchnorm_tool.errors import InputError


@dataclass(frozen=True)
class Member:
    """One of several row-aligned files that make one input file together.

    Attributes:
        column: The name of an NPY file's column; of a Parquet keys file "" (its own names).
        first_row: The row that stands beside the input file's first one.
    """

    column: str
    path: str
    bytes: int
    fingerprint: str
    format: str = "npy"
    first_row: int = 0


@dataclass(frozen=True)
class Partition:
    """A column that has one value in all rows of a file, from a ``name=value`` directory.

    Attributes:
        value: ``None`` is null.
        dtype: ``"int64"`` where the values of all files are integers, else ``"string"``.
    """

    name: str
    value: str | int | None
    dtype: str = "string"


@dataclass(frozen=True)
class InputFile:
    """One input file as it was planned; for NPY groups, several files side by side.

    Attributes:
        path: Absolute path; of a group its first member's.
        format: A key of `batchnorm_tool.formats.FORMATS`.
        bytes: Size, of all members together.
        rows: Number of rows.
        fingerprint: SHA-256 of footer or header; of a group, of its members' fingerprints.
        partitions: Hive partitions, in the order of the directories.
        members: The files of a group; empty for a single file.
        dtype: How ``|V2`` in NPY is read.
        read_as: Fields of the columns that are read as another type than this file's own, where
            the files of a table differ.
    """

    path: str
    format: str
    bytes: int
    rows: int
    fingerprint: str
    partitions: tuple[Partition, ...] = ()
    members: tuple[Member, ...] = ()
    dtype: str | None = None
    read_as: pa.Schema | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-safe data, for plan and manifest; ``read_as`` is an Arrow message in base 64."""
        data = asdict(replace(self, read_as=None))
        data |= {"partitions": [*data["partitions"]], "members": [*data["members"]]}
        del data["read_as"]
        if self.read_as is not None:
            data["read_as"] = base64.b64encode(self.read_as.serialize()).decode()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputFile:
        """The inverse of `to_dict`."""
        partitions = tuple(Partition(**partition) for partition in data["partitions"])
        members = tuple(Member(**member) for member in data["members"])
        stored = data.get("read_as")
        read_as = stored and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))
        known = {"partitions": partitions, "members": members, "read_as": read_as}
        return cls(**{**data, **known})


@dataclass(frozen=True)
class Table:
    """All input files as one table.

    Attributes:
        files: In lexicographic order of their paths.
        schema: Of the rows that `read_rows` yields, partition columns included.
        keys: Names of the columns that came from a keys file.
        unreadable: Why a column cannot be read, such as one in which the files differ too much.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    keys: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that can be read."""
        return [name for name in self.schema.names if name not in self.unreadable]

    def check(self, columns: Iterable[str]) -> None:
        """Refuse columns that cannot be read, such as those in which the files differ too much.

        Raises:
            InputError: One of them is such a column; the message says which files differ.
        """
        for name in columns:
            if name in self.unreadable:
                raise InputError(self.unreadable[name])
