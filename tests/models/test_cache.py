"""The model cache: what is used, what is made anew, and what goes first."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batchnorm_tool.models import cache as cache_module
from batchnorm_tool.models.cache import CacheEntry, Key, ModelCache, cache_warnings, inherited
from batchnorm_tool.models.placement import FastestBatch
from tests.command_line import invoke

KEY: Key = {"content": "aa", "versions": {"onnx": "1"}}
GRAPH = bytes(range(256)) * 40


def keep(cache: ModelCache, key: Key = KEY, graph: bytes = GRAPH) -> None:
    entry = CacheEntry("onnx", key, "model.keras")
    cache.keep(entry, lambda place: (place / "model.onnx").write_bytes(graph))


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    tmp_path.chmod(0o700)
    return ModelCache(tmp_path)


def graph_of(cache: ModelCache, key: Key = KEY) -> bytes | None:
    found = cache.find(key)
    return None if found is None else found.read("model.onnx")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_entry_is_found_by_its_key_alone(cache: ModelCache) -> None:
    keep(cache)
    assert graph_of(cache) == GRAPH
    assert cache.find({**KEY, "content": "bb"}) is None


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the graph": lambda entry: flip(entry / "model.onnx", 5000),
    "a bit of the record": lambda entry: flip(entry / "entry.json", 150),
    "the record's checksum": lambda entry: flip(entry / "entry.json", 20),
    "half of the graph": lambda entry: os.truncate(entry / "model.onnx", 100),
    "no graph": lambda entry: (entry / "model.onnx").unlink(),
    "no record": lambda entry: (entry / "entry.json").unlink(),
    "a file more": lambda entry: (entry / "more").touch(),
    "others may write": lambda entry: entry.chmod(0o777),
    "the record of another key": lambda entry: (entry / "entry.json").write_bytes(
        CacheEntry("none", {}, "").to_json()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_removed_and_made_anew(
    cache: ModelCache, damage: Callable[[Path], object]
) -> None:
    keep(cache)
    (entry,) = cache.root.iterdir()
    damage(entry)
    assert cache.find(KEY) is None
    assert list(cache.root.iterdir()) == []
    keep(cache)
    assert graph_of(cache) == GRAPH


def test_an_entry_that_is_a_link_is_not_followed(cache: ModelCache, tmp_path: Path) -> None:
    keep(cache)
    (entry,) = cache.root.iterdir()
    elsewhere = entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(elsewhere)
    assert cache.find(KEY) is None
    assert (elsewhere / "model.onnx").exists()


def test_a_file_that_changes_after_it_was_found_is_not_read(cache: ModelCache) -> None:
    keep(cache)
    found = cache.find(KEY)
    assert found is not None
    flip(found.path / "model.onnx", 0)
    with pytest.raises(FileNotFoundError, match="has changed"):
        found.read("model.onnx")


def test_what_fails_half_way_leaves_nothing(cache: ModelCache) -> None:
    def fill(place: Path) -> None:
        (place / "model.onnx").write_bytes(GRAPH)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.keep(CacheEntry("onnx", KEY, ""), fill)
    assert list(cache.root.iterdir()) == []


def test_of_those_who_race_one_wins_and_all_go_on(cache: ModelCache) -> None:
    barrier = threading.Barrier(4)
    found: list[bytes | None] = []

    def race() -> None:
        barrier.wait()
        keep(cache)
        found.append(graph_of(cache))

    racers = [threading.Thread(target=race) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert found == [GRAPH] * 4
    assert len(list(cache.root.iterdir())) == 1


def test_another_process_may_be_faster_after_a_damaged_entry_was_removed(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache)
    (entry,) = cache.root.iterdir()
    whole = entry.rename(cache.root / "made by another")
    entry.mkdir(mode=0o700)
    (entry / "damage").touch()

    def remove(path: Path) -> None:
        shutil.rmtree(path)
        if path == entry:
            whole.rename(entry)

    monkeypatch.setattr(cache_module, "_remove", remove)
    keep(cache)
    assert graph_of(cache) == GRAPH
    assert [*cache.root.iterdir()] == [entry]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, most_bytes=25_000)
    keys: list[Key] = [{"content": name} for name in "abc"]
    for age, key in zip((30, 20), keys, strict=False):
        keep(cache, key)
        newest = cache.entries()[0].path
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    assert graph_of(cache, keys[0])  # now the other one is older
    keep(cache, keys[2])
    assert [bool(cache.find(key)) for key in keys] == [True, False, True]


def test_documents_are_kept_whole_or_not_at_all(cache: ModelCache) -> None:
    made = iter([1, 2, 3, 4])

    def remembered(kind: str) -> int:
        return cache.remembered(kind, KEY, FastestBatch, lambda: FastestBatch(next(made))).rows

    assert [remembered("batch"), remembered("batch"), remembered("other")] == [1, 1, 2]
    for document in (cache.root / "documents").iterdir():
        flip(document, -3)
    assert [remembered("batch"), remembered("batch")] == [3, 3]
    (cache.root / "documents").chmod(0o777)  # not this user's alone
    assert remembered("batch") == 4


USELESS: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "not this user's alone": lambda home, _: (home / "batchnorm-tool" / "models").chmod(0o777),
    "everyone may write to": lambda home, _: (home / "batchnorm-tool").chmod(0o777),
    "Not a directory": lambda home, _: (
        (home / "batchnorm-tool").rename(home / "elsewhere"),
        (home / "batchnorm-tool").touch(),
    ),
    "no home directory": lambda _, patch: (
        patch.setenv("XDG_CACHE_HOME", "relative"),
        patch.delenv("HOME", raising=False),
        patch.setattr("pwd.getpwuid", {}.__getitem__),
    ),
}


@pytest.mark.parametrize("why", USELESS)
def test_where_the_users_cache_cannot_be_used_there_is_one_for_these_processes(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATCHNORM_TOOL_CACHE_INSTEAD", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "batchnorm-tool" / "models").mkdir(parents=True, mode=0o700)
    USELESS[why](tmp_path, monkeypatch)
    before = {**os.environ}
    cache = ModelCache.of_user()
    keep(cache)
    assert os.environ == before  # it belongs to whoever uses the library
    monkeypatch.setenv("BATCHNORM_TOOL_CACHE_INSTEAD", inherited()["BATCHNORM_TOOL_CACHE_INSTEAD"])
    assert graph_of(ModelCache.of_user()) == GRAPH  # as another process of this tree finds it
    assert cache.root.stat().st_mode & 0o077 == 0
    assert [why in text and "XDG_CACHE_HOME" in text for text in cache_warnings()] == [True]


def test_the_users_cache_is_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = ModelCache.of_user()
    assert cache.root == tmp_path / "batchnorm-tool" / "models"
    assert cache.root.stat().st_mode & 0o777 == 0o700


def test_models_that_do_not_convert_are_listed_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = CacheEntry("none", KEY, "model.keras", cause="ONNX has no operation for Odd")
    ModelCache.of_user().keep(entry)
    done = invoke("show", "--cache")
    assert done.exit_code == 0, done.output
    assert "model.keras" in done.stdout
    assert "ONNX has no operation for Odd" in " ".join(done.stdout.split())
