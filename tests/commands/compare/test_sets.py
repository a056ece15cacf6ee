"""Rows of two sets meet where their keys are equal, whatever type these have."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.compare.sets import Join, join_keys, keys_to_json
from batchnorm_tool.errors import InputError
from batchnorm_tool.readers.source import VectorSource
from batchnorm_tool.readers.vectors import open_predictions

Store = Callable[..., VectorSource]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Stores keys with vectors that nobody looks at; small row groups make chunks of them."""

    def make(name: str, **keys: Any) -> VectorSource:
        table = pa.table(keys)
        rows = table.num_rows
        table = table.append_column("raw", pa.array([[0.0]] * rows, pa.list_(pa.float32(), 1)))
        pq.write_table(table, tmp_path / name, row_group_size=2)
        return open_predictions(tmp_path / name, key=list(keys) or None)

    return make


def day(number: int) -> dt.date:
    return dt.date(2026, 1, number)


KEYS: dict[str, tuple[Any, Any]] = {
    "integers": (pa.array([5, 7, 9]), pa.array([9, 5, 4])),
    "integers of two widths": (pa.array([5, 7, 9], pa.int16()), pa.array([9, 5, 4], pa.uint64())),
    "texts": (pa.array(["e", "g", "i"]), pa.array(["i", "e", "d"])),
    "texts of two kinds": (pa.array(["e", "g", "i"]), pa.array(["i", "e", "d"], pa.large_string())),
    "numbers and texts": (pa.array([5, 7, 9]), pa.array(["9", "5", "4"])),
    "numbers with a point": (pa.array([0.5, 0.7, 0.9]), pa.array([0.9, 0.5, 0.4])),
    "half floats": (
        pa.array(np.array([5, 7, 9], np.float16)),
        pa.array(np.array([9, 5, 4], np.float16)),
    ),
    "dictionaries": (
        pa.array(["e", "g", "i"]).dictionary_encode(),
        pa.array(["i", "e", "d"]).dictionary_encode(),
    ),
    "dates": (pa.array([day(5), day(7), day(9)]), pa.array([day(9), day(5), day(4)])),
    "bytes": (pa.array([b"\xff", b"g", b"i"]), pa.array([b"i", b"\xff", b"d"])),
}


@pytest.mark.parametrize(("a", "b"), KEYS.values(), ids=KEYS.keys())
def test_rows_with_the_same_key_meet(store: Store, a: Any, b: Any) -> None:
    join = join_keys(store("a", id=a), store("b", id=b))
    assert join.partners.tolist() == [1, -1, 0]
    assert join.common.tolist() == [0, 2]
    assert join.removed.tolist() == [1]
    assert join.added.tolist() == [2]


def test_all_parts_of_a_key_count(store: Store) -> None:
    a = store("a", shop=["x", "x", "y", "y"], item=[1, 2, 1, 2])
    b = store("b", shop=["y", "x", "z", "x"], item=["2", "1", "1", "3"])
    assert join_keys(a, b).partners.tolist() == [1, -1, -1, 0]


def test_rows_without_a_key_meet_by_their_number(store: Store) -> None:
    a, b = open_twice(store("a", id=[7, 8, 9])), open_twice(store("b", id=[1, 2]))
    join = join_keys(a, b)
    assert join.partners.tolist() == [0, 1, -1]
    assert join.a_keys.column_names == ["row"]


def open_twice(predictions: VectorSource) -> VectorSource:
    return open_predictions(predictions.name)


def test_many_rows_meet_as_in_a_dictionary(store: Store) -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.choice(2000, 700, replace=False) for _ in range(2))
    join = join_keys(store("a", id=a), store("b", id=b))
    places = {key: row for row, key in enumerate(b.tolist())}
    assert join.partners.tolist() == [places.get(key, -1) for key in a.tolist()]
    assert sorted(b[join.added].tolist()) == sorted(set(b.tolist()) - set(a.tolist()))


@pytest.mark.parametrize(
    ("a", "words"),
    [
        ([1, 2, None, 3], "a, row 2: the key `id` is null"),
        (
            [1, 2, 3, 2, 1],
            r"a, row 3: the key `id` 2 is a duplicate of .*a, row 1\. .*: 2 duplicates",
        ),
        ([1, 2, 3], r"no key in common.*`id` 1 \(int64\) in .*a and `id` 'x' \(string\) in .*b"),
        (pa.array([], pa.int64()), "Received: no rows in .*a and `id` 'x'"),
    ],
    ids=["null", "twice", "nothing in common", "no rows"],
)
def test_keys_that_name_no_row_are_refused(store: Store, a: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        join_keys(store("a", id=a), store("b", id=["x", "y"]))
    with pytest.raises(InputError):
        join_keys(store("b", id=["x", "y"]), store("a", id=a))


def test_keys_become_plain_data() -> None:
    when = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)
    table = pa.table({"a": [1, 2], "b": [b"x", b"y"], "c": [when, when]})
    assert keys_to_json(table, [1]) == [[2, "y", "2026-01-02 03:00:00+00:00"]]
    assert keys_to_json(table.select(["a"]), [1, 0]) == [2, 1]


def test_a_join_counts_every_row_once(store: Store) -> None:
    join: Join = join_keys(store("a", id=[1, 2, 3]), store("b", id=[3, 4]))
    assert len(join.common) + len(join.removed) == 3
    assert len(join.common) + len(join.added) == 2
