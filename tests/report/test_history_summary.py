"""The terminal's table of a store's nights."""

from __future__ import annotations

import pytest

from batchnorm_tool.gate.record import History, Hold
from batchnorm_tool.report.text_refresh import describe_store, finding_name, history_lines, outcome
from tests.refresh_records import history_of
from tests.report import history_documents as histories


def test_the_first_line_says_where_the_store_stands() -> None:
    hold = {"since": "2026-03-20T02:00:00+00:00", "reason": "rollback", "version": 20}
    assert history_lines(history_of(histories.history(hold=hold)))[0] == (
        "/stores/items.lance: version 29 is live, 30 is waiting, 14 kept; on hold since "
        "2026-03-20 02:00 (rollback)"
    )


@pytest.mark.parametrize(
    ("hold", "where", "words"),
    [
        (
            Hold("2026-03-01T02:00:00+00:00", "rollback", 3),
            (3, 4, (2, 3)),
            "version 3 is live, 4 is waiting, 2 kept; on hold since 2026-03-01 02:00 (rollback)",
        ),
        (None, (3, None, (3,)), "version 3 is live, 1 kept"),
        (None, (None, None, ()), "no version is live, 0 kept"),
    ],
    ids=["waiting and on hold", "live", "new"],
)
def test_a_store_is_described_in_one_line(
    hold: Hold | None, where: tuple[int | None, int | None, tuple[int, ...]], words: str
) -> None:
    live, waiting, kept = where
    history = History("history", "items", live, hold, waiting, kept, ())
    assert describe_store(history) == f"items: {words}"


def test_every_night_has_a_line_the_oldest_first() -> None:
    lines = history_lines(history_of(histories.history()))
    assert lines[1] == ""
    assert lines[2].split()[:4] == ["version", "when", "(UTC)", "state"]
    assert [line.split()[0] for line in lines[3:]] == [str(v) for v in range(1, 31)]
    assert lines[3].endswith("  passed")
    assert "2026-03-01 02:00" in lines[3]
    assert "load" in lines[3]
    assert "1,000,000" in lines[3]
    assert "  encoder.keras efefef  " in lines[3]


def test_columns_stand_below_one_another() -> None:
    lines = history_lines(history_of(histories.history()))
    gate = lines[2].index("  gate")
    assert all(line[gate : gate + 2] == "  " and line[gate + 2] != " " for line in lines[3:])
    state, kind = lines[2].index("state"), lines[2].index("kind")
    assert {line[state - 1] for line in lines[3:]} == {" "}
    assert lines[3][state:].startswith("removed")
    assert lines[3][kind:].startswith("load")
    end = lines[2].index("changed") + len("changed")
    assert all(line[end - 1] != " " and line[end] == " " for line in lines[3:])


def test_broken_limits_are_named() -> None:
    lines = history_lines(history_of(histories.history()))
    assert lines[11].endswith(
        "held: norm_psi (changed rows), norm_psi (all rows), frechet (changed rows)"
    )
    assert "superseded" in lines[11]


def test_a_version_that_a_person_accepted_is_not_called_held() -> None:
    document = histories.history(3)
    document["nights"][2] = histories.broken(3, "published") | {"accepted": "2026-11-03T09:00:00Z"}
    *_, line, empty, last = history_lines(history_of(document))
    assert "  accepted: norm_psi (changed rows)," in line
    assert (empty, last) == ("", "version 3 accepted 2026-11-03 09:00")  # as older records have it


def test_a_gate_that_only_warns_says_so() -> None:
    document = histories.history(3)
    document["nights"][2] = histories.broken(3, "published")
    document["nights"][2]["gate"]["action"] = "warn"
    assert "  warned: norm_psi (changed rows)," in history_lines(history_of(document))[-1]


def test_a_rollback_has_no_gate() -> None:
    line = history_lines(history_of(histories.history()))[22]
    assert "rollback to 17" in line
    assert line.endswith("  \N{EN DASH}")
    assert line.split().count("\N{EN DASH}") == 1


def test_a_store_without_nights_has_one_line() -> None:
    document = histories.history(0, live=None)
    assert history_lines(history_of(document)) == [
        "/stores/items.lance: no version is live, 0 kept"
    ]


def test_control_characters_do_not_reach_the_terminal() -> None:
    document = histories.history(1, path="a\x1b[31m")
    document["nights"][0]["kind"] = "b\x1b"
    assert not any("\x1b" in line for line in history_lines(history_of(document)))


def test_a_night_that_was_rolled_back_and_removed_is_rolled_back() -> None:
    told = history_of(histories.history(kept=[29]))
    assert [outcome(told.nights[place], told) for place in (16, 17, 18, 19)] == [
        "removed",
        "rolled back",
        "rolled back",
        "removed",
    ]


def test_a_finding_is_named_by_its_limit_and_what_it_was_held_against() -> None:
    assert finding_name("gate.output.norm_psi", "changed") == "norm_psi (changed rows)"
    assert finding_name("gate.input.changed", "input") == "changed (input)"
