"""What stands in an output, and what a job may do to it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import environment
from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.errors import BadRows, Damaged, OutputError, WorkFailed
from batchnorm_tool.job import Job
from batchnorm_tool.pipeline.manifest import record_path
from batchnorm_tool.pipeline.output_schema import fixed_size_list
from batchnorm_tool.storage import OutputFile, Storage
from tests.kill_points import tree
from tests.sealing import sealed, unsealed

ROWS, PART_ROWS = 23, 5
PARTS = 5
NAN_ROW, ZERO_ROW = 7, 16  # in parts 1 and 3


@dataclass
class Bench:
    """A folder with an input of 23 rows, in which jobs write to `out`."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def job(self, **sections: Any) -> Job:
        given = {
            name: sections.get(name, {}) for name in ("input", "normalize", "output", "engine")
        }
        base: dict[str, Any] = {
            "input": {"path": "in.parquet", "key": "id", "features": "v"},
            "normalize": {"max_bad_fraction": 0.5},
            "output": {"path": "out", "part_rows": PART_ROWS},
            "engine": {"workers": 2},
        }
        return Job.from_dict({name: {**base[name], **given[name]} for name in base}, self.folder)

    def run(self, *, fresh: bool = False, limit: int | None = None, **sections: Any) -> RunResult:
        return run(self.job(**sections), fresh=fresh, limit=limit)

    def stop_in_publishing(self, **sections: Any) -> None:
        """Run until everything is staged, and leave it so."""

        def fail(*arguments: object) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("batchnorm_tool.pipeline.part_output.gather", fail)
            with pytest.raises(KeyboardInterrupt):
                self.run(**sections)

    def inodes(self) -> dict[str, int]:
        """By which a file is known that was not written again."""
        folders = [self.out / "_state" / "vectors", self.out / "vectors"]
        return {
            path.name: path.stat().st_ino for f in folders if f.exists() for path in f.iterdir()
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    vectors = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)
    vectors[NAN_ROW, 2] = np.nan
    vectors[ZERO_ROW] = 0
    table = pa.table({"id": np.arange(ROWS) + 100, "v": fixed_size_list(vectors)})
    pq.write_table(table, tmp_path / "in.parquet")
    return Bench(tmp_path)


# ---- done, and done again


def test_a_finished_job_has_nothing_to_do(bench: Bench) -> None:
    first = bench.run()
    before, inodes = tree(bench.out), bench.inodes()
    again = bench.run(engine={"workers": 1})
    assert (first.nothing_to_do, again.nothing_to_do) == (False, True)
    assert (first.rows_done, again.rows_done) == (ROWS, 0)
    assert again.manifest["result"] == first.manifest["result"]
    assert (tree(bench.out), bench.inodes()) == (before, inodes)


def test_fresh_does_it_again_to_the_same_bytes(bench: Bench) -> None:
    bench.run()
    before, inodes = tree(bench.out), bench.inodes()
    assert bench.run(fresh=True).rows_done == ROWS
    assert tree(bench.out) == before
    assert set(bench.inodes().values()).isdisjoint(inodes.values())


def test_any_number_of_workers_leaves_the_same_bytes(bench: Bench) -> None:
    bench.run(engine={"workers": 1})
    one = tree(bench.out)
    bench.run(engine={"workers": 4}, fresh=True)
    assert tree(bench.out) == one


OTHER_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "norm": ({"normalize": {"norm": "l1"}}, r"norm l2 → l1"),
    "policy": ({"normalize": {"zero": "drop"}}, r"`normalize.zero` keep → drop"),
    "format": ({"output": {"format": "npy"}}, r"`output.format` parquet → npy"),
    "part rows": ({"output": {"part_rows": 6}}, r"`part_rows` 5 → 6"),
    "limit": ({"limit": 20}, r"limit none → 20"),
}


@pytest.mark.parametrize(("change", "words"), OTHER_JOBS.values(), ids=OTHER_JOBS)
def test_another_job_is_refused_until_it_may_replace(
    bench: Bench, change: dict[str, Any], words: str
) -> None:
    bench.run()
    before = tree(bench.out)
    with pytest.raises(OutputError, match=words) as refusal:
        bench.run(**change)
    assert "`--fresh`" in str(refusal.value)
    assert tree(bench.out) == before
    result = bench.run(**change, fresh=True)
    replaced = tree(bench.out)
    assert replaced != before
    assert result.manifest["rows"]["in"] == change.get("limit", ROWS)
    shutil.rmtree(bench.out)
    bench.run(**change)
    assert tree(bench.out) == replaced, "nothing of the old result stays"


