"""The loaders in `examples/` against stand-ins: no real server can be installed here.

Each stand-in keeps documents in memory and answers the few requests that the loader makes, as the
server's documentation says that it would.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.publish import open_target
from tests.publish.publications import (
    Publication,
    Section,
    Store,
    a_month,
    integers,
    pairs,
    replaced,
    rows,
    texts,
)

EXAMPLES = Path(__file__).parent.parent / "examples"
LOADERS = ["load_elasticsearch", "load_qdrant"]


class StandIn:
    """A server in memory.

    Attributes:
        indexes: Documents by id, of each index or collection.
        aliases: Index by alias.
        meta: What the mapping of an index remembers (Elasticsearch alone).
        requests: What was asked for.
        fail_after: The number of requests after which none is answered.
        created: What each index was created with.
    """

    url = ""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.indexes: dict[str, dict[Any, Any]] = {}
        self.aliases: dict[str, str] = {}
        self.meta: dict[str, Any] = {}
        self.requests: list[str] = []
        self.fail_after = 10**9
        self.created: dict[str, Any] = {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if len(self.requests) > self.fail_after:
            return 503, {}
        return self.respond(method, path.partition("?")[0].strip("/").split("/"), body)

    def respond(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def live(self, alias: str = "items") -> dict[Any, Any]:
        return self.indexes[self.aliases[alias]]


class Elasticsearch(StandIn):
    """Indexes, aliases, `_meta` of a mapping, and `_bulk`."""

    def respond(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        match method, parts:
            case "GET", ["_alias", alias]:
                index = self.aliases.get(alias)
                return (200, {index: {"aliases": {alias: {}}}}) if index else (404, {})
            case "GET", [index, "_mapping"]:
                return 200, {index: {"mappings": {"_meta": self.meta.get(index, {})}}}
            case "PUT", [index, "_mapping"]:
                self.meta[index] = json.loads(body)["_meta"]
            case "PUT", [index]:
                self.indexes[index], self.meta[index] = {}, {}
                self.created[index] = json.loads(body)
            case "DELETE", [index]:
                return (200, {}) if self.indexes.pop(index, None) is not None else (404, {})
            case "POST", ["_bulk"]:
                return 200, {"items": list(self.bulk(body))}
            case "POST", ["_aliases"]:
                for action in json.loads(body)["actions"]:
                    self.act(action)
        return 200, {}

    def bulk(self, body: bytes) -> Iterator[dict[str, Any]]:
        lines = iter(json.loads(line) for line in body.splitlines())
        for action in lines:
            ((kind, where),) = action.items()
            documents = self.indexes[where["_index"]]
            if kind == "index":
                documents[where["_id"]] = next(lines)
                yield {"index": {"status": 201}}
            else:
                there = documents.pop(where["_id"], None) is not None
                yield {"delete": {"status": 200 if there else 404}}

    def act(self, action: dict[str, Any]) -> None:
        ((kind, what),) = action.items()
        if kind == "add":
            self.aliases[what["alias"]] = what["index"]


class Qdrant(StandIn):
    """Collections, aliases, and points by id."""

    def respond(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        asked = json.loads(body) if body else {}
        match method, parts:
            case "GET", ["aliases"]:
                names = [
                    {"alias_name": alias, "collection_name": collection}
                    for alias, collection in self.aliases.items()
                ]
                return 200, {"result": {"aliases": names}}
            case "PUT", ["collections", name]:
                self.indexes[name], self.created[name] = {}, asked
            case "DELETE", ["collections", name]:
                self.indexes.pop(name, None)
            case "PUT", ["collections", name, "points"]:
                for point in asked["points"]:
                    self.indexes[name][point["id"]] = point
            case "POST", ["collections", "aliases"]:
                for action in asked["actions"]:
                    self.act(action)
            case "POST", ["collections", name, "points", "delete"]:
                for number in asked["points"]:
                    self.indexes[name].pop(number, None)
        return 200, {"result": True}

    def act(self, action: dict[str, Any]) -> None:
        ((kind, what),) = action.items()
        if kind == "create_alias":
            self.aliases[what["alias_name"]] = what["collection_name"]
        else:
            self.aliases.pop(what["alias_name"], None)


@pytest.fixture(params=[Elasticsearch, Qdrant])
def stand_in(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    server: StandIn = request.param()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, answer = server.answer(self.command, self.path, self.rfile.read(length))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield server
        listening.shutdown()
        thread.join()


@pytest.fixture
def load(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """The loader of the stand-in, run in this process."""
    monkeypatch.syspath_prepend(EXAMPLES)
    name = f"load_{type(stand_in).__name__.lower()}"

    def run(*flags: str) -> None:
        module = __import__(name)
        place = [str(tmp_path / "feed"), stand_in.url, "items"]
        monkeypatch.setattr(sys, "argv", [name, *place, *flags])
        module.main()

    yield run
    for module in ("change_feed", *LOADERS):
        sys.modules.pop(module, None)


def feed(tmp_path: Path, nights: list[Publication], keep: int = 9) -> None:
    """Publish the nights that are not in the feed yet."""
    target = open_target(Section("changes", path=str(tmp_path / "feed"), keep=keep))
    there = max((int(path.name) for path in (tmp_path / "feed").glob("[0-9]*")), default=0)
    held = {"version": there} if there else None
    for night in nights[there:]:
        held = target.publish(night, held)


def vectors(server: StandIn) -> list[list[float]]:
    return sorted(document["vector"] for document in server.live().values())


def check(server: StandIn, publication: Publication) -> None:
    """The same vectors and titles, under as many ids."""
    assert vectors(server) == sorted(publication.table["vector"].to_pylist())
    found = [document.get("payload", document) for document in server.live().values()]
    titles = sorted(str(document["title"]) for document in found)
    assert titles == sorted(map(str, publication.table["title"].to_pylist()))


@pytest.mark.parametrize("keys", [integers, texts])
def test_a_month_is_replayed_night_by_night_and_at_once(
    keys: Any, stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month(keys)
    for count in (1, 2, 3, 6, 7):
        feed(tmp_path, nights[:count])
        load()
        check(stand_in, nights[count - 1])
    assert len(stand_in.indexes) == 1


def test_nothing_new_writes_nothing(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:2])
    load()
    stand_in.requests.clear()
    load()
    assert {request.partition(" ")[0] for request in stand_in.requests} == {"GET"}


def test_composite_keys(stand_in: StandIn, load: Callable[..., None], tmp_path: Path) -> None:
    store = Store(["shop", "number"])
    full = rows(pairs(("a", 1), ("a", 2), ("b'", 1)), 1)
    nights = [store.put(1, full), store.put(2, replaced(full, rows(pairs(("a", 3)), 2)))]
    feed(tmp_path, nights)
    load()
    check(stand_in, nights[1])


def test_broken_off_at_any_request_it_ends_in_the_same_state(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:3])
    load()
    needed = len(stand_in.requests)
    for count in range(1, needed):
        stand_in.forget()
        restart(stand_in, load, tmp_path, count)
        check(stand_in, nights[2])


def restart(stand_in: StandIn, load: Callable[..., None], tmp_path: Path, count: int) -> None:
    """Load for the first time, broken off, and then again."""
    for state in tmp_path.glob("*.qdrant.json"):
        state.unlink()
    stand_in.fail_after = count
    with pytest.raises(SystemExit):
        load()
    stand_in.fail_after = 10**9
    load()


def test_a_loader_that_fell_behind_starts_from_the_newest_full_set(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:1])
    load()
    feed(tmp_path, nights, keep=1)
    load()
    check(stand_in, nights[6])


def test_a_feed_that_leads_nowhere_is_refused(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:6], keep=2)
    with pytest.raises(SystemExit, match="no change set that builds on version None"):
        load()


def test_a_damaged_file_is_not_loaded(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:2])
    path = tmp_path / "feed/1/upserts/part-000000.parquet"
    flipped = bytearray(path.read_bytes())
    flipped[100] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(SystemExit, match="is not what its manifest says"):
        load()
    assert not stand_in.aliases


@pytest.mark.parametrize("stand_in", [Elasticsearch], indirect=True)
def test_the_index_is_made_for_its_server(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:1])
    load()
    field = {"type": "dense_vector", "dims": 4, "similarity": "dot_product"}
    assert stand_in.created["items-1"]["mappings"] == {"properties": {"vector": field}}
    stand_in.aliases.clear()
    load("--opensearch")
    created = stand_in.created["items-1"]
    assert created["settings"] == {"index.knn": True}
    assert created["mappings"]["properties"]["vector"]["type"] == "knn_vector"


@pytest.mark.parametrize("stand_in", [Qdrant], indirect=True)
def test_the_state_of_qdrant_lies_where_it_is_told_to(
    stand_in: StandIn, load: Callable[..., None], tmp_path: Path
) -> None:
    _, nights = a_month()
    feed(tmp_path, nights[:1])
    load("--state", str(tmp_path / "mine.json"))
    assert json.loads((tmp_path / "mine.json").read_text()) == {"version": 1}
    (tmp_path / "mine.json").unlink()
    load("--state", str(tmp_path / "mine.json"))
    check(stand_in, nights[0])
    assert list(stand_in.indexes) == ["items-1-again"]


@pytest.mark.parametrize("name", LOADERS)
def test_the_scripts_start_by_themselves(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "feed url alias" in finished.stdout
