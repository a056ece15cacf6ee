"""Verify a finished run or a store: read all of it again, and compare it with what it says."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchnorm_tool.commands.verify.run_files import (
    Findings,
    check_keys,
    check_statistics,
    find_foreign_files,
    is_as_written,
    recorded_files,
)
from batchnorm_tool.commands.verify.store import StoreCheck
from batchnorm_tool.commands.verify.vectors import VectorCheck
from batchnorm_tool.display import plural
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.formats import format_named
from batchnorm_tool.pipeline.manifest import SUCCESS_PATH
from batchnorm_tool.readers.run import StoredPart, StoredRun, damaged_if_unreadable, open_run
from batchnorm_tool.readers.store import Snapshot, open_snapshot
from batchnorm_tool.store import checksums
from batchnorm_tool.store.state import is_store

_RESTORE = "Restore the dataset and its state together from a backup, or create a new store."


@dataclass(frozen=True)
class Verification:
    """A finished run that is what its manifest says, or a store that is what its state says.

    Attributes:
        path: Its output directory, or the store's dataset.
        rows: Rows that are stored.
        vectors: Vectors whose length was measured; null ones are left out.
        parts: Its parts; of a store the kept versions.
        files: Files whose checksum was compared.
        bytes: Their size.
        keys: Whether keys were checked.
        seconds: Wall time.
    """

    path: str
    rows: int
    vectors: int
    parts: int
    files: int
    bytes: int
    keys: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


def verify(path: str | os.PathLike[str], *, keys: bool = False) -> Verification:
    """Read a finished run or a store again, every byte of it, and compare it with what it says.

    Checked in a run are: the manifest's own checksum; presence, size and SHA-256 of every file;
    files that do not belong there; rows of every part; that vectors are finite and of unit length
    under their norm, and norms finite and not negative (what policy kept excepted, which is
    counted); that as many rows are zero or null as were counted; that the norms are those that the
    statistics describe; and that the statistics of the chunks come to those of the whole. Memory
    does not depend on the number of rows.

    Checked in a store are: the checksums of its state and of all records; SHA-256 of every file
    of every kept version, and files that belong to none; tags; and of the live version that keys
    are unique and not null, vectors finite and of unit length under their norm, and that keys,
    hashes, norms and status are those of the index, row for row. Takes 72 bytes for each row.

    Args:
        path: The run's output directory, or the ``vectors`` directory in it; or a store's dataset.
        keys: Also find null keys of a run, and keys that several rows have. Takes 16 bytes for each
            row in the system's directory for temporary files. In a store they are always checked.

    Returns:
        What was checked.

    Raises:
        InputError: ``path`` is neither a finished run nor a store.
        Damaged: Something is not as it was written; the message names files and rows.
        WorkFailed: The result was replaced meanwhile, or there is no room for temporary files.

    Example:
        >>> from batchnorm_tool import verify
        >>> verify("runs/digits").rows  # doctest: +SKIP
        1797
    """
    if is_store(os.fspath(path)):
        return _verify_store(os.fspath(path))
    started = time.perf_counter()
    run = open_run(os.fspath(path))
    findings = Findings()
    vectors = _verify_parts(run, findings)
    _verify_beside(run, findings)
    if keys:
        check_keys(run, findings)
    if findings.count:
        _refuse_if_replaced(run)
    findings.raise_if_any(run.path)
    files = recorded_files(run)
    return Verification(
        path=run.path,
        rows=run.rows,
        vectors=vectors,
        parts=len(run.parts),
        files=len(files),
        bytes=sum(file.bytes for file in files),
        keys=keys,
        seconds=time.perf_counter() - started,
    )


def _verify_store(path: str) -> Verification:
    started = time.perf_counter()
    store = open_snapshot(path)
    check = StoreCheck(store, Findings())
    check.check_all()
    if check.findings.count:
        _refuse_if_changed(store)
    check.findings.raise_if_any(path, _RESTORE)
    files = checksums.recorded_files(path, store.state.storage)
    return Verification(
        path=path,
        rows=store.rows,
        vectors=check.vectors,
        parts=len(store.pointer.versions),
        files=len(files),
        bytes=sum(file.bytes for file in files),
        keys=True,
        seconds=time.perf_counter() - started,
    )


def _refuse_if_changed(store: Snapshot) -> None:
    """Refuse a store that a refresh changed while it was read."""
    if store.state.storage.is_locked() or store.state.pointer() != store.pointer:
        raise WorkFailed(
            f"`{store.path}` was changed by a refresh during verification. Verify it again."
        )


def _verify_parts(run: StoredRun, findings: Findings) -> int:
    """Look at all parts; returns the number of vectors whose length was measured."""
    check = VectorCheck(run, findings)
    quarantined = 0
    is_whole = True
    for part in run.parts:
        whole = [is_as_written(run, file, findings) for file in part.files]
        readable = all(whole)
        try:
            quarantined += _quarantined(run, part) if readable else 0
            if readable:
                check.check_part(part)
        except Damaged as error:
            findings.add(error.message)
            readable = False
        is_whole &= readable
    if is_whole:  # otherwise the sums say nothing that is not said already
        check.conclude()
        _compare_sums(run, quarantined, findings)
    return check.vectors


def _quarantined(run: StoredRun, part: StoredPart) -> int:
    """Return rows of ``part`` that lie in quarantine."""
    file = run.quarantine_of(part)
    if file is None:
        return 0
    with damaged_if_unreadable(file.path):
        return format_named("parquet").inspect(str(Path(run.path) / file.path)).rows


def _compare_sums(run: StoredRun, quarantined: int, findings: Findings) -> None:
    rows = run.manifest.rows
    stored = sum(part.rows for part in run.parts)
    for what, found, expected in (
        ("stored", stored, rows.rows_out),
        ("in quarantine", quarantined, rows.quarantined),
    ):
        if found != expected:
            findings.add(f"{plural(found, 'row')} {what}; the manifest has {expected:,}.")


def _verify_beside(run: StoredRun, findings: Findings) -> None:
    """Look at all that is no part: statistics, and files that should not be there."""
    in_parts = {file.path for part in run.parts for file in part.files}
    for file in recorded_files(run):
        if file.path not in in_parts:
            is_as_written(run, file, findings)
    check_statistics(run, findings)
    find_foreign_files(run, findings)


def _refuse_if_replaced(run: StoredRun) -> None:
    """Refuse a result that another run replaced while it was read."""
    try:
        success = (Path(run.path) / SUCCESS_PATH).read_text().strip()
    except OSError:
        success = ""
    if success != run.manifest.checksum:
        raise WorkFailed(
            f"`{run.path}` was replaced by another run during verification. Verify it again."
        )