def test_other_input_is_refused_until_it_may_replace(bench: Bench) -> None:
    bench.run()
    table = pq.read_table(bench.folder / "in.parquet")
    pq.write_table(table.slice(0, ROWS - 1), bench.folder / "in.parquet")
    with pytest.raises(OutputError, match="the input files"):
        bench.run()
    assert bench.run(fresh=True).rows["in"] == ROWS - 1


def test_the_same_input_touched_is_the_same(bench: Bench) -> None:
    bench.run()
    os.utime(bench.folder / "in.parquet", (0, 0))
    assert bench.run().nothing_to_do


# ---- what is not ours


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "vectors/mine.parquet", "_SUCCESS"])
def test_a_foreign_directory_is_refused(bench: Bench, name: str, *, fresh: bool) -> None:
    path = bench.out / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(
        OutputError, match=f"not part of a run of batchnorm_tool: {name.partition('/')[0]}"
    ):
        bench.run(fresh=fresh)
    assert tree(bench.out) == {name: b"mine"}


def test_a_foreign_directory_is_not_ours_because_of_a_state(bench: Bench) -> None:
    (bench.out / "_state").mkdir(parents=True)
    (bench.out / "vectors").mkdir()
    (bench.out / "vectors" / "mine").write_text("x")
    with pytest.raises(OutputError, match="not part of a run of batchnorm_tool: vectors"):
        bench.run(fresh=True)
    assert (bench.out / "vectors" / "mine").exists()


def test_an_empty_directory_will_do(bench: Bench) -> None:
    bench.out.mkdir()
    assert bench.run().rows_done == ROWS


# ---- damage


def test_a_damaged_manifest_is_said_and_replaced_by_fresh(bench: Bench) -> None:
    bench.run()
    whole = tree(bench.out)
    (bench.out / "_manifest.json").write_bytes(whole["_manifest.json"].replace(b"l2", b"l3"))
    with pytest.raises(Damaged, match="--fresh"):
        bench.run()
    bench.run(fresh=True)
    assert tree(bench.out) == whole


def test_a_missing_success_is_said_and_replaced_by_fresh(bench: Bench) -> None:
    bench.run()
    whole = tree(bench.out)
    (bench.out / "_SUCCESS").unlink()
    with pytest.raises(OutputError, match=r"without `_SUCCESS`.*`--fresh`"):
        bench.run()
    bench.run(fresh=True)
    assert tree(bench.out) == whole


@pytest.mark.parametrize("damage", ["empty", "garbage", "other version"])
def test_a_damaged_plan_begins_anew(bench: Bench, damage: str) -> None:
    bench.stop_in_publishing()
    plan = bench.out / "_state" / "plan.json"
    data = unsealed(plan.read_bytes())
    del data["request"]
    other = sealed(data)
    plan.write_bytes({"empty": b"", "garbage": b"\0" * 9, "other version": other}[damage])
    result = bench.run()
    assert (result.parts_kept, result.rows_done) == (0, ROWS)
    whole = tree(bench.out)
    bench.run(fresh=True)
    assert tree(bench.out) == whole


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a record cut short": lambda state: os.truncate(state / "records" / "000002.json", 50),
    "a record of another part": lambda state: shutil.copy(
        state / "records" / "000001.json", state / "records" / "000002.json"
    ),
    "a part cut short": lambda state: os.truncate(state / "vectors" / "part-000002.parquet", 9),
    "a part missing": lambda state: (state / "vectors" / "part-000002.parquet").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_part_is_made_again(bench: Bench, damage: Callable[[Path], object]) -> None:
    bench.run()
    whole = tree(bench.out)
    shutil.rmtree(bench.out)
    bench.stop_in_publishing()
    damage(bench.out / "_state")
    result = bench.run()
    assert (result.parts_kept, result.rows_done) == (PARTS - 1, PART_ROWS)
    assert tree(bench.out) == whole


# ---- policies


def test_policy_fail_keeps_the_parts_without_bad_rows(bench: Bench) -> None:
    with pytest.raises(BadRows) as failure:
        bench.run(normalize={"nonfinite": "fail", "zero": "fail"})
    assert "2 of 23 rows broke a row policy" in str(failure.value)
    assert f"in.parquet, row {NAN_ROW}, key 107: nonfinite_prediction" in str(failure.value)
    assert f"in.parquet, row {ZERO_ROW}, key 116: zero_vector" in str(failure.value)
    assert sorted(os.listdir(bench.out)) == ["_state"]
    kept = bench.inodes()
    assert sorted(kept) == [f"part-{number:06d}.parquet" for number in (0, 2, 4)]
    result = bench.run(normalize={"nonfinite": "drop", "zero": "nullify"})
    assert (result.parts_kept, result.rows_done) == (3, 10)
    assert bench.inodes().items() >= kept.items()
    resumed = tree(bench.out)
    bench.run(normalize={"nonfinite": "drop", "zero": "nullify"}, fresh=True)
    assert tree(bench.out) == resumed


