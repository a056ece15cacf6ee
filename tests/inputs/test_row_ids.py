"""Rows are found by their ids, and those that repeat one, whatever the memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from batchnorm_tool.inputs import row_ids
from batchnorm_tool.inputs.row_ids import IdLookup, find_repeated, repeats


def some_ids(rows: int, different: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, different, (rows, 2)).astype(np.uint64)


def expected_pairs(ids: np.ndarray) -> list[list[int]]:
    listed = ids.tolist()
    first = [listed.index(each) for each in listed]
    return [[place, row] for row, place in enumerate(first) if place != row]


def test_ids_that_begin_alike_are_told_apart() -> None:
    ids = some_ids(40)
    asked = np.array(list(itertools.product(range(5), repeat=2)), np.uint64)
    listed = ids.tolist()
    expected = [listed.index(each) if each in listed else -1 for each in asked.tolist()]
    assert IdLookup(ids).find(asked).tolist() == expected


@pytest.mark.parametrize("second", [0, 1], ids=["numbers", "hashes"])
@pytest.mark.parametrize("ascend", [True, False], ids=["in order", "in no order"])
def test_ids_that_stand_in_a_row_are_found_like_others(second: int, *, ascend: bool) -> None:
    ids = np.array([[n, n * second] for n in (2, 3, 5, 5, 8, 9)], np.uint64)
    ids[3, 1] += second
    listed = ids if ascend else ids[::-1]
    places, rows = listed.tolist(), IdLookup(listed)
    for asked in ([2, 3, 5], [3, 5, 8], [3, 4, 5], [5, 5], [8, 9], [9, 10], [9, 9], [1, 2]):
        wanted = [[n, n * second] for n in asked]
        expected = [places.index(each) if each in places else -1 for each in wanted]
        assert rows.find(np.array(wanted, np.uint64)).tolist() == expected


@pytest.mark.parametrize("second", [0, 1], ids=["numbers", "hashes"])
@pytest.mark.parametrize("ascend", [True, False], ids=["in order", "in no order"])
def test_each_repetition_is_paired_with_the_first(second: int, *, ascend: bool) -> None:
    ids = some_ids(60, 6) * np.array([1, second], np.uint64)
    ids = ids[np.lexsort(ids.T[::-1])] if ascend else ids
    assert repeats(ids).tolist() == IdLookup(ids).repeated().tolist() == expected_pairs(ids)
    assert repeats(np.unique(ids, axis=0)).tolist() == []


def test_an_id_takes_20_bytes_in_memory_and_44_while_it_is_looked_at() -> None:
    ids = some_ids(100_000, 2**60)
    tracemalloc.start()
    try:
        lookup = IdLookup(ids)
        lasting, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lookup) == len(ids)
    assert lasting <= 20.1 * len(ids)
    assert ids.nbytes + most <= 44.1 * len(ids)


def test_nothing_is_found_among_nothing() -> None:
    places = IdLookup(np.empty((0, 2), np.uint64))
    assert places.find(np.array([[1, 2]], np.uint64)).tolist() == [-1]
    assert places.repeated().tolist() == []


@pytest.mark.parametrize("memory", [10**6, 2000, 1], ids=["in memory", "in pieces", "row by row"])
@pytest.mark.parametrize("different", [2, 30])
def test_repeated_rows_are_the_same_with_any_memory(
    memory: int, different: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_ids, "_BUFFERED_ROWS", 70)
    ids, rows = some_ids(300, different), np.arange(300) * 3 + 5
    blocks = ((rows[start : start + 40], ids[start : start + 40]) for start in range(0, 300, 40))
    found = np.concatenate(list(find_repeated(blocks, 300, memory)))
    expected = (rows[pair].tolist() for pair in expected_pairs(ids))
    assert sorted(found.tolist(), key=lambda pair: pair[1]) == list(expected)


def test_one_id_on_every_row_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ids, "_BUFFERED_ROWS", 5000)
    rows, bound = 500_000, 2_000_000

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, rows, 5000):
            yield np.arange(start, start + 5000), np.full((5000, 2), 7, np.uint64)

    tracemalloc.start()
    try:
        assert sum(map(len, find_repeated(blocks(), rows, bound))) == rows - 1
        assert tracemalloc.get_traced_memory()[1] < 2 * bound
    finally:
        tracemalloc.stop()
