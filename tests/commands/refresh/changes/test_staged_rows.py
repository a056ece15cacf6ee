"""What is staged: what the model would have seen, the same for any threads and memory."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.refresh.changes import source
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.formats.arrow_columns import shape_of
from batchnorm_tool.inputs.table import open_table
from batchnorm_tool.job import Input
from tests.bits import same_bits
from tests.commands.refresh.changes.nights import INDEX, Nights, items, read_back

RANDOM = np.random.default_rng(5)
INPUTS = {
    "float32": (Field("x", (3,), "float32"), RANDOM.random((9, 3)).tolist()),
    "float16": (Field("x", (3,), "float16"), RANDOM.random((9, 3)).tolist()),
    "float64": (Field("x", (3,), "float64"), RANDOM.random((9, 3)).tolist()),
    "bfloat16": (Field("x", (3,), "bfloat16"), RANDOM.random((9, 3)).tolist()),
    "int32": (Field("x", (2,), "int32"), RANDOM.integers(-(2**31), 2**31, (9, 2)).tolist()),
    "int64 alone": (Field("x", (1,), "int64"), [[n * 2**60] for n in range(-4, 5)]),
    "scalar": (Field("x", (), "float32"), RANDOM.random(9).tolist()),
    "uint8": (Field("x", (4,), "uint8"), RANDOM.integers(0, 255, (9, 4)).tolist()),
    "bool": (Field("x", (3,), "bool"), (RANDOM.random((9, 3)) < 0.5).tolist()),
    "scalar bool": (Field("x", (), "bool"), (RANDOM.random(9) < 0.5).tolist()),
    "string": (Field("x", (), "string"), [f"ä{n}" for n in range(9)]),
    "strings": (Field("x", (2,), "string"), [["", f"{n}"] for n in range(9)]),
    "rank 3": (Field("x", (2, 3, 1), "float32"), RANDOM.random((9, 2, 3, 1)).tolist()),
    "rank 2": (Field("x", (2, 3), "int16"), RANDOM.integers(0, 99, (9, 2, 3)).tolist()),
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_model_sees_the_same_bits(nights: Nights, name: str) -> None:
    field, values = INPUTS[name]
    typed = replace(nights, inputs=(field,))
    table = pa.table({"id": list(range(9)), "shop": ["s"] * 9, "x": values})
    tonight = typed.tonight(table)
    expected, _ = tonight.reader.read(table)
    found = typed.find(tonight)
    arrays, faults = read_back(typed, found)
    assert not faults.any()
    if expected["x"].dtype == object:
        # Text comes back as its bytes, which are the same to TensorFlow.
        texts = [text.encode() for text in expected["x"].ravel()]
        assert arrays["x"].ravel().tolist() == texts
    else:
        assert same_bits(arrays["x"], expected["x"])
    assert arrays["x"].shape == (9, *field.shape)
    if field.dtype == "bfloat16":
        assert arrays["x"].dtype == ml_dtypes.bfloat16
    table = open_table(Input(path=str(typed.root / "state/night/changed")))
    if len(field.shape) > 1:
        assert shape_of(table.schema.field("feature_0")) == field.shape


def test_several_inputs_in_the_order_of_their_names(nights: Nights) -> None:
    inputs = (Field("z", (2,), "float32"), Field("b", (), "string"), Field("y", (), "int64"))
    several = replace(nights, inputs=inputs, features={"z": ("x",), "b": ("shop",), "y": ("id",)})
    found = several.find(several.tonight(items([3, 4])))
    assert found.features == {"b": "feature_0", "y": "feature_1", "z": "feature_2"}
    staged = several.staged("changed")
    assert staged is not None
    assert staged["feature_0"].to_pylist() == [b"shop 3", b"shop 4"]
    assert staged["feature_1"].to_pylist() == [3, 4]
    arrays, _ = read_back(several, found)
    assert arrays["z"].dtype == np.float32


def test_bits_of_zeros_and_subnormals_survive(nights: Nights) -> None:
    values = [[-0.0, 1e-45], [3.4e38, -1e-40]]
    found = nights.find(nights.tonight(items([1, 2], values)))
    arrays, _ = read_back(nights, found)
    assert same_bits(arrays["x"], np.array(values, np.float32))


def mixed(nights: Nights) -> tuple[Nights, pa.Table, pa.Table]:
    """Last night's and tonight's rows, of every kind, bad ones included."""
    keys = [f"item {n}" for n in range(400)]
    live = items(keys, [[n, 1] if n % 17 else None for n in range(400)])
    features = [[n + (n % 7 == 0), 1] if n % 19 else None for n in range(400)]
    shops = [f"shop {key}" + " moved" * (n % 5 == 0) for n, key in enumerate(keys)]
    table = items(keys, features, shops).slice(20)
    table = pa.concat_tables([table, items([f"new {n}" for n in range(50)])])
    order = np.random.default_rng(1).permutation(table.num_rows)
    return nights, live, table.take(pa.array(order))


def set_up(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    _, live, table = mixed(nights)
    stale = {f"item {n}": "stale: null_feature" for n in range(0, 400, 34)}
    remembered = {f"item {n}": "quarantined: null_feature" for n in range(17, 400, 34)}
    nights.publish(live, stale | remembered)
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 40)
    monkeypatch.setattr(source, "_MOST_CHUNK_ROWS", 16)
    return table


@pytest.mark.parametrize("recompute", [False, True])
def test_the_same_bytes_for_any_threads_and_memory(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, *, recompute: bool
) -> None:
    table = set_up(nights, monkeypatch)
    tonight = nights.tonight(table.slice(0, 130), table.slice(130), options={"row_group_size": 64})
    tonight = replace(tonight, invalid="quarantine")
    written = []
    for workers, memory in ((1, None), (4, None), (1, 1), (4, 20_000)):
        ChangeDetector(tonight, INDEX, nights.storage, recompute, memory, workers).run()
        written.append(nights.night())
    assert len(written[0]) > 20
    assert all(other == written[0] for other in written[1:])


def test_rows_come_in_the_order_of_the_input(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_PART_ROWS", 10)
    nights.find(nights.tonight(items(range(95, 0, -1))), workers=4)
    assert nights.keys_in("changed") == list(range(95, 0, -1))


def test_a_set_without_rows_has_no_directory(nights: Nights) -> None:
    nights.find(nights.tonight(items([1])))
    assert sorted(nights.night()) == ["changed/part-000000.arrow", "difference.json", "fates.npy"]