def test_the_same_policy_fails_again_without_doing_the_good_parts_again(bench: Bench) -> None:
    for _ in range(2):
        with pytest.raises(BadRows, match="1 of 23 rows"):
            bench.run(normalize={"nonfinite": "fail"})
    kept = bench.inodes()
    with pytest.raises(BadRows):
        bench.run(normalize={"nonfinite": "fail"})
    assert bench.inodes() == kept


def test_a_higher_limit_only_publishes(bench: Bench) -> None:
    with pytest.raises(BadRows, match=r"1 bad of 23 rows \(1 nonfinite_prediction"):
        bench.run(normalize={"max_bad_fraction": 0.01})
    assert not (bench.out / "vectors").exists()
    kept = bench.inodes()
    result = bench.run(normalize={"max_bad_fraction": 1})
    assert (result.parts_kept, result.rows_done) == (PARTS, 0)
    assert bench.inodes() == kept


@pytest.mark.parametrize("fraction", [1 / 23, 0.0434])
def test_the_limit_is_a_fraction_of_all_rows(bench: Bench, fraction: float) -> None:
    if fraction == 1 / 23:
        assert bench.run(normalize={"max_bad_fraction": fraction}).rows["bad"] == 1
    else:
        with pytest.raises(BadRows):
            bench.run(normalize={"max_bad_fraction": fraction})


def test_what_another_policy_had_quarantined_is_not_published(bench: Bench) -> None:
    """Two parts had rows for quarantine; under the new policy only one of them has."""
    with pytest.raises(BadRows):
        bench.run(normalize={"zero": "quarantine", "max_bad_fraction": 0})
    staged = sorted(os.listdir(bench.out / "_state" / "_quarantine"))
    assert staged == ["part-000001.parquet", "part-000003.parquet"]
    result = bench.run(normalize={"zero": "drop"})
    assert result.parts_kept == PARTS - 1
    assert os.listdir(bench.out / "_quarantine") == ["part-000001.parquet"]
    resumed = tree(bench.out)
    bench.run(normalize={"zero": "drop"}, fresh=True)
    assert tree(bench.out) == resumed


# ---- runs under way


def test_the_same_job_goes_on(bench: Bench) -> None:
    bench.stop_in_publishing()
    assert sorted(os.listdir(bench.out)) == ["_state"]
    kept = bench.inodes()
    result = bench.run()
    assert (result.parts_kept, result.rows_done) == (PARTS, 0)
    assert bench.inodes() == kept


def test_an_unfinished_run_of_another_job_is_refused(bench: Bench) -> None:
    bench.stop_in_publishing()
    before = tree(bench.out)
    with pytest.raises(OutputError, match=r"an unfinished run of another.*: norm l2 → max"):
        bench.run(normalize={"norm": "max"})
    assert tree(bench.out) == before
    assert bench.run(normalize={"norm": "max"}, fresh=True).parts_kept == 0


def test_the_old_result_stands_while_fresh_is_under_way(bench: Bench) -> None:
    bench.run(normalize={"norm": "l1"})
    old = tree(bench.out)
    bench.stop_in_publishing(fresh=True)
    assert tree(bench.out).items() >= old.items()
    assert bench.run().parts_kept == PARTS
    assert tree(bench.out).keys() == old.keys()
    assert tree(bench.out) != old


def test_asking_for_the_old_result_leaves_what_is_under_way(bench: Bench) -> None:
    bench.run(normalize={"norm": "l1"})
    bench.stop_in_publishing(fresh=True)
    both = tree(bench.out)
    assert bench.run(normalize={"norm": "l1"}).nothing_to_do
    assert tree(bench.out) == both
    assert bench.run(fresh=True).parts_kept == PARTS


def test_an_unfinished_run_without_finished_parts_makes_way(bench: Bench) -> None:
    with pytest.raises(BadRows):
        bench.run(normalize={"nonfinite": "fail"}, output={"part_rows": ROWS})
    assert bench.run(normalize={"norm": "max"}).rows_done == ROWS


