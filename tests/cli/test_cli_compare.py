"""`compare` and `diff` at the command line: flags, output, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.cli import app
from batchnorm_tool.commands.compare import compare, diff
from batchnorm_tool.errors import JobError
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from tests.command_line import PREDICTIONS, invoke

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]

COMMON = {"as_json", "quiet", "debug", "log_format", "output"}
# What a function is called with where no flag is given, by command.
DEFAULTS: dict[str, dict[str, Any]] = {
    "compare": {
        "column": None,
        "key": None,
        "label": None,
        "queries": None,
        "relevance": None,
        "relevance_columns": None,
        "by": None,
        "metric": "dot",
        "seed": 0,
        "mixed_spaces": False,
    },
    "diff": {"column": None, "key": None, "seed": 0, "mixed_spaces": False},
}
OF_BOTH: dict[str, tuple[list[str], dict[str, Any]]] = {
    "--column": (["--column", "a", "--column", "b"], {"column": ("a", "b")}),
    "--key": (["--key", "id"], {"key": ("id",)}),
    "--k": (["--k", "5, 1"], {"k": [5, 1]}),
    "--sample": (["--sample", "7"], {"sample": 7}),
    "--sample all": (["--sample", "all"], {"sample": None}),
    "--seed": (["--seed", "3"], {"seed": 3}),
    "--mixed-spaces": (["--mixed-spaces"], {"mixed_spaces": True}),
}
FLAGS: dict[str, dict[str, tuple[list[str], dict[str, Any]]]] = {
    "diff": OF_BOTH,
    "compare": {
        **OF_BOTH,
        "--norms": (["--norms", "none, lp:3"], {"norms": ["none", "lp:3"]}),
        "--metric": (["--metric", "cosine"], {"metric": "cosine"}),
        "--label": (["--label", "class"], {"label": "class"}),
        "--queries": (["--queries", "q.npy"], {"queries": "q.npy"}),
        "--relevance": (["--relevance", "qrels"], {"relevance": "qrels"}),
        "--relevance-columns": (
            ["--relevance-columns", "user,film, stars"],
            {"relevance_columns": ["user", "film", "stars"]},
        ),
        "--by": (["--by", "price"], {"by": "price"}),
    },
}
PATHS = {"compare": ["in"], "diff": ["a", "b"]}
CASES = [(command, flag) for command, flags in FLAGS.items() for flag in flags]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What `compare` and `diff` are called with; they do nothing else."""
    made: Calls = []

    def record(*arguments: Any, **named: Any) -> NoReturn:
        made.append((arguments, named))
        msg = "recorded"
        raise JobError(msg)

    monkeypatch.setattr(compare, "compare", record)
    monkeypatch.setattr(diff, "diff", record)
    return made


@pytest.mark.parametrize("command", FLAGS)
def test_the_table_has_every_flag(command: str) -> None:
    options = {
        parameter.opts[-1]
        for parameter in app.cli.commands[command].params
        if parameter.param_type_name == "option" and parameter.name not in COMMON
    }
    assert options == {flag.split()[0] for flag in FLAGS[command]}


@pytest.mark.parametrize("command", FLAGS)
def test_without_flags_the_defaults_are_those_of_the_function(command: str, calls: Calls) -> None:
    invoke(command, *PATHS[command])
    assert calls == [(tuple(PATHS[command]), DEFAULTS[command])]


@pytest.mark.parametrize(("command", "flag"), CASES, ids=[" ".join(case) for case in CASES])
def test_each_flag_is_an_argument(command: str, flag: str, calls: Calls) -> None:
    given, arguments = FLAGS[command][flag]
    invoke(command, *PATHS[command], *given)
    assert calls == [(tuple(PATHS[command]), DEFAULTS[command] | arguments)]


# What is printed and written


def split(tmp_path: Path) -> tuple[str, str]:
    """Two sets of predictions that differ a little."""
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    paths = (str(tmp_path / "a.npy"), str(tmp_path / "b.npy"))
    np.save(paths[0], x)
    np.save(paths[1], x + np.float32(0.5))
    return paths


