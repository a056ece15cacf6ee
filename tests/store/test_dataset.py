from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.errors import Damaged, JobError, OutputError, WorkFailed
from batchnorm_tool.store import lance as store_lance
from batchnorm_tool.store import transaction
from batchnorm_tool.store.transaction import Prepared
from tests.store.items import (
    ITEMS,
    SHOPS,
    batches,
    by_key,
    item,
    layout_of,
    merge,
    row,
    stored,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "items.lance")


def a_night(path: str) -> Prepared:
    return transaction.prepare_merge(path, ITEMS.schema, ITEMS.keys, batches([item(1, 2)]))


def test_rows_come_back_as_they_were_written(path: str) -> None:
    written = [item(number) for number in range(20)]
    assert write(path, written) == 1
    assert stored(path) == by_key(written)
    assert lance.dataset(path).schema.equals(ITEMS.schema)


def test_lance_writes_no_warnings_of_its_own(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lance takes the level when it is imported, from the environment."""
    write(path, [item(1)])
    monkeypatch.delenv("LANCE_LOG", raising=False)
    store_lance.lance()
    assert os.environ["LANCE_LOG"] == "error"


def test_a_store_may_be_empty_and_filled_later(path: str) -> None:
    assert write(path, []) == 1
    assert stored(path) == []
    assert merge(path, [item(3)]) == 2
    assert stored(path) == [item(3)]


def test_all_rows_are_replaced_with_another_schema(path: str) -> None:
    write(path, [item(1), item(2)])
    wide = layout_of([pa.field("id", pa.int64())], width=6)
    assert write(path, [row({"id": 5}, 2, 1, wide)], wide) == 2
    assert stored(path, layout=wide) == [row({"id": 5}, 2, 1, wide)]
    assert stored(path, 1) == [item(1), item(2)]


def test_a_merge_updates_inserts_and_deletes_in_one_version(path: str) -> None:
    write(path, [item(1), item(2), item(3)])
    assert merge(path, [item(2, 2), item(4, 2)], [{"id": 3}]) == 2
    assert stored(path) == [item(1), item(2, 2), item(4, 2)]
    assert stored(path, 1) == [item(1), item(2), item(3)]


def test_all_rows_may_go(path: str) -> None:
    write(path, [item(1), item(2)])
    merge(path, [], [{"id": 1}, {"id": 2}])
    assert stored(path) == []


def test_deleting_a_key_that_is_not_there_does_no_harm(path: str) -> None:
    write(path, [item(1)])
    merge(path, [], [{"id": 7}])
    assert stored(path) == [item(1)]


def test_a_key_that_is_written_and_deleted_is_written(path: str) -> None:
    write(path, [item(1)])
    merge(path, [item(1, 2)], [{"id": 1}])
    assert stored(path) == [item(1, 2)]


def test_a_key_twice_in_one_night_is_refused(path: str) -> None:
    write(path, [item(1)])
    with pytest.raises(
        WorkFailed, match="row 1 of the rows to be written repeats the key of an earl"
    ):
        merge(path, [item(5, 2), item(5, 3)])
    assert stored(path) == [item(1)]


AWKWARD = ["it's", 'a "b"', "x' OR '1'='1", "", "ünï", "a,b", "\\"]


def shops(generator: np.random.Generator, version: int, count: int) -> list[dict[str, Any]]:
    numbers = generator.choice(len(AWKWARD) * 6, count, replace=False).tolist()
    keys = [
        {
            "shop": AWKWARD[number % len(AWKWARD)],
            "day": dt.date(2026, 1, 1 + number // len(AWKWARD)),
        }
        for number in numbers
    ]
    return [row(key, version, int(generator.integers(1000)), SHOPS) for key in keys]


@pytest.mark.parametrize("seed", range(3))
def test_nights_equal_a_plain_model(path: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    model: dict[tuple[Any, ...], dict[str, Any]] = {}
    write(path, [], SHOPS)
    for version in range(2, 8):
        changed = shops(generator, version, int(generator.integers(0, 20)))
        held = list(model)
        gone = [held[place] for place in generator.choice(len(held), len(held) // 4, replace=False)]
        merge(path, changed, [dict(zip(SHOPS.keys, key, strict=True)) for key in gone], SHOPS)
        model = {key: found for key, found in model.items() if key not in gone}
        model |= {tuple(found[name] for name in SHOPS.keys): found for found in changed}
        assert stored(path, layout=SHOPS) == by_key(model.values(), SHOPS)


def test_nothing_is_visible_before_the_commit(path: str) -> None:
    write(path, [item(1)])
    prepared = a_night(path)
    assert stored(path) == [item(1)]
    assert store_lance.latest_version(path) == 1
    transaction.commit(prepared)
    assert stored(path) == [item(1, 2)]


def test_a_first_load_is_not_visible_before_the_commit(path: str) -> None:
    prepared = transaction.prepare_whole(path, ITEMS.schema, batches([item(1)]))
    assert store_lance.latest_version(path) is None
    assert prepared.base == 0
    assert transaction.commit(prepared) == store_lance.latest_version(path) == 1


def test_after_a_kill_the_transaction_tells_whether_it_was_committed(path: str) -> None:
    first = transaction.prepare_whole(path, ITEMS.schema, batches([item(1)]))
    assert transaction.committed_version(path, first.uuid) is None
    transaction.commit(first)
    night = a_night(path)
    assert transaction.committed_version(path, night.uuid) is None
    transaction.commit(night)
    transaction.commit(transaction.prepare_restore(path, 1))
    assert transaction.committed_version(path, first.uuid) == 1
    assert transaction.committed_version(path, night.uuid) == 2


def spied_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    synced: list[str] = []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return synced


def test_new_files_are_synced_before_the_commit_and_the_manifest_after(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [item(1), item(2)])
    night = a_night(path)
    assert sorted(each.partition("/")[0] for each in night.files) == ["_deletions", "data"]
    synced = spied_syncs(monkeypatch)
    really = lance.LanceDataset.commit

    def committing(*given: Any, **named: Any) -> Any:
        synced.append("commit")
        return really(*given, **named)

    monkeypatch.setattr(lance.LanceDataset, "commit", committing)
    transaction.commit(night)
    before, after = synced[: synced.index("commit")], synced[synced.index("commit") :]
    written = [f"{path}/{file}" for file in night.files]
    assert {*written, f"{path}/data", f"{path}/_deletions", path} <= set(before)
    assert {f"{path}/_versions", f"{path}/_transactions", path} <= set(after)
    made = {each.rpartition(".")[2] for each in after}
    assert {"manifest", "txn"} <= made


def test_a_first_load_syncs_the_names_of_its_directories(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = spied_syncs(monkeypatch)
    write(path, [item(1)])
    above = str(Path(path).parent)
    assert {path, above, str(Path(above).parent), f"{path}/_versions"} <= set(synced)


def appended_behind_our_back(path: str) -> None:
    lance.write_dataset(pa.Table.from_batches(batches([item(9, 9)])), path, mode="append")


def test_a_store_that_somebody_else_wrote_to_is_refused(path: str) -> None:
    write(path, [item(1)])
    night = a_night(path)
    appended_behind_our_back(path)
    with pytest.raises(OutputError, match=r"Another program.*in Lance is 2\. Expected: 1"):
        transaction.commit(night)
    assert stored(path) == [item(1), item(9, 9)]


def test_a_writer_in_between_is_noticed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [item(1)])
    night = a_night(path)
    really = transaction.open_dataset

    def opening(where: str, version: int | None = None) -> Any:
        opened = really(where, version)
        monkeypatch.undo()
        appended_behind_our_back(where)
        return opened

    monkeypatch.setattr(transaction, "open_dataset", opening)
    with pytest.raises(OutputError, match="Another program has written"):
        transaction.commit(night)


def test_restoring_brings_an_older_version_back_as_a_new_one(path: str) -> None:
    write(path, [item(1)])
    merge(path, [item(2, 2)], [{"id": 1}])
    assert transaction.commit(transaction.prepare_restore(path, 1)) == 3
    assert stored(path) == [item(1)]
    assert stored(path, 2) == [item(2, 2)]


def test_restoring_a_version_that_is_gone_is_damage(path: str) -> None:
    write(path, [item(1)])
    with pytest.raises(Damaged, match=r"items\.lance` cannot be read.*7\.manifest.*not found"):
        transaction.prepare_restore(path, 7)


class OddError(Exception):
    pass


@pytest.mark.parametrize("error", [OddError("mine"), WorkFailed("ours"), KeyboardInterrupt()])
def test_what_stops_the_rows_comes_out_as_it_was(path: str, error: BaseException) -> None:
    def rows() -> Iterator[pa.RecordBatch]:
        yield from batches([item(1)])
        raise error

    with pytest.raises(type(error)) as caught:
        transaction.prepare_whole(path, ITEMS.schema, rows())
    assert caught.value is error
    assert store_lance.latest_version(path) is None


def is_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")


def is_directory(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("make", "received"), [(is_file, "a file"), (is_directory, r"notes\.txt")], ids=["file", "dir"]
)
def test_a_path_that_holds_something_else_is_refused(
    path: str, make: Callable[[Path], None], received: str
) -> None:
    make(Path(path))
    with pytest.raises(OutputError, match=f"is not a Lance dataset.*Received: {received}"):
        write(path, [item(1)])


def test_a_missing_library_says_how_to_get_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(JobError, match=r"pip install 'batchnorm-tool\[refresh\]'"):
        store_lance.lance()


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (OSError("No space left on device (os error 28)"), WorkFailed),
        (ValueError("Not found: x/data/1.lance, /home/r/lance/rust/a.rs:1:2"), Damaged),
        (RuntimeError("odd"), WorkFailed),
    ],
    ids=["full disk", "missing", "odd"],
)
def test_what_lance_says_becomes_an_error_of_ours(cause: Exception, error: type) -> None:
    with pytest.raises(error, match="store `here`") as caught, store_lance.writing("here"):
        raise cause
    assert ".rs" not in str(caught.value)
    assert str(cause).partition(",")[0] in str(caught.value)


def test_a_full_disk_is_no_damage() -> None:
    with pytest.raises(WorkFailed, match="Too many open files"), store_lance.reading("here"):
        raise OSError("Too many open files (os error 24)")


def test_what_gives_up_in_rust_is_damage() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(Damaged, match="slice index"), store_lance.reading("here"):
        raise panic("slice index out of range")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), store_lance.reading("here"):
        raise ZeroDivisionError


def test_many_rows_in_many_batches_are_all_replaced(path: str) -> None:
    count = 3000
    write(path, [item(number) for number in range(count)])
    merge(path, [item(number, 2) for number in range(0, count, 2)], [{"id": 1}])
    found = lance.dataset(path).to_table(columns=["id", "version"])
    assert found.num_rows == count - 1
    assert sum(found["version"].to_pylist()) == count // 2 * 2 + count // 2 - 1
    assert sorted(found["id"].to_pylist()) == [0, *range(2, count)]
