"""The private copy of a model's directory: nothing from outside, nothing without measure."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from batchnorm_tool.errors import ModelError, WorkFailed
from batchnorm_tool.job import Model
from batchnorm_tool.models import security
from batchnorm_tool.models.security import admit, directory, examine, examine_copy
from batchnorm_tool.models.security.directory import ModelDirectory, foreign_file
from tests.command_line import ENCODER


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is taken for a SavedModel, and a secret beside it."""
    path = tmp_path / "model"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "variables.index").write_bytes(b"index")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    return path


def to_a_folder(model: Path) -> None:
    (model / "assets").symlink_to(model.parent / "outside")


def to_a_file(model: Path) -> None:
    (model / "secret").symlink_to("../outside/secret")


def through_a_link(model: Path) -> None:
    (model / "a").symlink_to("b")
    (model / "b").symlink_to("/etc/passwd")


def to_the_model(model: Path) -> None:
    (model / "again").symlink_to(".")


def to_each_other(model: Path) -> None:
    (model / "x").mkdir()
    (model / "x" / "up").symlink_to("../variables")
    (model / "variables" / "down").symlink_to("../x")


def to_itself(model: Path) -> None:
    (model / "self").symlink_to("self")


def pipe(model: Path) -> None:
    os.mkfifo(model / "variables" / "pipe")


def device(model: Path) -> None:
    (model / "zero").symlink_to("/dev/zero")


def many_folders(model: Path) -> None:
    """Nine folders that each hold nine links to the next: a hundred million files."""
    for level in range(9):
        (model / f"level{level}").mkdir()
        for place in range(9):
            (model / f"level{level}" / f"{place}").symlink_to(f"../level{level + 1}")
    (model / "level9").mkdir()
    (model / "level9" / "file").write_bytes(b"x")


TRICKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "link to a folder outside": (to_a_folder, "the link `assets` in it points outside it"),
    "link to a file outside": (to_a_file, "the link `secret` in it points outside it"),
    "link to a link outside": (through_a_link, "in it points outside it, to /etc/passwd"),
    "link to a device": (device, "the link `zero` in it points outside it"),
    "link to the model": (to_the_model, "`again` in it is a circular link"),
    "links to each other": (to_each_other, "in it is a circular link"),
    "link to itself": (to_itself, "`self` in it is a circular link"),
    "pipe": (pipe, "`variables/pipe` in it is neither a file nor a link"),
    "links that multiply": (many_folders, "holds more than 10,000 files"),
}


@pytest.mark.parametrize(("trick", "words"), TRICKS.values(), ids=TRICKS)
def test_a_directory_that_leads_elsewhere_is_refused(
    model: Path, trick: Callable[[Path], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trick(model)
    temporary = model.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for attempt in (lambda: examine(str(model)), lambda: admit(Model(path=str(model))).__enter__()):
        with pytest.raises(ModelError, match=re.escape(words)):
            attempt()
    assert list(temporary.iterdir()) == []


def test_links_within_the_directory_are_copied_as_files(model: Path, tmp_path: Path) -> None:
    (model / "again.index").symlink_to("variables/variables.index")
    (model / "values").symlink_to("variables")
    (tmp_path / "link").symlink_to("model")
    copied = tmp_path / "copied"
    ModelDirectory.of(str(tmp_path / "link"), "model").copy(copied)
    names = ["again.index", "saved_model.pb", "values/variables.index", "variables/variables.index"]
    found = sorted(path for path in copied.rglob("*") if path.is_file())
    assert [path.relative_to(copied).as_posix() for path in found] == names
    assert not any(path.is_symlink() for path in copied.rglob("*"))
    assert (copied / "values" / "variables.index").read_bytes() == b"index"


def replaced_by_a_link(model: Path) -> None:
    (model / "saved_model.pb").unlink()
    (model / "saved_model.pb").symlink_to("../outside/secret")


def folder_replaced_by_a_link(model: Path) -> None:
    shutil.rmtree(model / "variables")
    (model / "variables").symlink_to("../outside")
    (model.parent / "outside" / "variables.index").write_bytes(b"secret")


def replaced_by_a_pipe(model: Path) -> None:
    (model / "saved_model.pb").unlink()
    os.mkfifo(model / "saved_model.pb")


def grown(model: Path) -> None:
    (model / "saved_model.pb").write_bytes(b"graphs and more")


@pytest.mark.parametrize(
    "change", [replaced_by_a_link, folder_replaced_by_a_link, replaced_by_a_pipe, grown]
)
def test_what_changes_between_check_and_copy_is_not_copied(
    model: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    listed = ModelDirectory.of(str(model), "model")
    change(model)
    with pytest.raises((ModelError, OSError)):
        listed.copy(tmp_path / "copied")
    copies = [path.read_bytes() for path in (tmp_path / "copied").rglob("*") if path.is_file()]
    assert {*copies} <= {b"graph", b"index"}


def test_a_copy_without_room_names_the_numbers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_MAX_BYTES", 9)
    with pytest.raises(ModelError, match=r"holds 10 bytes.* at most 9 bytes \(the limit"):
        ModelDirectory.of(str(model), "model").copy(tmp_path / "copied")
    with (model / "sparse").open("wb") as file:
        file.truncate(1 << 43)
    monkeypatch.setattr(directory, "_MAX_BYTES", 1 << 50)
    with pytest.raises(WorkFailed, match=r"holds 8,796,093,022,218 bytes.*the free space there"):
        ModelDirectory.of(str(model), "model").copy(tmp_path / "other")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["shutil.copyfile", "tempfile.TemporaryFile"])
def test_a_full_temporary_directory_is_no_fault_of_the_model(
    place: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(place, fill)
    monkeypatch.setattr(security, "_EXAMINED", {})
    with (
        pytest.raises(WorkFailed, match=f"no space is left in {tempfile.gettempdir()}.*TMPDIR"),
        examine_copy(ENCODER),
    ):
        pass


def test_no_copy_is_begun_that_cannot_end(model: Path, tmp_path: Path) -> None:
    stored = tmp_path / "model.keras"
    for path in (stored, model / "saved_model.pb"):
        path.write_bytes(b"PK\x03\x04")
        os.truncate(path, 1 << 43)
    with (
        pytest.raises(ModelError, match=r"holds 8,796,093,022,208 bytes.*Expected at most"),
        examine_copy(str(stored)),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"saved_model\.pb is larger than 2 GiB"),
        examine_copy(str(model)),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("m", b"    TFL3", "a TFLite (LiteRT) model. Use the original Keras model."),
        ("m.TFLITE", b"", "a TFLite (LiteRT) model. Use the original Keras model."),
        ("m", b"TFL3    ", None),
        ("m.keras", b"PK\x03\x04", None),
    ],
    ids=["by its bytes", "by its name", "bytes elsewhere", "Keras"],
)
def test_a_model_of_another_program_is_known_by_its_bytes_or_name(
    name: str, head: bytes, words: str | None
) -> None:
    found = foreign_file(Path(name), head)
    assert found is None if words is None else found is not None and found.startswith(words)
