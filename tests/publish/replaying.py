"""A loader of a change feed that keeps its rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.storage.checked_json import verified_json


class Loader:
    """Replays change sets by the rules that `batchnorm_tool.publish.changes` states."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.rows: dict[tuple[Any, ...], pa.Table] = {}
        self.schema: pa.Schema | None = None

    def catch_up(self, feed: Path) -> None:
        versions = sorted(int(path.name) for path in feed.iterdir() if path.name.isdigit())
        sets = {
            version: verified_json((feed / f"{version}/manifest.json").read_bytes())
            for version in versions
        }
        start = max((v for v in versions if sets[v]["builds_on"] is None), default=None)
        if start is not None and (self.version is None or self.version < start):
            self.load(feed, start, sets[start])
        for version in versions:
            if sets[version]["builds_on"] == self.version:
                self.load(feed, version, sets[version])

    def load(self, feed: Path, version: int, told: dict[str, Any]) -> None:
        keys = told["columns"]["keys"]
        if told["builds_on"] is None:
            self.rows.clear()
        for path in sorted((feed / f"{version}/upserts").iterdir()):
            table = pq.read_table(path)
            self.schema = table.schema
            for number, key in enumerate(keys_of(table, keys)):
                self.rows[key] = table.slice(number, 1)
        for key in keys_of(pq.read_table(feed / f"{version}/deletes.parquet"), keys):
            self.rows.pop(key, None)
        self.version = version
        assert len(self.rows) == told["rows"]

    def table(self) -> pa.Table:
        assert self.schema is not None
        return pa.concat_tables([self.schema.empty_table(), *self.rows.values()]).combine_chunks()


def keys_of(table: pa.Table, keys: list[str]) -> list[tuple[Any, ...]]:
    return [*zip(*(table[name].to_pylist() for name in keys), strict=True)]
