"""Null keys and keys that two rows have are refused, with their places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.refresh.changes import classify, source
from batchnorm_tool.commands.refresh.changes.classify import MatchedRows
from batchnorm_tool.commands.refresh.changes.source import Hashes
from batchnorm_tool.errors import InputError
from tests.commands.refresh.changes.nights import Nights, items, some

both = pytest.mark.parametrize("memory", [None, 1], ids=["in memory", "in buckets"])


def refusal(nights: Nights, *tables: pa.Table, memory: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        nights.find(nights.tonight(*tables), memory_bytes=memory)
    assert "difference.json" not in nights.night()
    return caught.value.message.replace(f"{nights.root}/input/", "")


@both
@pytest.mark.parametrize("known", [[], [5], [1, 2, 3, 5]], ids=["new", "known", "all known"])
def test_a_key_twice(nights: Nights, known: list[int], memory: int | None) -> None:
    nights.publish(items(known) if known else items([99]))
    message = refusal(nights, items([1, 5, 2]), items([3, 5]), memory=memory)
    assert message == (
        "01.parquet, row 1, column `id`: the key `id` 5 is a duplicate of 00.parquet, row 1. "
        "Expected unique keys. Received: 1 duplicate. Remove them, or add columns to `input.key`."
    )


@both
def test_the_first_repetition_is_named_and_all_are_counted(
    nights: Nights, memory: int | None
) -> None:
    keys = ["b", "a", "a", "b", "a", "c"]
    message = refusal(nights, items(keys), memory=memory)
    assert message.startswith("00.parquet, row 2, column `id`: the key `id` 'a' is a duplicate")
    assert "is a duplicate of 00.parquet, row 1." in message
    assert "Received: 3 duplicates" in message


@both
def test_a_key_twice_in_different_parts(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 2)
    nights.publish(items([1]))
    assert "row 4, column `id`: the key `id` 1" in refusal(
        nights, items([1, 2, 3, 4, 1, 5]), memory=memory
    )


def test_a_composite_key_twice(nights: Nights) -> None:
    pairs = replace(nights, keys=("shop", "id"), passthrough=())
    message = refusal(pairs, items([1, 1, 1], shops=["a", "b", "a"]))
    assert "row 2, column `shop`, `id`: the key `shop` 'a', `id` 1 is a duplicate" in message


def test_a_deleted_row_and_another_with_its_key(nights: Nights) -> None:
    nights.publish(items([1]))
    for key in (1, 2):
        table = items([key, key]).append_column("gone", pa.array([True, False]))
        tonight = replace(nights.tonight(table), mode="delta", delete_column="gone")
        with pytest.raises(InputError, match="is a duplicate"):
            nights.find(tonight)


@both
def test_a_null_key(nights: Nights, memory: int | None) -> None:
    message = refusal(nights, items([1, 2]), items([3, None, None]), memory=memory)
    assert message == (
        "01.parquet, row 1, column `id`: the key is null. Expected a key in every row. Received: "
        "null. Fill it in, or remove the row from the input."
    )


def test_a_null_in_one_column_of_a_key(nights: Nights) -> None:
    pairs = replace(nights, keys=("id", "shop"), passthrough=())
    assert "row 1, column `shop`: the key is null" in refusal(
        pairs, items([1, 1], shops=["a", None])
    )


def test_a_null_in_the_dictionary_of_a_key(nights: Nights) -> None:
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    table = items(["x", "y", "z"]).set_column(0, "id", encoded)
    path = str(nights.root / "keys.arrow")
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="row 1, column `id`: the key is null"):
        nights.find(nights.of(path))


def test_the_first_null_is_named_whichever_thread_finds_one_first(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 3)
    tables = [items([n, None, n + 1]) for n in range(0, 20, 2)]
    with pytest.raises(InputError, match=r"00\.parquet, row 1"):
        nights.find(nights.tonight(*tables), workers=8)


def test_first_words_that_agree_are_no_repetition(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    look = classify.refuse_duplicates
    monkeypatch.setattr(MatchedRows, "is_repeated", lambda self: True)
    monkeypatch.setattr(
        classify, "refuse_duplicates", lambda *given: asked.append(1) or look(*given)
    )
    assert some(nights.find(nights.tonight(items([1, 2]))).counts) == {"rows_in": 2, "new": 2}
    assert asked == [1]


def test_new_ids_with_the_same_first_word_raise_suspicion() -> None:
    ids = np.array([[7, 1], [5, 0], [7, 2]], np.uint64)
    hashes = Hashes(0, ids, np.zeros((3, 16), np.uint8), np.zeros((3, 8), np.uint8), None)
    claims = MatchedRows(*np.zeros((2, 0), np.uint8))
    claims.add(hashes, np.zeros(3, np.uint8), np.full(3, -1))
    claims.clear_new()
    assert claims.is_repeated()


def test_new_ids_that_begin_otherwise_raise_none() -> None:
    ids = np.array([[7, 1], [5, 0], [8, 1]], np.uint64)
    hashes = Hashes(0, ids, np.zeros((3, 16), np.uint8), np.zeros((3, 8), np.uint8), None)
    claims = MatchedRows(*np.zeros((2, 0), np.uint8))
    claims.add(hashes, np.zeros(3, np.uint8), np.full(3, -1))
    assert not claims.is_repeated()
