"""The files of a finished run: all there, each as it was written, and no others among them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from batchnorm_tool.chunk_statistics import CHUNKS_PATH
from batchnorm_tool.storage import FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchnorm_tool.jobs.findings import Findings
    from batchnorm_tool.jobs.stored_run import StoredRun


def recorded_files(run: StoredRun) -> list[FileRecord]:
    """Every file whose checksum the manifest holds."""
    beside = [FileRecord(**file) for file in run.manifest.data["files"]]
    return [file for part in run.parts for file in part.files] + beside


def is_as_written(run: StoredRun, file: FileRecord, findings: Findings) -> bool:
    """Whether a file has the bytes that were written; otherwise ``findings`` says what is wrong.

    Returns:
        Whether it is worth decoding: a file of the right size may still tell which row is broken.
    """
    path = run.locate(file)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            findings.add(f"`{file.path}` is no regular file.")
            return False
        if status.st_size != file.bytes:
            sizes = f"{status.st_size:,} bytes, and {file.bytes:,} by the manifest"
            findings.add(f"`{file.path}` has {sizes}.")
            return False
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        findings.add(f"`{file.path}` is missing.")
        return False
    except OSError as error:
        findings.add(f"`{file.path}` cannot be read: {error.strerror}.")
        return False
    if digest != file.sha256:
        findings.add(
            f"`{file.path}` is not what was written: SHA-256 {digest[:16]}…, "
            f"and {file.sha256[:16]}… by the manifest."
        )
    return True


def find_foreign_files(run: StoredRun, findings: Findings) -> None:
    """Find files in the data directories that are none of the run's: readers would take them in."""
    known = {file.path for file in recorded_files(run)}
    for directory in sorted({*run.directories, CHUNKS_PATH.partition("/")[0]}):
        for path in _files_below(Path(run.path), directory):
            if path not in known:
                findings.add(f"`{path}` is no file of this run. Remove it, or put it elsewhere.")


def _files_below(root: Path, directory: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root / directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            yield (Path(folder) / name).relative_to(root).as_posix()
