"""A changed row's way through a refresh: written twice, read twice; known features go no way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import accept, rollback
from batchnorm_tool.commands.refresh import staging
from batchnorm_tool.commands.run import execute as executing
from batchnorm_tool.errors import BadRows, ModelFailed, WorkFailed
from batchnorm_tool.models import security
from batchnorm_tool.models.batching import ModelPredictor
from batchnorm_tool.pipeline.plan import Plan
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.files import OutputFile
from batchnorm_tool.store import state
from tests.commands.refresh.nightly import Nightly, features, firsts, items, lists, unit, units

FIRST = dict.fromkeys(range(30), 0)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What of each file of ours was committed, in order."""
    found: list[bytes] = []
    commit = OutputFile.commit

    def noted(file: OutputFile, **how: bool) -> Any:
        record = commit(file, **how)
        # Of a version some ten thousand vectors at most are kept for the next gate.
        if not file._path.name.endswith(".sample.arrow"):
            found.append(file._path.read_bytes())
        return record

    monkeypatch.setattr(OutputFile, "commit", noted)
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file with staged rows was read."""
    found: Counter[str] = Counter()
    tables = state._arrow_tables

    def noted(place: Path) -> Any:
        found[str(place).partition("/night/")[2]] += 1
        return tables(place)

    monkeypatch.setattr(state, "_arrow_tables", noted)
    return found


def in_dataset(nightly: Nightly) -> set[Path]:
    return set(Path(nightly.store, "data").iterdir())


def test_a_changed_vector_is_written_twice_and_read_twice(
    encoded: Nightly, written: list[bytes], reads: Counter[str]
) -> None:
    encoded.night(FIRST)
    before, there = encoded.vectors(), in_dataset(encoded)
    written.clear()
    reads.clear()
    night = encoded.night({**FIRST, 3: 1, 7: 1, 40: 0}, output__part_rows=2, model__batch_size=2)
    assert night.rows["predicted"] == 3
    changed = [vector for key, vector in encoded.vectors().items() if before.get(key) != vector]
    assert len(changed) == 3
    dataset = [file.read_bytes() for file in in_dataset(encoded) - there]
    for vector, _ in changed:
        assert sum(data.count(vector) for data in written) == 1, "staged"
        assert sum(data.count(vector) for data in dataset) == 1, "in the dataset"
    # Once while others are predicted, for the index, the audit and the gate; once to be merged; and
    # of these files the keys alone, to look up which rows they replace.
    vectors = {name: count for name, count in reads.items() if name.startswith("scored/")}
    assert vectors == dict.fromkeys(
        ("scored/_state/vectors/part-000000.arrow", "scored/_state/vectors/part-000001.arrow"), 3
    )


def test_a_candidate_that_waits_is_what_was_staged(
    encoded: Nightly, written: list[bytes], reads: Counter[str]
) -> None:
    encoded.night(FIRST)
    encoded.night({**FIRST, 3: 1})
    rollback(encoded.store)
    held = encoded.held({**FIRST, 7: 1, 8: 1})
    before = {vector for vector, _ in encoded.vectors().values()}
    written.clear()
    reads.clear()
    accept(encoded.store, held["version"])
    changed = [vector for vector, _ in encoded.vectors().values() if vector not in before]
    assert len(changed) == 2
    assert not any(vector in data for data in written for vector in changed)
    assert reads["scored/_state/vectors/part-000000.arrow"] == 3
    assert encoded.vectors() == encoded.from_scratch({**FIRST, 7: 1, 8: 1})


def test_the_model_is_looked_at_once(
    encoded: Nightly, encoders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[str] = []
    real = security.archive.read_keras_archive

    def noted(path: str, shown: str) -> Any:
        examined.append(shown)
        return real(path, shown)

    monkeypatch.setattr(security.archive, "read_keras_archive", noted)
    monkeypatch.setattr(security, "_EXAMINED", {})
    encoded.night(FIRST)
    assert examined == [encoders["a"]]
    # Of other bytes it is looked at again.
    encoded.night({**FIRST, 3: 1}, model__path=encoders["again"])
    assert examined == [encoders["a"], encoders["again"]]


def repeated(edits: dict[Any, int], of: dict[Any, Any]) -> pa.Table:
    """Items by key, some with the features of another one."""
    table = items(edits)
    x = [features(of.get(key, key), edits[key]) for key in edits]
    return table.set_column(1, "x", lists(x))


def test_features_that_repeat_are_predicted_once(encoded: Nightly, seen: set[float]) -> None:
    # 40 % of the rows have the features of an earlier one, in this part or in another.
    of = {key: key % 5 for key in range(30) if key % 5 < 2 and key > 4} | {29: 27, 28: 27}
    table = repeated(FIRST, of)
    distinct = len({of.get(key, key) for key in FIRST})
    night = encoded.night(table, output__part_rows=4, model__batch_size=2)
    rows = night.rows
    assert (rows["predicted"], rows["reused"]) == (distinct, 30 - distinct)
    vectors = encoded.vectors()
    assert vectors == encoded.from_scratch(table, output__part_rows=4)
    assert all(vectors[key] == vectors[other] for key, other in of.items())


@pytest.mark.parametrize("kind", ["under another key", "in a kept version"])
def test_features_that_the_store_knows_are_not_predicted(
    encoded: Nightly, seen: set[float], kind: str
) -> None:
    encoded.night(FIRST)
    edits = {**FIRST, **dict.fromkeys(range(30, 40), 0)}
    if kind == "in a kept version":
        encoded.night({key: 0 for key in FIRST if key > 4})
    seen.clear()
    of = {key: key - 30 for key in range(30, 39)}
    night = encoded.night(repeated(edits, of))
    new = 10 if kind == "under another key" else 15
    assert (night.rows["new"], night.rows["reused"], night.rows["predicted"]) == (new, new - 1, 1)
    assert seen == firsts({39: 0})
    assert encoded.vectors() == encoded.from_scratch(repeated(edits, of))


def test_every_row_that_needs_a_vector_is_predicted_reused_or_bad(nightly: Nightly) -> None:
    sections = {
        "input": {**nightly.job().model_dump()["input"], "path": "in", "invalid": "quarantine"},
        "normalize": {"zero": "quarantine"},
    }
    nightly.night(FIRST, sections)
    table = repeated({**FIRST, 3: 1, 50: 0, 51: 0, 52: 0, 53: 0}, {50: 1, 52: 51})
    x = table["x"].to_pylist()
    x[-1], x[4], x[5] = None, [0.0] * 8, [0.0] * 8
    rows = nightly.night(table.set_column(1, "x", pa.array(x, table["x"].type)), sections).rows
    assert (rows["new"], rows["changed"]) == (4, 3)
    assert rows["new"] + rows["changed"] == rows["predicted"] + rows["reused"] + rows["bad"]
    # Of the two rows of zeros the second one is known, and as bad as the first.
    assert (rows["predicted"], rows["reused"], rows["bad"]) == (3, 3, 1)
    found = nightly.vectors()
    assert found[50] == found[1] == units({1: 0})[1]
    assert found[52] == unit(np.asarray(features(51)))


def test_a_stopped_refresh_keeps_the_parts_that_it_scored(
    encoded: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"output__part_rows": 4, "model__batch_size": 2}
    put, records = Storage.put, [0]

    def failing(storage: Storage, path: str, data: bytes, **how: bool) -> Any:
        records[0] += "/records/" in path
        if records[0] == 4:
            raise WorkFailed("The disk is full.")
        return put(storage, path, data, **how)

    encoded.put(FIRST)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "put", failing)
        with pytest.raises(WorkFailed, match="full"):
            encoded.night(None, **parts)
    scored = Storage(Path(encoded.state.root, "night", "scored"))
    assert scored.names("_state/records") == [f"00000{part}.json" for part in range(3)]
    assert Plan.opened(scored.get("_state/plan.json") or b"", "plan").part_count == 8
    rows: list[int] = []
    real = executing.execute

    def noted(*arguments: Any, **values: Any) -> Any:
        done = real(*arguments, **values)
        rows.append(done.parts_kept)
        return done

    monkeypatch.setattr(staging, "execute", noted)
    encoded.night(None, **parts)
    assert rows == [3]
    assert encoded.vectors() == encoded.from_scratch(FIRST, output__part_rows=4)


def test_several_processes_score_a_refresh(encoded: Nightly, tmp_path: Path) -> None:
    sections = {"engine": {"devices": ["cpu", "cpu"]}, "output": {"path": str(tmp_path / "out")}}
    night = encoded.night(FIRST, sections, output__part_rows=4, model__batch_size=2)
    assert night.rows["predicted"] == 30
    assert not (tmp_path / "out").exists()
    assert encoded.vectors() == encoded.from_scratch(FIRST, output__part_rows=4)


def test_rows_on_which_the_model_fails_are_bad_rows(
    encoded: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded.night(FIRST)
    fails = {float(features(key, 1)[0]) for key in range(10)}

    def failing_rows(_: Any, arrays: Any) -> dict[int, str]:
        firsts_of = arrays["x"][:, 0].astype(float).tolist()
        return {row: "no such id" for row, value in enumerate(firsts_of) if value in fails}

    def predict(self: Any, arrays: Any) -> Any:
        if failing_rows(self, arrays):
            raise ModelFailed("no such id")
        return real(self, arrays)

    real = ModelPredictor.predict
    monkeypatch.setattr(ModelPredictor, "predict", predict)
    monkeypatch.setattr(ModelPredictor, "failing_rows", failing_rows)
    sections = {
        "input": {**encoded.job().model_dump()["input"], "path": "in", "invalid": "quarantine"},
        "gate": {"input": {"changed": None}, "output": {"bad": 0.5, "min_rows": 10}},
    }
    # As many of the changed rows are bad as the limit forbids, though the model took none of them.
    held = encoded.held({**FIRST, **dict.fromkeys(range(10), 1)}, sections)
    rows = held["rows"]
    assert (rows["changed"], rows["predicted"], rows["reused"], rows["bad"]) == (10, 0, 0, 10)
    assert "10 bad of 10 rows" in held["message"]


@pytest.mark.parametrize("policy", ["zero", "nonfinite"])
def test_a_row_that_breaks_a_policy_is_named(nightly: Nightly, policy: str) -> None:
    x = [features(key) for key in FIRST]
    x[5] = np.full(8, 0 if policy == "zero" else np.inf, np.float32)
    table = items(FIRST).set_column(1, "x", lists(x))
    sections = {"normalize": {policy: "fail"}}
    for _ in range(2):
        with pytest.raises(BadRows, match="key 5: "):
            nightly.night(table, sections, output__part_rows=2)
    assert nightly.night(items(FIRST), sections, output__part_rows=2).rows["live"] == 30
