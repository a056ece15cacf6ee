from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.cli.output import Terminal
from batchnorm_tool.commands.progress import PlainProgress, SilentProgress
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.commands.show import ColumnDescription, DataDescription, Description
from batchnorm_tool.job import Input, Job, Output
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.stats import VectorStats
from tests.manifests import manifest_of


def result(**changes: Any) -> RunResult:
    """A run of no rows, with three parts."""
    paths = [f"vectors/part-{n:06d}.parquet" for n in range(3)]
    parts = [{"files": [{"path": path}]} for path in paths]
    manifest = {"outputs": [{"name": "dense"}], "parts": parts, "warnings": ["nothing to score"]}
    manifest |= changes.pop("manifest", {})
    return RunResult(**{"path": "/out", "record": manifest_of(**manifest), **changes})


def data(**changes: Any) -> Description:
    given = {"name": "id", "type": "int64", "min": 0, "max": 9, "nulls": 0, **changes}
    columns = (ColumnDescription(**given),)
    return Description(
        "data", "a.parquet", DataDescription("parquet", 1, 2_000, 10, 10, columns, None, (), ())
    )


def test_a_finished_run_says_where_its_files_are_and_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal().print_run(result(parts_kept=2), None)
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:2] == ["Done.", "0"]
    assert ["vectors", "/out/vectors"] in lines
    assert ["manifest", "/out/_manifest.json"] in lines
    assert "resumed: 2 of 3 parts already finished" in out
    assert "batchnorm-tool verify /out" in out
    assert "job file" not in out
    assert err == "warning: nothing to score\n"


def test_names_that_data_bears_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print_description(data(name="item_id"), None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["item_id", "int64,", "0", "to", "9"] in lines
    assert ["likely", "key", "none", "found"] in lines


def test_directories_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [{"files": [{"path": "vectors/my_tower/part-000000.npy"}]}]
    Terminal().print_run(result(manifest={"parts": parts}), None)
    assert "  vectors/my_tower  /out/vectors/my_tower\n" in capsys.readouterr().out


def test_a_shorthand_is_printed_as_a_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(input=Input(path="/in"), output=Output(path="/out"))
    Terminal().print_run(result(), job)
    assert "    output:\n      path: /out\n" in capsys.readouterr().out


def test_nothing_to_do_is_said_shortly(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print_run(result(nothing_to_do=True), None)
    assert capsys.readouterr().out.splitlines() == [
        "Up to date: `/out` already holds this result",
        "  0 rows; use `--fresh` to recompute",
    ]


def test_json_is_one_document_and_words_go_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal(as_json=True).print_run(result(), None)
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "done"
    assert err == "warning: nothing to score\n"


def test_quiet_prints_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.print_run(result(), None)
    terminal.print_description(data(), None)
    assert capsys.readouterr() == ("", "")
    terminal.print_error("InputError", "no such file", 2)
    assert capsys.readouterr() == ("", "error: no such file\n")


def test_json_logs_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(json_logs=True)
    terminal.print_run(result(nothing_to_do=True), None)
    terminal.print_error("Busy", "another run", 5)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        {"level": "warning", "message": "nothing to score"},
        {"level": "error", "message": "another run", "error": "Busy", "exit_code": 5},
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_on_a_terminal_bear_no_id_of_the_attempt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    Terminal(run_id="0a1b").announce("20 rows in.")
    assert capsys.readouterr().err == ("20 rows in.\n" if terminal else "[0a1b] 20 rows in.\n")
    Terminal(run_id="0a1b", json_logs=True).announce("20 rows in.")
    assert json.loads(capsys.readouterr().err)["run_id"] == "0a1b"


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({}, "auto", PlainProgress),
        ({}, "plain", PlainProgress),
        ({}, "none", SilentProgress),
        ({"quiet": True}, "bar", SilentProgress),
    ],
)
def test_progress_is_plain_where_there_is_no_terminal(
    settings: dict[str, bool], kind: str, expected: type
) -> None:
    assert type(Terminal(**settings).progress(kind)) is expected


@pytest.mark.parametrize("end", ["name", "type"])
def test_words_from_files_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], end: str
) -> None:
    Terminal().print_description(data(**{end: "a\x07\nb"}), None)
    out = capsys.readouterr().out
    assert "a\ufffd\ufffdb" in out
    assert "\x07" not in out


def test_what_was_not_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print_description(data(nulls=3), None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["likely", "key", "none", "found"] in lines
    assert ["id", "int64,", "0", "to", "9,", "3", "nulls"] in lines


def test_a_run_without_statistics_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    identities = dict.fromkeys(("space", "bits", "result"), "abc")
    Terminal().print_description(
        Description("run", "/out", replace(result().record, **identities)), "page.html"
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["space", "abc"] in lines
    assert ["page", "page.html"] in lines


def test_norms_are_shown_for_each_output(capsys: pytest.CaptureFixture[str]) -> None:
    vectors = np.array([[3.0, 4.0], [6.0, 8.0]])
    norm = Norm.parse("l2")
    stats = VectorStats.of(vectors, rows=2, in_use=norm, in_use_norms=np.array([[5.0], [10.0]]))
    manifest = {"statistics": {"dense": stats.to_dict()}}
    Terminal().print_run(result(manifest=manifest), None)
    out = capsys.readouterr().out
    assert "norms of dense before normalization" in out
    assert [line.split()[:2] for line in out.splitlines() if line.strip().startswith("l2 ")] == [
        ["l2", "5.000"],
        ["l2", "norm"],
    ]
