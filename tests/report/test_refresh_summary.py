"""The terminal's summary of one refresh."""

from __future__ import annotations

from typing import Any

import pytest

from batchnorm_tool.gate.record import GateRecord
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.report.text_refresh import dry_run_lines, refresh_lines
from tests.refresh_records import record_of, typed
from tests.report import history_documents as histories


def lines_of(record: dict[str, Any], **more: Any) -> list[str]:
    return refresh_lines(record_of(**record), **{"width": 100, "store": "items.lance"} | more)


def test_a_published_night() -> None:
    record = histories.night(5)
    rows, norms = record["rows"], record["norms"]
    counts = f"{rows['new']:,} new, {rows['changed']:,} changed, 310 touched, 980,000 same"
    assert lines_of(record) == [
        "Version 5 is live with 999,999 rows.",
        f"rows        1,000,000 in: {counts}, {rows['vanished']} vanished",
        f"vectors     {rows['predicted']:,} predicted, 12 reused, 3 stale, 1 quarantined",
        f"norms       median {norms['q50']:.3f} [{norms['q05']:.4f}\N{EN DASH}{norms['q95']:.3f}]",
        "time        5.9 s: difference 1.2 s, prediction 3.4 s, gate 0.5 s, merge 0.8 s",
        "gate        passed, 9 limits checked",
    ]


def test_a_night_that_the_gate_holds_says_why_and_how_to_go_on() -> None:
    record = histories.broken(9, "waiting")
    lines = lines_of(record)
    assert lines[0] == "Version 9 is waiting and was not published: the gate rejected it."
    start = lines.index("gate        3 of 9 limits broken")
    assert lines[start + 1 : start + 5] == [
        "            - norm_psi (changed rows): Measured 0.9; at most 0.2 allowed.",
        "                id 17: 9.25",
        "                id 18: 10.25",
        "                id 19: 11.25",
    ]
    assert lines[-2:] == [
        "next        `batchnorm-tool accept items.lance 9` publishes it unchanged",
        "next        to replace it, fix the input or the model and run the same command again",
    ]


@pytest.mark.parametrize(
    ("reason", "why", "steps"),
    [
        ("hold", "the store is on hold", ["accept items.lance 9", "release items.lance"]),
        ("new space", "its vectors are in a new space", ["accept items.lance 9"]),
        (None, "it needs a decision", ["accept items.lance 9"]),
    ],
    ids=["hold", "new space", "unknown"],
)
def test_why_a_candidate_waits(reason: str | None, why: str, steps: list[str]) -> None:
    lines = lines_of(histories.night(9, state="waiting", reason=reason))
    assert f"was not published: {why}" in lines[0]
    said = [line for line in lines if line.startswith("next ")]
    assert len(said) == len(steps)
    assert all(step in line for step, line in zip(steps, said, strict=True))


def test_a_rollback() -> None:
    lines = lines_of(histories.rollback(20, 17), width=120)
    assert lines[0] == "Version 20 is live with 999,000 rows: it restores version 17."
    assert lines[-1].startswith("next        nothing is published until `batchnorm-tool release")
    assert not any(line.startswith(("gate", "rows", "vectors")) for line in lines)


def test_a_candidate_that_is_no_more() -> None:
    lines = lines_of(histories.broken(9, "discarded"))
    assert lines[0] == "Version 9 was discarded; it was never published."
    assert not any(line.startswith("next") for line in lines)


def test_a_gate_that_only_warns_says_that_it_was_published() -> None:
    record = histories.broken(9, "published")
    record["gate"]["action"] = "warn"
    lines = lines_of(record)
    assert "gate        3 of 9 limits broken, published anyway (`gate.action: warn`)" in lines
    assert lines[0].startswith("Version 9 is live")


def test_limits_that_were_not_judged_are_not_counted() -> None:
    record = histories.night(5)
    record["gate"]["findings"] = [
        histories.finding("gate.output.frechet", "whole", None, 0.3),
        histories.finding("gate.output.bad", "whole", 0.0, 0.1),
    ]
    assert "gate        passed, 1 limit checked" in lines_of(record)


def test_targets_and_warnings_are_told() -> None:
    targets = [
        {"name": "feed", "kind": "changes", "seconds": 1.25, "facts": {"version": 5}},
        {"name": "pg", "kind": "pgvector", "seconds": 0.1, "error": "the server is away"},
        {"name": "snapshot", "kind": "parquet", "seconds": 0.5, "facts": {}},
    ]
    lines = lines_of(histories.night(5, warnings=["one thread"], targets=targets))
    assert lines[-5:] == [
        "target      feed holds version 5, 1.2 s",
        "target      pg: failed: the server is away",
        "target      snapshot is up to date, 0.5 s",
        "warning     one thread",
        "next        fix the failed target; the next refresh updates it",
    ]


def test_rare_kinds_are_named_only_where_there_are_some() -> None:
    record = histories.night(5)
    record["rows"] |= {"touched": 0, "recomputed": 4, "vanished": 0, "reused": 0, "stale": 0}
    text = " ".join(lines_of(record))
    assert "touched" not in text
    assert "reused" not in text
    assert "4 recomputed" in text
    assert "0 vanished" in text


@pytest.mark.parametrize("width", [40, 72, 120])
def test_lines_keep_to_the_width(width: int) -> None:
    record = histories.broken(9, "waiting")
    record["gate"]["findings"][3]["rows"] = [{"key": {"id": "k" * 300}, "value": 1.0}]
    record["gate"]["findings"][3] |= {"passed": False, "what": "words " * 40}
    record["warnings"] = ["more words " * 30]
    lines = lines_of(record, width=width)
    assert max(map(len, lines)) <= width
    assert any(line.endswith("…") for line in lines)


def test_five_worst_rows_at_most() -> None:
    record = histories.broken(9, "waiting")
    rows = [{"key": {"id": n}, "reason": "null_feature"} for n in range(8)]
    record["gate"]["findings"] = [record["gate"]["findings"][4] | {"rows": rows}]
    said = [line.strip() for line in lines_of(record) if "null_feature" in line]
    assert said == [f"id {n}: null_feature" for n in range(5)]


def test_control_characters_do_not_reach_the_terminal() -> None:
    record = histories.night(5, warnings=["a\x1b[31m"])
    assert "\ufffd" in lines_of(record)[-1]
    assert not any("\x1b" in line for line in lines_of(record))


def test_a_dry_run_counts_and_judges() -> None:
    rows = RefreshRows(rows_in=100, new=2, changed=41, same=54, vanished=1, recomputed=3)
    findings = [histories.finding("gate.input.changed", "input", 0.41, 0.2)]
    gate = typed(GateRecord, {"action": "hold", "passed": False, "findings": findings})
    assert dry_run_lines(rows, gate, 72) == [
        "Dry run: nothing was written; at most 46 rows would go through the",
        "model. Limits on vectors are checked after it.",
        "rows        100 in: 2 new, 41 changed, 3 recomputed, 54 same, 1 vanished",
        "gate        1 of 1 limit broken",
        "            - changed (input): Measured 0.41; at most 0.2 allowed.",
        "                id 17: 9.25",
        "                id 18: 10.25",
        "                id 19: 11.25",
    ]
