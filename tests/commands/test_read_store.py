from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.compare.diff import diff
from batchnorm_tool.errors import Damaged, InputError, JobError
from batchnorm_tool.readers.vectors import open_predictions, read
from batchnorm_tool.store import transaction
from batchnorm_tool.store.state import StoreDirectory, StorePointer
from tests.commands.workshop import Workshop
from tests.store.items import (
    ITEMS,
    SHOPS,
    SPACE,
    Row,
    batches,
    item,
    layout_of,
    publish,
    row,
    stored,
    switch,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "items.lance"
    publish(path, [item(number) for number in range(20)])
    publish(path, [item(3, 2), item(30, 2)], [{"id": 4}])
    return path


def raw(found: list[Row]) -> np.ndarray:
    vectors = np.array([each["vector"] for each in found], np.float32).astype(np.float64)
    return (vectors * np.array([[each["norm"]] for each in found])).astype(np.float32)


def test_the_live_version_is_read(path: Path) -> None:
    keys, vectors, norms = read(path).to_numpy()
    order = np.argsort(keys)
    held = sorted(stored(path), key=lambda each: each["id"])
    assert keys[order].tolist() == [each["id"] for each in held]
    assert vectors.dtype == np.float32
    assert vectors[order].tolist() == [each["vector"] for each in held]
    assert norms[order].tolist() == [each["norm"] for each in held]


def test_raw_predictions_are_restored(path: Path) -> None:
    keys, vectors, _ = read(path, raw=True).to_numpy()
    held = sorted(stored(path), key=lambda each: each["id"])
    np.testing.assert_array_equal(vectors[np.argsort(keys)], raw(held))


def test_an_older_version_is_read_by_its_number(path: Path) -> None:
    found = read(path, version=1)
    assert sorted(found.to_numpy()[0].tolist()) == list(range(20))
    assert found.manifest["version"] == 1
    assert len(found) == found.rows == 20


def test_a_version_that_is_not_kept_is_refused(path: Path) -> None:
    with pytest.raises(JobError, match=r"keeps: 1, 2 \(2 is live\)\. Received: 7"):
        read(path, version=7)


def test_batches_hold_what_a_store_has_besides(path: Path) -> None:
    found = read(str(path))
    assert found.schema.equals(ITEMS.schema)
    assert found.outputs == ("embedding",)
    rows = [each for batch in found.batches(6) for each in batch.to_pylist()]
    assert max(batch.num_rows for batch in found.batches(6)) <= 6
    assert sorted(rows, key=lambda each: str(each["id"])) == stored(path)
    assert found.to_pandas()["version"].sum() == 18 + 2 * 2


def test_keys_of_several_columns_are_tuples(tmp_path: Path) -> None:
    path = tmp_path / "shops.lance"
    publish(path, [row({"shop": "it's", "day": None}, 1, 1, SHOPS)], layout=SHOPS)
    assert read(path).to_numpy()[0].tolist() == [("it's", None)]


def test_a_version_of_another_width_is_read(path: Path) -> None:
    wide = layout_of([pa.field("id", pa.int64())], width=6)
    state = StoreDirectory(str(path))
    switch(state, state.pointer(), 3, write(path, [row({"id": 1}, 3, 1, wide)], wide), wide)
    assert read(path).to_numpy()[1].shape == (1, 6)
    assert read(path, version=2).to_numpy()[1].shape == (20, 4)


def test_a_version_without_the_columns_of_the_live_one_is_refused(path: Path) -> None:
    other = layout_of([pa.field("sku", pa.string())])
    state = StoreDirectory(str(path))
    switch(state, state.pointer(), 3, write(path, [row({"sku": "a"}, 3, 1, other)], other), other)
    with pytest.raises(InputError, match=r"Version 1 of the store .* Expected: sku, vector, norm"):
        read(path, version=1)


def test_a_night_that_was_killed_before_its_switch_is_not_read(path: Path) -> None:
    before = read(path).to_numpy()[0].tolist()
    transaction.commit(
        transaction.prepare_merge(str(path), ITEMS.schema, ITEMS.keys, batches([item(99, 3)]))
    )
    assert read(path).to_numpy()[0].tolist() == before


def test_a_run_has_no_versions(workshop: Workshop) -> None:
    run = workshop.run_keys(pa.array([1, 2]))
    with pytest.raises(JobError, match=r"`version` names a version of a store.*Received: 2"):
        read(run, version=2)


def test_a_dataset_without_state_is_no_store(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"id": [1]}), tmp_path / "mine.lance")
    with pytest.raises(
        InputError, match=r"is a Lance dataset, but not a store: .*\.state` is missin"
    ):
        read(tmp_path / "mine.lance")


def test_a_store_with_nothing_published_says_so(tmp_path: Path) -> None:
    state = StoreDirectory(str(tmp_path / "new.lance"))
    state.put_pointer(StorePointer())
    with pytest.raises(InputError, match=r"Nothing has been published in .* yet\. Run"):
        read(state.path)
    state.put_pointer(StorePointer(waiting=1))
    with pytest.raises(InputError, match=r"yet: version 1 is waiting.*accept .*new\.lance 1"):
        read(state.path)


def test_a_missing_record_is_damage(path: Path) -> None:
    state = StoreDirectory(str(path))
    state.storage.remove("nights/000002.json")
    with pytest.raises(Damaged, match="The record of version 2 is missing in"):
        read(path).manifest  # noqa: B018


def test_predictions_of_a_store_are_restored(path: Path) -> None:
    found = open_predictions(path)
    assert (found.kind, found.rows, found.width, found.keys) == ("store", 20, 4, ("id",))
    assert (found.column, found.dtype) == (("embedding",), "float32")
    batches = list(found.batches(["id", "label"]))
    assert [batch.first_row for batch in batches] == [0, 18]
    columns = pa.concat_tables([batch.columns for batch in batches])
    held = {each["id"]: each for each in stored(path)}
    rows = [held[key] for key in columns["id"].to_pylist()]
    np.testing.assert_array_equal(np.concatenate([each.vectors for each in batches]), raw(rows))
    assert columns["label"].to_pylist() == [each["label"] for each in rows]
    assert found.read_columns(["id"]).num_rows == 20
    assert found.locate(7) == f"{path}, row 7"
    assert "version" in found.columns
    assert "vector" not in found.columns


def test_predictions_of_a_store_tell_their_space(path: Path) -> None:
    assert open_predictions(path).provenance == {
        "space": "5ace",
        "model": "encoder.keras",
        "model_sha256": "c0ffee",
        "output": "embedding",
        "norm": "l2",
        "versions": {"keras": "3"},
        "made_of": SPACE,
    }


def test_a_store_has_one_output(path: Path) -> None:
    assert open_predictions(path, column="vector").column == ("embedding",)
    with pytest.raises(InputError, match=r"Expected `column` to be one of: `embedding`"):
        open_predictions(path, column="other")


def test_a_store_and_a_run_are_compared_by_key(path: Path, workshop: Workshop) -> None:
    held = stored(path)
    vectors = raw(held)
    vectors[5] *= -1
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    columns = {"id": pa.array([each["id"] for each in held]), "raw": lists}
    run = workshop.run(columns, input={"key": "id", "features": "raw"})
    with pytest.raises(InputError, match="another model: c0ffee → none"):
        diff(path, run)
    found = diff(path, run, sample=0, mixed_spaces=True).to_dict()
    assert found["a"]["kind"] == "store"
    assert found["rows"]["common"] == found["rows"]["compared"] == 20
    assert found["worst"][0]["key"] == held[5]["id"]
    assert found["worst"][0]["cosine"] == pytest.approx(-1)
