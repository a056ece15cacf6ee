"""One commit: everything written and synced beforehand, then one step that readers see.

Lance syncs nothing of what it writes, and would rebase a change onto whatever became the newest
version in the meantime. Here the new files are synced before the commit and its manifest after it,
and a store that somebody else has changed is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchnorm_tool.errors import OutputError
from batchnorm_tool.storage.files import make_directories, sync_directory, write_errors
from batchnorm_tool.store.library import lance, latest_version, open_dataset, reading, writing

WRITTEN_BEFORE = ("data", "_deletions")
_WRITTEN_BY_COMMIT = ("_versions", "_transactions")


@dataclass(frozen=True)
class Prepared:
    """A change that is written, and that nobody sees before `commit`.

    Attributes:
        path: Of the dataset.
        uuid: Of the transaction: `committed_version` tells by it whether a commit came about.
        base: Lance's number of the version that it changes; 0 where there was none.
        files: Paths below the dataset of the files that were written for it.
    """

    path: str
    uuid: str
    base: int
    files: tuple[str, ...]
    _transaction: Any = field(repr=False)

    def sync(self) -> None:
        """Make sure that the new files, and their names, outlive a power cut.

        Raises:
            WorkFailed: They cannot be synced.
        """
        _sync(self.path, self.files)


class Preparation:
    """What was there before a change was written; `finish` tells which files are new.

    Args:
        path: Of the dataset; its directory is made, and synced, where there is none.
        base: Lance's number of the version that is changed; 0 where there is none.
    """

    def __init__(self, path: str, base: int) -> None:
        with write_errors(path):
            make_directories(Path(path).absolute())
        self._path, self._base = path, base
        self._before = files_of(path, WRITTEN_BEFORE)

    def finish(self, operation: Any) -> Prepared:
        """The change that ``operation`` describes, which builds on the base."""
        transaction = lance().Transaction(read_version=self._base, operation=operation)
        new = sorted(files_of(self._path, WRITTEN_BEFORE) - self._before)
        return Prepared(self._path, transaction.uuid, self._base, tuple(new), transaction)


def commit(prepared: Prepared) -> int:
    """Let readers see a prepared change, as a new version.

    Args:
        prepared: The change; its files are synced first.

    Returns:
        Lance's number of the new version, which is synced. Not promised: that a power cut between
        the commit and the sync leaves either version whole.

    Raises:
        OutputError: The newest version is not the one that the change builds on.
        WorkFailed: It cannot be written.
    """
    path = prepared.path
    prepared.sync()
    _refuse_unless_newest(path, prepared.base, latest_version(path) or 0)
    before = files_of(path, _WRITTEN_BY_COMMIT)
    with writing(path):
        base = open_dataset(path, prepared.base) if prepared.base else path
        dataset = lance().LanceDataset.commit(base, prepared._transaction, max_retries=0)  # noqa: SLF001
    _sync(path, sorted(files_of(path, _WRITTEN_BY_COMMIT) - before))
    _refuse_unless_newest(path, prepared.base, dataset.version - 1)
    return int(dataset.version)


def _refuse_unless_newest(path: str, base: int, newest: int) -> None:
    if newest != base:
        msg = (
            f"Somebody else has written to the store `{path}`: its newest version in Lance is "
            f"{newest}. Expected: {base}, as this night found it. Nothing but batchnorm-tool may "
            "write there. See who did, undo it (`rollback` restores a version), and run again."
        )
        raise OutputError(msg)


def committed_version(path: str, uuid: str) -> int | None:
    """Whether a transaction was committed: what to ask after a crash.

    Args:
        path: Of the dataset.
        uuid: Of the transaction, from `Prepared`.

    Returns:
        Lance's number of its version, synced; ``None``: it was not, and may be prepared again.

    Raises:
        Damaged: The dataset cannot be read.
    """
    if latest_version(path) is None:
        return None
    with reading(path):
        dataset = open_dataset(path)
        versions = sorted((each["version"] for each in dataset.versions()), reverse=True)
        for version in versions:
            transaction = dataset.read_transaction(version)
            if transaction is not None and transaction.uuid == uuid:
                _sync(path, sorted(files_of(path, _WRITTEN_BY_COMMIT)))
                return int(version)
    return None


def files_of(path: str, directories: tuple[str, ...]) -> set[str]:
    """Paths, below the dataset, of the files in some of its directories."""
    with write_errors(path):
        return {
            f"{directory}/{name}"
            for directory in directories
            if (Path(path) / directory).is_dir()
            for name in os.listdir(Path(path) / directory)
        }


def _sync(path: str, files: tuple[str, ...] | list[str]) -> None:
    """Sync files, the directories that hold them, and the dataset's own directory."""
    root = Path(path)
    with write_errors(path):
        for file in files:
            sync_file(root / file)
        for directory in sorted({(root / file).parent for file in files} | {root}):
            sync_directory(directory)


def sync_file(path: Path) -> None:
    """Make sure that the content of a file outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