def test_a_choice_that_nobody_made_is_no_difference_to_name(bench: Bench) -> None:
    bench.run(output={"part_rows": "auto"}, limit=4)
    with pytest.raises(OutputError) as caught:
        bench.run(output={"part_rows": "auto"}, normalize={"norm": "max"})
    assert "limit 4 → none" in caught.value.message
    assert "rows`" not in caught.value.message


# ---- other bits


def test_other_bits_go_on_only_when_they_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.stop_in_publishing()
    (bench.out / record_path(2).removeprefix("out/")).unlink()
    old = json.loads((bench.out / record_path(0)).read_bytes())["bits"]
    monkeypatch.setattr(environment, "cpu", lambda: "x86_64-other")
    with pytest.raises(OutputError, match=r"CPU .* → x86_64-other.*`--mixed-bits`"):
        bench.run()
    result = bench.run(engine={"mixed_bits": True})
    assert result.parts_kept == PARTS - 1
    bits = [part["bits"] for part in result.manifest["parts"]]
    assert bits == [old, old, result.manifest["bits"], old, old]
    assert result.manifest["bits"] != old


def test_other_bits_may_begin_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.stop_in_publishing()
    monkeypatch.setattr(environment, "cpu", lambda: "x86_64-other")
    assert bench.run(fresh=True).parts_kept == 0


# ---- failures on the way


def test_a_part_that_cannot_be_written_leaves_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = OutputFile.write

    def fail(file: OutputFile, data: Any) -> int:
        if "part-000003" in str(file._path):
            message = f"Cannot write `{file._path}` failed."
            raise WorkFailed(message)
        return write(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(OutputFile, "write", fail)
        with pytest.raises(WorkFailed, match="part-000003"):
            bench.run(engine={"workers": 1})
    assert os.listdir(bench.out / "_state" / "tmp") == []
    result = bench.run()
    assert (result.parts_kept, result.rows_done) == (3, 8)


def test_a_kill_while_the_state_is_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the system lists what is in it: here the staged manifest goes first."""
    remove = Storage.remove

    def stop(storage: Storage, path: str) -> None:
        if path == "_state":
            remove(storage, "_state/_manifest.json")
            raise KeyboardInterrupt
        remove(storage, path)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "remove", stop)
        bench.out.mkdir()
        with pytest.raises(KeyboardInterrupt):  # when it begins: what was there before
            bench.run()
        patched.setattr(Storage, "remove", remove)
        bench.stop_in_publishing()
        patched.setattr(Storage, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    assert bench.run().nothing_to_do
    assert not (bench.out / "_state").exists()


# ---- what an older result leaves


@pytest.mark.parametrize("damage", ["success", "manifest"])
def test_fresh_clears_away_a_result_that_is_damaged(bench: Bench, damage: str) -> None:
    bench.run(output={"format": "npy"})
    name = {"success": "_SUCCESS", "manifest": "_manifest.json"}[damage]
    (bench.out / name).write_text("damaged")
    bench.run(fresh=True)
    names = {"_SUCCESS", "_manifest.json", "_quarantine", "_stats", "contract.json", "vectors"}
    assert set(os.listdir(bench.out)) == names


def test_another_format_replaces_the_directories_of_the_former(bench: Bench) -> None:
    bench.run(output={"format": "npy"}, normalize={"nonfinite": "drop"})
    (bench.out / "notes.txt").write_text("a person's")
    bench.run(normalize={"nonfinite": "drop"}, fresh=True)
    names = {"_SUCCESS", "_manifest.json", "_stats", "contract.json", "notes.txt", "vectors"}
    assert set(os.listdir(bench.out)) == names


def test_a_result_without_its_vectors_is_not_finished(bench: Bench) -> None:
    bench.run()
    shutil.rmtree(bench.out / "vectors")
    with pytest.raises(OutputError, match="have been removed: `vectors`"):
        bench.run()
    assert bench.run(fresh=True).rows_done == ROWS


def test_another_order_of_outputs_is_another_result(tmp_path: Path) -> None:
    columns = {name: fixed_size_list(np.ones((3, 2), np.float32)) for name in "ab"}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")

    def run_with(order: str) -> RunResult:
        features = {name: name for name in order}
        data = {"input": {"path": "in.parquet", "features": features}, "output": {"path": "out"}}
        return run(Job.from_dict(data, tmp_path))

    run_with("ab")
    assert run_with("ab").nothing_to_do
    with pytest.raises(OutputError, match="outputs a, b → b, a"):
        run_with("ba")
