"""Reports written into a directory, each file whole or not at all."""

from __future__ import annotations

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
        msg = (
            f"`{target}` cannot be written to: {error.strerror}. Expected a directory. "
            "Choose another one."
        )
        raise OutputError(msg) from error


def _replace(path: Path, content: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
