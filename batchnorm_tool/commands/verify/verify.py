"""Verify a finished run or a store: read all of it again, and compare it with what it says."""

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk import numbered, python_values
from batchnorm_tool.commands.verify.findings import Findings, Place
from batchnorm_tool.commands.verify.store import StoreCheck
from batchnorm_tool.commands.verify.vectors import VectorCheck
from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.errors import RECREATE, Damaged, WorkFailed
from batchnorm_tool.formats import format_named
from batchnorm_tool.inputs.row_hash import key_ids, nulls_of
from batchnorm_tool.inputs.row_ids import find_repeated
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.pipeline.manifest import SUCCESS_PATH
from batchnorm_tool.pipeline.part_output import CHUNK_SCHEMA, CHUNKS_PATH, QUARANTINE_DIRECTORY
from batchnorm_tool.readers.run import StoredPart, StoredRun, damaged_if_unreadable, open_run
from batchnorm_tool.readers.store import Snapshot, open_snapshot
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.storage.files import unknown_files
from batchnorm_tool.store import checksums
from batchnorm_tool.store.state import StoreDirectory, is_store

_RESTORE = (
    "If a refresh was interrupted, run it again: it repairs what it left. Restore the dataset and "
    "its state together from a backup, or create a new store, where damage remains."
)
_OF_VECTORS = ("rows", "vectors", "zero", "nonfinite")
_OF_NORMS = ("count", "min", "max", "mean")
_CHUNK_COLUMNS = ["output", "norm", *_OF_VECTORS, "min", "max", "mean", "histogram"]
_CHUNKS_AT_ONCE = 1024
_KEY_BATCH_ROWS = 65_536
_KEY_MEMORY_BYTES = 512 * 2**20
# Beyond these, repeated keys are neither named nor counted.
_NAMED_PAIRS = 100_000
_ROWS_OF_A_KEY = 8


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
        keys: Also find null keys of a run, and keys that several rows have. Takes 24 bytes for each
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
        place = os.fspath(path)
        return StoreDirectory(place).look(lambda _: _verify_store(place))
    started = time.perf_counter()
    run = open_run(os.fspath(path))
    findings = Findings()
    vectors = _verify_parts(run, findings)
    _verify_beside(run, findings)
    if keys:
        _check_keys(run, findings)
    if findings.count:
        _refuse_if_replaced(run)
    findings.raise_if_any(run.path, f"Restore it from a copy, or {RECREATE}.")
    files = _recorded_files(run)
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
    store = open_snapshot(path, decode=False)
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


def _recorded_files(run: StoredRun) -> list[FileRecord]:
    """Return every file whose checksum the manifest holds."""
    return [*(file for part in run.parts for file in part.files), *_files_beside(run)]


def _files_beside(run: StoredRun) -> list[FileRecord]:
    """Return those of them that are no part's."""
    contract, size = run.manifest.contract, Storage(run.path).size(CONTRACT) or 0
    more = [] if contract is None else [FileRecord(CONTRACT, size, contract)]
    return [*run.manifest.files, *more]


def _verify_parts(run: StoredRun, findings: Findings) -> int:
    """Look at all parts; returns the number of vectors whose length was measured."""
    check = VectorCheck(run, findings)
    quarantined = 0
    is_whole = True
    for part in run.parts:
        readable = [findings.add_file(run.path, file, "manifest") for file in part.files]
        try:
            if all(readable):
                quarantined += _quarantined(run, part)
                check.check_part(part)
        except Damaged as error:
            findings.add(error.message)
            is_whole = False
        is_whole &= all(readable)
    if is_whole:  # otherwise the sums say nothing that is not said already
        check.conclude()
        rows = run.manifest.rows
        findings.add_count("stored", sum(part.rows for part in run.parts), rows.rows_out)
        findings.add_count("in quarantine", quarantined, rows.quarantined)
    return check.vectors


def _quarantined(run: StoredRun, part: StoredPart) -> int:
    """Return rows of ``part`` that lie in quarantine, in one file or none."""
    for path in (file.path for file in part.files):
        if path.startswith(f"{QUARANTINE_DIRECTORY}/"):
            with damaged_if_unreadable(path):
                return format_named("parquet").inspect(f"{run.path}/{path}").rows
    return 0


def _verify_beside(run: StoredRun, findings: Findings) -> None:
    """Look at all that is no part: statistics, and files that readers would take for the run's."""
    for file in _files_beside(run):
        findings.add_file(run.path, file, "manifest")
    _check_statistics(run, findings)
    known = {file.path for file in _recorded_files(run)}
    for directory in sorted({*run.directories, CHUNKS_PATH.partition("/")[0]}):
        for path in unknown_files(Path(run.path), known, directory):
            findings.add(f"`{path}` does not belong to this run. Remove it, or move it elsewhere.")


