"""Who reads a store while it changes finds one version whole; who changes it does so alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from batchnorm_tool import refresh, release, rollback, verify
from batchnorm_tool.errors import Busy
from batchnorm_tool.store import transaction
from tests.commands.refresh.nightly import Nightly, items
from tests.postgres import database, server

__all__ = ["database", "server"]

ROWS = 120
Sight = tuple[Any, ...]
SECTIONS = {
    "input": {"path": "in", "key": "id", "features": {"x": "x"}, "passthrough": ["night"]},
    "store": {"path": "items.lance", "keep": {"count": 6}},
    "publish": [
        {"to": "parquet", "path": "snapshots", "keep": 4},
        {"to": "pgvector", "table": "items", "index": "none", "rebuild_above": 0.3},
    ],
}


def sight(table: pa.Table) -> Sight:
    """What tells a version from a mixture of two."""
    nights = table["night"].to_pylist()
    norms = sorted(table["norm"].to_pylist())
    return (table.num_rows, sum(table["version"].to_pylist()), sorted(set(nights)), sum(norms))


@dataclass
class Readers:
    """Threads that read as fast as they can, and all that they found.

    Attributes:
        looks: What each of them does, by name.
        seen: What each found, in order, repetitions left out.
        errors: What went wrong.
        counts: How often each has looked.
    """

    looks: dict[str, Callable[[], Sight]]
    seen: dict[str, list[Sight]] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def reading(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._read, args=look) for look in self.looks.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def wait_for_all(self) -> None:
        """Wait until each of them has begun to look anew, and has found something."""
        wanted = {name: self.counts[name] + 2 for name in self.looks}
        while not self.errors and any(self.counts[name] < wanted[name] for name in wanted):
            time.sleep(0.01)

    def _read(self, name: str, look: Callable[[], Sight]) -> None:
        found = self.seen.setdefault(name, [])
        try:
            is_last = False
            while not is_last:
                is_last = self._stop.is_set()
                last = look()
                if found[-1:] != [last]:
                    found.append(last)
                self.counts[name] += 1
        except BaseException as error:  # noqa: BLE001  (told by the test)
            self.errors.append(error)


def readers_of(nightly: Nightly, dsn: str) -> Readers:
    snapshots = nightly.path / "snapshots"

    def in_store() -> Sight:
        return sight(lance.dataset(nightly.store).to_table())

    def in_snapshot() -> Sight:
        pointer = (snapshots / "current").read_text().strip()
        return sight(ds.dataset(snapshots / pointer).to_table())

    def in_database() -> Sight:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute("SELECT version, night, norm FROM items").fetchall()
        names = ("version", "night", "norm")
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        return sight(pa.table(columns))

    return Readers({"store": in_store, "parquet": in_snapshot, "sql": in_database})


def changed(night: int, few: int = 8) -> pa.Table:
    """One row comes, one goes, a few have other features; all others are as they were."""
    keys = range(night, ROWS + night)
    edits = {key: night if key % ROWS < few else 0 for key in keys}
    return items(edits, night=[night if edits[key] else 0 for key in keys])


def relabelled(night: int, share: float = 1.0) -> pa.Table:
    """Most rows are written anew, with the vectors that they have."""
    nights = [night if key < share * ROWS else 0 for key in range(ROWS)]
    return items(dict.fromkeys(range(ROWS), 0), night=nights)


def test_readers_in_a_loop_never_see_a_mixture(
    nightly: Nightly, server: str, database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.sections = SECTIONS
    nightly.night(relabelled(0))
    readers = readers_of(nightly, server)
    whole = [sight(lance.dataset(nightly.store).to_table())]
    compactions = noted_compactions(monkeypatch)
    nights: list[Callable[[], object]] = [
        *(lambda night=night: nightly.night(changed(night)) for night in (1, 2)),
        *(lambda night=night: nightly.night(relabelled(night, night / 5)) for night in (3, 4)),
        lambda: nightly.night(changed(5)),
        lambda: rollback(nightly.store),
        lambda: (release(nightly.store), nightly.night(relabelled(7))),
        lambda: nightly.night(changed(8)),
        lambda: rollback(nightly.store, to=4),
        lambda: (release(nightly.store), nightly.night(changed(10))),
    ]
    with readers.reading():
        for night in nights:
            night()
            whole.append(sight(lance.dataset(nightly.store).to_table()))
            readers.wait_for_all()
    assert readers.errors == []
    assert any(compactions)
    assert len({*map(repr, whole)}) > 7
    for name, seen in readers.seen.items():
        assert len(seen) > 5, name
        assert all(found in whole for found in seen), name
        assert seen[-1] == whole[-1], name


def noted_compactions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each compaction wrote anything anew."""
    found: list[bool] = []
    really = transaction.compact

    def compact(path: str, versions: dict[int, int]) -> dict[int, int]:
        after = really(path, versions)
        found.append(after != versions)
        return after

    monkeypatch.setattr(transaction, "compact", compact)
    return found


