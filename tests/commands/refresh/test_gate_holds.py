"""Nights that wait: which limit, what stays invisible, and how each of them ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import accept, history, verify
from batchnorm_tool.errors import Damaged, Held, JobError
from batchnorm_tool.gate import findings, output_limits
from tests.commands.refresh.nightly import (
    LOOSE,
    Nightly,
    features,
    firsts,
    items,
    lists,
    unit,
    units,
)
from tests.kill_points import tree
from tests.refresh_records import stored_record
from tests.test_errors import copied

FIRST = dict.fromkeys(range(30), 0)
MANY_ROWS = 1_000  # fewer say little of a deviation
MANY = {**FIRST, **dict.fromkeys(range(10), 1)}
CHANGED = {"gate": {**LOOSE, "input": {**LOOSE["input"], "changed": 0.2}}}
# Norms may grow by a fifth; thirty rows are enough to judge.
NORMS = {"gate": {**LOOSE, "output": {"bad": None, "norm_psi": None, "min_rows": 20}}}
BOTH = {"gate": {**CHANGED["gate"], "output": NORMS["gate"]["output"]}}


def broken(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = record["gate"]["findings"]
    return {finding["limit"]: finding for finding in found if not finding["passed"]}


def longer(factor: float = 3.0) -> pa.Table:
    """The first night with vectors so many times as long."""
    return items(FIRST, x=lists([factor * features(key) for key in FIRST]))


def test_an_input_beyond_a_limit_stops_before_the_model(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST, CHANGED)
    seen.clear()
    held = nightly.held(MANY, CHANGED)
    assert seen == set()
    assert (held["reason"], held["version"], held["state"]) == ("gate", 2, "waiting")
    assert (held["rows"]["changed"], held["rows"]["predicted"]) == (10, 0)
    (finding,) = broken(held).values()
    assert (finding["limit"], finding["allowed"]) == ("gate.input.changed", 0.2)
    assert finding["measured"] == pytest.approx(1 / 3)
    assert "1 limit broken; nothing was published." in held["message"]
    assert "10 changed rows, 33.33 % of 30 live rows" in held["message"]
    assert f"`batchnorm-tool accept {nightly.store} 2` publishes this version" in held["message"]


def broken_features(kind: str) -> tuple[str, dict[str, pa.Array]]:
    x = [features(key) for key in range(MANY_ROWS)]
    if kind == "constant":
        return "constant_feature", {"x": lists([np.ones(8) for _ in x])}
    if kind == "mean":
        return "mean_shift", {"x": lists([one + 5 for one in x])}
    if kind == "deviation":
        return "deviation_ratio", {"x": lists([9 * one for one in x])}
    missing = [None] * 20 + lists(x).to_pylist()[20:]
    return "null_shift", {"x": pa.array(missing, lists(x).type)}


@pytest.mark.parametrize("kind", ["constant", "mean", "deviation", "nulls"])
def test_a_broken_feature_stops_before_the_model(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    nightly.sections = {"gate": {"input": {"changed": None}, "output": LOOSE["output"]}}
    name, columns = broken_features(kind)
    first = dict.fromkeys(range(MANY_ROWS), 0)
    nightly.night(first)
    seen.clear()
    held = nightly.held(items(first, **columns), input__invalid="quarantine")
    assert seen == set()
    assert f"gate.input.{name}" in broken(held)
    assert "`x" in broken(held)[f"gate.input.{name}"]["what"]
    night = nightly.night({**first, 3: 1})
    assert (night.state, night.version) == ("published", 3)
    assert nightly.vectors() == units({**first, 3: 1})


def test_vanished_and_new_rows_have_limits(nightly: Nightly) -> None:
    nightly.night(FIRST)
    limits = {"gate": {"input": {**LOOSE["input"], "vanished": 0.05, "new": 0.1}}}
    held = nightly.held(dict.fromkeys(range(2, 34), 0), limits)
    assert {*broken(held)} == {"gate.input.vanished", "gate.input.new"}
    assert "2 limits broken" in held["message"]


def test_a_night_that_its_input_stopped_is_scored_by_accept(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST, CHANGED)
    nightly.held(MANY, CHANGED)
    shutil.rmtree(nightly.path / "in")
    seen.clear()
    night = accept(nightly.store, 2)
    assert (night.state, night.version, night.rows["predicted"]) == ("published", 2, 10)
    assert seen == firsts(dict.fromkeys(range(10), 1))
    assert nightly.vectors() == units(MANY)
    record = stored_record(nightly.state, 2)
    assert record is not None
    assert (record["state"], record["reason"]) == ("published", None)
    assert record["accepted"]
    assert [*broken(record)] == ["gate.input.changed"]
    assert nightly.staged() == []
    nightly.put(MANY)
    assert nightly.night(None, CHANGED).state == "nothing to do"


def test_what_accept_scores_waits_again_where_it_breaks_a_limit(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST, BOTH)
    first = nightly.held(longer(), BOTH)
    assert [*broken(first)] == ["gate.input.changed"]
    before = tree(Path(nightly.store))
    with pytest.raises(Held) as caught:
        accept(nightly.store, 2)
    assert caught.value.night is not None
    assert "gate.output.norm_quantiles" in broken(dict(caught.value.night))
    assert caught.value.night["version"] == 2
    assert tree(Path(nightly.store)) == before
    seen.clear()
    assert accept(nightly.store, 2).state == "published"
    assert seen == set()
    expected = {key: unit(3.0 * features(key)) for key in FIRST}
    assert {key: norm for key, (_, norm) in nightly.vectors().items()} == {
        key: norm for key, (_, norm) in expected.items()
    }


def test_vectors_beyond_a_limit_wait_with_the_worst_rows(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST, NORMS)
    held = nightly.held(longer(), NORMS)
    assert (held["reason"], held["rows"]["predicted"]) == ("gate", 30)
    found = [each for each in held["gate"]["findings"] if not each["passed"]]
    assert {each["limit"] for each in found} == {"gate.output.norm_quantiles"}
    assert {each["scope"] for each in found} == {"changed", "whole"}
    assert found[0]["measured"] == pytest.approx(2)
    assert found[0]["rows"]
    assert {*found[0]["rows"][0]["key"]} == {"id"}
    seen.clear()
    shutil.rmtree(nightly.path / "in")
    assert accept(nightly.store, 2).state == "published"
    assert seen == set()
    assert nightly.vectors() == {key: unit(3.0 * features(key)) for key in FIRST}
    assert verify(nightly.store).rows == 30


def test_the_same_command_waits_again_and_computes_nothing(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST, NORMS)
    first = nightly.held(longer(), NORMS)
    seen.clear()
    again = nightly.held(None, NORMS)
    assert seen == set()
    assert (again["version"], again["rows"], again["gate"]) == (2, first["rows"], first["gate"])
    assert again["started"] == first["started"]
    assert [each["version"] for each in history(nightly.store)["nights"]] == [1, 2]
    assert nightly.state.pointer().next_version == 3


@pytest.mark.parametrize(("limits", "predicted"), [(NORMS, 0), (CHANGED, 30)], ids=["out", "in"])
def test_with_looser_limits_the_same_command_publishes(
    nightly: Nightly, seen: set[float], limits: dict[str, Any], predicted: int
) -> None:
    nightly.night(FIRST, limits)
    nightly.held(longer(), limits)
    seen.clear()
    night = nightly.night(None, {"gate": LOOSE})
    assert (night.state, night.version, len(seen)) == ("published", 2, predicted)
    assert night.record["gate"]["passed"]
    assert nightly.vectors() == {key: unit(3.0 * features(key)) for key in FIRST}


def test_the_same_input_read_as_a_delta_is_another_night(nightly: Nightly) -> None:
    limits = {"gate": {**LOOSE, "input": {**LOOSE["input"], "vanished": 0.1}}}
    nightly.night(FIRST)
    nightly.held(dict.fromkeys(range(20), 0), limits)
    assert nightly.night(None, limits, store__mode="delta").state == "nothing to do"
    assert nightly.vectors() == units(FIRST)


def test_gate_warn_publishes_and_records(nightly: Nightly) -> None:
    nightly.night(FIRST)
    warn = {"gate": {**BOTH["gate"], "action": "warn"}}
    night = nightly.night(longer(), warn)
    assert (night.state, night.version) == ("published", 2)
    record = stored_record(nightly.state, 2)
    assert record is not None
    assert (record["gate"]["action"], record["gate"]["passed"]) == ("warn", False)
    assert {*broken(record)} == {"gate.input.changed", "gate.output.norm_quantiles"}
    assert record["reason"] is None


def test_a_word_makes_the_gate_warn(nightly: Nightly) -> None:
    nightly.night(FIRST)
    night = nightly.night(MANY, {"gate": "warn"})
    assert (night.state, night.record["gate"]["passed"]) == ("published", False)


def test_defaults_stop_a_night_that_changes_too_much(nightly: Nightly) -> None:
    nightly.sections = {"gate": {}}
    nightly.night(FIRST)
    held = nightly.held(dict.fromkeys(range(20), 1))
    assert {*broken(held)} >= {"gate.input.changed", "gate.input.vanished"}


@pytest.mark.parametrize("action", ["hold", "warn"])
def test_what_the_audit_finds_is_never_published(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    nightly.night(FIRST)
    what = "31 rows in, 30 are stored."
    finding = findings.Finding("audit.counts", "audit", 30.0, 31.0, passed=False, what=what)
    monkeypatch.setattr(output_limits, "audit", lambda *_: [finding])
    held = nightly.held({**FIRST, 3: 1}, {"gate": {**LOOSE, "action": action}})
    assert held["reason"] == "audit"
    assert what in held["message"]
    for _ in range(2):
        with pytest.raises(Held, match="31 rows in, 30 are stored"):
            accept(nightly.store, 2)
    assert nightly.vectors() == units(FIRST)


@pytest.mark.parametrize("mode", ["full", "delta"])
@pytest.mark.parametrize("limits", [CHANGED, NORMS], ids=["input", "output"])
def test_a_superseded_candidate_leaves_nothing(
    tmp_path: Path, mode: str, limits: dict[str, Any], seen: set[float]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Nightly(tmp_path / "one"), Nightly(tmp_path / "two")
    values = {"store__mode": mode}
    rejected = longer().slice(0, 25) if mode == "delta" else longer()
    tonight = {4: 1, 50: 0} if mode == "delta" else {**FIRST, 4: 1, 50: 0}
    for each in (one, two):
        each.night(FIRST, **values)
    before, state = tree(Path(one.store)), tree(Path(one.state.root))
    seen.clear()
    one.held(rejected, limits, **values)
    one.put({} if mode == "delta" else FIRST)
    assert one.night(None, limits, **values).state == "nothing to do"
    assert tree(Path(one.store)) == before
    left = tree(Path(one.state.root))
    assert left.keys() - state.keys() == {"nights/000002.json"}
    assert {name for name in state if left[name] != state[name]} == {"store.json"}
    record = stored_record(one.state, 2)
    assert record is not None
    assert record["state"] == "superseded"
    seen.clear()
    found = [each.night(tonight, limits, **values) for each in (one, two)]
    assert [night.state for night in found] == ["published", "published"]
    assert [night.version for night in found] == [3, 2]
    assert seen == firsts({4: 1, 50: 0})
    assert one.rows(without=["version"]) == two.rows(without=["version"])
    assert one.vectors() == units({**FIRST, 4: 1, 50: 0})
    assert [night.rows for night in found] == [found[0].rows] * 2
    assert verify(one.store).rows == 31


def test_the_next_candidate_replaces_the_waiting_one(nightly: Nightly) -> None:
    nightly.night(FIRST, NORMS)
    nightly.held(longer(3), NORMS)
    second = nightly.held(longer(4), NORMS)
    assert second["version"] == 3
    states = {each["version"]: each["state"] for each in history(nightly.store)["nights"]}
    assert states == {1: "published", 2: "superseded", 3: "waiting"}
    before = nightly.rows()
    with pytest.raises(
        JobError,
        match=r"Version 2 of .* accepted: version 3 is waiting, and version 2 is superseded",
    ):
        accept(nightly.store, 2)
    assert nightly.rows() == before
    assert accept(nightly.store, 3).version == 3
    assert nightly.vectors() == {key: unit(4.0 * features(key)) for key in FIRST}


@pytest.mark.parametrize("name", ["night.json", "difference.json"])
def test_a_candidate_that_another_version_staged_has_to_be_staged_again(
    nightly: Nightly, name: str
) -> None:
    nightly.night(FIRST, CHANGED)
    held = nightly.held(MANY, CHANGED)
    path = Path(nightly.state.root) / "night" / name
    path.write_bytes(path.read_bytes().replace(b"{", b"{ ", 1))
    with pytest.raises(Damaged, match=r"staged files of version 2 .* refresh` to stage"):
        accept(nightly.store, held["version"])
    assert nightly.held(None, CHANGED)["version"] > 1
    assert accept(nightly.store, nightly.state.pointer().waiting or 0).state == "published"


def test_a_note_is_text(nightly: Nightly) -> None:
    nightly.night(FIRST)
    with pytest.raises(JobError, match=r"`note` must be text or None. Received: 5"):
        accept(nightly.store, 1, note=5)  # type: ignore[arg-type]


def test_what_waits_survives_pickling(nightly: Nightly) -> None:
    nightly.night(FIRST, CHANGED)
    with pytest.raises(Held) as caught:
        nightly.night(MANY, CHANGED)
    copy = copied(caught.value)
    assert (copy.message, copy.night) == (caught.value.message, caught.value.night)
    assert copy.night["reason"] == "gate"


@pytest.mark.parametrize("version", [1, 2, 9])
def test_what_does_not_wait_cannot_be_accepted(nightly: Nightly, version: int) -> None:
    nightly.night(FIRST)
    nightly.night({**FIRST, 3: 1})
    before = nightly.rows()
    with pytest.raises(JobError, match=f"Version {version} .* be accepted: no version is waiting"):
        accept(nightly.store, version)
    assert nightly.rows() == before


def test_accept_killed_before_it_judged_what_it_scored_shows_it_first(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.night(FIRST, BOTH)
    nightly.held(longer(), BOTH)
    with monkeypatch.context() as patch:
        patch.setattr(output_limits, "evaluate_output", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            accept(nightly.store, 2)
    with pytest.raises(Held, match="norm_quantiles"):
        accept(nightly.store, 2)
    assert accept(nightly.store, 2).state == "published"


def test_a_first_load_waits_where_too_many_rows_are_bad(nightly: Nightly) -> None:
    x = [features(key) for key in FIRST]
    x[3] = np.full(8, np.nan)
    limits = {"gate": {"output": {"bad": 0.01}}}
    held = nightly.held(items(FIRST, x=lists(x)), limits)
    assert (held["kind"], held["version"]) == ("load", 1)
    assert not Path(nightly.store).exists()
    finding = broken(held)["gate.output.bad"]
    assert finding["rows"] == [{"key": {"id": 3}, "reason": finding["rows"][0]["reason"]}]
    assert accept(nightly.store, 1).state == "published"
    assert nightly.vectors() == {key: bits for key, bits in units(FIRST).items() if key != 3}


def test_readers_without_a_tag_never_see_a_candidate(nightly: Nightly) -> None:
    nightly.night(FIRST, NORMS)
    nightly.held(longer(), NORMS)
    dataset = lance.dataset(nightly.store)
    assert {each["version"] for each in dataset.versions()} == {1}
    assert {*dataset.tags.list()} == {"live", "night-1"}
