from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.pipeline.timing import Profile
from batchnorm_tool.report import text_run

Make = Callable[..., Any]


def test_the_longest_bar_is_the_most_frequent_norm_and_lines_fit(make_stats: Make) -> None:
    stats = make_stats(np.random.default_rng(0).normal(10, 1, 4000))
    lines = text_run.norm_histogram(stats, 60)
    longest = max(lines, key=lambda line: line.count("█"))
    assert 9 <= float(longest.split()[0]) <= 11
    assert all(len(line) <= 60 for line in lines)
    assert 8 <= len(lines) <= 16


def test_the_bars_account_for_every_norm(make_stats: Make) -> None:
    stats = make_stats(np.array([0.0, np.nan, *np.linspace(1, 2, 1000)]))
    *bars, rest = text_run.norm_histogram(stats, 60)
    assert sum(int(line.split()[-1].replace(",", "")) for line in bars) == 1000
    assert rest == "not shown: 1 zero, 1 not finite"


def test_one_norm_among_many_still_shows(make_stats: Make) -> None:
    stats = make_stats(np.append(np.full(100_000, 1.0), 1.1))
    lone = next(line for line in text_run.norm_histogram(stats, 60) if line.endswith(" 1"))
    assert "▏" in lone


def test_edges_of_narrow_bars_are_told_apart(make_stats: Make) -> None:
    lines = text_run.norm_histogram(make_stats(np.full(5, 12345.678)), 60)
    names = [line.split()[0] for line in lines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("norms", [[], [0.0], [np.nan]], ids=str)
def test_without_norms_the_histogram_says_so(norms: Any, make_stats: Make) -> None:
    lines = text_run.norm_histogram(make_stats(np.array(norms)), 60)
    assert lines[0] == "no norm is finite and positive"


def test_the_quantile_table_is_aligned_and_shows_empty_norms(make_stats: Make) -> None:
    full, empty = make_stats(np.linspace(1, 3, 101)), make_stats(np.array([]))
    head, first, second = text_run.quantile_table({"l2": full, "lp:3": empty})
    assert len(head) == len(first) == len(second)
    assert head.split()[0] == "norm"
    assert first.split()[1] == "1.000"
    assert first.split()[-1] == "3.000"
    assert second.split() == ["lp:3", *"\u2013\u2013\u2013\u2013\u2013\u2013\u2013"]


def test_the_norms_of_every_output_are_shown(
    sample: Any, make_run: Make, make_predictions: Make
) -> None:
    two = make_run({"image": make_predictions(300), "text": make_predictions(300)}, norm="none")
    lines = text_run.norm_lines(two.record)
    assert [line for line in lines if line.startswith("norms of")] == [
        "norms of image before normalization",
        "norms of text before normalization",
    ]
    assert "l2 norm" in lines


def test_bad_rows_are_counted_by_reason_and_located(sample: Any) -> None:
    assert text_run.bad_row_lines(sample.record) == [
        "bad rows: null_feature 1, nonfinite_prediction 2",
        "  row 130 (key a-130) is row 130 of digits.parquet: null_feature",
        "  row 700 (key a-700) is row 700 of digits.parquet: nonfinite_prediction",
    ]


def test_a_hostile_key_cannot_steer_the_terminal(sample: Any) -> None:
    sample.manifest["first_bad_rows"][0]["key"] = "\x1b[2J\nrow"
    lines = text_run.bad_row_lines(sample.record)
    assert lines[1].startswith("  row 130 (key \ufffd[2J\ufffdrow) is row 130")


def test_a_run_without_rows_has_nothing_to_show(sample: Any) -> None:
    sample.manifest["statistics"] = {}
    assert text_run.norm_lines(sample.record) == []


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (None, "1,797 rows in, 1,794 out, 3 bad (0.17 %)"),
        (2.0, "1,797 rows in, 1,794 out, 3 bad (0.17 %), 898 rows/s"),
    ],
)
def test_the_rows_line_says_how_many_and_how_fast(
    seconds: float | None, line: str, sample: Any
) -> None:
    assert text_run.rows_line(sample.record.rows, seconds) == line


def test_a_bar_reaches_to_the_next_edge(make_stats: Make) -> None:
    lines = text_run.norm_histogram(make_stats(np.array([1.0, 1, 1, 1, 1.0025])), 30)
    assert lines[2:4] == [" 1.000  ███████████████████  4", " 1.002  ████▊                1"]


def test_quantiles_stand_below_their_names(make_stats: Make) -> None:
    assert text_run.quantile_table({"l2": make_stats(np.array([0.5, 3, 3, 6]))}) == [
        "norm     min     5 %    25 %  median   75 %   95 %    max",
        "l2    0.5000  0.5000  0.5000   3.002  3.002  6.000  6.000",
    ]


def test_a_profile_shows_where_the_time_went() -> None:
    profile = Profile(2.0, 2, {"read": 1.0, "write": 3.0})
    assert text_run.profile_lines(profile, 40)[:4] == [
        "where the time of 2 workers went, 2.000 s each",
        "",
        "read   1.00 s  25 %  ████▊",
        "write  3.00 s  75 %  ██████████████▎",
    ]


def test_the_next_steps_are_commands() -> None:
    assert text_run.next_steps("runs/a")[0] == (
        "batchnorm-tool verify runs/a                re-read and check every file"
    )


@pytest.mark.parametrize(("norm", "shown"), [("lp:3", "lp:3"), ("none", "l2")])
def test_without_a_norm_the_l2_norms_are_shown(norm: str, shown: str) -> None:
    assert text_run.norm_shown(norm) == shown
