"""The commands that keep a store, as people and programs meet them."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import Result
from prometheus_client.parser import text_string_to_metric_families

from batchnorm_tool import accept, rollback
from batchnorm_tool.commands.refresh import record
from batchnorm_tool.commands.refresh.record import now
from batchnorm_tool.gate import output_limits
from batchnorm_tool.gate.findings import Finding
from batchnorm_tool.storage import Storage
from tests.command_line import invoke, python
from tests.commands.refresh.nightly import LOOSE, Nightly, features, firsts, items, units
from tests.kill_points import tree
from tests.refresh_records import stored_record
from tests.report.page_reader import Reader

FIRST = dict.fromkeys(range(20), 0)
SECOND = {**FIRST, 3: 1, 30: 0}
STRICT = "gate.input.changed=0.01"


@pytest.fixture
def job(nightly: Nightly) -> Path:
    path = nightly.path / "job.yaml"
    path.write_text(nightly.job().to_yaml())
    return path


def document(result: Result, exit_code: int = 0) -> dict[str, Any]:
    """The one JSON document on standard output."""
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_night_in_words(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    assert invoke("refresh", job).exit_code == 0
    nightly.put(SECOND)
    result = invoke("refresh", job)
    assert result.exit_code == 0
    assert "21 rows in: 1 new, 1 changed, 0 vanished; 2 to predict." in result.stderr
    assert "1 new" in result.stdout
    assert nightly.vectors() == units(SECOND)
    again = invoke("refresh", job)
    assert again.exit_code == 0
    assert "Up to date: version 2 of" in again.stdout
    assert "21 rows in, 21 live" in again.stdout


def test_json_of_a_published_night(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    found = document(invoke("refresh", job, "--json"))
    assert (found["status"], found["outcome"], found["version"]) == ("done", "published", 1)
    assert (found["rows"]["in"], found["rows"]["live"], found["kind"]) == (20, 20, "load")
    assert found["store"] == nightly.store
    assert found["targets"] == []
    assert found["lance_version"] == nightly.state.pointer().lance_version
    assert {"difference", "prediction", "gate", "candidate", "merge", "targets"} <= {
        *found["seconds"]
    }
    assert not {"basis", "publish"} & {*found}


def test_json_of_a_night_with_nothing_to_do(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    found = document(invoke("refresh", job, "--json"))
    assert (found["status"], found["outcome"], found["version"]) == (
        "nothing to do",
        "nothing to do",
        1,
    )
    assert (found["rows"]["same"], found["rows"]["live"]) == (20, 20)
    assert found["norms"] == (stored_record(nightly.state, 1) or {})["norms"]


def test_json_of_a_night_that_waits(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    nightly.put(SECOND)
    result = invoke("refresh", job, "--json", "--set", STRICT)
    found = document(result, 3)
    assert (found["status"], found["error"], found["exit_code"]) == ("failed", "Held", 3)
    assert (found["outcome"], found["version"], found["reason"]) == ("waiting", 2, "gate")
    (broken,) = [each for each in found["gate"]["findings"] if not each["passed"]]
    assert (broken["limit"], broken["allowed"]) == ("gate.input.changed", 0.01)
    assert "1 limit broken; nothing was published." in found["message"]
    assert "error: Version 2 of" in result.stderr


def test_words_of_a_night_that_waits(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    nightly.put(SECOND)
    result = invoke("refresh", job, "--set", STRICT)
    assert result.exit_code == 3
    words = " ".join(result.stdout.split())
    assert "gate 1 of 1 limit broken - changed (input): 1 changed row" in words
    assert f"`batchnorm-tool accept {nightly.store} 2`" in words
    quiet = invoke("refresh", job, "--set", STRICT, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (3, "")
    assert "1 limit broken" in quiet.stderr


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]], ids=["words", "json", "quiet"])
@pytest.mark.parametrize("reason", ["gate", "audit", "hold", "new space"])
def test_a_night_that_waits_is_reported_once(
    nightly: Nightly, job: Path, monkeypatch: pytest.MonkeyPatch, reason: str, flags: list[str]
) -> None:
    nightly.night(FIRST)
    nightly.night({**FIRST, 4: 1})
    nightly.put(SECOND)
    more = {"gate": ["--set", STRICT], "new space": ["--set", "normalize.norm=l1"]}
    if reason == "hold":
        rollback(nightly.store)
    if reason == "audit":
        fault = Finding("audit.counts", "audit", 30.0, 31.0, passed=False, what="31 rows in.")
        monkeypatch.setattr(output_limits, "audit", lambda *_: [fault])
    result = invoke("refresh", job, *more.get(reason, []), *flags)
    assert result.exit_code == 3
    said = result.stdout + result.stderr
    assert said.count("batchnorm-tool accept") == 1
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert (
        f"error: Version {4 if reason == 'hold' else 3} of `{nightly.store}` is waiting: "
        in (errors[0])
    )
    if "--json" not in flags:  # where the record has what the message says
        for what in ("2 changed rows, 10.00 % of", "31 rows in.", "on hold since"):
            assert said.count(what) <= 1
    if reason == "audit":
        assert f"batchnorm-tool accept {nightly.store}" not in said


def test_an_acceptance_keeps_who_when_and_why(
    nightly: Nightly, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "mo")
    monkeypatch.setattr("socket.gethostname", lambda: "night-1")
    nightly.night(FIRST)
    nightly.put(SECOND)
    assert invoke("refresh", job, "--set", STRICT).exit_code == 3
    result = invoke("accept", nightly.store, 2, "--note", "the spring range <b>")
    assert result.exit_code == 0
    by = "by mo on night-1: the spring range <b>"
    assert by in " ".join(result.stdout.split())
    kept = (stored_record(nightly.state, 2) or {})["accepted"]
    assert kept.pop("at") <= now()
    assert kept == {"user": "mo", "host": "night-1", "note": "the spring range <b>"}
    shown = invoke("history", nightly.store, "--html", nightly.path / "h.html").stdout
    assert f"version 2 accepted {now()[:11].replace('T', ' ')}" in shown
    assert by in shown
    nights = document(invoke("history", nightly.store, "--json"))["nights"]
    assert [each.get("accepted", {}).get("user") for each in nights] == [None, "mo"]
    tables = Reader((nightly.path / "h.html").read_text()).tables
    (row,) = tables["Decisions, newest first"][1:]
    assert (row[0], *row[2:]) == ("2", "mo", "night-1", "the spring range <b>")


def test_who_has_no_name_accepts_by_number(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    nightly.night(FIRST)
    held = nightly.held(SECOND, normalize__norm="l1")
    found = accept(nightly.store, held["version"]).record["accepted"]
    assert (found["user"], found["note"]) == (str(os.getuid()), None)


def test_json_of_a_target_that_fails(nightly: Nightly, job: Path) -> None:
    nightly.sections = {
        "publish": [{"to": "changes", "path": "feed"}, {"to": "parquet", "path": "snapshots"}]
    }
    job.write_text(nightly.job().to_yaml())
    nightly.put(FIRST)
    with Storage(nightly.path / "feed").lock():
        found = document(invoke("refresh", job, "--json"), 1)
    assert (found["status"], found["error"], found["exit_code"]) == ("failed", "TargetFailed", 1)
    assert (found["outcome"], found["version"]) == ("published", 1)
    failed, reached = found["targets"]
    assert (failed["name"], failed["facts"], reached["name"], reached["error"]) == (
        "changes",
        None,
        "parquet",
        None,
    )
    assert failed["error"] in found["message"]
    assert nightly.vectors() == units(FIRST)
    found = document(invoke("refresh", job, "--json"))
    assert found["outcome"] == "nothing to do"
    assert [(each["error"], each["skipped"]) for each in found["targets"]] == [
        (None, False),
        (None, True),
    ]
    assert (nightly.path / "feed" / "1" / "manifest.json").exists()


@pytest.mark.parametrize("night", ["nothing to do", "held", "published"])
def test_a_target_that_caught_up_is_named(nightly: Nightly, job: Path, night: str) -> None:
    nightly.sections = {
        "publish": [{"to": "changes", "path": "feed"}, {"to": "parquet", "path": "snapshots"}]
    }
    job.write_text(nightly.job().to_yaml())
    nightly.night(FIRST)
    nightly.put(SECOND)
    with Storage(nightly.path / "feed").lock():
        assert invoke("refresh", job, "--quiet").exit_code == 1
    behind = (1, 2)
    if night != "nothing to do":
        nightly.put({**SECOND, 5: 1})
    if night == "published":
        behind = (1, 3)
    flags = ["--set", STRICT] if night == "held" else []
    result = invoke("refresh", job, *flags)
    assert result.exit_code == (3 if night == "held" else 0)
    words = " ".join(result.stdout.split())
    assert f"target changes was behind and has caught up: version 1 → {behind[1]}, 0." in words
    assert "parquet was behind" not in words
    nightly.put({**SECOND, 6: 1})
    with Storage(nightly.path / "feed").lock():
        assert invoke("refresh", job, "--quiet").exit_code == 1
    live = nightly.state.pointer().live
    found = document(invoke("refresh", job, "--json"))["targets"]
    assert [(each["name"], each["caught_up"], each["before"]) for each in found] == [
        ("changes", True, behind[1]),
        ("parquet", False, live),
    ]


def test_phases_add_up_to_the_whole(
    nightly: Nightly, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(record, "time", clock)
    nightly.put(FIRST)
    found = document(invoke("refresh", job, "--json"))["seconds"]
    assert ([*found][:1], [*found][-1:]) == (["plan"], ["cleanup"])
    # The clock was read when the work began, then whenever a phase ended.
    assert sum(found.values()) == next(ticks) - 1
    assert (stored_record(nightly.state, 1) or {})["seconds"] == found


@pytest.mark.parametrize(
    ("flags", "error", "exit_code"),
    [
        (["--set", "input.key=null"], "JobError", 2),
        (["--set", "store.path=null"], "JobError", 2),
        (["--wait", "soon"], "JobError", 2),
        (["--set", "normalize.nonfinite=fail"], "BadRows", 4),
    ],
    ids=["no key", "no store", "no time", "bad row"],
)
def test_json_of_what_fails(
    nightly: Nightly, job: Path, flags: list[str], error: str, exit_code: int
) -> None:
    x = pa.array([[float("nan")] * 8], items(FIRST).schema.field("x").type)
    nightly.put(items({1: 0}).set_column(1, "x", x))
    found = document(invoke("refresh", job, "--json", *flags), exit_code)
    assert (found["status"], found["error"], found["exit_code"]) == ("failed", error, exit_code)
    assert found["message"]
    assert not Path(nightly.store).exists()


def test_rows_set_aside_are_tried_again_where_it_is_asked_for(nightly: Nightly, job: Path) -> None:
    x = pa.array([[float("nan")] * 8, features(2).tolist()], items(FIRST).schema.field("x").type)
    nightly.put(items({1: 0, 2: 0}).set_column(1, "x", x))
    assert invoke("refresh", job).exit_code == 0
    flag, line = "--retry-quarantined", "1 row with unchanged features to be judged again"
    assert line in invoke("refresh", job, flag, "--dry-run").output
    found = invoke("refresh", job, flag)
    assert line in found.stderr
    assert "1 recomputed" in found.stdout
    assert document(invoke("refresh", job, "--json"))["outcome"] == "nothing to do"


def test_json_of_a_store_that_is_busy(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    with nightly.state.lock():
        for command in (
            ["refresh", job],
            ["accept", nightly.store, 1],
            ["rollback", nightly.store],
            ["release", nightly.store],
        ):
            found = document(invoke(*command, "--json"), 5)
            assert (found["status"], found["error"]) == ("failed", "Busy")
        assert document(invoke("history", nightly.store, "--json"))["live"] == 1


def test_json_of_decisions(nightly: Nightly, job: Path) -> None:
    for edits in (FIRST, SECOND):
        nightly.night(edits)
    found = document(invoke("rollback", nightly.store, "--json"))
    assert (found["status"], found["kind"], found["version"], found["restores"]) == (
        "done",
        "rollback",
        3,
        1,
    )
    held = document(invoke("refresh", job, "--json"), 3)
    assert (held["reason"], held["version"]) == ("hold", 4)
    found = document(invoke("accept", nightly.store, 4, "--json"))
    assert (found["status"], found["outcome"], found["version"]) == ("done", "published", 4)
    assert nightly.vectors() == units(SECOND)
    document(invoke("rollback", nightly.store, "--to", 1, "--json"))
    found = document(invoke("release", nightly.store, "--json"))
    assert found == {
        "status": "done",
        "store": nightly.store,
        "released": True,
        "live": 5,
        "waiting": None,
    }
    found = document(invoke("history", nightly.store, "--json"))
    assert [each["version"] for each in found["nights"]] == [1, 2, 3, 4, 5]
    found = document(invoke("accept", nightly.store, 4, "--json"), 2)
    assert found["error"] == "JobError"


def test_words_of_decisions(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    nightly.night(SECOND)
    result = invoke("rollback", nightly.store)
    assert result.exit_code == 0
    assert f"`batchnorm-tool release {nightly.store}`" in " ".join(result.stdout.split())
    assert invoke("refresh", job).exit_code == 3
    result = invoke("release", nightly.store)
    assert f"Released `{nightly.store}`: " in result.stdout
    assert "version 4 is waiting" in result.stdout
    assert "was not on hold" in invoke("release", nightly.store).stdout
    assert invoke("refresh", job).exit_code == 0
    result = invoke("history", nightly.store)
    assert result.exit_code == 0
    assert "rollback" in result.stdout
    assert invoke("history", nightly.store, "--html", nightly.path / "h.html").exit_code == 0
    assert (nightly.path / "h.html").exists()


def test_a_dry_run_says_what_would_change_and_writes_nothing(
    nightly: Nightly, job: Path, seen: set[float]
) -> None:
    nightly.night(FIRST)
    nightly.put({**{key: 0 for key in FIRST if key != 5}, 3: 1, 30: 0})
    before = tree(nightly.path)
    seen.clear()
    found = document(invoke("refresh", job, "--dry-run", "--json", "--set", STRICT))
    assert (found["status"], found["live"], found["new_space"]) == ("planned", 1, False)
    wanted = ("in", "new", "changed", "vanished", "same", "predicted")
    assert [found["rows"][name] for name in wanted] == [20, 1, 1, 1, 18, 0]
    assert not found["gate"]["passed"]
    assert seen == set()
    assert tree(nightly.path) == before
    result = invoke("refresh", job, "--dry-run", "--set", STRICT)
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "2 rows would go through the model" in words
    assert "- changed (input): 1 changed row, 5.00 % of 20 live rows" in words
    assert tree(nightly.path) == before


def test_a_dry_run_before_the_first_night_writes_nothing(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    before = tree(nightly.path)
    found = document(invoke("refresh", job, "--dry-run", "--json"))
    assert (found["live"], found["rows"]["new"]) == (None, 20)
    assert tree(nightly.path) == before
    assert sorted(path.name for path in nightly.path.iterdir()) == ["in", "job.yaml"]


def test_a_dry_run_refuses_a_store_that_holds_something_else(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    other = nightly.path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    result = invoke("refresh", job, "--dry-run", "--set", f"store.path={other}")
    assert result.exit_code == 2
    assert "is not a Lance dataset" in result.stderr


def test_a_dry_run_beside_a_waiting_night_leaves_it_alone(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    strict = {"gate": {**LOOSE, "input": {**LOOSE["input"], "changed": 0.01}}}
    nightly.held(SECOND, strict)
    before = tree(nightly.path)
    assert document(invoke("refresh", job, "--dry-run", "--json"))["rows"]["changed"] == 1
    assert tree(nightly.path) == before


def test_a_dry_run_announces_a_new_space(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    found = document(invoke("refresh", job, "--dry-run", "--json", "--set", "normalize.norm=none"))
    assert found["new_space"]
    assert found["notes"] == ["A new vector space (norm l2 → none): every row is recomputed."]
    assert found["rows"]["recomputed"] == 20


def test_the_resolved_job_is_printed_and_nothing_done(nightly: Nightly, job: Path) -> None:
    result = invoke("refresh", job, "--print-config", "--set", "store.keep.count=3")
    assert result.exit_code == 0
    found = yaml.safe_load(result.stdout)
    assert found["store"]["path"] == nightly.store
    assert found["store"]["keep"] == {"count": 3, "days": 30}
    assert found["output"]["path"] == f"{nightly.store}.state/night/scored"
    assert document(invoke("refresh", job, "--print-config", "--json"))["store"]["mode"] == "full"
    assert sorted(path.name for path in nightly.path.iterdir()) == ["job.yaml"]


def metrics(path: Path) -> dict[tuple[str, str], float]:
    """Every value by its name, without what all begin with, and its labels but the store's."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = ",".join(v for k, v in sorted(sample.labels.items()) if k != "store")
            found[sample.name.removeprefix("batchnorm_tool_refresh_"), labels] = sample.value
    return found


