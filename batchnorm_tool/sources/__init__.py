"""Many input files as one table: open it, and read any rows of it."""

from __future__ import annotations

from batchnorm_tool.sources.input_file import InputFile, Member, Partition, Table
from batchnorm_tool.sources.opening import open_table
from batchnorm_tool.sources.reading import check_unchanged, read_rows

__all__ = [
    "InputFile",
    "Member",
    "Partition",
    "Table",
    "check_unchanged",
    "open_table",
    "read_rows",
]
