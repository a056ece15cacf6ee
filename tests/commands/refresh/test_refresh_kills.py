"""Killed or failed at any step, the same command finishes: the same rows, the same history."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from batchnorm_tool import accept, history, refresh, rollback, verify
from batchnorm_tool.errors import BatchnormToolError, Held
from batchnorm_tool.storage.checked_json import verified_json
from batchnorm_tool.store.state import index_path
from tests.commands.refresh.dying import Steps, counted, dies, kill_in_child, kinds, names_below
from tests.commands.refresh.month import vectors_in_index
from tests.commands.refresh.nightly import LOOSE, Nightly, items, rows_of

ROWS = 30
TARGETS = [
    {"to": "changes", "path": "feed"},
    {"to": "parquet", "path": "snapshots", "keep": 2},
    {"to": "faiss", "path": "items.faiss"},
]
SECTIONS = {
    "input": {
        "path": "in",
        "key": "id",
        "features": {"x": "x"},
        "passthrough": ["label"],
        "invalid": "quarantine",
    },
    "store": {"path": "items.lance", "keep": {"count": 2}},
    "publish": TARGETS,
}


@dataclass
class Scenario:
    """A command and where it begins.

    Attributes:
        folder: Where it works.
        command: The function.
        arguments: What it takes.
        steps: The names of its steps, where nothing disturbs it.
        old: What readers find before it.
        new: What they find after it.
        end: All that is there after it.
    """

    folder: Path
    command: Callable[..., Any]
    arguments: tuple[Any, ...]
    steps: list[str] = field(default_factory=list)
    old: Any = None
    new: Any = None
    end: Any = None

    @classmethod
    def of(cls, folder: Path, command: Callable[..., Any], *arguments: Any) -> Scenario:
        """Note what the command does, undisturbed, to what lies in a directory."""
        shutil.copytree(folder, aside(folder))
        scenario = cls(folder, command, arguments)
        scenario.old = readers_find(folder)
        scenario.steps = counted(scenario.run)
        scenario.new, scenario.end = readers_find(folder), ending(folder)
        assert scenario.new != scenario.old
        return scenario

    def run(self) -> object:
        return self.command(*self.arguments)

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(aside(self.folder), self.folder)

    def assert_finishes(self, what: str, *, is_done: bool = False) -> None:
        """Readers find one version whole, and the same command ends as if nothing had been."""
        found = readers_find(self.folder)
        for place, rows in found.items():
            assert rows in (self.old[place], self.new[place]), (place, what)
        if not is_done:
            with Steps().taken():
                self.run()
        assert readers_find(self.folder) == self.new, what
        assert ending(self.folder) == self.end, what


def aside(folder: Path) -> Path:
    return folder.with_name(folder.name + "-before")


def readers_find(folder: Path) -> dict[str, Any]:
    """The rows that each kind of reader finds; `None` where there is nothing yet."""
    pointer, store = folder / "snapshots" / "current", folder / "items.lance"
    is_there = any((store / "_versions").glob("*.manifest"))
    found: dict[str, Any] = {
        "store": rows_of(lance.dataset(str(store)).to_table()) if is_there else None,
        "parquet": None,
        "faiss": None,
    }
    if pointer.exists():
        found["parquet"] = rows_of(
            ds.dataset(pointer.parent / pointer.read_text().strip()).to_table()
        )
    if (folder / "items.faiss").exists():
        found["faiss"] = vectors_in_index(folder / "items.faiss")
    return found


def ending(folder: Path) -> dict[str, Any]:
    """What is there after a command: history, files of the state, feed; the store is sound."""
    store = str(folder / "items.lance")
    told = history(store)
    verify(store)
    names = [name for name in names_below(Path(store + ".state")) if not name.startswith("_state")]
    assert [name for name in names if name.startswith("index/")] == [index_path(told["live"])]
    assert not any(name.startswith("night/") or name == "night" for name in names)
    return {
        "history": [told_of(night) for night in told["nights"]],
        "store": (told["live"], told["waiting"], told["hold"] and told["hold"]["reason"]),
        "kept": told["kept"],
        "tags": sorted(lance.dataset(store).tags.list()),
        "state": names,
        "feed": fed(folder / "feed"),
        "snapshots": names_below(folder / "snapshots"),
    }


def told_of(night: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what differs each time."""
    passing = ("run_id", "started", "finished", "seconds", "lance_version", "accepted", "input")
    return {name: value for name, value in night.items() if name not in passing}


def fed(feed: Path) -> dict[str, Any]:
    versions = [path for path in feed.iterdir() if path.name.isdigit()]
    told = {path.name: verified_json((path / "manifest.json").read_bytes()) for path in versions}
    names = ("builds_on", "upserts", "deletes", "rows")
    return {name: [manifest[each] for each in names] for name, manifest in told.items() if manifest}


def refreshes(folder: Path) -> object:
    return refresh(Nightly(folder, SECTIONS).job())


def accepts(folder: Path, version: int) -> object:
    return accept(folder / "items.lance", version)


def rolls_back(folder: Path) -> object:
    return rollback(folder / "items.lance")


