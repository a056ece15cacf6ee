"""A store of its own for whoever changes it: contenders measure one night again and again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from batchnorm_tool.job import STATE_SUFFIX

# Nobody writes into these once they are there.
_LASTING = (".lance", ".parquet")


def copy_store(base: str, path: str) -> None:
    """Copy a store with its state; what is not on disk yet is written, so that nobody waits for it.

    Args:
        base: The store.
        path: Where its copy is to lie, in a directory that need not exist.
    """
    for suffix in ("", STATE_SUFFIX):
        shutil.copytree(base + suffix, path + suffix, copy_function=_link_or_copy)
    os.sync()


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(_LASTING):
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def store_bytes(path: str) -> int:
    """Bytes of all files of a store and of its state."""
    roots = (Path(path), Path(path + STATE_SUFFIX))
    files = (file for root in roots for file in root.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)
