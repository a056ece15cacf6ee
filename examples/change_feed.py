# ruff: noqa: INP001  (scripts, to be copied)
"""Reading a change feed, as `publish: {to: changes}` writes it; both loaders here use it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROWS_AT_A_TIME = 500


@dataclass(frozen=True)
class ChangeSet:
    """One version of the feed.

    Attributes:
        directory: `FEED/<version>`.
        manifest: What its `manifest.json` says.
    """

    directory: Path
    manifest: dict[str, Any]

    @property
    def version(self) -> int:
        """The version that a loader holds afterwards."""
        return int(self.manifest["version"])

    @property
    def builds_on(self) -> int | None:
        """The version that a loader must hold before; None for a full set."""
        base = self.manifest["builds_on"]
        return None if base is None else int(base)

    @property
    def keys(self) -> list[str]:
        """Names of the key columns."""
        return list(self.manifest["columns"]["keys"])

    @property
    def vector(self) -> str:
        """Name of the vectors' column."""
        return str(self.manifest["columns"]["vector"])

    def check(self) -> None:
        """Compare every file with its checksum, before any of it is loaded."""
        for file in self.manifest["files"]:
            with (self.directory / file["path"]).open("rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() != file["sha256"]:
                    damaged = self.directory / file["path"]
                    raise SystemExit(f"{damaged} is not what its manifest says: copy it again.")

    def upserts(self) -> Iterator[list[dict[str, Any]]]:
        """Rows to write, some at a time."""
        for path in sorted((self.directory / "upserts").glob("*.parquet")):
            yield from _rows(path)

    def deletes(self) -> Iterator[list[dict[str, Any]]]:
        """Keys of rows to remove, some at a time."""
        return _rows(self.directory / "deletes.parquet")

    def payload(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as JSON, without its vector."""
        return {name: _plain(value) for name, value in row.items() if name != self.vector}


def _plain(value: Any) -> Any:
    """A value that JSON has: dates as text, and NaN, which JSON has not, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME):
            if batch.num_rows:
                yield batch.to_pylist()


def pending(feed: Path, loaded: int | None) -> list[ChangeSet]:
    """The change sets to load, in order, for a loader that holds version `loaded` (or nothing).

    Where none builds on that version any more, the newest full set begins the list.
    """
    sets = {found.version: found for found in _sets(feed)}
    chain = _chain(sets, loaded)
    if chain is None:
        full = [number for number, found in sets.items() if found.builds_on is None]
        chain = _chain(sets, max(full)) if full else None
        if chain is None:
            raise SystemExit(
                f"{feed} has no change set that builds on version {loaded}, and no full set with "
                "all that follow it. Load a full snapshot, such as the target `parquet` writes."
            )
        chain = [sets[max(full)], *chain]
    return chain


def _sets(feed: Path) -> Iterator[ChangeSet]:
    for directory in feed.iterdir():
        # One without a manifest is being removed.
        if directory.name.isdigit() and (directory / "manifest.json").exists():
            yield ChangeSet(directory, json.loads((directory / "manifest.json").read_text()))


def _chain(sets: dict[int, ChangeSet], loaded: int | None) -> list[ChangeSet] | None:
    """What leads from `loaded` to the newest version; None where nothing does."""
    if loaded is None:
        return None
    following = {found.builds_on: found for found in sets.values() if found.builds_on is not None}
    chain = []
    while loaded in following:
        chain.append(following[loaded])
        loaded = chain[-1].version
    return chain if loaded == max(sets, default=None) else None
