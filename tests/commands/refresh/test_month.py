"""A simulated month of a store with every kind of target.

After each night it shows that

- the live version is what a run from scratch over that night's items makes of them, vector and norm
  bit for bit, whatever files, row groups, order and compression they came in; a row that is bad
  tonight keeps its last good vector and says why; a bad row that never had one is left out;
- a row that nothing happened to is not written again: it keeps the version in which it was written;
- the change feed, replayed by a loader, the Parquet snapshot, the view in a real PostgreSQL and the
  FAISS index hold the live version;
- `history`, `show` and `verify` agree with it.

A night that is held (a broken limit, a new space, a store on hold) leaves the dataset and all
targets as they were, to the byte. Nights are killed at random steps; the same command then
finishes, and in between a reader finds last night or tonight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psycopg
import pyarrow as pa
import pytest

from batchnorm_tool import RefreshResult, accept, release, rollback
from batchnorm_tool.commands.run import prepare
from batchnorm_tool.models.batching import ModelPredictor
from batchnorm_tool.pipeline import worker
from tests.commands.refresh.dying import Killed, Steps
from tests.commands.refresh.month import Item, Month, Shop, encoder, rows_of
from tests.postgres import database, server

__all__ = ["database", "server"]

ROWS = 400
SEED = 20_261


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows met a model, call by call; each model is loaded once."""
    calls: list[int] = []
    real = ModelPredictor.predict

    def predict(self: Any, arrays: Mapping[str, np.ndarray]) -> Any:
        calls.append(len(arrays["x"]))
        return real(self, arrays)

    monkeypatch.setattr(ModelPredictor, "predict", predict)
    load = worker.load_model
    loaded: dict[str, Any] = {}

    def once(model: Any, content: str, engine: Any) -> Any:
        if content not in loaded:
            loaded[content] = load(model, content, engine)
        return loaded[content]

    monkeypatch.setattr(worker, "load_model", once)
    monkeypatch.setattr(prepare, "load_model", once)
    return calls


@pytest.fixture
def month(
    tensorflow: None, tmp_path: Path, database: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Month]:
    # No test cuts the power.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    models = [encoder(tmp_path / f"{name}.keras", seed) for seed, name in enumerate("ab", 1)]
    shop = Shop(np.random.default_rng(SEED))
    shop.add(ROWS)
    return Month(tmp_path, models, database, shop)


class Killer:
    """Kills commands at random steps, and runs them again until they come to their end."""

    def __init__(self, month: Month) -> None:
        self.random = np.random.default_rng(SEED)
        self.month, self.kills, self._steps = month, 0, 300

    def run(self, command: Callable[[], RefreshResult]) -> RefreshResult:
        seen = [self._rows()]
        while True:
            steps = Steps(kill_at=int(self.random.integers(1, self._steps)))
            try:
                with steps.taken():
                    night = command()
            except Killed:
                self.kills += 1
                seen.append(self._rows())
                # The next one may end where this one ended, and come farther.
                self._steps = max(self._steps, len(steps.names) + 50)
            else:
                after = self._rows()
                assert all(rows in (seen[0], after) for rows in seen)
                return night

    def _rows(self) -> Any:
        table = lance.dataset(self.month.store).to_table()
        return rows_of(table, ["vector", "norm", "status", "version"])


@dataclass
class Nights:
    """Nights of a month, each of which is checked.

    Attributes:
        month: The store.
        met: How many rows met a model, call by call.
        killer: Kills some of them.
    """

    month: Month
    met: list[int]
    killer: Killer

    def publish(
        self, command: Callable[[], RefreshResult] | None = None, *, anew: bool = False
    ) -> RefreshResult:
        """The items as they are, laid out anew, are published by a command."""
        if command is None:
            self.month.lay_out()
        waiting = [number for number, state in self.month.states.items() if state == "waiting"]
        self.met.clear()
        night = (command or self.month.refresh)()
        assert night.version is not None
        self.month.states |= dict.fromkeys(waiting, "superseded")
        self.month.publishes(night.version, anew=anew)
        self.month.check()
        return night

    def usual(self) -> RefreshResult:
        self.month.shop.change()
        return self.publish()

    def killed(self) -> None:
        self.month.shop.change()
        self.month.lay_out()
        self.publish(lambda: self.killer.run(self.month.refresh))

    def hold(self, reason: str) -> Mapping[str, Any]:
        """The input as it is laid out waits; the report."""
        self.met.clear()
        night = self.month.held()
        assert night["reason"] == reason
        self.month.check()
        return night

    def accept(self, version: int, *, anew: bool = False) -> None:
        """What waits is published, without asking the model; the command may be killed."""

        def command() -> RefreshResult:
            night = accept(self.month.store, version)
            assert self.met == []
            return night

        self.publish(lambda: self.killer.run(command), anew=anew)

    def drift(self, towards: float) -> None:
        """A large part of the items becomes alike."""
        shop = self.month.shop
        for key in sorted(shop.items)[: round(0.4 * len(shop.items))]:
            features = np.r_[np.full(7, towards) + shop.random.normal(size=7) / 10, 0.0]
            shop.items[key] = Item.of(features, shop.items[key].price)

    def hold_drift(self) -> int:
        """Items that became alike are told by what the model makes of them; the version."""
        night = self.hold("gate")
        failed = broken(night)
        assert {limit.rpartition(".")[0] for limit in failed} == {"gate.output"}, failed
        version: int = night["version"]
        return version


