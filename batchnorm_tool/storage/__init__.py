"""The only durable code: files that appear whole, synced and checksummed, and one lock an output.

`Storage` is what an output is written through; `LocalStorage` is a directory. Its rules, which
everything else relies on:

- a file becomes visible under its name only by `OutputFile.commit`: written aside, synced, renamed,
  and the directory synced after it;
- a failed write or sync is never retried on the same file (a second ``fsync`` may report success
  for data that was lost): the file is thrown away, and the work fails;
- what is published appears directory by directory, each in one rename.
"""

from pathlib import Path

from batchnorm_tool.errors import OutputError
from batchnorm_tool.storage.base import STATE, TEMPORARY, Storage
from batchnorm_tool.storage.files import FileRecord, OutputFile
from batchnorm_tool.storage.local import LocalStorage

__all__ = [
    "STATE",
    "TEMPORARY",
    "FileRecord",
    "LocalStorage",
    "OutputFile",
    "Storage",
    "open_storage",
]


def open_storage(path: str) -> Storage:
    """Return the storage for an ``output.path``."""
    if "://" in path:
        raise OutputError(
            f"`output.path` must be a local directory in this version. Received: `{path}`. "
            "Write to a local directory and copy it when `_SUCCESS` is there."
        )
    if Path(path).exists() and not Path(path).is_dir():
        raise OutputError(
            f"`output.path` must be a directory, and `{path}` is a file. Choose another path."
        )
    return LocalStorage(path)