def test_metrics_of_every_outcome(nightly: Nightly, job: Path) -> None:
    path = nightly.path / "nightly.prom"
    flags = ["--metrics-file", path, "--quiet"]
    nightly.put(FIRST)
    assert invoke("refresh", job, *flags).exit_code == 0
    first = metrics(path)
    assert (first["rows", "new"], first["live_version", ""], first["exit_code", ""]) == (20, 1, 0)
    assert first["norm", "0.5"] == (stored_record(nightly.state, 1) or {})["norms"]["q50"]
    assert first["phase_seconds", "difference"] > 0
    success = first["last_success_timestamp_seconds", ""]
    assert success > 0
    nightly.put(SECOND)
    assert invoke("refresh", job, *flags, "--set", STRICT).exit_code == 3
    held = metrics(path)
    assert (held["exit_code", ""], held["waiting_version", ""], held["live_version", ""]) == (
        3,
        2,
        1,
    )
    assert held["gate_passed", "gate.input.changed,input"] == 0
    assert held["gate_value", "gate.input.changed,input"] == 0.05
    assert held["gate_limit", "gate.input.changed,input"] == 0.01
    assert held["last_success_timestamp_seconds", ""] == success
    assert invoke("accept", nightly.store, 2, *flags).exit_code == 0
    accepted = metrics(path)
    assert (accepted["live_version", ""], accepted["waiting_version", ""]) == (2, 0)
    assert accepted["last_success_timestamp_seconds", ""] >= success
    assert invoke("rollback", nightly.store, *flags).exit_code == 0
    assert (metrics(path)["on_hold", ""], metrics(path)["live_version", ""]) == (1, 3)
    assert invoke("refresh", job, *flags, "--set", "input.key=null").exit_code == 2
    failed = metrics(path)
    assert (failed["exit_code", ""], failed["live_version", ""]) == (2, 3)
    assert ("rows", "new") not in failed
    before = path.read_bytes()
    with nightly.state.lock():
        assert invoke("refresh", job, *flags).exit_code == 5
    assert path.read_bytes() == before


