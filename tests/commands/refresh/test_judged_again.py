"""Rows that another policy, or another library, makes something else of, with the same features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import RefreshResult, environment, refresh, verify
from batchnorm_tool.commands.refresh.changes import detect
from batchnorm_tool.commands.refresh.refresh import plan_refresh
from batchnorm_tool.display import plural
from batchnorm_tool.errors import BadRows
from batchnorm_tool.store.index import read_index
from batchnorm_tool.store.state import STATUS, index_path
from tests.commands.refresh.nightly import Nightly, features, items, unit

FIRST = dict.fromkeys(range(20), 0)
ZERO, NULL, HUGE = 3, 4, 5
# What the model sees of the rows that it can take, by which they are known again.
SEEN = {ZERO: 0.0, HUGE: float(np.float32(3e38))}
QUARANTINE = {"input__invalid": "quarantine", "normalize__zero": "quarantine"}
KEEP = {"input__invalid": "quarantine", "normalize__zero": "keep"}
REMOVE = {**QUARANTINE, "store__bad_rows": "remove"}
DELTA = {"store__mode": "delta"}


def bad(*keys: int, edits: Mapping[int, int] = FIRST) -> pa.Table:
    """An input in which these rows give a vector of zeros, have no features, or overflow."""
    made = {ZERO: [0.0] * 8, NULL: None, HUGE: [3e38] * 8}
    table = items(edits)
    x = [made[key] if key in keys else features(key, edit).tolist() for key, edit in edits.items()]
    return table.set_column(1, "x", pa.array(x, table.schema.field("x").type))


ALL = bad(ZERO, NULL, HUGE)


def found(nightly: Nightly) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """What readers find, and what is remembered of every row."""
    path = index_path(nightly.state.pointer().live or 0)
    tables = read_index(nightly.state.storage, path, ["id", STATUS])
    statuses = {row["id"]: row[STATUS] for table in tables for row in table.to_pylist()}
    return nightly.rows(without=["version"]), statuses


def first_load(nightly: Nightly, table: pa.Table, values: Mapping[str, Any]) -> Any:
    """What a new store holds of an input."""
    path = nightly.path / "fresh"
    path.mkdir()
    fresh = Nightly(path, nightly.sections)
    fresh.night(table, **values)
    return found(fresh)


def announced(
    nightly: Nightly, values: Mapping[str, Any], **flags: bool
) -> tuple[RefreshResult, list[str]]:
    """A night over the same input, and all that it says."""
    lines: list[str] = []
    return refresh(nightly.job(**values), announce=lines.append, **flags), lines


@dataclass(frozen=True)
class Change:
    """Another policy: rows that may have been good before, which are judged, and why."""

    before: dict[str, Any]
    after: dict[str, Any]
    judged: set[int]
    why: str
    were_good: bool = False


CHANGES = {
    "zeros kept": Change(QUARANTINE, KEEP, {ZERO}, "`normalize.zero` was quarantine and is keep"),
    "zeros set aside": Change(
        KEEP, QUARANTINE, {ZERO}, "`normalize.zero` was keep and is quarantine"
    ),
    "stale rows removed": Change(
        QUARANTINE,
        REMOVE,
        {ZERO, NULL, HUGE},
        "`store.bad_rows` was keep and is remove",
        were_good=True,
    ),
    "both": Change(
        KEEP,
        REMOVE,
        {ZERO, NULL, HUGE},
        "`store.bad_rows` was keep and is remove, `normalize.zero` was keep and is quarantine",
        were_good=True,
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("memory", [2**40, 1], ids=["in memory", "in buckets"])
def test_after_another_policy_the_store_is_what_a_first_load_gives(
    encoded: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch, change: Change, memory: int
) -> None:
    monkeypatch.setattr(detect, "available_memory", lambda: memory)
    before, after, judged = change.before, change.after, change.judged
    if change.were_good:
        encoded.night(FIRST, **before)
    encoded.night(ALL, **before)
    seen.clear()
    planned = plan_refresh(encoded.job(**after))
    night, lines = announced(encoded, after)
    (line,) = [line for line in lines if "judged again" in line]
    rows = plural(len(judged), "row")
    assert line == f"{rows} with unchanged features to be judged again: {change.why}."
    assert planned["notes"] == [line]
    assert planned["rows"]["recomputed"] == night.rows["recomputed"] == len(judged)
    assert night.state == "published"
    assert seen == {SEEN[key] for key in judged & SEEN.keys()}
    assert night.rows["predicted"] == len(seen)
    assert (night.rows["same"], night.rows["changed"]) == (20 - len(judged), 0)
    assert night.rows["live"] + night.rows["quarantined"] == 20
    assert verify(encoded.store).rows == night.rows["live"]
    seen.clear()
    again, lines = announced(encoded, after)
    assert again.state == "nothing to do"
    assert [line for line in lines if "judged again" in line] == []
    assert seen == set()
    assert found(encoded) == first_load(encoded, ALL, after)


@pytest.mark.parametrize(
    ("key", "name"),
    [(NULL, "input__invalid"), (HUGE, "normalize__nonfinite"), (ZERO, "normalize__zero")],
)
def test_a_remembered_row_breaks_a_policy_that_is_fail_now(
    encoded: Nightly, key: int, name: str
) -> None:
    encoded.night(bad(key), **QUARANTINE)
    before = found(encoded)
    with pytest.raises(BadRows, match=f"{key}"):
        encoded.night(None, **QUARANTINE | {name: "fail"})
    assert (found(encoded), encoded.state.recorded()) == (before, [1])
    assert encoded.night(None, **QUARANTINE).state == "nothing to do"


def test_a_delta_judges_the_rows_that_it_has(encoded: Nightly, seen: set[float]) -> None:
    encoded.night(bad(ZERO), **QUARANTINE)
    encoded.night({7: 1}, **KEEP, **DELTA)
    assert found(encoded)[1][ZERO] == "quarantined: zero_vector"
    seen.clear()
    # Tonight's policy is last night's, and the row was not judged by it.
    night = encoded.night(bad(ZERO, edits={ZERO: 0, 8: 0}), **KEEP, **DELTA)
    assert (night.rows["recomputed"], night.rows["predicted"], night.rows["live"]) == (1, 1, 20)
    assert seen == {0.0}
    assert encoded.night(None, **KEEP, **DELTA).state == "nothing to do"
    assert encoded.vectors()[ZERO] == unit(np.zeros(4, np.float32))


@pytest.mark.parametrize("last", [bad(NULL), FIRST], ids=["set aside", "stale"])
@pytest.mark.parametrize(
    "why", ["the device or a library is another", "asked for by `--retry-quarantined`"]
)
def test_rows_on_which_the_model_failed_are_tried_again(
    encoded: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch, last: Any, why: str
) -> None:
    encoded.night(last, **QUARANTINE)
    encoded.night(bad(NULL, HUGE), **QUARANTINE)
    before = found(encoded)
    real, asked = environment.versions, "retry" in why
    if not asked:
        monkeypatch.setattr(environment, "versions", lambda names: {**real(names), "keras": "9"})
    line = f"1 row with unchanged features to be judged again: {why}."
    job = encoded.job(**QUARANTINE)
    assert (line in plan_refresh(job)["notes"]) is not asked
    assert line in plan_refresh(job, retry_quarantined=asked)["notes"]
    seen.clear()
    night, lines = announced(encoded, QUARANTINE, retry_quarantined=asked)
    assert seen == {SEEN[HUGE]}
    assert (night.rows["recomputed"], night.rows["predicted"]) == (1, 1)
    assert [said for said in lines if "judged again" in said] == [line]
    assert found(encoded) == before
    assert encoded.night(None, **QUARANTINE).state == "nothing to do"
