"""Duplicate and missing keys of a run, found however many rows there are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.verify import verify as verify_verify
from batchnorm_tool.commands.verify.verify import verify
from batchnorm_tool.errors import Damaged
from batchnorm_tool.inputs import row_ids
from tests.commands.workshop import FORMATS, ROWS, Workshop, lists, predictions


@pytest.mark.parametrize("form", FORMATS)
def test_duplicate_keys_are_named_with_their_rows(workshop: Workshop, form: str) -> None:
    names = [f"item {row}" for row in range(ROWS)]
    names[290] = names[130] = names[7]
    path = workshop.run_keys(pa.array(names), form)
    assert verify(path).keys is False
    folder, suffix = ("keys", "parquet") if form == "npy" else ("vectors", form)
    rows = ", ".join(
        f"`{folder}/part-00000{part}.{suffix}` row {row}" for part, row in ((0, 7), (1, 2), (2, 34))
    )
    with pytest.raises(Damaged, match="1 finding:") as caught:
        verify(path, keys=True)
    assert f"{rows}: have the same key, 'item 7'" in caught.value.message


def test_null_keys_are_named(workshop: Workshop) -> None:
    numbers = [None if row in (5, 6, 131, 132, 133, 134) else row for row in range(ROWS)]
    path = workshop.run_keys(pa.array(numbers))
    with pytest.raises(Damaged, match="2 findings") as caught:
        verify(path, keys=True)
    assert "part-000000.parquet`, row 5, 6: the key `id` is null" in caught.value.message
    assert "part-000001.parquet`, row 3, 4, 5 and 1 more: the key" in caught.value.message


def test_a_key_of_several_columns_is_one_key(workshop: Workshop) -> None:
    columns = {
        "shop": pa.array([row % 2 for row in range(ROWS)]),
        "item": pa.array([str(row // 2) for row in range(ROWS)]),
        "raw": lists(predictions()),
    }
    spec = {"key": ["shop", "item"], "features": "raw"}
    verify(workshop.run(columns, input=spec), keys=True)
    columns["item"] = pa.array([str(row // 2 % 140) for row in range(ROWS)])
    path = workshop.run(columns, input=spec, fresh=True)
    with pytest.raises(Damaged, match="20 findings") as caught:
        verify(path, keys=True)
    assert "row 0, `vectors/part-000002.parquet` row 24: have the same key, 0, '0'" in (
        caught.value.message
    )


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(np.arange(ROWS, dtype=np.float64)),
        pa.array([bytes([row % 256, row // 256]) for row in range(ROWS)]),
        pa.array(np.arange(ROWS), pa.timestamp("us")),
        pa.array(np.arange(ROWS), pa.int32()).cast(pa.decimal128(12, 2)),
        pa.array([f"item {row}" for row in range(ROWS)]).dictionary_encode(),
    ],
    ids=lambda keys: str(keys.type).partition("<")[0],
)
def test_keys_of_any_type_are_compared(workshop: Workshop, keys: pa.Array) -> None:
    verify(workshop.run_keys(keys), keys=True)
    doubled = pa.concat_arrays([keys.slice(0, ROWS - 1), keys.slice(0, 1)])
    columns = {"id": doubled, "raw": lists(predictions())}
    path = workshop.run(columns, input={"key": "id", "features": "raw"}, fresh=True)
    with pytest.raises(Damaged, match="have the same key"):
        verify(path, keys=True)


def test_many_buckets_find_what_one_does(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_verify, "_KEY_MEMORY_BYTES", 800)
    monkeypatch.setattr(row_ids, "_BUFFERED_ROWS", 50)
    names = [f"item {row}" for row in range(ROWS)]
    verify(workshop.run_keys(pa.array(names)), keys=True)
    path = workshop.run_keys(pa.array([*names[:-1], names[0]]), "arrow")
    with pytest.raises(Damaged, match="'item 0'"):
        verify(path, keys=True)


def test_of_very_many_the_first_few_are_named(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_verify, "_NAMED_PAIRS", 9)
    path = workshop.run_keys(pa.array([row % 4 for row in range(ROWS)]))
    with pytest.raises(Damaged, match="4 findings") as caught:
        verify(path, keys=True)
    assert "row 8, `vectors/part-000000.parquet` row 12: have the same key, 0" in (
        caught.value.message
    )
