from __future__ import annotations

import re
import threading

import pytest

from batchnorm_tool.commands.progress import (
    PlainProgress,
    ProgressBar,
    SilentProgress,
    format_duration,
)


def test_plain_lines_say_rows_share_rate_and_time_left() -> None:
    lines: list[str] = []
    progress = PlainProgress(lines.append, seconds=0)
    with progress.work(2_000, 500):
        progress.advance(500)
    (line,) = lines
    pattern = r"1,000 of 2,000 rows \(50 %\), [\d,]+ rows/s, \d+ \w+( \d+ \w+)? left"
    assert re.fullmatch(pattern, line)


def test_plain_lines_are_some_seconds_apart() -> None:
    lines: list[str] = []
    progress = PlainProgress(lines.append, seconds=3_600)
    with progress.work(10, 0):
        progress.advance(5)
        progress.advance(5)
    assert lines == []


def test_plain_lines_go_to_standard_error_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = PlainProgress(seconds=0)
    with progress.work(4, 0):
        progress.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("1 of 4 rows (25 %), ")


def test_rows_are_counted_from_several_threads() -> None:
    lines: list[str] = []
    progress = PlainProgress(lines.append, seconds=0)
    with progress.work(8_000, 0):
        threads = [
            threading.Thread(target=lambda: [progress.advance(1) for _ in range(1_000)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lines[-1].startswith("8,000 of 8,000 rows (100 %)")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentProgress().work(4, 0), SilentProgress().stage("measuring", slow=True):
        SilentProgress().advance(4)
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_rows_that_were_done_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    progress = ProgressBar()
    with progress.work(2_000, 500):
        progress.advance(750)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "1250/2000" in shown
    assert re.search(r"[\d,]+ rows/s", shown)


def test_a_stage_is_a_plain_line_only_if_it_takes_long() -> None:
    lines: list[str] = []
    with PlainProgress(lines.append, stage_seconds=3_600).stage("loading TensorFlow"):
        pass
    assert lines == []
    said = threading.Event()
    with PlainProgress(lambda _: said.set(), stage_seconds=0).stage("loading TensorFlow"):
        assert said.wait(60)
    with PlainProgress(lines.append, stage_seconds=3_600).stage("converting", slow=True):
        assert lines == ["converting …"]


def test_a_stage_on_a_terminal_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar()
    with progress.stage("trying the model"), progress.stage("measuring"):
        shown = capsys.readouterr().err
    assert shown == "\rtrying the model …\r\rmeasuring …\r"
    line = ""
    for text in (shown + capsys.readouterr().err).split("\r"):
        line = text + line[len(text) :]
    assert not line.strip()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (7_325, "2 h 2 min"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
