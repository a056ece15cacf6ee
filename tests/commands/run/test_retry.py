"""Quarantined rows are read again: to the bytes of a fresh run, and with every other part kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batchnorm_tool import environment, verify
from batchnorm_tool.cli.app import cli
from batchnorm_tool.commands.run.run import RunResult, plan_run_again, run
from batchnorm_tool.errors import BadRows, Damaged, InputError, JobError, OutputError
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.part_output import PartHashes
from batchnorm_tool.storage import Storage
from tests.kill_points import tree

# Two files of 14 and 9 rows, in parts of 5, in chunks of 4; part 2 has rows of both files.
FILE_ROWS, PART_ROWS = (14, 9), 5
NULL_ROW, NAN_ROW, RAGGED_ROW = 3, 14, 21  # in parts 0, 2 and 4
REASONS = {"null_feature": 1, "ragged_feature": 1, "nonfinite_feature": 1}


def vectors() -> list[list[float | None] | None]:
    return np.random.default_rng(5).normal(size=(sum(FILE_ROWS), 4)).astype(np.float32).tolist()


def spoiled() -> list[list[float | None] | None]:
    rows = vectors()
    rows[NULL_ROW] = None
    rows[NAN_ROW] = [1.0, float("nan"), 2.0, 3.0]
    rows[RAGGED_ROW] = [1.0]
    return rows


@dataclass
class Table:
    """Two input files, of which each test changes a few rows; results are in `out`."""

    folder: Path
    model: str
    format: str = "parquet"

    def write(self, rows: Sequence[object], names: dict[int, str] | None = None) -> None:
        keys = [(names or {}).get(row, f"item {row}") for row in range(len(rows))]
        # A name that the files of quarantined rows have, too.
        columns = {"id": keys, "file": [f"source of {key}" for key in keys]}
        table = pa.table({**columns, "x": pa.array(rows, pa.list_(pa.float32()))})
        for number, (start, count) in enumerate(((0, FILE_ROWS[0]), FILE_ROWS)):
            pq.write_table(table.slice(start, count), self.folder / "in" / f"{number}.parquet")

    def job(self, out: str = "out", **sections: Any) -> Job:
        base: dict[str, Any] = {
            "input": {"path": "in", "key": "id", "passthrough": ["file"], "invalid": "quarantine"},
            "model": {"path": self.model, "batch_size": 2},
            "normalize": {"max_bad_fraction": 1},
            "output": {"path": out, "part_rows": PART_ROWS, "format": self.format},
            "engine": {"workers": 1, "threads": 1},
        }
        given = {name: {**base[name], **sections.get(name, {})} for name in base}
        return Job.from_dict(given, self.folder)

    def run(self, **sections: Any) -> RunResult:
        return run(self.job(**sections))

    def retry(self, *reasons: str, **sections: Any) -> RunResult:
        return run(self.job(**sections), retry_quarantined=True, reason=reasons)

    def assert_fresh(self, result: RunResult, **sections: Any) -> None:
        """The files are those of a run that finds nothing there."""
        retried = tree(Path(result.path))
        shutil.rmtree(result.path)
        self.run(**sections)
        assert retried == tree(Path(result.path))
        assert not Storage(result.path).names("_state")


@pytest.fixture(scope="module")
def model(tensorflow: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    import keras

    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="e")])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    net.save(path)
    return str(path)


@pytest.fixture(params=["parquet", "npy"])
def table(request: pytest.FixtureRequest, model: str, tmp_path: Path) -> Table:
    (tmp_path / "in").mkdir()
    found = Table(tmp_path, model, request.param)
    found.write(spoiled())
    return found


@pytest.fixture
def parquet(model: str, tmp_path: Path) -> Table:
    (tmp_path / "in").mkdir()
    found = Table(tmp_path, model)
    found.write(spoiled())
    return found


@pytest.mark.parametrize("invalid", ["drop", "nullify"])
def test_after_another_policy_it_is_a_fresh_run(table: Table, invalid: str) -> None:
    assert table.run().rows["quarantined"] == 3
    result = table.retry(input={"invalid": invalid})
    assert result.retried == REASONS
    assert (result.parts_kept, result.rows_done) == (2, 13)
    assert result.rows["quarantined"] == 0
    table.assert_fresh(result, input={"invalid": invalid})


def test_after_a_fix_of_the_input_it_is_a_fresh_run(table: Table) -> None:
    table.run()
    rows = spoiled()
    rows[NULL_ROW], rows[RAGGED_ROW] = vectors()[NULL_ROW], [None] * 4
    table.write(rows)
    result = table.retry()
    assert (result.parts_kept, result.rows["quarantined"]) == (2, 2)
    assert {label: n for label, n in result.manifest["reasons"].items() if n} == {
        "null_feature": 1,
        "nonfinite_feature": 1,
    }
    assert verify(result.path).rows == sum(FILE_ROWS) - 2
    table.assert_fresh(result)


def test_without_a_change_the_rows_are_read_again_to_the_same_result(parquet: Table) -> None:
    parquet.run()
    before = tree(parquet.folder / "out")
    result = parquet.retry()
    assert (result.parts_kept, result.nothing_to_do) == (2, False)
    assert tree(parquet.folder / "out") == before


# ---- only some of them


def test_rows_of_one_reason_are_read_again(parquet: Table) -> None:
    parquet.run()
    rows = spoiled()
    rows[RAGGED_ROW] = vectors()[RAGGED_ROW]
    parquet.write(rows)
    result = parquet.retry("ragged_feature")
    assert (result.retried, result.parts_kept) == ({"ragged_feature": 1}, 4)
    assert result.rows["quarantined"] == 2
    parquet.assert_fresh(result)


def test_a_reason_without_rows_is_nothing_to_do(parquet: Table) -> None:
    parquet.run()
    before = tree(parquet.folder / "out")
    result = parquet.retry("zero_vector")
    assert (result.nothing_to_do, result.retried) == (True, {"zero_vector": 0})
    assert tree(parquet.folder / "out") == before


def test_nothing_in_quarantine_is_nothing_to_do(parquet: Table) -> None:
    parquet.write(vectors())
    parquet.run()
    parquet.write(spoiled())
    result = parquet.retry()
    assert (result.nothing_to_do, result.retried, result.rows_done) == (True, {}, 0)
    assert "_stats/parts.parquet" not in tree(parquet.folder / "out")


def test_rows_that_meet_another_policy_are_read_again_whatever_their_reason(parquet: Table) -> None:
    parquet.run()
    result = parquet.retry("null_feature", input={"invalid": "drop"})
    assert (result.retried, result.parts_kept) == ({"null_feature": 1}, 2)
    parquet.assert_fresh(result, input={"invalid": "drop"})


# ---- more than that changed


def change(parquet: Table, **changed: Any) -> None:
    rows, names = spoiled(), changed.pop("names", None)
    for row in changed.pop("rows", ()):
        rows[row] = [9.0] * 4
    parquet.write(rows[: changed.pop("count", None)], names)


PLACE = r"in/{}.parquet, rows {} \(part {}\): "
OTHERS = "rows that were not in quarantine changed"
NOT_ASKED = "rows in quarantine for {}, which is not asked for, changed"


@pytest.mark.parametrize(
    ("changed", "reasons", "said"),
    [
        pytest.param(
            {"rows": [0]}, (), PLACE.format(0, "0 to 4", 0) + "rows that were not in q", id="row"
        ),
        pytest.param(
            {"rows": [NULL_ROW, 12]},
            (),
            PLACE.format(0, "10 to 13", 2) + "rows that were not in quarantine changed",
            id="row beside a fixed one",
        ),
        pytest.param({"names": {15: "other"}}, (), PLACE.format(1, "1 to 5", 3), id="key"),
        pytest.param(
            {"rows": [RAGGED_ROW]},
            ("null_feature", "nonfinite_feature"),
            PLACE.format(1, "6 to 8", 4) + NOT_ASKED.format("ragged_feature"),
            id="another reason",
        ),
        pytest.param(
            {"count": -1}, (), r"in/1.parquet: .* Expected: 9 rows. Received: 8 rows", id="count"
        ),
    ],
)
def test_a_change_of_more_than_quarantined_rows_is_refused(
    parquet: Table, changed: dict[str, Any], reasons: tuple[str, ...], said: str
) -> None:
    parquet.run()
    before = tree(parquet.folder / "out")
    change(parquet, **changed)
    with pytest.raises(InputError, match=said) as refused:
        parquet.retry(*reasons)
    assert "More than the quarantined rows changed" in refused.value.message
    assert "`--fresh`" in refused.value.message
    assert tree(parquet.folder / "out") == before


@pytest.mark.parametrize("changed", ["file", "type"])
def test_another_list_of_files_or_type_is_refused(parquet: Table, changed: str) -> None:
    parquet.run()
    added = parquet.folder / "in" / "2.parquet"
    if changed == "file":
        shutil.copy(parquet.folder / "in" / "1.parquet", added)
        said = r"in/2.parquet: More .* Expected: no file. Received: 9 rows."
    else:
        for path in (parquet.folder / "in").iterdir():
            found = pq.read_table(path)
            large = found["id"].cast(pa.large_string())
            pq.write_table(found.set_column(0, "id", large), path)
        said = r"in/0.parquet: More .* `id` \(string there, large_string now\)"
    with pytest.raises(InputError, match=said):
        parquet.retry()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"normalize": {"norm": "l1"}}, "norm l2 → l1"),
        ({"output": {"part_rows": 10}}, "part_rows"),
        ({"input": {"passthrough": []}}, "passthrough"),
    ],
    ids=["norm", "parts", "columns"],
)
def test_another_job_is_refused(parquet: Table, sections: dict[str, Any], said: str) -> None:
    parquet.run()
    with pytest.raises(OutputError, match=said) as refused:
        parquet.retry(input={"invalid": "drop", **sections.pop("input", {})}, **sections)
    assert "invalid" not in refused.value.message


def test_another_machine_is_refused_unless_its_bits_are_accepted(
    parquet: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.run()
    monkeypatch.setattr(environment, "cpu", lambda: "another one")
    with pytest.raises(OutputError, match=r"CPU .* `--mixed-bits` resumes anyway"):
        parquet.retry()
    assert parquet.retry(engine={"mixed_bits": True}).parts_kept == 2


# ---- what is no retry


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reason": "nul_feature"}, "Received: nul_feature. Did you mean `null_feature`"),
        ({"reason": "null_feature", "retry_quarantined": False}, "add `--retry-quarantined`"),
        ({"fresh": True}, "`--fresh` begins another run"),
        ({"limit": 3}, "`--limit` begins another run"),
    ],
    ids=["unknown", "without", "fresh", "limit"],
)
def test_wrong_arguments_are_refused(parquet: Table, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        run(parquet.job(), **{"retry_quarantined": True, **arguments})


def test_there_has_to_be_a_finished_run(parquet: Table) -> None:
    with pytest.raises(OutputError, match=r"`.*out` holds no finished run"):
        parquet.retry()


def test_a_result_without_records_is_refused(
    parquet: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.run()
    monkeypatch.setattr("batchnorm_tool.commands.run.retry.PARTS_PATH", "_stats/later.parquet")
    with pytest.raises(OutputError, match=r"an earlier version wrote it.* `--fresh`"):
        parquet.retry()


def test_a_result_whose_rows_were_not_hashed_is_refused(
    parquet: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(PartHashes, "to_dict", lambda _: {})
        parquet.run()
    parquet.write(vectors())
    with pytest.raises(OutputError, match=r"an earlier version wrote it.* `--fresh`"):
        parquet.retry()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_records_are_found(parquet: Table, damage: str) -> None:
    path = Path(parquet.run().path) / "_stats" / "parts.parquet"
    verify(path.parent.parent)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR0"))
    with pytest.raises(Damaged, match=r"`_stats/parts.parquet` is"):
        verify(path.parent.parent)
    with pytest.raises(Damaged, match=r"`_stats/parts.parquet` .* `--fresh`"):
        parquet.retry()


def test_a_dry_run_counts_the_rows(parquet: Table) -> None:
    parquet.run()
    before = tree(parquet.folder / "out")
    retry = plan_run_again(parquet.job(), reason="null_feature")
    assert (retry.quarantined, sorted(retry.again), retry.rows) == ({"null_feature": 1}, [0], 5)
    assert tree(parquet.folder / "out") == before


# ---- on the way


def test_a_policy_that_refuses_leaves_the_result(parquet: Table) -> None:
    parquet.run()
    before = tree(parquet.folder / "out")
    with pytest.raises(BadRows, match="3 of 23 rows broke a row policy"):
        parquet.retry(input={"invalid": "fail"})
    assert {
        name: data for name, data in tree(parquet.folder / "out").items() if name in before
    } == before
    result = parquet.retry(input={"invalid": "drop"})
    assert result.parts_kept == 2
    parquet.assert_fresh(result, input={"invalid": "drop"})


def test_a_retry_for_more_reasons_does_more_than_the_stopped_one(
    parquet: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.run()
    with monkeypatch.context() as stopped:
        stopped.setattr("batchnorm_tool.commands.run.run._publish", refuse)
        for reasons in (("null_feature",), ("null_feature", "ragged_feature")):
            with pytest.raises(PermissionError):
                parquet.retry(*reasons)
    result = parquet.retry()  # all but the part of the third reason are done
    assert (result.parts_kept, result.rows_done) == (4, PART_ROWS)
    parquet.assert_fresh(result)


def test_another_run_that_is_unfinished_is_not_lost(parquet: Table) -> None:
    parquet.run()
    other = {"normalize": {"norm": "l1", "max_bad_fraction": 0}}
    with pytest.raises(BadRows):
        run(parquet.job(**other), fresh=True)
    before = tree(parquet.folder / "out")
    with pytest.raises(OutputError, match=r"an unfinished run .* norm l1 → l2"):
        parquet.retry()
    assert tree(parquet.folder / "out") == before


def test_without_hard_links_files_are_copied(
    parquet: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.run()
    monkeypatch.setattr("os.link", refuse)
    result = parquet.retry(input={"invalid": "drop"})
    assert result.parts_kept == 2
    parquet.assert_fresh(result, input={"invalid": "drop"})


def refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_part_whose_file_is_gone_is_done_again(parquet: Table) -> None:
    parquet.run()
    (parquet.folder / "out" / "vectors" / "part-000001.parquet").unlink()
    result = parquet.retry(input={"invalid": "drop"})
    assert result.parts_kept == 1
    parquet.assert_fresh(result, input={"invalid": "drop"})


def test_rows_that_repeat_are_counted_as_in_a_fresh_run(parquet: Table) -> None:
    """A fixed row may have the features of one in a later part, which then counts as reused."""
    asked = {"input": {"deduplicate": True}, "model": {"batch_size": 48}}
    assert parquet.run(**asked).rows["reused"] == 0
    rows = spoiled()
    rows[NULL_ROW] = vectors()[16]
    parquet.write(rows)
    result = parquet.retry(**asked)
    assert (result.rows["reused"], result.parts_kept) == (1, 0)
    parquet.assert_fresh(result, **asked)
    assert parquet.retry(**asked).parts_kept == 3


# ---- on the command line


def test_what_the_command_line_says(parquet: Table) -> None:
    out = parquet.folder / "out"
    parquet.run()

    def words(*more: str) -> tuple[int, str]:
        text = json.dumps(parquet.job().to_dict(), default=str)
        (parquet.folder / "job.yaml").write_text(text)
        answer = CliRunner().invoke(cli, ["run", str(parquet.folder / "job.yaml"), *more])
        return answer.exit_code, answer.output

    code, said = words("--retry-quarantined", "--reason", "null_feature", "--dry-run", "--json")
    planned = json.loads(said)
    assert (code, planned["status"], planned["quarantined"]) == (0, "planned", {"null_feature": 1})
    assert (planned["parts_kept"], planned["rows_again"]) == (4, 5)
    nothing = f"Nothing to read again: no row of `{out}` is in quarantine for zero_vector\n"
    for more in ([], ["--dry-run"]):
        assert words("--retry-quarantined", "--reason", "zero_vector", *more) == (0, nothing)
    code, said = words("--retry-quarantined", "--reason", "null_feature,ragged_feature", "--quiet")
    assert (code, said) == (0, "")
    code, said = words("--retry-quarantined", "--invalid", "drop")
    assert code == 0
    assert "read again: 3 quarantined rows, 0 in quarantine now; 2 of 5 parts kept" in said
    assert words("--retry-quarantined", "--json")[0] == 0  # there is none any more
