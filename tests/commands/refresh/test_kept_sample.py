"""The sample that a version keeps of itself: what is in it, and that the gate finds the same by it.

A refresh may also write its index over a base; both are held against the dataset here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool import accept, rollback, verify
from batchnorm_tool.commands.refresh import survey
from batchnorm_tool.store import index
from batchnorm_tool.store.index import index_files, read_index
from batchnorm_tool.store.state import index_path, sample_path
from tests.commands.refresh.nightly import LOOSE, Edits, Nightly, units

NIGHTS: list[Edits] = [
    dict.fromkeys(range(40), 0),
    {**dict.fromkeys(range(3, 45), 0), 7: 1, 20: 1},
    {**dict.fromkeys(range(3, 44), 0), 7: 1, 20: 2, 5: 1, 30: 1},
    {**dict.fromkeys(range(2, 44), 0), 7: 1, 20: 2, 5: 2, 30: 1, 43: 1},
]
GATE = {"gate": {**LOOSE, "output": {"bad": None, "min_rows": 20}}}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors were taken of the dataset for each sample; indexes are over a base."""
    monkeypatch.setattr(index, "_LEAST_BASE_ROWS", 1)
    monkeypatch.setattr(index, "_MOST_CHANGED", 0.5)
    counts: list[int] = []
    real = survey.take_by_key

    def take(path: str, version: int, wanted: pa.Table, *more: Any) -> Iterator[pa.Table]:
        counts.append(wanted.num_rows)
        yield from real(path, version, wanted, *more)

    monkeypatch.setattr(survey, "take_by_key", take)
    return counts


def kept(nightly: Nightly) -> pa.Table:
    version = nightly.state.pointer().live or 0
    return pa.concat_tables(nightly.state.read_rows(sample_path(version)))


def check(nightly: Nightly, edits: Edits) -> int:
    """Hold the sample against the index and the dataset; returns its rows."""
    live = nightly.state.pointer().live or 0
    keys = pa.concat_tables(read_index(nightly.state.storage, index_path(live), ["id"]))["id"]
    sample = kept(nightly).to_pydict()
    assert sample["id"] == keys.take(pa.array(sample[survey.PLACE])).to_pylist()
    vectors = [np.array(vector, np.float32).tobytes() for vector in sample["vector"]]
    assert [*zip(vectors, sample["norm"], strict=True)] == [
        units(edits)[key] for key in sample["id"]
    ]
    verify(nightly.store)
    return len(sample["id"])


@pytest.mark.parametrize("most", [10_000, 10], ids=["of all rows", "of some"])
def test_each_night_takes_over_what_stays_and_adds_what_it_writes(
    nightly: Nightly, taken: list[int], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(survey, "SAMPLE_ROWS", most)
    for edits in NIGHTS:
        nightly.night(edits)
        rows = check(nightly, edits)
        assert rows == len(edits) if most > len(edits) else 7 <= rows <= 14
    files = index_files(nightly.state.storage, index_path(4))
    assert [len(file) for file in files] == [33, 9]
    assert taken == []
    names = [each.name for each in (nightly.state.storage.root / "nights").iterdir()]
    assert [each for each in sorted(names) if "sample" in each or "base" in each] == [
        "000004.base.parquet",
        "000004.sample.arrow",
    ]


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_without_a_sound_sample_the_gate_finds_the_same(
    nightly: Nightly, taken: list[int], tmp_path_factory: pytest.TempPathFactory, damage: str
) -> None:
    nightly.night(NIGHTS[0], GATE)
    other = Nightly(tmp_path_factory.mktemp("other") / "copy")
    shutil.copytree(nightly.path, other.path)
    path = other.state.storage.root / sample_path(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content)
    sound = nightly.night(NIGHTS[1], GATE).record["gate"]["findings"]
    assert taken == []
    assert other.night(NIGHTS[1], GATE).record["gate"]["findings"] == sound
    assert taken == [40]
    assert {"gate.output.norm_psi", "gate.output.bad"} & {each["limit"] for each in sound}


def test_a_store_that_grew_is_sampled_anew(
    nightly: Nightly, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SAMPLE_ROWS", 10)
    nightly.night(NIGHTS[0])
    nightly.night(dict.fromkeys(range(70), 0))
    assert (taken, check(nightly, dict.fromkeys(range(70), 0))) == ([], 18)
    nightly.night(dict.fromkeys(range(130), 0))
    assert (taken, check(nightly, dict.fromkeys(range(130), 0))) == ([6], 11)


def test_after_a_rollback_the_sample_is_taken_of_the_dataset(
    nightly: Nightly, taken: list[int]
) -> None:
    nightly.night(NIGHTS[0])
    nightly.night(NIGHTS[1])
    rollback(nightly.store)
    nightly.held(NIGHTS[2])
    assert taken == [40]
    accept(nightly.store, 4)
    assert taken == [40, 40]
    assert check(nightly, NIGHTS[2]) == len(NIGHTS[2])


def test_a_sample_keeps_its_size_while_fewer_rows_change_than_it_steps_over(
    nightly: Nightly, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SAMPLE_ROWS", 10)
    edits = dict.fromkeys(range(60), 0)
    nightly.night(edits)
    for key in range(12):
        edits[key] = 1
        nightly.night(edits, store__keep__count=1)
    assert taken == []
    assert check(nightly, edits) == 10
    assert sum(edits[key] for key in kept(nightly)["id"].to_pylist()) == 2
