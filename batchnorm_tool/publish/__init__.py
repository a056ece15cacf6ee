"""Publish targets beside a store: one module each, one line each in the registry.

A target is a class that is made of its section of the job and keeps the promises of
`batchnorm_tool.publish.contract.Target`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm_tool.errors import JobError
from batchnorm_tool.publish.changes import ChangeFeed
from batchnorm_tool.publish.faiss_index import FaissIndex
from batchnorm_tool.publish.parquet import ParquetSnapshot
from batchnorm_tool.publish.pgvector import PgvectorTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchnorm_tool.publish.contract import Target, TargetSection

__all__ = ["TARGETS", "open_target"]

TARGETS: dict[str, Callable[[TargetSection], Target]] = {
    "changes": ChangeFeed,
    "parquet": ParquetSnapshot,
    "pgvector": PgvectorTable,
    "faiss": FaissIndex,
}


def open_target(section: TargetSection) -> Target:
    """The target of a section; its place is not touched.

    Args:
        section: An item of ``publish``.

    Raises:
        JobError: There is no such kind of target.
    """
    if section.to not in TARGETS:
        msg = f"`publish`: expected `to` to be one of {sorted(TARGETS)}. Received: {section.to!r}."
        raise JobError(msg)
    return TARGETS[section.to](section)