def test_metrics_of_a_night_with_nothing_to_do(nightly: Nightly, job: Path) -> None:
    nightly.night(FIRST)
    path = nightly.path / "nightly.prom"
    assert invoke("refresh", job, "--metrics-file", path).exit_code == 0
    found = metrics(path)
    assert (found["rows", "same"], found["rows", "live"], found["exit_code", ""]) == (20, 20, 0)
    assert found["version", ""] == 1


@pytest.mark.parametrize("outcome", ["published", "held", "refused"])
def test_every_line_of_a_json_log_has_the_run_id(nightly: Nightly, job: Path, outcome: str) -> None:
    nightly.night(FIRST)
    nightly.put(SECOND)
    flags = {"held": ["--set", STRICT], "refused": ["--set", "input.key=null"]}.get(outcome, [])
    result = invoke("refresh", job, "--log-format", "json", "--progress", "plain", "--json", *flags)
    assert result.exit_code == {"published": 0, "held": 3, "refused": 2}[outcome]
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert lines
    ids = {line["run_id"] for line in lines}
    assert len(ids) == 1
    assert len(ids.pop()) == 16
    if outcome != "refused":
        assert {line["run_id"] for line in lines} == {json.loads(result.stdout)["run_id"]}
    if outcome != "published":
        assert (lines[-1]["level"], lines[-1]["exit_code"]) == ("error", result.exit_code)


def test_a_text_log_has_the_run_id_too(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    result = invoke("refresh", job, "--progress", "plain")
    run_id = (stored_record(nightly.state, 1) or {})["run_id"]
    assert result.stderr.splitlines()
    assert all(line.startswith(f"[{run_id}] ") for line in result.stderr.splitlines())


def test_quiet_says_nothing(nightly: Nightly, job: Path) -> None:
    nightly.put(FIRST)
    result = invoke("refresh", job, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_the_command_line_in_a_process_of_its_own(
    nightly: Nightly, job: Path, seen: set[float]
) -> None:
    nightly.put(FIRST)
    found = python("-m", "batchnorm_tool", "refresh", str(job), "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["outcome"] == "published"
    nightly.put(SECOND)
    found = python("-m", "batchnorm_tool", "refresh", str(job), "--set", STRICT)
    assert found.returncode == 3
    assert "Traceback" not in found.stderr
    nightly.night()  # published by this process, with what the other one staged
    assert seen == firsts({3: 1, 30: 0})
    assert nightly.vectors() == units(SECOND)
