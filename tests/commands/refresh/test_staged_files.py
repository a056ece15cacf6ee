"""Staged files that are damaged are never published: `accept` refuses, `refresh` stages again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from batchnorm_tool import accept, refresh, rollback, verify
from batchnorm_tool.commands.refresh import commit, staging
from batchnorm_tool.errors import Damaged
from tests.commands.refresh.nightly import Edits, Nightly, units
from tests.refresh_records import stored_record

FIRST: Edits = dict.fromkeys(range(20), 0)
SECOND: Edits = {**FIRST, 3: 1}
THIRD: Edits = {**dict.fromkeys(range(1, 20), 0), 3: 1, 5: 1, 6: 2}


class Killed(BaseException):
    """What ends a refresh without asking anybody."""


def killed(
    patch: pytest.MonkeyPatch, module: ModuleType, name: str, work: Callable[[], object]
) -> None:
    """Do some work that is killed where it calls a function."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    with patch.context() as patched:
        patched.setattr(module, name, die)
        with pytest.raises(Killed):
            work()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def staged(nightly: Nightly, version: int) -> list[Path]:
    """Every file of what is staged, but for what is written anew each time."""
    root = Path(nightly.state.root)
    found = [path for path in root.rglob("*") if path.is_file()]
    wanted = [path for path in found if "night" in path.parts or f"{version:06d}." in path.name]
    names = {"night.json", f"{version:06d}.json", f"{version:06d}.sample.arrow"}
    return sorted(path for path in wanted if path.name not in names)


def copy_of(nightly: Nightly) -> Path:
    return nightly.path.with_name(f"{nightly.path.name}-copy")


def each_damaged(
    nightly: Nightly, version: int, damages: list[Callable[[Path], None]], check: Callable[[], None]
) -> set[str]:
    """Call ``check`` with each staged file damaged, in a store as it was; returns their names."""
    copy = copy_of(nightly)
    shutil.copytree(nightly.path, copy)
    files = staged(nightly, version)
    for file in files:
        for damage in damages:
            shutil.rmtree(nightly.path)
            shutil.copytree(copy, nightly.path)
            damage(file)
            check()
    return {file.name for file in files}


def test_a_waiting_version_with_a_damaged_file_is_not_accepted(nightly: Nightly) -> None:
    nightly.night(FIRST)
    nightly.night(SECOND)
    rollback(nightly.store)
    waits = nightly.held(THIRD)["version"]

    def check() -> None:
        with pytest.raises(Damaged, match=r"version 4 .* are damaged.* refresh` to stage it again"):
            accept(nightly.store, waits)
        assert nightly.vectors() == units(FIRST)

    names = each_damaged(nightly, waits, [Path.unlink, flip], check)
    assert names >= {"candidate.json", "difference.json", "fates.npy", "removed.arrow"}
    assert names >= {"part-000000.arrow", "000002-part-000000.arrow", "000004.replaced.npy"}
    again = nightly.held(THIRD)["version"]
    assert accept(nightly.store, again).state == "published"
    assert nightly.vectors() == units(THIRD)
    verify(nightly.store)


def test_a_killed_refresh_goes_on_with_whole_files_and_stages_damaged_ones_again(
    nightly: Nightly, seen: set[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.night(SECOND)
    nightly.put(THIRD)
    killed(monkeypatch, commit, "merge", lambda: refresh(nightly.job()))
    seen.clear()

    def check() -> None:
        assert refresh(nightly.job()).state == "published"
        assert nightly.vectors() == units(THIRD)
        verify(nightly.store)

    assert "000002.parquet" in each_damaged(nightly, 2, [Path.unlink, halve, flip], check)
    assert seen
    shutil.rmtree(nightly.path)
    shutil.copytree(copy_of(nightly), nightly.path)
    seen.clear()
    check()
    assert seen == set()


@pytest.mark.parametrize("damage", [Path.unlink, halve], ids=["missing", "cut off"])
def test_rows_that_a_killed_refresh_lost_before_they_were_scored_are_found_again(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    nightly.night(SECOND)
    nightly.put(THIRD)
    killed(monkeypatch, staging, "score", lambda: refresh(nightly.job()))
    damage(Path(nightly.state.root) / "night/changed/part-000000.arrow")
    assert refresh(nightly.job()).state == "published"
    assert nightly.vectors() == units(THIRD)


def test_a_version_stopped_by_its_input_is_accepted_again_after_a_kill(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.night(FIRST)
    waits = nightly.held(THIRD, gate__input__changed=0.0)["version"]
    killed(monkeypatch, commit, "merge", lambda: accept(nightly.store, waits))
    assert (stored_record(nightly.state, waits) or {})["files"] == []
    assert accept(nightly.store, waits).state == "published"
    assert nightly.vectors() == units(THIRD)
