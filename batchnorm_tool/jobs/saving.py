"""Reports and pages, each file of them whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from batchnorm_tool.errors import OutputError, is_passing
from batchnorm_tool.storage.files import make_directories, write_errors


def save_report(directory: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    """Write text files into a directory, which is made if need be.

    Args:
        directory: Where to.
        files: Content by name. Files of these names are replaced, each in one step.

    Raises:
        OutputError: They cannot be written there at all.
        WorkFailed: The disk is full, for example; a directory that was made for them is gone again.
    """
    target, made = Path(directory).absolute(), list[Path]()
    with _errors(directory, "directory"):
        try:
            made = make_directories(target)
            for name, content in files.items():
                _replace(target / name, content)
        except OSError:
            with contextlib.suppress(OSError):
                for path in reversed(made):
                    path.rmdir()
            raise


def save_page(path: str | os.PathLike[str], content: str) -> None:
    """Write one page; a file of that name is replaced in one step.

    Raises:
        OutputError: It cannot be written there at all.
        WorkFailed: The disk is full, for example.
    """
    with _errors(path, "file"):
        place = Path(os.path.realpath(path))  # a link stays one
        if place.exists() and not place.is_file():
            place.write_text(content, encoding="utf-8")  # the other end of a pipe
        else:
            _replace(place, content)


def check_directory(directory: str | os.PathLike[str]) -> None:
    """Refuse a place where no report can be written, before the work; nothing is written.

    Args:
        directory: Where the report is to go; it need not exist.

    Raises:
        OutputError: It, or the nearest directory above that exists, cannot be written to.
    """
    if not os.fspath(directory):
        raise _refusal(Path(), "it has no name")
    place = Path(directory).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise _refusal(Path(directory), f"`{place}` is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _refusal(Path(directory), os.strerror(errno.EACCES))


@contextlib.contextmanager
def _errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_passing(error):
            with write_errors(os.fspath(path)):
                raise
        raise _refusal(Path(path), str(error.strerror), what) from error
    except ValueError as error:  # a name that no file can have
        raise _refusal(Path(path), str(error), what) from error


def _refusal(path: Path, reason: str, what: str = "directory") -> OutputError:
    msg = f"`{path}` cannot be written to: {reason}. Expected a {what}. Choose another one."
    return OutputError(msg)


def _replace(path: Path, content: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    aside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
