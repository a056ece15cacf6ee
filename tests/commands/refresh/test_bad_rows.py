"""Rows that tonight's features or prediction make bad: set aside, kept as they were, or fatal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import read, rollback, verify
from batchnorm_tool.errors import BadRows
from batchnorm_tool.store.index import read_index
from batchnorm_tool.store.state import STATUS, index_path, quarantined_path
from tests.commands.refresh.nightly import Nightly, features, firsts, items, unit, units
from tests.kill_points import tree

FIRST = dict.fromkeys(range(20), 0)
REASONS = {"null": "null_feature", "nan": "nonfinite_prediction"}
BOTH = pytest.mark.parametrize("kind", ["null", "nan"])


@pytest.fixture
def nightly(nightly: Nightly) -> Nightly:
    """A store that sets bad input aside."""
    source = {"path": "in", "key": "id", "features": {"x": "x"}, "passthrough": ["label"]}
    nightly.sections = {"input": {**source, "invalid": "quarantine"}}
    return nightly


def night(edits: Mapping[int, int], bad: Mapping[int, str], **columns: Any) -> pa.Table:
    """An input in which some rows are bad: by a missing feature, or by NaN in the prediction."""
    table = items(edits, **columns)
    x = table["x"].combine_chunks().to_pylist()
    for place, key in enumerate(edits):
        if key in bad:
            number = edits[key] + 0.5
            x[place] = None if bad[key] == "null" else [*[number] * 7, float("nan")]
    return table.set_column(1, "x", pa.array(x, table.schema.field("x").type))


def index(nightly: Nightly) -> dict[int, str]:
    """The status of every row that the live version remembers."""
    path = index_path(nightly.state.pointer().live or 0)
    tables = read_index(nightly.state.storage, path, ["id", STATUS])
    return {row["id"]: row[STATUS] for table in tables for row in table.to_pylist()}


def adds_up(rows: Mapping[str, int]) -> bool:
    return rows["in"] == rows["live"] + rows["quarantined"]


@BOTH
def test_a_bad_row_without_a_vector_is_remembered_and_not_stored(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    found = nightly.night(night(FIRST, {3: kind}))
    assert (found.rows["quarantined"], found.rows["stale"], found.rows["live"]) == (1, 0, 19)
    assert adds_up(found.rows)
    assert nightly.vectors() == units({key: 0 for key in FIRST if key != 3})
    status = index(nightly)
    assert status.pop(3) == f"quarantined: {REASONS[kind]}"
    assert status == dict.fromkeys(status, "good")
    seen.clear()
    again = nightly.night(night(FIRST, {3: kind}))
    assert (again.state, again.rows["quarantined"], again.rows["live"]) == ("nothing to do", 1, 19)
    assert seen == set()
    assert verify(nightly.store).rows == 19


@BOTH
def test_a_row_that_turns_bad_keeps_its_last_good_vector(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    nightly.night(FIRST)
    before = nightly.vectors()
    found = nightly.night(night({**FIRST, 4: 1}, {3: kind}, label=["new"] * 20))
    assert (found.rows["changed"], found.rows["stale"], found.rows["quarantined"]) == (2, 1, 0)
    assert found.rows["live"] == 20
    assert adds_up(found.rows)
    rows = nightly.rows()
    assert nightly.vectors() == {**before, 4: units({4: 1})[4]}
    assert rows[3]["status"] == index(nightly)[3] == f"stale: {REASONS[kind]}"
    assert (rows[3]["label"], rows[3]["version"]) == ("new", 2)
    assert {row["status"] for key, row in rows.items() if key != 3} == {"good"}
    seen.clear()
    again = nightly.night(night({**FIRST, 4: 1}, {3: kind}, label=["new"] * 20))
    assert (again.state, again.rows["stale"]) == ("nothing to do", 1)
    assert seen == set()
    assert verify(nightly.store).rows == 20


def test_a_stale_row_whose_features_change_is_predicted_again(
    nightly: Nightly, seen: set[float]
) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "nan"}))
    seen.clear()
    found = nightly.night(night({**FIRST, 3: 1}, {3: "nan"}))
    assert (found.rows["changed"], found.rows["predicted"], found.rows["stale"]) == (1, 1, 1)
    assert seen == {1.5}
    assert nightly.vectors() == units(FIRST)
    assert (nightly.rows()[3]["version"], nightly.rows()[3]["status"][:5]) == (3, "stale")
    seen.clear()
    found = nightly.night({**FIRST, 3: 2})
    assert seen == firsts({3: 2})
    assert (found.rows["stale"], found.rows["live"]) == (0, 20)
    assert nightly.vectors() == units({**FIRST, 3: 2})
    assert nightly.rows()[3]["status"] == "good"


@BOTH
def test_a_stale_row_that_is_as_it_was_is_good_without_the_model(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: kind}))
    seen.clear()
    found = nightly.night(FIRST)
    assert (found.rows["changed"], found.rows["reused"], found.rows["predicted"]) == (1, 1, 0)
    assert seen == set()
    assert nightly.vectors() == units(FIRST)
    assert nightly.rows()[3]["status"] == "good"


@BOTH
def test_a_stale_row_may_vanish(nightly: Nightly, kind: str) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: kind}))
    rest = {key: 0 for key in FIRST if key != 3}
    found = nightly.night(rest)
    assert (found.rows["vanished"], found.rows["stale"], found.rows["live"]) == (1, 0, 19)
    assert nightly.vectors() == units(rest)
    assert index(nightly).keys() == rest.keys()
    assert verify(nightly.store).rows == 19


def test_a_touched_stale_row_stays_stale(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "nan"}))
    before = nightly.rows(without=["passthrough_hash"])[3]
    seen.clear()
    found = nightly.night(night(FIRST, {3: "nan"}, label=["new"] * 20))
    assert (found.rows["touched"], found.rows["stale"]) == (20, 1)
    assert seen == set()
    row = nightly.rows(without=["passthrough_hash"])[3]
    assert row == {**before, "label": "new", "version": 3}
    assert nightly.night().state == "nothing to do"


@BOTH
def test_a_quarantined_row_that_becomes_good_is_stored(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    nightly.night(night(FIRST, {3: kind}))
    seen.clear()
    found = nightly.night({**FIRST, 3: 1})
    assert seen == firsts({3: 1})
    assert (found.rows["changed"], found.rows["quarantined"], found.rows["live"]) == (1, 0, 20)
    assert nightly.vectors() == units({**FIRST, 3: 1})
    assert index(nightly)[3] == "good"


@BOTH
def test_a_quarantined_row_that_vanishes_is_forgotten(nightly: Nightly, kind: str) -> None:
    nightly.night(night(FIRST, {3: kind}))
    found = nightly.night({key: 0 for key in FIRST if key != 3})
    assert (found.rows["vanished"], found.rows["quarantined"], found.rows["live"]) == (0, 0, 19)
    assert 3 not in index(nightly)


@BOTH
def test_a_quarantined_row_that_changes_and_stays_bad_stays_quarantined(
    nightly: Nightly, seen: set[float], kind: str
) -> None:
    nightly.night(night(FIRST, {3: kind}))
    seen.clear()
    other = "nan" if kind == "null" else "null"
    found = nightly.night(night({**FIRST, 3: 1}, {3: other}))
    assert (found.rows["changed"], found.rows["stale"], found.rows["quarantined"]) == (1, 0, 1)
    assert seen == ({1.5} if other == "nan" else set())
    assert index(nightly)[3] == f"quarantined: {REASONS[other]}"
    assert nightly.vectors() == units({key: 0 for key in FIRST if key != 3})


def test_a_quarantined_row_may_get_another_label(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(night(FIRST, {3: "nan"}))
    seen.clear()
    labels = ["new" if key == 3 else f"label {key}" for key in FIRST]
    assert nightly.night(night(FIRST, {3: "nan"}, label=labels)).rows["quarantined"] == 1
    assert seen == set()


@BOTH
def test_bad_rows_may_be_removed(nightly: Nightly, seen: set[float], kind: str) -> None:
    remove = {"store__bad_rows": "remove"}
    nightly.night(FIRST, **remove)
    found = nightly.night(night({**FIRST, 4: 1}, {3: kind}), **remove)
    assert (found.rows["stale"], found.rows["quarantined"], found.rows["live"]) == (0, 1, 19)
    assert adds_up(found.rows)
    rest = {key: edit for key, edit in {**FIRST, 4: 1}.items() if key != 3}
    assert nightly.vectors() == units(rest)
    assert index(nightly)[3].startswith("quarantined: ")
    seen.clear()
    assert nightly.night(None, **remove).state == "nothing to do"
    assert seen == set()
    assert nightly.night({**FIRST, 4: 1}, **remove).rows["reused"] == 1
    assert nightly.vectors() == units({**FIRST, 4: 1})


def test_a_stale_row_is_not_removed_while_it_is_unchanged(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "nan"}))
    nightly.night(night({**FIRST, 3: 1}, {3: "nan"}), store__bad_rows="remove")
    assert nightly.vectors() == units({key: 0 for key in FIRST if key != 3})


@pytest.mark.parametrize(
    ("kind", "values"),
    [("null", {"input__invalid": "fail"}), ("nan", {"normalize": {"nonfinite": "fail"}})],
    ids=["input", "prediction"],
)
def test_a_bad_row_may_be_fatal(
    nightly: Nightly, seen: set[float], kind: str, values: dict[str, Any]
) -> None:
    nightly.night(FIRST, **values)
    before = nightly.rows()
    with pytest.raises(BadRows, match="3") as caught:
        nightly.night(night({**FIRST, 4: 1}, {3: kind}), **values)
    assert caught.value.exit_code == 4
    assert nightly.rows() == before
    assert (nightly.state.pointer().waiting, nightly.state.recorded()) == (None, [1])
    seen.clear()
    nightly.night({**FIRST, 4: 1}, **values)
    assert seen == firsts({4: 1})
    assert nightly.vectors() == units({**FIRST, 4: 1})


def test_vectors_of_zeros_are_kept_or_set_aside(nightly: Nightly) -> None:
    nightly.night(FIRST)
    table = items({**FIRST, 3: 1})
    x = table["x"].to_pylist()
    x[3] = [0.0] * 8
    zeros = table.set_column(1, "x", pa.array(x, table.schema.field("x").type))
    kept = nightly.night(zeros)
    assert kept.rows["stale"] == 0
    assert nightly.vectors() == {**units(FIRST), 3: unit(np.zeros(8, np.float32))}
    aside = {"normalize": {"zero": "quarantine"}}
    nightly.night({**FIRST, 3: 2}, **aside)
    found = nightly.night(zeros, **aside)  # version 2 has this row's vector, as it is not wanted
    assert (found.rows["stale"], found.rows["reused"]) == (1, 0)
    assert nightly.vectors() == units({**FIRST, 3: 2})


def test_a_new_space_has_no_last_good_vector(nightly: Nightly) -> None:
    publish = {"store__on_new_space": "publish", "normalize": {"norm": "none"}}
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "nan"}))
    found = nightly.night(night(FIRST, {3: "nan", 4: "null"}), **publish)
    assert (found.rows["stale"], found.rows["quarantined"], found.rows["live"]) == (0, 2, 18)
    assert adds_up(found.rows)
    rest = {key: (features(key).tobytes(), 1.0) for key in FIRST if key not in (3, 4)}
    assert nightly.vectors() == rest
    assert verify(nightly.store).rows == 18


def test_stale_rows_take_up_new_columns(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "nan"}))
    prices = [float(key) for key in FIRST]
    nightly.night(night(FIRST, {3: "nan", 4: "null"}, price=prices), input__passthrough=["price"])
    rows = nightly.rows()
    assert [rows[key]["price"] for key in FIRST] == prices
    assert {key for key, row in rows.items() if row["status"] != "good"} == {3, 4}
    assert nightly.vectors() == units(FIRST)
    assert verify(nightly.store).rows == 20


def test_a_delta_with_bad_rows(nightly: Nightly) -> None:
    delta = {"store__mode": "delta"}
    nightly.night(FIRST)
    found = nightly.night(night({3: 1, 30: 0, 4: 1}, {3: "nan", 30: "null"}), **delta)
    assert (found.rows["stale"], found.rows["quarantined"], found.rows["live"]) == (1, 1, 20)
    assert nightly.vectors() == units({**FIRST, 4: 1})
    found = nightly.night({30: 1}, **delta)
    assert (found.rows["stale"], found.rows["quarantined"], found.rows["live"]) == (1, 0, 21)
    assert nightly.vectors() == units({**FIRST, 4: 1, 30: 1})


def test_a_rollback_brings_stale_rows_back(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    stale = night(FIRST, {3: "nan", 21: "nan"})
    nightly.night(stale)
    before = nightly.rows()
    nightly.night({**FIRST, 3: 1})
    rollback(nightly.store)
    assert nightly.rows() == before
    assert index(nightly)[3] == "stale: nonfinite_prediction"
    assert read(nightly.store).to_numpy()[0].tolist().count(3) == 1
    assert verify(nightly.store).rows == 20
    seen.clear()
    assert nightly.night(stale).state == "nothing to do"
    assert seen == set()


def test_a_rollback_remembers_quarantined_rows(nightly: Nightly, seen: set[float]) -> None:
    first = night(FIRST, {3: "nan", 4: "null"})
    nightly.night(first)
    before = index(nightly)
    nightly.night({**FIRST, 5: 1})
    for target in (1, 2, 3):  # the last one is a rollback itself
        found = rollback(nightly.store, target)
        assert verify(nightly.store).rows == found.rows["live"]
        assert adds_up({**found.rows, "in": 20})
    assert index(nightly) == before
    seen.clear()
    again = nightly.night(first)
    assert (again.state, again.rows["quarantined"], again.rows["live"]) == ("nothing to do", 2, 18)
    assert seen == set()


def test_a_rollback_counts_no_rows_that_nobody_remembers(nightly: Nightly) -> None:
    nightly.night(night(FIRST, {3: "nan"}))
    nightly.night({**FIRST, 5: 1})
    record = nightly.state.existing_record(1)  # as versions of this tool that kept none left it
    kept = quarantined_path(1)
    files = tuple(file for file in record.files if file.path != kept)
    nightly.state.put_record(replace(record, files=files))
    nightly.state.storage.remove(kept)
    found = rollback(nightly.store, 1)
    assert (found.rows["quarantined"], found.rows["live"]) == (0, len(index(nightly))) == (0, 19)
    assert verify(nightly.store).rows == 19


def test_too_many_bad_rows_wait_and_name_the_first(nightly: Nightly) -> None:
    nightly.night(FIRST)
    limits = {"gate": {**nightly.job().model_dump()["gate"], "output": {"bad": 0.1}}}
    held = nightly.held(night(FIRST, dict.fromkeys(range(4), "nan")), limits)
    (finding,) = [each for each in held["gate"]["findings"] if not each["passed"]]
    assert (finding["limit"], finding["measured"]) == ("gate.output.bad", 0.2)
    assert [row["key"] for row in finding["rows"]] == [{"id": key} for key in range(4)]
    assert {row["reason"] for row in finding["rows"]} == {"nonfinite_prediction"}
    assert "id 0: nonfinite_prediction" in held["message"]


def test_nothing_of_a_bad_night_is_left(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(night(FIRST, {3: "null"}))
    assert [name for name in tree(nightly.path / "items.lance.state") if "night/" in name] == []