def _check_statistics(run: StoredRun, findings: Findings) -> None:
    """Compare `_stats/chunks.parquet` with the manifest's statistics of the whole."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    norms: defaultdict[tuple[str, str], NormStats] = defaultdict(NormStats)
    try:
        for chunk in _chunks(Path(run.path) / CHUNKS_PATH):
            name = chunk["output"], chunk["norm"]
            counts[name].update({key: chunk[key] for key in _OF_VECTORS})
            norms[name] += _norms_of(chunk)
    except FileNotFoundError:
        return  # the check of the files says so already
    except (OSError, pa.ArrowException, UnicodeDecodeError, TypeError) as error:
        findings.add(f"`{CHUNKS_PATH}` cannot be read: {' '.join(str(error).split())}.")
        return
    described = {
        (output, norm): _totals({key: getattr(stats, key) for key in _OF_VECTORS}, lengths)
        for output, stats in run.manifest.statistics.items()
        for norm, lengths in stats.norms.items()
    }
    for name in sorted({*described, *counts}):
        where = f"`{CHUNKS_PATH}`, output `{name[0]}`, norm {name[1]}"
        if (expected := described.get(name)) is None:
            findings.add(f"{where}: the manifest has no such statistics.")
            continue
        for key, found in _totals(counts[name], norms[name]).items():
            if not _agree(key, found, expected[key]):
                said = f"{found}; the manifest has {expected[key]}"
                findings.add(f"{where}: `{key}` over all chunks is {said}.")


def _chunks(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as opened:
        file = pq.ParquetFile(opened, page_checksum_verification=True)
        if not file.schema_arrow.equals(CHUNK_SCHEMA):
            raise pa.ArrowInvalid(f"its columns are {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(_CHUNKS_AT_ONCE, columns=_CHUNK_COLUMNS):
            yield from batch.to_pylist()


def _norms_of(chunk: Mapping[str, Any]) -> NormStats:
    """Return what a chunk says of its norms, but for their spread."""
    count = sum(bucket["count"] for bucket in chunk["histogram"])
    ends = {key: chunk[key] for key in ("min", "max", "mean")}
    return NormStats(count, **ends) if count else NormStats()


def _totals(counts: Mapping[str, int], norms: NormStats) -> dict[str, float | None]:
    of_vectors = {key: counts[key] for key in _OF_VECTORS}
    return {**of_vectors, **{key: getattr(norms, key) for key in _OF_NORMS}}


def _agree(key: str, found: float | None, expected: float | None) -> bool:
    # The last bits of a mean depend on how rows were split; without norms there is none.
    if key == "mean":
        return math.isclose(found or 0.0, expected or 0.0, rel_tol=1e-9)
    return found == expected


def _check_keys(run: StoredRun, findings: Findings) -> None:
    """Find null keys, and keys that several rows have."""
    found, pairs = np.empty((0, 2), np.int64), _key_ids(run, findings)
    try:
        for more in find_repeated(pairs, run.rows, _KEY_MEMORY_BYTES, "verify"):
            found = np.concatenate([found, more])[:_NAMED_PAIRS]
            if len(found) == _NAMED_PAIRS:
                break
        _report_repeated(run, found[np.lexsort(found.T[::-1])], findings)
    except Damaged as error:
        findings.add(f"Not all keys were checked: {error.message}")


def _key_ids(run: StoredRun, findings: Findings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield row numbers and ids of all rows that have a key; null keys are reported."""
    for part, first, batch in _key_batches(run, run.parts):
        null = np.logical_or.reduce([nulls_of(column) for column in batch.columns])
        if null.any():
            names = ", ".join(f"`{name}`" for name in run.keys)
            place = Place(findings, run.file_of(part, run.keys[0]), first)
            place.report(np.flatnonzero(null), f"the key {names} is null.")
        keys = pa.Table.from_batches([batch.filter(pa.array(~null))])
        yield np.flatnonzero(~null) + part.first + first, key_ids(keys, run.keys)


def _key_batches(
    run: StoredRun, parts: Iterable[StoredPart]
) -> Iterator[tuple[StoredPart, int, pa.RecordBatch]]:
    """Yield the key columns of ``parts``, with the number of each batch's first row in its part."""
    for part in parts:
        for first, batch in numbered(run.read_part(part, run.keys, _KEY_BATCH_ROWS)):
            yield part, first, batch


def _report_repeated(run: StoredRun, pairs: np.ndarray, findings: Findings) -> None:
    """Report each key that several rows have, by ``int64[n, 2]``: its first row, a further one."""
    firsts, starts = np.unique(pairs[:, 0], return_index=True)
    further = np.split(pairs[:, 1], starts[1:])
    for key, first, others in zip(_keys_at(run, firsts), firsts, further, strict=False):
        places = (_place(run, row) for row in [first, *others[: _ROWS_OF_A_KEY - 1]])
        findings.add(f"{', '.join(places)}: have the same key, {key}.")


def _keys_at(run: StoredRun, rows: np.ndarray) -> Iterator[str]:
    """Yield the keys of some rows ``int64[n]``, ascending, in words."""
    for part, first, batch in _key_batches(run, dict.fromkeys(map(run.part_of, rows.tolist()))):
        start = part.first + first
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        keys = batch.take(pa.array(rows[low:high] - start)).columns
        for key in zip(*map(python_values, keys), strict=True):
            yield ", ".join(map(repr, key))


def _place(run: StoredRun, row: int) -> str:
    part = run.part_of(row)
    return f"`{run.file_of(part, run.keys[0])}` row {row - part.first:,}"
