from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm_tool.chunk import Chunk, Field
from batchnorm_tool.errors import WorkFailed
from batchnorm_tool.inputs.row_hash import feature_hashes
from batchnorm_tool.pipeline import repeats as module
from batchnorm_tool.pipeline.repeats import Predicted, Repeats, SharedPredictions

OUTPUTS = (Field("double", (1,), "float64"), Field("text", (2, 1), "float32"))


def hashed(values: np.ndarray) -> np.ndarray:
    return feature_hashes({"x": values}, np.zeros(len(values), np.uint8))


def repeats_of(values: np.ndarray, cuts: tuple[int, ...] = ()) -> Repeats:
    places = [0, *cuts, len(values)]
    blocks = ((start, hashed(values[start:stop])) for start, stop in pairwise(places))
    return Repeats.of(blocks, len(values))


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 40), st.sampled_from([500, 2**20]))
def test_each_repeated_row_knows_the_first_one(values: list[int], cut: int, memory: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_FINDING_BYTES", memory)
        found = repeats_of(np.array(values, np.int64), (min(cut, len(values)),))
    expected = {row: values.index(v) for row, v in enumerate(values) if values.count(v) > 1}
    assert dict(zip(found.rows.tolist(), found.firsts.tolist(), strict=True)) == expected
    assert found.rows.tolist() == sorted(expected)
    earlier = [value in values[:row] for row, value in enumerate(values)]
    assert found.has_earlier(0, len(values)).tolist() == earlier
    assert found.has_earlier(cut, 5)[: max(0, len(values) - cut)].tolist() == earlier[cut:][:5]


def test_they_are_read_back_as_they_were_unless_damaged() -> None:
    found = repeats_of(np.array([4, 4, 7, 4]))
    data = found.to_bytes()
    again = Repeats.from_bytes(data)
    assert again is not None
    assert (again.rows.tolist(), again.firsts.tolist()) == ([0, 1, 3], [0, 0, 0])
    assert Repeats.from_bytes(data[:-1] + b"\1") is None
    assert Repeats.from_bytes(None) is None


def chunk(values: np.ndarray, start: int, stop: int) -> Chunk:
    rows = stop - start
    return Chunk(start, pa.table({}), {"x": values[start:stop]}, np.zeros(rows, np.uint8))


class Model:
    """Predicts 2x, and remembers for which x it was asked; fails on some."""

    def __init__(self, *fails: int) -> None:
        self.asked: list[int] = []
        self._fails, self._lock = fails, threading.Lock()

    def __call__(self, features: Mapping[str, np.ndarray]) -> Predicted:
        x = features["x"]
        with self._lock:
            self.asked += x.tolist()
        failing = {row: f"no {v}" for row, v in enumerate(x.tolist()) if v in self._fails}
        return {"double": 2.0 * x[:, None], "text": np.stack([x, -x], 1)[:, :, None]}, failing


@pytest.mark.parametrize("in_memory", [0, 2**20], ids=["file", "memory"])
def test_threads_predict_each_kind_of_features_once(
    in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", in_memory)
    values = np.random.default_rng(0).integers(0, 300, 4000)
    values[::7] = 1000 + np.arange(len(values[::7]))  # these occur once
    model, shared = Model(), SharedPredictions(repeats_of(values), OUTPUTS)

    def predict(start: int) -> Predicted:
        return shared.predict([chunk(values, start, start + 50)], model)[0]

    with ThreadPoolExecutor(8) as pool:
        found = [predictions for predictions, _ in pool.map(predict, range(0, 4000, 50))]
    assert sorted(model.asked) == sorted(set(values.tolist()))
    assert np.concatenate([each["double"] for each in found]).tolist() == [
        [2.0 * v] for v in values
    ]
    texts = np.concatenate([each["text"] for each in found])
    assert texts.dtype == np.float32
    assert texts.tolist() == [[[v], [-v]] for v in values]


def test_a_row_on_which_the_model_fails_fails_wherever_it_repeats() -> None:
    values = np.array([5, 6, 5, 8, 5, 9])
    model, shared = Model(5), SharedPredictions(repeats_of(values), OUTPUTS)
    first, said = shared.predict([chunk(values, 0, 3)], model)[0]
    assert said == {0: "no 5", 2: "no 5"}
    assert first["double"][1].tolist() == [12.0]
    assert shared.predict([chunk(values, 3, 6)], model)[0][1] == {1: "no 5"}
    assert sorted(model.asked) == [5, 6, 8, 9]


def test_what_failed_in_another_thread_is_predicted_by_who_waits_for_it() -> None:
    values = np.array([5, 5])
    model, shared = Model(), SharedPredictions(repeats_of(values), OUTPUTS)
    begun, fail = threading.Event(), threading.Event()

    def broken(_: object) -> Predicted:
        begun.set()
        fail.wait(10)
        raise WorkFailed("out of memory")

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(shared.predict, [chunk(values, 0, 1)], broken)
        begun.wait(10)
        mine = pool.submit(shared.predict, [chunk(values, 1, 2)], model)
        fail.set()
        with pytest.raises(WorkFailed, match="out of memory"):
            other.result(10)
        assert mine.result(10)[0][0]["double"].tolist() == [[10.0]]
    assert model.asked == [5]


@pytest.mark.parametrize(
    ("memory", "expected"), [(2**20, [5, 1, 1, 1, 5, 1]), (0, [3, 3, 1, 1, 3, 3])]
)
def test_chunks_are_predicted_together_until_they_fill_batches(
    monkeypatch: pytest.MonkeyPatch, memory: int, expected: list[int]
) -> None:
    monkeypatch.setattr(module, "_TOGETHER_BYTES", memory)
    values = np.array([*range(100), *range(60), *range(200, 320)])  # 100, then 60 known, 120 new
    model, shared = Model(), SharedPredictions(repeats_of(values), OUTPUTS)
    chunks = [chunk(values, start, start + 20) for start in range(0, 280, 20)]
    taken = []
    for some in shared.together(iter(chunks), 50):
        taken.append(len(some))
        shared.predict(some, model)
    # 20, 40 and 60 rows would leave much of a batch to padding; nothing is to do for known ones.
    assert taken == expected
    assert sorted(model.asked) == sorted(set(values.tolist()))


def test_no_room_for_predictions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(WorkFailed, match=r"8 bytes.*No space left.*TMPDIR"):
        SharedPredictions(repeats_of(np.array([5, 5])), OUTPUTS)
