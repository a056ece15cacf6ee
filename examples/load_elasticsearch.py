# ruff: noqa: INP001  (scripts, to be copied)
"""Bring an index of Elasticsearch (8 or later) or OpenSearch up to date from a change feed.

    python load_elasticsearch.py FEED http://localhost:9200 items [--opensearch]

Run it after every night, or as often as you like: it loads what is new, and doing so again changes
nothing. The last loaded version is kept in the index's own mapping (`_meta`), so that it goes where
the index goes.

Readers search the alias `items`. A full set is loaded into a new index `items-<version>`, to which
the alias moves in one step. Changes go into the index that readers search: while they are loaded,
and until the refresh, readers see some of them, because neither server has transactions.

Set `ES_API_KEY` for a server that wants one. It runs on the standard library and pyarrow.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from change_feed import ChangeSet, pending

META = "batchnorm_tool"


class Server:
    """A server and the alias that readers search."""

    def __init__(self, url: str, alias: str, *, opensearch: bool) -> None:
        self.url, self.alias, self.opensearch = url.rstrip("/"), alias, opensearch

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """Send JSON (or lines of it); None where the path is not there."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
        kind = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        headers = {"Content-Type": kind}
        if key := os.environ.get("ES_API_KEY"):
            headers["Authorization"] = f"ApiKey {key}"
        request = urllib.request.Request(f"{self.url}/{path}", text, headers, method=method)  # noqa: S310  (a server of ours)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise SystemExit(f"{method} {path}: {error.code} {error.read()[:500]!r}") from error

    def index(self) -> str | None:
        """The index that the alias points to."""
        return next(iter(self.call("GET", f"_alias/{self.alias}") or ()), None)

    def loaded(self) -> int | None:
        """The version that the index holds."""
        index = self.index()
        found = self.call("GET", f"{index}/_mapping") if index else None
        return found[index]["mappings"].get("_meta", {}).get(META) if found and index else None

    def create(self, index: str, change: ChangeSet) -> None:
        """An empty index with a field for the inner product of vectors."""
        width, vector = change.manifest["width"], change.vector
        similarity = "dot_product" if change.manifest["norm"] == "l2" else "max_inner_product"
        field: dict[str, Any] = {"type": "dense_vector", "dims": width, "similarity": similarity}
        settings: dict[str, Any] = {}
        if self.opensearch:
            method = {"name": "hnsw", "space_type": "innerproduct", "engine": "faiss"}
            field = {"type": "knn_vector", "dimension": width, "method": method}
            settings = {"index.knn": True}
        mappings = {"properties": {vector: field}}
        self.call("DELETE", index)
        self.call("PUT", index, {"mappings": mappings, "settings": settings})

    def bulk(self, lines: list[dict[str, Any]]) -> None:
        """Index or delete documents; deleting one that is not there is no error."""
        if not lines:
            return
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        answer = self.call("POST", "_bulk", body) or {}
        results = [outcome for item in answer.get("items", []) for outcome in item.values()]
        failed = [one for one in results if one["status"] >= 300 and one["status"] != 404]
        if failed or not results:
            raise SystemExit(f"{len(failed)} documents were refused, such as: {failed[:1]}")


def document_id(change: ChangeSet, row: dict[str, Any]) -> str:
    """A single key as text; several keys as a JSON list."""
    keys = [row[name] for name in change.keys]
    return str(keys[0]) if len(keys) == 1 else json.dumps(keys, default=str)


def load(server: Server, change: ChangeSet) -> None:
    """Load one change set, and remember its version last."""
    change.check()
    index = server.index()
    if change.builds_on is None:
        index = f"{server.alias}-{change.version}"
        server.create(index, change)
    for rows in change.upserts():
        lines: list[dict[str, Any]] = []
        for row in rows:
            action = {"index": {"_index": index, "_id": document_id(change, row)}}
            lines += [action, {**change.payload(row), change.vector: row[change.vector]}]
        server.bulk(lines)
    for rows in change.deletes():
        ids = [document_id(change, row) for row in rows]
        server.bulk([{"delete": {"_index": index, "_id": number}} for number in ids])
    server.call("POST", f"{index}/_refresh")
    server.call("PUT", f"{index}/_mapping", {"_meta": {META: change.version}})
    if change.builds_on is None:
        switch(server, str(index))


def switch(server: Server, index: str) -> None:
    """Let the alias point to a new index, and remove the one before."""
    before = server.index()
    actions: list[dict[str, Any]] = [{"add": {"index": index, "alias": server.alias}}]
    if before and before != index:
        actions.append({"remove": {"index": before, "alias": server.alias}})
    server.call("POST", "_aliases", {"actions": actions})
    if before and before != index:
        server.call("DELETE", before)


def main() -> None:
    """Load all that is new."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("feed", type=Path)
    parser.add_argument("url")
    parser.add_argument("alias")
    parser.add_argument("--opensearch", action="store_true")
    arguments = parser.parse_args()
    server = Server(arguments.url, arguments.alias, opensearch=arguments.opensearch)
    for change in pending(arguments.feed, server.loaded()):
        load(server, change)
        print(f"version {change.version}: {change.manifest['rows']} rows")  # noqa: T201


if __name__ == "__main__":
    main()