def broken(night: Mapping[str, Any]) -> list[str]:
    return [found["limit"] for found in night["gate"]["findings"] if not found["passed"]]


def test_a_month(month: Month, met: list[int]) -> None:
    nights = Nights(month, met, Killer(month))
    for week in (
        usual_week,
        week_of_a_new_model,
        week_of_drift,
        week_of_a_rollback,
        week_of_deltas,
    ):
        week(nights)
    assert len(month.states) >= 30
    assert nights.killer.kills >= 6


def usual_week(nights: Nights) -> None:
    """Small changes; nothing but another layout; a new passed-through column; a broken feature."""
    month = nights.month
    load = nights.publish()
    assert (load.rows["new"], load.rows["predicted"]) == (ROWS, ROWS)
    nights.killed()
    for night in (nights.usual(), nights.usual(), nights.usual()):
        rows = night.rows
        assert 0 < rows["predicted"] + rows["reused"] <= rows["new"] + rows["changed"] < 30
    month.lay_out()
    nights.met.clear()
    assert month.refresh().state == "nothing to do"
    assert nights.met == []
    month.check()
    month.passthrough = ("price", "tag")
    night = nights.publish()
    assert (night.rows["predicted"], night.rows["touched"]) == (0, night.rows["live"])
    nights.killed()
    nights.usual()
    whole = month.shop.items
    month.shop.items = {key: item.with_feature(2, 0) for key, item in whole.items()}
    month.lay_out()
    failed = broken(nights.hold("gate"))
    assert nights.met == [], "stopped before the model"
    assert "gate.input.constant_feature" in failed
    assert all(limit.startswith("gate.input.") for limit in failed)
    month.shop.items = whole
    nights.usual()
    nights.killed()


def week_of_a_new_model(nights: Nights) -> None:
    """Another model waits, so does the next night with it, which is accepted."""
    month = nights.month
    month.model = 1
    month.lay_out()
    first = nights.hold("new space")
    assert first["rows"]["recomputed"] > 0.9 * ROWS
    assert first["rows"]["stale"] == 0, "an old vector is none of the new space"
    assert first["rows"]["quarantined"] > 0
    month.shop.change()
    month.lay_out()
    second = nights.hold("new space")
    assert second["version"] == first["version"] + 1
    nights.accept(second["version"], anew=True)
    nights.usual()
    nights.killed()


def week_of_drift(nights: Nights) -> None:
    """Drift is rejected, the same command is told so again, and the night after is accepted."""
    month = nights.month
    nights.drift(1.7)
    month.lay_out()
    version = nights.hold_drift()
    assert nights.hold_drift() == version
    assert nights.met == []
    month.shop.change()
    month.lay_out()
    nights.accept(nights.hold_drift())
    nights.usual()
    nights.usual()


def week_of_a_rollback(nights: Nights) -> None:
    """Back to the night before; two nights wait until the hold ends."""
    month = nights.month
    back = nights.killer.run(lambda: rollback(month.store))
    assert back.version is not None
    month.returns_to(back.version - 2, back.version)
    month.check()
    for _ in range(2):
        month.shop.change()
        month.lay_out()
        nights.hold("hold")
    assert release(month.store)["released"]
    night = nights.publish(month.refresh)
    assert night.rows["reused"] > 0, "the night that was taken back had these vectors"
    nights.killed()


def week_of_deltas(nights: Nights) -> None:
    """Drift is rejected; then nights tell of changes alone, and one of them is rejected too."""
    month = nights.month
    sound = dict(month.shop.items)
    nights.drift(-1.7)
    month.lay_out()
    nights.hold_drift()
    month.shop.items = sound

    def killed() -> RefreshResult:
        return nights.killer.run(month.refresh)

    for number in range(6):
        before = dict(month.shop.items)
        month.shop.change()
        if number == 2:
            sound = dict(month.shop.items)
            nights.drift(-1.7)
            lay_out_changes(month, before)
            nights.hold_drift()
            month.shop.items = sound
        lay_out_changes(month, before)
        nights.publish(killed if number == 4 else month.refresh)
    month.sections = {}
    for _ in range(3):
        nights.usual()
    nights.killed()


def lay_out_changes(month: Month, before: Mapping[int, Item]) -> None:
    """Tell of changes alone: rows that differ, some that do not, and keys to delete."""
    items = month.shop.items
    told = [key for key, item in items.items() if before.get(key) != item or key % 50 == 0]
    gone = {key: item for key, item in before.items() if key not in items}
    table = pa.concat_tables([month.shop.table(told), Shop(month.shop.random, gone).table()])
    flags = [False] * len(told) + [True] * len(gone)
    store = month.job().to_dict()["store"]
    month.sections = {"store": {**store, "mode": "delta", "delete_column": "gone"}}
    month.lay_out(table.append_column("gone", [flags]))
