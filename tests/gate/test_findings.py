"""Findings, and what a person reads of them."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pytest

from batchnorm_tool.gate.findings import (
    FaultyRow,
    Finding,
    MeasuredRow,
    broken,
    describe_row,
    not_evaluated,
    refusal_text,
)
from batchnorm_tool.gate.output_limits import keys_to_json
from batchnorm_tool.storage.checked_json import plain
from tests.refresh_records import typed

ROWS = tuple(MeasuredRow({"shop": "a", "id": n}, float(n)) for n in range(7))
GOOD = Finding("gate.input.new", "input", 0.1, 0.2, passed=True, what="10 rows are new.")
PSI = Finding(
    "gate.output.norm_psi", "changed", 0.9, 0.2, passed=False, what="PSI: 0.9.", rows=ROWS
)
BAD = Finding(
    "gate.output.bad",
    "whole",
    0.5,
    0.1,
    passed=False,
    what="5 are bad.",
    rows=(FaultyRow({}, "null"),),
)
AUDIT = Finding("audit.keys", "audit", 1.0, 0.0, passed=False, what="9 distinct keys in 10 rows.")
NEXT = (
    "Next: if these values are right, `batchnorm-tool accept items.lance 12` publishes this "
    "version; if not, fix the input or the model, or change the limit, and run the same command "
    "again."
)


def test_only_broken_limits_are_told_in_order() -> None:
    assert broken([GOOD, PSI, BAD]) == [PSI, BAD]


def test_the_refusal_names_limits_rows_and_both_ways_on() -> None:
    command = "batchnorm-tool accept items.lance 12"
    assert refusal_text([GOOD, PSI, BAD], command).splitlines() == [
        "2 limits broken; nothing was published.",
        "- gate.output.norm_psi over the changed rows: PSI: 0.9.",
        *(f"    shop a, id {n}: {n}" for n in range(5)),
        "- gate.output.bad over all rows: 5 are bad.",
        "    a row: null",
        NEXT,
    ]


def test_a_broken_limit_on_the_input_names_it() -> None:
    finding = Finding(
        "gate.input.changed", "input", 0.5, 0.2, passed=False, what="50 rows have changed features."
    )
    text = refusal_text([finding], "accept it")
    assert text.splitlines()[1].startswith("- gate.input.changed over the input: 50 rows")


def test_what_the_audit_found_cannot_be_accepted() -> None:
    text = refusal_text([PSI, AUDIT], "batchnorm-tool accept items.lance 12")
    assert text.startswith("2 limits broken; nothing was published.")
    assert "- audit.keys over the staged rows: 9 distinct keys" in text
    assert "accept items.lance" not in text
    assert "cannot be accepted" in text


def test_what_was_not_judged_passes_and_says_why() -> None:
    finding = not_evaluated("gate.output.frechet", "whole", 0.3, "too few rows")
    assert finding.passed
    assert finding.measured is None
    assert finding.what == "Not checked: too few rows."


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_json_gets_no_number_that_it_does_not_know(value: float) -> None:
    finding = Finding("gate.output.frechet", "whole", value, 0.3, passed=False, what="Beyond.")
    assert plain(finding)["measured"] is None
    assert typed(Finding, plain(finding)) == replace(finding, measured=None)


def test_a_finding_comes_back_as_it_was() -> None:
    assert typed(Finding, plain(PSI)) == PSI


def test_a_value_that_is_not_finite_is_said_to_be() -> None:
    assert describe_row(MeasuredRow({"id": 1}, None)) == "id 1: not finite"
    assert describe_row(MeasuredRow({"id": 7}, 0.123456)) == "id 7: 0.1235"


def test_keys_become_what_json_can_hold() -> None:
    key = {"a": 1, "b": "x", "c": True, "d": None, "e": dt.date(2026, 1, 2), "f": Decimal(3)}
    texts = {"d": "None", "e": "2026-01-02", "f": "3"}
    assert [*keys_to_json(pa.Table.from_pylist([key]))] == [{**key, **texts}]
