"""The files of a finished run: all there, each as it was written, and no others among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchnorm_tool.chunk_statistics import CHUNKS_PATH
from batchnorm_tool.storage import FileRecord
from batchnorm_tool.storage.files import fault_in, strangers

if TYPE_CHECKING:
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
    finding, is_readable = fault_in(Path(run.path), file, "manifest")
    if finding is not None:
        findings.add(finding)
    return is_readable


def find_foreign_files(run: StoredRun, findings: Findings) -> None:
    """Find files in the data directories that are none of the run's: readers would take them in."""
    known = {file.path for file in recorded_files(run)}
    for directory in sorted({*run.directories, CHUNKS_PATH.partition("/")[0]}):
        for path in strangers(Path(run.path), known, directory):
            findings.add(f"`{path}` is no file of this run. Remove it, or put it elsewhere.")
