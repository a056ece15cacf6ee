# ruff: noqa: INP001  (scripts, to be copied)
"""Bring a collection of Qdrant up to date from a change feed.

    python load_qdrant.py FEED http://localhost:6333 items [--state FILE]

Run it after every night, or as often as you like: it loads what is new, and doing so again changes
nothing. The last loaded version is kept in a file (`FEED.<collection>.qdrant.json` unless `--state`
says otherwise); without that file everything is loaded anew from the newest full set.

Readers search the alias `items`. A full set is loaded into a new collection `items-<version>`, to
which the alias moves in one step. Changes go into the collection that readers search: while they
are loaded, readers see some of them, because Qdrant has no transactions.

Set `QDRANT_API_KEY` for a server that wants one. It runs on the standard library and pyarrow.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from change_feed import ChangeSet, pending

NAMESPACE = uuid.UUID("6f1c3c1e-0d0e-4b8e-9c55-7f0b6a3f2a10")


class Server:
    """A server and the alias that readers search."""

    def __init__(self, url: str, alias: str) -> None:
        self.url, self.alias = url.rstrip("/"), alias

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON and return the result; None where the path is not there."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("QDRANT_API_KEY"):
            headers["api-key"] = key
        text = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", text, headers, method=method)  # noqa: S310  (a server of ours)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                return json.loads(answer.read())["result"]
        except urllib.error.HTTPError as error:
            if error.code == 404 and method in {"GET", "DELETE"}:
                return None
            raise SystemExit(f"{method} {path}: {error.code} {error.read()[:500]!r}") from error

    def collection(self) -> str | None:
        """The collection that the alias points to."""
        aliases = self.call("GET", "aliases")["aliases"]
        found = [one["collection_name"] for one in aliases if one["alias_name"] == self.alias]
        return found[0] if found else None

    def create(self, collection: str, width: int) -> None:
        """An empty collection for the inner product of unit vectors."""
        self.call("DELETE", f"collections/{collection}")
        self.call(
            "PUT", f"collections/{collection}", {"vectors": {"size": width, "distance": "Dot"}}
        )


def point_id(change: ChangeSet, row: dict[str, Any]) -> int | str:
    """A single key that is a whole number from 0 on as it is; others as a UUID made of them."""
    keys = [row[name] for name in change.keys]
    if len(keys) == 1 and isinstance(keys[0], int) and keys[0] >= 0:
        return keys[0]
    return str(uuid.uuid5(NAMESPACE, json.dumps(keys, default=str)))


def new_name(server: Server, change: ChangeSet) -> str:
    """The name of a new collection, never of the one that readers search."""
    name = f"{server.alias}-{change.version}"
    return f"{name}-again" if name == server.collection() else name


def load(server: Server, change: ChangeSet) -> None:
    """Load one change set."""
    change.check()
    collection = server.collection()
    if change.builds_on is None:
        collection = new_name(server, change)
        server.create(collection, change.manifest["width"])
    for rows in change.upserts():
        points = [
            {
                "id": point_id(change, row),
                "vector": row[change.vector],
                "payload": change.payload(row),
            }
            for row in rows
        ]
        server.call("PUT", f"collections/{collection}/points?wait=true", {"points": points})
    for rows in change.deletes():
        ids = [point_id(change, row) for row in rows]
        server.call("POST", f"collections/{collection}/points/delete?wait=true", {"points": ids})
    if change.builds_on is None:
        switch(server, str(collection))


def switch(server: Server, collection: str) -> None:
    """Let the alias point to a new collection, and remove the one before."""
    before = server.collection()
    created = {"collection_name": collection, "alias_name": server.alias}
    actions: list[dict[str, Any]] = [{"create_alias": created}]
    if before:
        actions.insert(0, {"delete_alias": {"alias_name": server.alias}})
    server.call("POST", "collections/aliases", {"actions": actions})
    if before and before != collection:
        server.call("DELETE", f"collections/{before}")


def main() -> None:
    """Load all that is new."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("feed", type=Path)
    parser.add_argument("url")
    parser.add_argument("alias")
    parser.add_argument("--state", type=Path)
    arguments = parser.parse_args()
    name = f"{arguments.feed.name}.{arguments.alias}.qdrant.json"
    state = arguments.state or arguments.feed.with_name(name)
    server = Server(arguments.url, arguments.alias)
    known = json.loads(state.read_text())["version"] if state.exists() else None
    for change in pending(arguments.feed, known if server.collection() else None):
        load(server, change)
        remember(state, change.version)
        print(f"version {change.version}: {change.manifest['rows']} rows")  # noqa: T201


def remember(state: Path, version: int) -> None:
    """Write the version in one step."""
    aside = state.with_name(f"{state.name}.new")
    aside.write_text(json.dumps({"version": version}))
    aside.replace(state)


if __name__ == "__main__":
    main()
