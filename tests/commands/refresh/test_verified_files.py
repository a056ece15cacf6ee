"""`verify` finds every flipped bit, link, missing and extra file of a store and its state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchnorm_tool import rollback, verify
from batchnorm_tool.errors import Damaged
from tests.command_line import invoke
from tests.commands.refresh.nightly import Nightly

# What nobody misses: a hint that older releases of Lance do not write; notes without which a target
# is written whole; what was asked for, without which `accept` asks for it again.
SPARE = ("latest_version_hint.json", "targets/", "night/night.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Nightly:
    """Nights with replaced and removed rows, a rollback, targets, a candidate that waits."""
    nightly = Nightly(tmp_path_factory.mktemp("verified"))
    nightly.sections["publish"] = [
        {"to": "changes", "path": "feed"},
        {"to": "parquet", "path": "snapshots"},
        {"to": "faiss", "path": "items.index"},
    ]
    nightly.night(dict.fromkeys(range(20), 0))
    nightly.night(dict.fromkeys(range(5, 20), 0) | {7: 1})
    rollback(nightly.store)
    nightly.held(dict.fromkeys(range(10), 0) | {8: 1})
    verify(nightly.store)
    return nightly


@pytest.fixture
def nightly(made: Nightly, tmp_path: Path) -> Nightly:
    for name in ("items.lance", "items.lance.state"):
        shutil.copytree(made.path / name, tmp_path / name)
    return Nightly(tmp_path)


def files_of(nightly: Nightly) -> list[Path]:
    roots = (Path(nightly.store), Path(nightly.state.root))
    return sorted(path for root in roots for path in root.rglob("*") if path.is_file())


def flip(place: Callable[[int], int]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[place(len(content))] ^= 1
        file.write_bytes(content)

    return change


def link(file: Path) -> None:
    root = next(each for each in file.parents if each.name.startswith("items.lance"))
    file.symlink_to(file.rename(root.parent / "elsewhere"))


@pytest.mark.parametrize(
    "damage",
    [
        flip(lambda _: 0),
        flip(lambda size: size // 2),
        flip(lambda size: size - 1),
        link,
        Path.unlink,
    ],
    ids=["first byte", "middle byte", "last byte", "a link", "missing"],
)
def test_damage_to_any_file_is_found_and_the_file_named(
    nightly: Nightly, damage: Callable[[Path], None]
) -> None:
    kinds = set()
    for file in files_of(nightly):
        name = str(file.relative_to(nightly.path))
        if damage is Path.unlink and (name.endswith("store.json") or any(s in name for s in SPARE)):
            continue
        content = file.read_bytes()
        damage(file)
        with pytest.raises(Damaged) as caught:
            verify(nightly.store)
        assert file.name in caught.value.message
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        kinds.add(name.split("/")[1])
    assert kinds >= {"data", "_versions", "_transactions", "_deletions", "_refs"}
    assert kinds >= {"nights", "index", "night", "files.json"}
    verify(nightly.store)


def directories(nightly: Nightly) -> Iterator[Path]:
    for root in (Path(nightly.store), Path(nightly.state.root)):
        yield root
        yield from (path for path in root.rglob("*") if path.is_dir() and path.name != "tmp")


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "directory"])
def test_what_does_not_belong_there_is_found(
    nightly: Nightly, make: Callable[[Path], None]
) -> None:
    for directory in list(directories(nightly)):
        make(directory / "extra")
        with pytest.raises(Damaged, match=r"extra` does not belong to"):
            verify(nightly.store)
        (directory / "extra").rmdir() if make is Path.mkdir else (directory / "extra").unlink()
    verify(nightly.store)


def test_a_tag_of_somebody_else_is_theirs(nightly: Nightly) -> None:
    (Path(nightly.store) / "_refs/tags/mine.json").write_text('{"version": 1, "manifestSize": 1}')
    verify(nightly.store)


def test_damage_has_its_exit_code(nightly: Nightly) -> None:
    flip(lambda _: 0)(files_of(nightly)[-1])
    assert invoke("verify", nightly.store).exit_code == 4
