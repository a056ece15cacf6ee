"""Inputs that hold only what changed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from batchnorm_tool import verify
from batchnorm_tool.errors import InputError
from tests.commands.refresh.nightly import LOOSE, Nightly, firsts, items, units

FIRST = dict.fromkeys(range(30), 0)
DELTA: dict[str, Any] = {"store__mode": "delta"}
DELETE: dict[str, Any] = {**DELTA, "store__delete_column": "gone"}


def gone(edits: dict[int, int], deleted: set[int], **columns: Any) -> pa.Table:
    flags = [True if key in deleted else None if key % 2 else False for key in edits]
    return items(edits, gone=pa.array(flags, pa.bool_()), **columns)


def test_what_a_delta_lacks_stays(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    before = nightly.rows()
    seen.clear()
    night = nightly.night({3: 1, 4: 0, 40: 0}, **DELTA)
    assert seen == firsts({3: 1, 40: 0})
    rows = night.rows
    assert (rows["in"], rows["new"], rows["changed"], rows["same"]) == (3, 1, 1, 1)
    assert (rows["vanished"], rows["live"]) == (0, 31)
    assert nightly.vectors() == units({**FIRST, 3: 1, 40: 0})
    found = nightly.rows()
    assert all(found[key] == before[key] for key in FIRST if key != 3)
    assert verify(nightly.store).rows == 31


def test_rows_are_deleted_where_the_column_says_so(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    seen.clear()
    edits = {1: 0, 2: 1, 3: 0, 4: 1, 77: 0}
    night = nightly.night(gone(edits, {1, 4, 77}), **DELETE)
    assert (night.rows["vanished"], night.rows["changed"], night.rows["live"]) == (2, 1, 28)
    assert night.rows["new"] == 0
    assert seen == firsts({2: 1})
    expected = {key: 1 if key == 2 else 0 for key in FIRST if key not in (1, 4)}
    assert nightly.vectors() == units(expected)
    assert verify(nightly.store).rows == 28


def test_the_features_of_a_deleted_row_are_not_looked_at(nightly: Nightly) -> None:
    nightly.night(FIRST)
    kind = items(FIRST).schema.field("x").type
    table = gone({1: 0}, {1}).set_column(1, "x", pa.array([None], kind))
    nightly.night(table, **DELETE)
    assert nightly.vectors() == units({key: 0 for key in FIRST if key != 1})


def test_a_deleted_row_may_come_back(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    nightly.night(gone({1: 0}, {1}), **DELETE)
    seen.clear()
    night = nightly.night(gone({1: 0}, set()), **DELETE)
    assert (night.rows["new"], night.rows["reused"], night.rows["predicted"]) == (1, 1, 0)
    assert seen == set()
    assert nightly.vectors() == units(FIRST)


def test_deletes_alone_need_no_prediction(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    seen.clear()
    nightly.night(gone(dict.fromkeys(FIRST, 0), {*FIRST}), **DELETE)
    assert seen == set()
    assert nightly.rows() == {}


@pytest.mark.parametrize("edits", [{}, {3: 0, 4: 0}], ids=["empty", "the same rows"])
def test_a_delta_without_a_change_is_nothing_to_do(nightly: Nightly, edits: dict[int, int]) -> None:
    nightly.night(FIRST)
    night = nightly.night(edits, **DELTA)
    assert (night.state, night.version, night.rows["live"]) == ("nothing to do", 1, 30)


def test_a_delete_of_what_is_not_there_is_nothing_to_do(nightly: Nightly) -> None:
    nightly.night(FIRST)
    assert nightly.night(gone({77: 0}, {77}), **DELETE).state == "nothing to do"


def test_touched_rows_of_a_delta(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST)
    seen.clear()
    nightly.night(items({3: 0}, label=["new"]), **DELTA)
    assert seen == set()
    assert nightly.rows()[3]["label"] == "new"
    assert nightly.vectors() == units(FIRST)


def test_a_store_may_begin_with_a_delta(nightly: Nightly) -> None:
    nightly.night(gone(FIRST, {5}), **DELETE)
    assert nightly.vectors() == units({key: 0 for key in FIRST if key != 5})
    assert verify(nightly.store).rows == 29


def test_a_full_night_follows_a_delta(nightly: Nightly, seen: set[float]) -> None:
    nightly.night(FIRST, **DELTA)
    nightly.night({3: 1, 40: 0}, **DELTA)
    seen.clear()
    night = nightly.night({**FIRST, 3: 1})
    assert seen == set()
    assert (night.rows["vanished"], night.rows["same"]) == (1, 30)
    assert nightly.vectors() == units({**FIRST, 3: 1})


def test_rows_that_a_delta_lacks_have_nulls_in_a_new_column(nightly: Nightly) -> None:
    nightly.night(FIRST)
    table = items({3: 0, 4: 1}, price=[3.0, 4.0])
    nightly.night(table, input__passthrough=["label", "price"], **DELTA)
    prices = {key: row["price"] for key, row in nightly.rows().items()}
    assert prices == {**dict.fromkeys(FIRST), 3: 3.0, 4: 4.0}
    assert nightly.vectors() == units({**FIRST, 4: 1})
    assert verify(nightly.store).rows == 30


def test_a_column_that_cannot_take_a_new_type_is_refused(nightly: Nightly) -> None:
    nightly.night(FIRST)
    before = nightly.rows()
    with pytest.raises(InputError, match=r"`label`: .* Expected: string\. Received: int64\."):
        nightly.night(items({3: 1}, label=[3]), **DELTA)
    assert nightly.rows() == before
    assert nightly.night({3: 1}, **DELTA).version is not None
    assert nightly.vectors() == units({**FIRST, 3: 1})


def test_a_limit_on_vanished_rows_counts_deletes(nightly: Nightly) -> None:
    nightly.night(FIRST)
    limits = {"gate": {**LOOSE, "input": {**LOOSE["input"], "vanished": 0.05}}}
    held = nightly.held(gone(dict.fromkeys(range(5), 0), {0, 1}), limits, **DELETE)
    (finding,) = [each for each in held["gate"]["findings"] if not each["passed"]]
    assert finding["limit"] == "gate.input.vanished"


def test_a_delete_column_holds_booleans(nightly: Nightly) -> None:
    nightly.night(FIRST)
    with pytest.raises(InputError, match=r"`store\.delete_column` names it\. Expected booleans"):
        nightly.night(items({3: 1}, gone=[1]), **DELETE)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"normalize": {"norm": "l1"}}, r"A new vector space \(norm l2 → l1\)"),
        ({"output": {"dtype": "float16"}}, "The vector type changes from float32 to float16"),
    ],
    ids=["space", "type"],
)
def test_a_delta_cannot_compute_every_row_anew(
    nightly: Nightly, values: dict[str, Any], what: str
) -> None:
    nightly.night(FIRST)
    before = nightly.rows()
    with pytest.raises(
        InputError, match=f"`store.mode: delta` cannot be used for this refresh: {what}"
    ):
        nightly.night({3: 1}, **values, **DELTA)
    assert nightly.rows() == before
    assert nightly.staged() == []
    nightly.night({**FIRST, 3: 1}, **values, store__on_new_space="publish")
    assert nightly.rows().keys() == before.keys()
    assert nightly.night({3: 1}, **values, **DELTA).state == "nothing to do"