def tonight(night: int) -> pa.Table:
    """Each night one item comes, one goes, one changes, one gets a label and one is spoilt."""
    keys = [*range(night, ROWS + night)]
    edits = {key: night if key == 10 + night else 0 for key in keys}
    labels = [f"label {key}" + "!" * (key == 15 and night) for key in keys]
    table = items(edits, label=labels)
    if not night:
        return table
    vectors = table["x"].combine_chunks().flatten().to_numpy().reshape(len(keys), -1).copy()
    vectors[20, 0] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return table.set_column(1, "x", column)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def begun(folder: Path, nights: int) -> Nightly:
    """A store after so many nights, and tonight's input."""
    folder.mkdir()
    nightly = Nightly(folder, SECTIONS)
    for night in range(nights):
        nightly.night(tonight(night))
    nightly.put(tonight(nights))
    return nightly


def a_load(folder: Path) -> Scenario:
    begun(folder, 0)
    return Scenario.of(folder, refreshes, folder)


def a_night(folder: Path) -> Scenario:
    begun(folder, 3)
    scenario = Scenario.of(folder, refreshes, folder)
    rows = history(folder / "items.lance")["nights"][-1]["rows"]
    kinds_of_rows = ("new", "changed", "touched", "vanished", "stale")
    assert all(rows[kind] for kind in kinds_of_rows), rows
    return scenario


def a_night_with_a_new_column(folder: Path) -> Scenario:
    """The dataset is written anew, the rows that stay among it."""
    nightly = begun(folder, 2)
    nightly.put(tonight(2).append_column("more", pa.array([*range(ROWS)])))
    return Scenario.of(folder, refreshes_with_more, folder)


def refreshes_with_more(folder: Path) -> object:
    more = {**SECTIONS["input"], "passthrough": ["label", "more"]}
    return refresh(Nightly(folder, {**SECTIONS, "input": more}).job())


def an_acceptance(folder: Path) -> Scenario:
    nightly = begun(folder, 2)
    strict = {**LOOSE, "input": {**LOOSE["input"], "changed": 0}}
    with pytest.raises(Held):
        nightly.night(None, {"gate": strict})
    return Scenario.of(folder, accepts, folder, 3)


def a_rollback(folder: Path) -> Scenario:
    begun(folder, 3)
    return Scenario.of(folder, rolls_back, folder)


# Which of the steps are tried, first and how far apart: a night's are shared by most others.
SCENARIOS = {
    a_load: (0, 7),
    a_night: (1, 4),
    a_night_with_a_new_column: (2, 7),
    an_acceptance: (3, 7),
    a_rollback: (0, 2),
}


@pytest.mark.parametrize("begin", SCENARIOS, ids=lambda begin: begin.__name__)
def test_killed_at_each_kind_of_step(begin: Callable[[Path], Scenario], tmp_path: Path) -> None:
    scenario = begin(tmp_path / "work")
    steps = list(kinds(scenario.steps).items())
    first, apart = SCENARIOS[begin]
    for name, number in steps[first::apart]:
        scenario.reset()
        assert dies(scenario.run, number), name
        scenario.assert_finishes(name)


@pytest.mark.parametrize("begin", [a_night, an_acceptance, a_rollback], ids=lambda x: x.__name__)
def test_killed_again_while_it_recovers(begin: Callable[[Path], Scenario], tmp_path: Path) -> None:
    scenario = begin(tmp_path / "work")
    steps = kinds(scenario.steps)
    for first in ("after commit", "before update", "before cleanup_old_versions"):
        for second in (5, 40, 120):
            if first in steps:  # a rollback removes no versions
                scenario.reset()
                assert dies(scenario.run, steps[first])
                is_done = not dies(scenario.run, second)
                scenario.assert_finishes(f"{first}, then step {second}", is_done=is_done)


def test_a_process_is_killed(tmp_path: Path) -> None:
    """What an exception plays above, played by SIGKILL and a process of its own."""
    scenario = a_night(tmp_path / "work")
    steps = kinds(scenario.steps)
    named = ["before commit", "after commit", "replace work/items.lance.state/store.json"]
    for name in named:
        scenario.reset()
        code = kill_in_child(scenario.command, scenario.arguments, steps[name])
        assert code == -signal.SIGKILL
        scenario.assert_finishes(name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_step_fails(error: int, tmp_path: Path) -> None:
    """Any write may fail, and is told as an error of ours; the same command goes on from there."""
    scenario = a_night(tmp_path / "work")
    failures = 0
    for number in range(error % 7 + 1, len(scenario.steps), 89):
        scenario.reset()
        steps = Steps(fail_at=number, error=error)
        told = failure_of(scenario, steps)
        if told is not None:
            failures += 1
            assert told.exit_code == 1, (steps.names[-1], told)
        scenario.assert_finishes(scenario.steps[number - 1])
    assert failures > 4


REPLACED = ["store.json", "current", "items.faiss", "items.faiss.json"]


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_never_goes_missing(name: str, tmp_path: Path) -> None:
    """The new content is in its place, and then the disk fails."""
    scenario = a_night(tmp_path / "work")
    replaced = [
        step.startswith("replace ") and step.endswith(f"/{name}") for step in scenario.steps
    ]
    scenario.reset()
    steps = Steps(fail_at=replaced.index(True) + 2, error=errno.EIO)
    assert failure_of(scenario, steps) is not None
    assert steps.names[replaced.index(True) + 1].startswith("fsync ")
    scenario.assert_finishes(name)


def failure_of(scenario: Scenario, steps: Steps) -> BatchnormToolError | None:
    """What is told of a step that fails; some are allowed to, such as taking back what may stay."""
    with steps.taken():
        try:
            scenario.run()
        except BatchnormToolError as error:
            return error
    return None
