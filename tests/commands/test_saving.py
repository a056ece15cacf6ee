from __future__ import annotations

from pathlib import Path

import pytest

from batchnorm_tool.errors import OutputError, WorkFailed
from batchnorm_tool.storage.files import check_directory, save_page, save_report


def test_files_are_written_into_a_directory_that_is_made(tmp_path: Path) -> None:
    target = tmp_path / "reports" / "of tonight"
    save_report(target, {"a.json": "{}\n", "a.html": "Fréchet"})
    assert {path.name: path.read_text(encoding="utf-8") for path in target.iterdir()} == {
        "a.json": "{}\n",
        "a.html": "Fréchet",
    }


def test_files_of_the_same_name_are_replaced_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old, and longer than the new one")
    (tmp_path / "notes.txt").write_text("mine")
    save_report(str(tmp_path), {"a.json": "new"})
    assert (tmp_path / "a.json").read_text() == "new"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("old")
    real = Path.write_text

    def breaks(path: Path, content: str, **settings: str) -> int:
        real(path, content[:3], **settings)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", breaks)
    with pytest.raises(WorkFailed, match=r"No space left on device\. Free some space"):
        save_report(tmp_path, {"a.json": "new and long"})
    with pytest.raises(WorkFailed, match="No space left on device"):
        save_page(tmp_path / "a.json", "new and long")
    with pytest.raises(WorkFailed, match="No space left on device"):
        save_report(tmp_path / "new" / "folder", {"a.json": "new and long"})
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot be written to: "):
        save_report("a\0b", {"a.json": "{}"})


@pytest.mark.parametrize("inside", ["", "deeper"], ids=["a file", "below a file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        save_report(tmp_path / "file" / inside, {"a.json": "{}"})
    assert caught.value.message.startswith(f"`{tmp_path / 'file' / inside}` cannot be written to:")
    assert caught.value.message.endswith("Expected a directory. Choose another one.")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_without_a_name_is_refused() -> None:
    with pytest.raises(OutputError, match="it has no name"):
        check_directory("")


@pytest.mark.parametrize("name", ["file", "file/report"])
def test_a_place_that_is_no_directory_is_refused_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        check_directory(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_may_be_made_is_fine_and_not_made(tmp_path: Path) -> None:
    check_directory(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
