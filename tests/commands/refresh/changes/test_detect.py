"""Which rows are new, changed, touched, the same, or to go; and what is written of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.changes.result import ChangeSet
from batchnorm_tool.commands.refresh.changes.source import Callbacks
from batchnorm_tool.errors import BadRows, InputError, Interrupted
from batchnorm_tool.store.state import FEATURE_HASH, PASSTHROUGH_HASH
from tests.commands.refresh.changes.nights import INDEX, Nights, items, some

MEMORY = [None, 1]
MEMORY_IDS = ["in memory", "in buckets"]
both = pytest.mark.parametrize("memory", MEMORY, ids=MEMORY_IDS)


def changed(
    table: pa.Table, row: int, features: object = None, shop: str | None = None
) -> pa.Table:
    """The table with other features or another shop in one row."""
    data = table.to_pydict()
    if features is not None:
        data["x"][row] = features
    if shop is not None:
        data["shop"][row] = shop
    return pa.table(data, schema=table.schema)


@both
def test_every_kind(nights: Nights, memory: int | None) -> None:
    live = items(range(6))
    nights.publish(live, {5: "quarantined: zero_vector", 4: "stale: zero_vector"})
    table = changed(changed(live, 1, [9, 9]), 2, shop="other")
    table = pa.concat_tables([table.slice(4), items([10]), table.slice(0, 3)])
    found = nights.find(nights.tonight(table), memory_bytes=memory)
    assert some(found.counts) == {
        "rows_in": 6, "new": 1, "changed": 1, "touched": 1, "same": 3, "vanished": 1
    }  # fmt: skip
    assert found.counts.live == 5
    assert nights.keys_in("changed") == [10, 1]
    assert nights.keys_in("touched") == [2]
    assert nights.keys_in("bad") == []
    assert nights.fates() == [0, 1, 1, 2, 0, 0]
    assert found.counts.for_the_model == 2
    assert not found.counts.is_empty


@both
def test_the_first_night_has_new_rows_alone(nights: Nights, memory: int | None) -> None:
    found = nights.find(nights.tonight(items(range(5))), memory_bytes=memory)
    assert some(found.counts) == {"rows_in": 5, "new": 5}
    assert found.counts.live == 0
    assert nights.keys_in("changed") == [0, 1, 2, 3, 4]
    assert nights.fates() == []


def test_an_empty_input_makes_all_vanish(nights: Nights) -> None:
    nights.publish(items(range(3)), {1: "quarantined: ragged_feature"})
    found = nights.find(nights.tonight(items(range(3)).slice(0, 0)))
    assert some(found.counts) == {"vanished": 2, "forgotten": 1}
    assert nights.fates() == [2, 2, 2]
    assert not found.counts.is_empty


def test_what_is_staged_for_the_model(nights: Nights) -> None:
    table = items(["b", "a"], [[1, 2], [3, 4]])
    found = nights.find(nights.tonight(table))
    staged = nights.staged("changed")
    assert staged is not None
    assert staged.schema.names == ["id", "shop", FEATURE_HASH, PASSTHROUGH_HASH, "feature_0"]
    assert staged.select(["id", "shop"]) == table.select(["id", "shop"])
    assert staged["feature_0"].to_pylist() == [[1, 2], [3, 4]]
    assert found.features == {"x": "feature_0"}
    nights.publish(table)
    index = pa.parquet.read_table(nights.storage.root / INDEX)
    for name in (FEATURE_HASH, PASSTHROUGH_HASH):
        assert staged[name].to_pylist() == index[name].to_pylist()


def test_what_is_staged_of_touched_rows(nights: Nights) -> None:
    nights.publish(items([1, 2]))
    nights.find(nights.tonight(changed(items([1, 2]), 0, shop="new")))
    touched = nights.staged("touched")
    assert touched is not None
    assert touched.drop_columns([FEATURE_HASH]).to_pydict() == {
        "id": [1],
        "shop": ["new"],
        PASSTHROUGH_HASH: touched[PASSTHROUGH_HASH].to_pylist(),
    }


LAYOUTS = {
    "one file": lambda t: ([t], {}),
    "row groups": lambda t: ([t], {"row_group_size": 7}),
    "compression": lambda t: ([t], {"compression": "gzip", "data_page_version": "2.0"}),
    "encoding": lambda t: ([t], {"use_dictionary": False}),
    "files": lambda t: ([t.slice(0, 33), t.slice(33, 0), t.slice(33)], {"row_group_size": 10}),
    "row order": lambda t: ([t.take(list(reversed(range(100))))], {}),
    "column order": lambda t: ([t.select(["x", "shop", "id"])], {}),
    "other columns": lambda t: ([t.append_column("more", t["id"])], {}),
    "dictionary": lambda t: ([t.set_column(1, "shop", t["shop"].dictionary_encode())], {}),
    "large lists": lambda t: (
        [t.set_column(2, "x", t["x"].cast(pa.list_(pa.float32(), 2)))], {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_of_the_same_rows_changes_nothing(nights: Nights, layout: str) -> None:
    nights.publish(items(range(100)))
    tables, options = LAYOUTS[layout](items(range(100)))
    found = nights.find(nights.tonight(*tables, options=options))
    assert some(found.counts) == {"rows_in": 100, "same": 100}
    assert found.counts.is_empty
    assert sorted(nights.night()) == ["difference.json", "fates.npy"]
    assert set(nights.fates()) == {0}


def test_numbers_are_compared_as_the_model_sees_them(nights: Nights) -> None:
    nights.publish(items([1], [[1.0, 0.1]]))
    wide = items([1]).set_column(2, "x", pa.array([[1.0, np.float64(np.float32(0.1)) + 1e-12]]))
    assert nights.find(nights.tonight(wide)).counts.same == 1


def test_a_new_passed_through_column_touches_every_row(nights: Nights) -> None:
    nights.publish(items(range(4)))
    more = replace(nights, passthrough=("shop", "price"))
    table = items(range(4)).append_column("price", pa.array([None, 1, 2, 3]))
    found = more.find(more.tonight(table))
    assert some(found.counts) == {"rows_in": 4, "touched": 4}
    staged = more.staged("touched")
    assert staged is not None
    assert staged["price"].to_pylist() == [None, 1, 2, 3]


@both
def test_recompute_sends_every_row_to_the_model(nights: Nights, memory: int | None) -> None:
    live = items(range(4))
    nights.publish(live, {2: "stale: zero_vector", 3: "quarantined: zero_vector"})
    tonight = nights.tonight(changed(changed(live, 0, [5, 5]), 1, shop="other"))
    found = nights.find(tonight, recompute=True, memory_bytes=memory)
    assert some(found.counts) == {"rows_in": 4, "changed": 1, "recomputed": 3}
    assert nights.keys_in("changed") == [0, 1, 2, 3]
    assert nights.staged("touched") is None
    assert nights.fates() == [1, 1, 1, 1]


def test_recompute_sets_unchanged_bad_rows_aside_anew(nights: Nights) -> None:
    nights.publish(items([1, 2], [[1, 2], None]), {2: "stale: null_feature"})
    tonight = replace(nights.tonight(items([1, 2], [[1, 2], None])), invalid="quarantine")
    found = nights.find(tonight, recompute=True)
    assert some(found.counts) == {"rows_in": 2, "recomputed": 2, "bad": 1}
    assert (nights.keys_in("changed"), nights.keys_in("bad")) == ([1], [2])


REMEMBERED = {
    "stale": ("stale: null_feature", {"same": 2}, {"same": 1, "touched": 1}),
    "quarantined": ("quarantined: null_feature", {"same": 2}, {"same": 2}),
}


@pytest.mark.parametrize("status", REMEMBERED)
@pytest.mark.parametrize("features", [None, [0, 0]], ids=["bad by input", "bad by prediction"])
@pytest.mark.parametrize("invalid", ["fail", "quarantine"])
def test_a_remembered_bad_row_is_left_alone(
    nights: Nights, status: str, features: object, invalid: str
) -> None:
    label, unchanged, touched = REMEMBERED[status]
    live = items([1, 2], [[1, 2], features])
    nights.publish(live, {2: label})
    tonight = replace(nights.tonight(live), invalid=invalid)
    assert some(nights.find(tonight).counts) == {"rows_in": 2, **unchanged}
    tonight = replace(nights.tonight(changed(live, 1, shop="other")), invalid=invalid)
    assert some(nights.find(tonight).counts) == {"rows_in": 2, **touched}


@both
def test_bad_rows_are_set_aside(nights: Nights, memory: int | None) -> None:
    nights.publish(items([1, 2, 3]))
    table = items([1, 2, 3, 4], [[1], None, [3, np.nan], [4, None]])
    tonight = replace(nights.tonight(table), invalid="quarantine")
    found = nights.find(tonight, memory_bytes=memory)
    assert some(found.counts) == {"rows_in": 4, "new": 1, "changed": 3, "bad": 4}
    assert found.counts.for_the_model == 0
    bad = nights.staged("bad")
    assert bad is not None
    assert bad["id"].to_pylist() == [1, 2, 3, 4]
    reasons = ["ragged_feature", "null_feature", "nonfinite_feature", "null_feature"]
    assert bad[found.reason].to_pylist() == reasons
    assert nights.staged("changed") is None
    assert nights.fates() == [1, 1, 1]


def test_a_row_that_was_fixed_goes_to_the_model(nights: Nights) -> None:
    nights.publish(items([1], [None]), {1: "quarantined: null_feature"})
    found = nights.find(nights.tonight(items([1], [[0, 0]])))
    assert some(found.counts) == {"rows_in": 1, "changed": 1}
    assert nights.keys_in("changed") == [1]


def test_bad_rows_fail_and_are_named(nights: Nights) -> None:
    table = items(range(20), [None if n % 3 == 2 else [n, n] for n in range(20)])
    tonight = nights.tonight(table.slice(0, 10), table.slice(10))
    with pytest.raises(BadRows) as caught:
        nights.find(tonight)
    message = caught.value.message
    assert message.startswith("6 rows with features that the model cannot take: ")
    assert f"{nights.root}/input/00.parquet, row 2 (`id` 2): null_feature; " in message
    assert f"{nights.root}/input/01.parquet, row 4 (`id` 14): null_feature and 1 more." in message
    assert "`id` 17" not in message
    assert "`input.invalid: quarantine`" in message
    assert ChangeSet.load(nights.storage) is None


def test_exactly_five_bad_rows_are_all(nights: Nights) -> None:
    with pytest.raises(BadRows, match=r"`id` 4\): null_feature\. Expected"):
        nights.find(nights.tonight(items(range(5), [None] * 5)))


@both
def test_delta(nights: Nights, memory: int | None) -> None:
    live = items(range(6))
    nights.publish(live, {5: "quarantined: zero_vector"})
    rows = [
        (1, [7, 7], False),
        (3, None, True),
        (9, [1, 1], None),
        (8, None, True),
        (5, None, True),
    ]
    keys, features, delete = zip(*rows, strict=True)
    table = items(keys, features).append_column("gone", pa.array(delete, pa.bool_()))
    tonight = replace(nights.tonight(table), mode="delta", delete_column="gone")
    found = nights.find(tonight, memory_bytes=memory)
    assert some(found.counts) == {
        "rows_in": 5, "new": 1, "changed": 1, "deleted": 2, "unknown_deletes": 1,
        "vanished": 1, "forgotten": 1,
    }  # fmt: skip
    assert nights.keys_in("changed") == [1, 9]
    assert nights.fates() == [0, 1, 0, 2, 0, 2]
    assert found.statistics.inputs["x"].rows == 2


def test_a_delta_of_deletes_alone(nights: Nights) -> None:
    nights.publish(items([1, 2]))
    table = items([1, 7], [None, None]).append_column("gone", pa.array([True, True]))
    found = nights.find(replace(nights.tonight(table), mode="delta", delete_column="gone"))
    assert some(found.counts) == {"rows_in": 2, "deleted": 1, "unknown_deletes": 1, "vanished": 1}


def test_a_delta_of_unknown_deletes_is_nothing_to_do(nights: Nights) -> None:
    nights.publish(items([1, 2]))
    table = items([7]).append_column("gone", pa.array([True]))
    found = nights.find(replace(nights.tonight(table), mode="delta", delete_column="gone"))
    assert found.counts.is_empty


def test_texts_beside_rows_to_be_deleted(nights: Nights) -> None:
    from batchnorm_tool.chunk import Field

    texts = replace(
        nights, inputs=(Field("t", (), "string"),), features={"t": ("shop",)}, passthrough=()
    )
    texts.publish(items([1, 2]))
    table = items([1, 2], shops=["a long text", None]).append_column(
        "gone", pa.array([False, True])
    )
    tonight = replace(texts.tonight(table), mode="delta", delete_column="gone")
    assert some(texts.find(tonight).counts) == {
        "rows_in": 2, "changed": 1, "deleted": 1, "vanished": 1
    }  # fmt: skip
    staged = texts.staged("changed")
    assert staged is not None
    assert staged["feature_0"].to_pylist() == [b"a long text"]


def test_a_delete_column_holds_booleans(nights: Nights) -> None:
    tonight = replace(nights.tonight(items([1])), mode="delta", delete_column="shop")
    with pytest.raises(InputError, match=r"column `shop`.*Expected booleans\. Received: string"):
        nights.find(tonight)


def test_a_string_key_and_a_composite_key(nights: Nights) -> None:
    pairs = replace(nights, keys=("shop", "id"), passthrough=("shop",))
    live = items([1, 2, 1], [[1, 1], [2, 2], [3, 3]], ["a", "a", "b"])
    pairs.publish(live)
    table = items([1, 1, 2], [[1, 1], [3, 4], [5, 5]], ["a", "b", "b"])
    found = pairs.find(pairs.tonight(table))
    assert some(found.counts) == {
        "rows_in": 3, "new": 1, "changed": 1, "same": 1, "vanished": 1
    }  # fmt: skip
    staged = pairs.staged("changed")
    assert staged is not None
    assert staged.select(["shop", "id"]).to_pylist() == [
        {"shop": "b", "id": 1},
        {"shop": "b", "id": 2},
    ]
    assert pairs.fates() == [0, 2, 1]


def test_columns_with_our_names(nights: Nights) -> None:
    named = replace(nights, passthrough=("feature_0", "reason"))
    table = items([1, 2], [[1, 2], None])
    table = table.append_column("feature_0", table["id"]).append_column("reason", table["shop"])
    found = named.find(replace(named.tonight(table), invalid="quarantine"))
    staged, bad = named.staged("changed"), named.staged("bad")
    assert staged is not None
    assert bad is not None
    assert staged["feature_0"].to_pylist() == [1]
    assert staged[found.features["x"]].to_pylist() == [[1, 2]]
    assert bad["reason"].to_pylist() == ["shop 2"]
    assert bad[found.reason].to_pylist() == ["null_feature"]


@pytest.mark.parametrize("name", ["feature_hash", "passthrough_hash", "status", "key_id", "norm"])
def test_a_column_may_have_a_name_of_the_stores_own(nights: Nights, name: str) -> None:
    named = replace(nights, keys=(name,), passthrough=())
    named.publish(items(["a", "b"]).rename_columns([name, "shop", "x"]))
    found = named.find(named.tonight(items(["b", "c"]).rename_columns([name, "shop", "x"])))
    assert (found.counts.same, found.counts.new, found.counts.vanished) == (1, 1, 1)
    assert named.keys_in("changed") == ["c"]


def test_a_missing_column_is_named(nights: Nights) -> None:
    tonight = replace(nights.tonight(items([1])), carried=pa.schema([("price", pa.int64())]))
    with pytest.raises(InputError, match="has no column `price`"):
        nights.find(tonight)


def test_another_encoding_of_the_key_is_the_same_key(nights: Nights) -> None:
    nights.publish(items(["a", "b"]))
    table = items(["a", "b"])
    large = table.set_column(0, "id", table["id"].cast(pa.large_string()))
    encoded = table.set_column(0, "id", table["id"].dictionary_encode())
    for variant in (large, encoded):
        assert nights.find(nights.tonight(variant)).counts.same == 2


def test_progress_counts_every_row_once(nights: Nights) -> None:
    for memory in MEMORY:
        told: list[int] = []
        tonight = nights.tonight(*[items(range(n, n + 9)) for n in range(0, 90, 9)])
        nights.find(tonight, callbacks=Callbacks(told.append), memory_bytes=memory)
        assert sum(told) == 90


@both
def test_it_stops_when_asked_and_leaves_nothing_finished(
    nights: Nights, memory: int | None
) -> None:
    nights.find(nights.tonight(items(range(5))))
    assert ChangeSet.load(nights.storage) is not None
    with pytest.raises(Interrupted, match="run again"):
        nights.find(
            nights.tonight(items(range(5))),
            callbacks=Callbacks(stopped=lambda: True),
            memory_bytes=memory,
        )
    assert nights.night() == {}
    assert nights.storage.names("_state/tmp") == []


def test_what_an_earlier_night_left_is_removed(nights: Nights) -> None:
    table = items([1, 2], [[1, 2], None])
    nights.find(replace(nights.tonight(table), invalid="quarantine"))
    nights.publish(items([1, 2], [[1, 2], [3, 4]]))
    nights.find(nights.tonight(items([1, 2], [[1, 2], [3, 4]])))
    assert sorted(nights.night()) == ["difference.json", "fates.npy"]


def test_the_document_is_read_back(nights: Nights) -> None:
    found = nights.find(nights.tonight(items(range(5))))
    loaded = ChangeSet.load(nights.storage)
    assert loaded is not None
    assert loaded.to_dict() == found.to_dict()
    assert (loaded.counts, loaded.inputs) == (found.counts, found.inputs)


def test_a_damaged_or_missing_document_is_none(nights: Nights) -> None:
    assert ChangeSet.load(nights.storage) is None
    nights.find(nights.tonight(items(range(5))))
    file = nights.storage.root / "night/difference.json"
    file.write_bytes(file.read_bytes().replace(b'"new":5', b'"new":6'))
    assert ChangeSet.load(nights.storage) is None


def test_warnings_are_kept(nights: Nights) -> None:
    large = replace(nights, features={"x": ("id", "id2")})
    table = items([2**60 + 1]).append_column("id2", pa.array([1]))
    found = large.find(large.tonight(table))
    assert len(found.warnings) == 1
    assert "rounds to the same values" in found.warnings[0]


def test_without_an_index_nothing_is_known(nights: Nights) -> None:
    nights.publish(items([1]))
    found = ChangeDetector(nights.tonight(items([1])), None, nights.storage).run()
    assert some(found.counts) == {"rows_in": 1, "new": 1}
