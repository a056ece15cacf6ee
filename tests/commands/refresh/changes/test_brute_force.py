"""The difference against one that a dictionary finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnorm_tool.commands.refresh.changes import source
from tests.commands.refresh.changes.nights import Nights

Row = tuple[object, object, str]
GOOD, STALE, GONE = "good", "stale: null_feature", "quarantined: null_feature"

KEYS = st.integers(0, 12)
FEATURES = st.sampled_from([None, 0.0, 1.0])
SHOPS = st.sampled_from(["", "a", None])
LIVE = st.dictionaries(KEYS, st.tuples(FEATURES, SHOPS, st.sampled_from([GOOD, STALE, GONE])))
TONIGHT = st.dictionaries(KEYS, st.tuples(FEATURES, SHOPS, st.sampled_from([True, False, None])))


def table_of(rows: dict[int, tuple[object, object, object]]) -> pa.Table:
    columns = [list(column) for column in zip(*rows.values(), strict=True)] or [[], [], []]
    return pa.table(
        {
            "id": pa.array([f"k{key}" for key in rows], pa.string()),
            "x": pa.array([[x, x] if x is not None else None for x in columns[0]],
                          pa.list_(pa.float32())),
            "shop": pa.array(columns[1], pa.string()),
            "gone": pa.array(columns[2], pa.bool_()),
        }
    )  # fmt: skip


def expected_of(
    live: dict[int, Row], tonight: dict[int, Row], *, delta: bool, recompute: bool
) -> tuple[Counter[str], dict[str, set[str]], dict[int, int]]:
    counts, sets = Counter(rows_in=len(tonight)), {"changed": set(), "touched": set(), "bad": set()}
    fates = {key: 0 if delta or key in tonight else 2 for key in live}
    for key, (features, shop, gone) in tonight.items():
        known = live.get(key)
        if delta and gone:
            counts["deleted" if known else "unknown_deletes"] += 1
            fates |= {key: 2} if known else {}
            continue
        same = known is not None and known[0] == features
        if known is None or not same or recompute:
            kind = "new" if known is None else "recomputed" if same else "changed"
            sets["bad" if features is None else "changed"].add(f"k{key}")
            counts["bad"] += features is None
        elif known[1] != shop and known[2] != GONE:
            kind = "touched"
            sets["touched"].add(f"k{key}")
        else:
            kind = "same"
        counts[kind] += 1
        fates |= {key: int(kind != "same")} if known else {}
    for key, fate in fates.items():
        if fate == 2:
            counts["forgotten" if live[key][2] == GONE else "vanished"] += 1
    return +counts, sets, fates


CASES = st.fixed_dictionaries(
    {
        "live": LIVE,
        "tonight": TONIGHT,
        "delta": st.booleans(),
        "recompute": st.booleans(),
        "memory": st.sampled_from([None, 1]),
    }
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=CASES)
def test_as_a_dictionary_finds_it(monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 4)
    live, tonight, recompute = case["live"], case["tonight"], case["recompute"]
    with TemporaryDirectory() as root:
        nights = Nights(Path(root))
        columns = {key: (x, shop, None) for key, (x, shop, _) in live.items()}
        statuses = {f"k{key}": status for key, (_, _, status) in live.items()}
        nights.publish(table_of(columns), statuses)
        given_ = replace(nights.tonight(table_of(tonight)), invalid="quarantine")
        if case["delta"]:
            given_ = replace(given_, mode="delta", delete_column="gone")
        found = nights.find(given_, recompute=recompute, memory_bytes=case["memory"])
        counts, sets, fates = expected_of(live, tonight, delta=case["delta"], recompute=recompute)
        assert +Counter(vars(replace(found.counts, live=0))) == counts
        assert {name: set(nights.keys_in(name)) for name in sets} == sets
        assert nights.fates() == list(fates.values())
        assert found.counts.live == sum(status != GONE for _, _, status in live.values())
