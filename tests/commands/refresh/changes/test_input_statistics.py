"""Statistics of tonight's input against NumPy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.refresh.changes import source
from batchnorm_tool.features import statistics
from batchnorm_tool.features.statistics import ColumnNulls, InputStatistics, nulls_in, statistics_of
from batchnorm_tool.storage.checked_json import plain
from tests.commands.refresh.changes.nights import Nights, items


def measured(
    values: np.ndarray, valid: np.ndarray | None = None, first: int = 0
) -> InputStatistics:
    valid = np.ones(len(values), bool) if valid is None else valid
    return statistics_of(pa.table({"c": pa.nulls(len(values))}), {"x": values}, valid, first)


def test_against_numpy_over_parts_and_chunks(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 100)
    monkeypatch.setattr(source, "_MOST_CHUNK_ROWS", 30)
    values = np.random.default_rng(2).normal(5, 2, (1000, 2)).astype(np.float32)
    features: list[list[float] | None] = [*values.tolist()]
    features[3] = features[8] = features[999] = None
    tonight = nights.tonight(items(range(1000), features), options={"row_group_size": 37})
    found = nights.find(replace(tonight, invalid="quarantine"), workers=3).statistics
    good = np.delete(values, [3, 8, 999], axis=0).astype(np.float64)
    sample = np.delete(values[::8], [1], axis=0).astype(np.float64)
    inputs = found.inputs["x"]
    assert (inputs.rows, inputs.count) == (997, 124)
    assert (np.array(inputs.min) == good.min(axis=0)).all()
    assert (np.array(inputs.max) == good.max(axis=0)).all()
    np.testing.assert_allclose(inputs.mean, sample.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(inputs.std, sample.std(axis=0), rtol=1e-13)
    assert found.columns == {"x": ColumnNulls(1000, 3)}


@pytest.mark.parametrize("first", [0, 1, 7, 8, 13])
def test_every_eighth_row_from_the_start_of_the_input(first: int) -> None:
    values = np.arange(40.0)[:, None] + first
    found = measured(values, first=first).inputs["x"]
    chosen = [row for row in range(first, first + 40) if row % 8 == 0]
    assert found.count == len(chosen)
    assert found.mean.tolist() == [np.mean(chosen)]


def test_rows_that_are_not_valid_do_not_count() -> None:
    valid = np.arange(16) != 8
    values = np.where(valid, 1.0, 1e9)[:, None]
    found = measured(values, valid).inputs["x"]
    assert (found.rows, found.count, found.high.tolist(), found.mean.tolist()) == (15, 1, [1], [1])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float16])
def test_any_numbers_are_float64(dtype: type) -> None:
    found = measured(np.array([[1], [0]], dtype)).inputs["x"]
    assert (found.low.tolist(), found.high.tolist()) == ([0], [1])
    assert found.low.dtype == found.mean.dtype == np.float64


def test_strings_have_nulls_alone(nights: Nights) -> None:
    texts = replace(nights, inputs=(Field("t", (), "string"),), features={"t": ("shop",)})
    tonight = texts.tonight(items(range(3), shops=["a", None, None]))
    found = texts.find(replace(tonight, invalid="quarantine")).statistics
    assert found.columns == {"shop": ColumnNulls(3, 2)}
    assert found.inputs == {}


NESTED = {
    "lists": (pa.array([[1, None], None, [2]]), 2),
    "fixed lists": (pa.array([[1, None], None, [2, 3]], pa.list_(pa.int8(), 2)), 2),
    "lists of lists": (pa.array([[[1, None], None], [[None]], None]), 4),
    "a slice": (pa.array([[None], [1, None], [None]]).slice(1, 1), 1),
    "a dictionary": (pa.DictionaryArray.from_arrays([0, 1, None], ["a", None]), 2),
    "scalars": (pa.array([1.0, None]), 1),
}


@pytest.mark.parametrize("name", NESTED)
def test_nulls_at_every_level(name: str) -> None:
    array, expected = NESTED[name]
    assert nulls_in(pa.chunked_array([array, array])) == 2 * expected


def test_a_merge_is_as_good_as_one_pass() -> None:
    values = np.random.default_rng(3).random((64, 3))
    whole = measured(values).inputs["x"]
    parts = measured(values[:24]).merged(measured(values[24:], first=24)).inputs["x"]
    assert (parts.rows, parts.count) == (whole.rows, whole.count)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-15)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-14)


def test_sets_without_rows_or_without_a_sample_merge() -> None:
    nothing = measured(np.zeros((2, 1)), np.zeros(2, bool))
    unsampled = measured(np.array([[-3.0]]), first=1)
    one = measured(np.array([[2.0]]))
    for order in ([nothing, unsampled, one], [one, unsampled, nothing], [unsampled, nothing, one]):
        found = order[0].merged(order[1]).merged(order[2]).inputs["x"]
        assert (found.rows, found.count) == (2, 1)
        assert (found.low.tolist(), found.mean.tolist()) == ([-3], [2])


def test_a_wide_input_is_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_COMPONENTS", 3)
    found = measured(np.arange(32.0).reshape(8, 2, 2)).inputs["x"]
    assert (found.rows, found.count) == (8, 4)
    assert (found.low.tolist(), found.high.tolist()) == ([0], [31])
    assert found.mean.tolist() == [1.5]


def test_what_float64_cannot_hold_is_still_json() -> None:
    found = measured(np.array([[1e308], [np.inf], [-1e308]])[[0, 0, 0, 0, 0, 0, 0, 0, 2, 1]])
    data = json.loads(json.dumps(plain(found.summary), allow_nan=False))
    assert data["inputs"]["x"]["max"] == [np.finfo(np.float64).max]