def test_a_reader_that_opened_a_version_before_it_was_compacted_reads_on(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchnorm_tool.commands.refresh import commit

    nightly.sections = {**SECTIONS, "publish": []}
    nightly.night(relabelled(0))
    compactions = noted_compactions(monkeypatch)
    opened: list[Any] = []
    deliver = commit.deliver_live

    def opening(*arguments: Any) -> Any:
        opened.append(lance.dataset(nightly.store))
        return deliver(*arguments)

    monkeypatch.setattr(commit, "deliver_live", opening)
    for night in range(1, 4):
        nightly.night(relabelled(night, 0.6))
        assert sight(opened[-1].to_table()) == sight(lance.dataset(nightly.store).to_table())
    assert any(compactions)
    verify(nightly.store)


@pytest.fixture
def holder(nightly: Nightly) -> Iterator[Callable[..., None]]:
    """Holds the store for a while, or to the end, as a refresh in another thread does."""
    threads: list[threading.Thread] = []
    end = threading.Event()

    def hold(seconds: float | None = None) -> None:
        held = threading.Event()

        def work() -> None:
            with nightly.state.lock():
                held.set()
                end.wait(seconds)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        held.wait()

    yield hold
    end.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "command",
    [
        lambda job, store: refresh(job),
        lambda job, store: rollback(store),
        lambda job, store: release(store),
    ],
    ids=["refresh", "rollback", "release"],
)
def test_another_command_meanwhile_is_told_that_the_store_is_busy(
    command: Callable[..., Any], nightly: Nightly, holder: Callable[..., None]
) -> None:
    nightly.night(relabelled(0))
    holder()
    with pytest.raises(Busy) as told:
        command(nightly.job(), nightly.store)
    assert told.value.exit_code == 5
    assert nightly.state.pointer().live == 1


def test_a_refresh_that_waits_works_afterwards(
    nightly: Nightly, holder: Callable[..., None]
) -> None:
    nightly.night(relabelled(0))
    nightly.put(changed(1))
    holder(0.5)
    assert refresh(nightly.job(), wait_seconds=60).version == 2


def test_of_two_commands_at_once_one_works_and_one_waits(nightly: Nightly) -> None:
    """Two processes with `--wait`: the second finds nothing more to do."""
    nightly.put(relabelled(0))
    (nightly.path / "job.yaml").write_text(
        "input: {path: in, key: id, features: {x: x}}\nstore: {path: items.lance}\n"
    )
    command = [sys.executable, "-m", "batchnorm_tool", "refresh", str(nightly.path / "job.yaml")]
    root = Path(__file__).parent.parent.parent
    both = [subprocess.Popen([*command, "--wait", "2m", "--quiet"], cwd=root) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert nightly.state.recorded() == [1]
    assert lance.dataset(nightly.store).count_rows() == ROWS
