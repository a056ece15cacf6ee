"""Reports written into a directory, each file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from batchnorm_tool.errors import OutputError


def save_report(directory: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    """Write text files into a directory, which is made if need be.

    Args:
        directory: Where to.
        files: Content by name. Files of these names are replaced, each in one step.

    Raises:
        OutputError: They cannot be written.
    """
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(target / name, content)
    except OSError as error:
        raise _refusal(target, str(error.strerror)) from error


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


def _refusal(directory: Path, reason: str) -> OutputError:
    msg = f"`{directory}` cannot be written to: {reason}. Expected a directory. Choose another one."
    return OutputError(msg)


def _replace(path: Path, content: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
