"""The only durable code: files that appear whole, synced and checksummed, and one lock an output.

`Storage` is what an output is written through. Its rules, which everything else relies on:

- a file becomes visible under its name only by `OutputFile.commit`: written aside, synced, renamed,
  and the directory synced after it;
- a failed write or sync is never retried on the same file (a second ``fsync`` may report success
  for data that was lost): the file is thrown away, and the work fails;
- what is published appears directory by directory, each in one rename.
"""

from batchnorm_tool.storage.files import FileRecord, OutputFile
from batchnorm_tool.storage.local import STATE, TEMPORARY, Storage, open_storage

__all__ = ["STATE", "TEMPORARY", "FileRecord", "OutputFile", "Storage", "open_storage"]
