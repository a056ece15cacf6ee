"""Why nearly all known rows changed: said where it shows, and not said where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.refresh.refresh import plan_refresh
from tests.commands.refresh.nightly import WIDTH, Nightly, features, items

FIRST = dict.fromkeys(range(20), 0)
Features = np.ndarray
ALL = "20 of 20 known rows changed; "
ONLY = f"{ALL}of 20 compared, 20 differ only in "
FLOATS = "column `x` was list<float>[8], is list<double>[8] now"


def of_items(*, zeros: float | None = None, edit: int = 0) -> Features:
    """The features of twenty items, ``float64[20, 8]``; of each, some may be zero."""
    found = np.array([features(key, edit) for key in FIRST], np.float64)
    if zeros is not None:
        found[:, 2:4] = zeros
    return found


def table_of(x: Features, dtype: str, keys: Any = None) -> pa.Table:
    flat = pa.array(x.astype(dtype).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
    table = items(FIRST).set_column(1, "x", column)
    return table if keys is None else table.take(pa.array(keys)).set_column(0, "id", table["id"])


def told(nightly: Nightly, before: pa.Table, after: pa.Table) -> list[str]:
    """What the second night's record warns of; it is also what a dry run says."""
    nightly.night(before)
    nightly.put(after)
    notes = plan_refresh(nightly.job())["notes"]
    warnings: list[str] = nightly.night().record["warnings"]
    assert [text for text in warnings if "known row" in text] == notes
    return notes


CASES: dict[str, tuple[pa.Table, pa.Table, str]] = {
    "another type": (
        table_of(of_items(), "f4"),
        table_of(of_items(), "f8"),
        f"{ONLY}type: {FLOATS}.",
    ),
    "zeros are negative now": (
        table_of(of_items(zeros=0.0), "f4"),
        table_of(of_items(zeros=-0.0), "f4"),
        f"{ONLY}the sign of zeros: -0.0 now, 0.0 then.",
    ),
    "zeros were negative": (
        table_of(of_items(zeros=-0.0), "f4"),
        table_of(of_items(zeros=0.0), "f4"),
        f"{ONLY}the sign of zeros: 0.0 now, -0.0 then.",
    ),
    "both": (
        table_of(of_items(zeros=0.0), "f4"),
        table_of(of_items(zeros=-0.0), "f8"),
        f"{ONLY}type: {FLOATS}; and in the sign of zeros: -0.0 now, 0.0 then.",
    ),
    "another type and other values": (
        table_of(of_items(), "f4"),
        table_of(of_items(edit=1), "f8"),
        f"{ALL}{FLOATS}.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_befell_all_rows_is_named(nightly: Nightly, case: str) -> None:
    before, after, words = CASES[case]
    assert told(nightly, before, after) == [words]


def test_what_was_rounded_for_the_model_is_named(encoded: Nightly) -> None:
    assert told(encoded, table_of(of_items(), "f2"), table_of(of_items(), "f4")) == [
        f"{ONLY}type: column `x` was list<halffloat>[8], is list<float>[8] now."
    ]


def test_a_type_that_the_model_does_not_see_changes_nothing(encoded: Nightly) -> None:
    assert told(encoded, table_of(of_items(), "f4"), table_of(of_items(), "f8")) == []
    assert encoded.night().state == "nothing to do"


SILENT: dict[str, Callable[[], tuple[pa.Table, pa.Table]]] = {
    "other values": lambda: (table_of(of_items(), "f4"), table_of(of_items(edit=1), "f4")),
    "other values, with negative zeros": lambda: (
        table_of(of_items(zeros=0.0), "f4"),
        table_of(of_items(zeros=-0.0, edit=1), "f4"),
    ),
    "the same values under other keys": lambda: (
        table_of(of_items(zeros=-0.0), "f4"),
        table_of(of_items(zeros=-0.0), "f4", keys=[*range(1, 20), 0]),
    ),
    "half of the rows": lambda: (
        table_of(of_items(zeros=0.0), "f4"),
        table_of(np.where(np.arange(20)[:, None] < 10, 1, -1) * of_items(zeros=0.0), "f4"),
    ),
    "new rows alone": lambda: (table_of(of_items(), "f4").slice(0, 1), table_of(of_items(), "f4")),
}


@pytest.mark.parametrize("case", SILENT)
def test_nothing_is_said_of_what_does_not_show(nightly: Nightly, case: str) -> None:
    assert told(nightly, *SILENT[case]()) == []


def test_without_types_in_an_older_record_the_input_is_named(nightly: Nightly) -> None:
    nightly.night(table_of(of_items(), "f4"))
    record = nightly.state.existing_record(1)
    nightly.state.put_record(replace(record, input=replace(record.input, types={})))
    nightly.put(table_of(of_items(), "f8"))
    assert plan_refresh(nightly.job())["notes"] == [
        f"{ONLY}type: input `x` was float32, is float64 now."
    ]