COMMANDS: dict[str, tuple[Callable[[Path], list[str]], str, dict[str, Any]]] = {
    "compare": (
        lambda _: ["compare", PREDICTIONS, "--label", "label", "--k", "1,10", "--sample", "80"],
        "comparison",
        {"compared": ["none", "l1", "l2", "max"], "k": [1, 10]},
    ),
    "diff": (lambda path: ["diff", *split(path), "--k", "1,10"], "diff", {"sample": 40}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document(tmp_path: Path, command: str) -> None:
    arguments, kind, expected = COMMANDS[command]
    result = invoke(*arguments(tmp_path), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["status"], document["kind"]) == ("done", kind)
    assert {name: document[name] for name in expected} == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_is_written_where_it_is_asked_for(tmp_path: Path, command: str) -> None:
    arguments, kind, _ = COMMANDS[command]
    out = tmp_path / "reports" / "new"
    result = invoke(*arguments(tmp_path), "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {f"{kind}.json", f"{kind}.html"}
    document = json.loads((out / f"{kind}.json").read_text())
    assert document["kind"] == kind
    assert document["verdict"]["words"] in " ".join(result.stdout.split())
    assert f"{out}/{kind}.html" in result.stdout
    again = invoke(*arguments(tmp_path), "-o", out, "--json")
    assert json.loads(again.stdout)["verdict"] == document["verdict"]


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing(tmp_path: Path, command: str) -> None:
    arguments, *_ = COMMANDS[command]
    result = invoke(*arguments(tmp_path), "--quiet", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_warnings_go_to_standard_error(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4))
    x[3] = np.nan
    np.save(tmp_path / "x.npy", x)
    result = invoke("compare", tmp_path / "x.npy", "--k", "3")
    assert result.exit_code == 0
    assert result.stderr == ("warning: Queries with null, NaN or infinity, ignored: 1 of 40.\n")
    assert "left out" not in result.stdout


# What is refused

REFUSED: dict[str, tuple[list[str], str]] = {
    "no such norm": (["--norms", "l2,coisne"], "Did you mean `cosine`?"),
    "no norm": (["--norms", ""], "Unknown norm"),
    "no such metric": (["--metric", "dott"], "Did you mean `dot`?"),
    "k beyond the base": (["--k", "1797"], "the base has only 1,796 others that can be neighbours"),
    "k of 0": (["--k", "0"], "`k` must be numbers of neighbours"),
    "words for k": (["--k", "1,ten"], "integers separated by commas"),
    "words for sample": (["--sample", "half"], "an integer, or all"),
    "sample of 0": (["--sample", "0"], "`sample` must be an integer, 1 or more"),
    "seed below 0": (["--seed", "-1"], "`seed` must be an integer"),
    "words for seed": (["--seed", "x"], "is not a valid integer"),
    "no such column": (["--label", "lable"], "did you mean `label`?"),
    "no such key": (["--key", "idd"], "did you mean `id`?"),
    "no such file": (["--relevance", "gone.csv"], "gone.csv: the relevance file cannot be read"),
    "no queries": (["--queries", "gone.npy"], "gone.npy"),
    "label and relevance": (["--label", "a", "--relevance", "b"], "Received: a and b"),
    "columns alone": (["--relevance-columns", "a,b"], "Expected `relevance` as well"),
    "unknown flag": (["--norm", "l2"], "No such option"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_exits_with_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, words = REFUSED[case]
    result = invoke("compare", PREDICTIONS, *flags, "-o", "out", "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert (document["status"], document["exit_code"]) == ("failed", 2)
    assert words in document["message"]
    assert document["message"] in result.stderr
    assert list(tmp_path.iterdir()) == []


def files(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    columns = {"label": pa.array([1] * 17 + [None] * 3), "id": pa.array(range(20))}
    pq.write_table(pa.table({**columns, "raw": fixed_size_list(x)}), tmp_path / "base.parquet")
    np.save(tmp_path / "narrow.npy", x[:, :3])
    (tmp_path / "clicks.csv").write_text("query,item\n90,91\n")
    (tmp_path / "grades.csv").write_text("query,item,grade\n1,2,1\n2,3,-1\n")


UNFIT: dict[str, tuple[list[str], str]] = {
    "labels with nulls": (["--label", "label"], "base.parquet, row 17: the label `label` is null"),
    "another width": (["--queries", "narrow.npy"], "Expected: 4. Received: 3"),
    "keys of nobody": (
        ["--relevance", "clicks.csv", "--key", "id"],
        "none of its queries matches a row",
    ),
    "a grade below 0": (["--relevance", "grades.csv"], "grades.csv, column `grade`, row 1"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_files_that_do_not_fit_exit_with_2_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags, words = UNFIT[case]
    result = invoke("compare", "base.parquet", *flags, "-o", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


DIFFERENT: dict[str, tuple[list[str], str]] = {
    "words for k": (["--k", "1;2"], "integers separated by commas"),
    "k beyond the rows": (["--k", "40"], "`k` of at most 39"),
    "sample below 0": (["--sample", "-1"], "`sample` must be an integer, 0 or more"),
    "no such key": (["--key", "id"], "no column `id`"),
    "a norm": (["--norms", "l2"], "No such option"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_has_no_difference_exits_with_2_and_writes_nothing(tmp_path: Path, case: str) -> None:
    flags, words = DIFFERENT[case]
    result = invoke("diff", *split(tmp_path), *flags, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 2
    assert words in json.loads(result.stdout)["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_where_the_report_should_be_is_refused(tmp_path: Path, command: str) -> None:
    arguments, *_ = COMMANDS[command]
    (tmp_path / "report").write_text("mine")
    result = invoke(*arguments(tmp_path), "-o", tmp_path / "report")
    assert result.exit_code == 2
    assert "cannot be written to" in result.stderr
    assert (tmp_path / "report").read_text() == "mine"
