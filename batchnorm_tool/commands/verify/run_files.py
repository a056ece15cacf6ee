"""The files of a finished run: all there, as they were written, with right statistics and keys."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk import numbered
from batchnorm_tool.display import plural
from batchnorm_tool.errors import RECREATE, Damaged, Lines
from batchnorm_tool.inputs.row_hash import Buckets, bucket_bits, bucket_directory, repeated_rows
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline.part_summary import CHUNK_SCHEMA, CHUNKS_PATH
from batchnorm_tool.storage import FileRecord
from batchnorm_tool.storage.files import fault_in, unknown_files

if TYPE_CHECKING:
    from batchnorm_tool.readers.run import StoredPart, StoredRun

_COLUMNS = ("output", "norm", "rows", "vectors", "zero", "nonfinite", "min", "max", "mean")
_HISTOGRAM = "histogram"
_BATCH_ROWS = 1024
_OF_VECTORS = ("rows", "vectors", "zero", "nonfinite")
_NAMED = 20
_NAMED_ROWS = 3
_REMEDY = f"Restore it from a copy, or {RECREATE}."
_KEY_BATCH_ROWS = 65_536
_KEY_ENTRY = np.dtype([("row", np.int64), ("id", np.uint64, (1,))])
_KEY_MEMORY_BYTES = 512 * 2**20
# Suspects whose keys are held at a time. Two keys of the same hash are expected once in a run of
# five billion rows: nearly every suspect is a duplicate, and one round names more than enough.
_SUSPECTS = 100_000
_ROWS_OF_A_KEY = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads every bit (Knuth 6.4)


def recorded_files(run: StoredRun) -> list[FileRecord]:
    """Return every file whose checksum the manifest holds."""
    return [*(file for part in run.parts for file in part.files), *run.manifest.files]


def is_as_written(run: StoredRun, file: FileRecord, findings: Findings) -> bool:
    """Tell whether a file has the bytes that were written; if not, ``findings`` says why.

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
        for path in unknown_files(Path(run.path), known, directory):
            findings.add(f"`{path}` does not belong to this run. Remove it, or move it elsewhere.")


@dataclass
class _Total:
    """What the chunks of one output and norm come to."""

    rows: int = 0
    vectors: int = 0
    zero: int = 0
    nonfinite: int = 0
    count: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        """Take in one chunk."""
        for name in _OF_VECTORS:
            setattr(self, name, getattr(self, name) + chunk[name])
        count = sum(bucket["count"] for bucket in chunk[_HISTOGRAM])
        if not count:
            return
        self.count += count
        share = count / self.count
        self.mean = chunk["mean"] * share + (self.mean or 0.0) * (1 - share)
        self.min = chunk["min"] if self.min is None else min(self.min, chunk["min"])
        self.max = chunk["max"] if self.max is None else max(self.max, chunk["max"])


def check_statistics(run: StoredRun, findings: Findings) -> None:
    """Compare `_stats/chunks.parquet` with the manifest's statistics of the whole."""
    totals: dict[tuple[str, str], _Total] = {}
    try:
        for chunk in _chunks(Path(run.path) / CHUNKS_PATH):
            totals.setdefault((chunk["output"], chunk["norm"]), _Total()).add(chunk)
    except FileNotFoundError:
        return  # the check of the files says so already
    except (OSError, pa.ArrowException, UnicodeDecodeError, TypeError) as error:
        words = " ".join(str(error).split())
        findings.add(f"`{CHUNKS_PATH}` cannot be read: {words}.")
        return
    described = run.manifest.statistics
    names = [(output, norm) for output in described for norm in described[output].norms]
    for name in sorted({*names, *totals}):
        _compare(name, totals.get(name, _Total()), described, findings)


def _chunks(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as opened:
        file = pq.ParquetFile(opened, page_checksum_verification=True)
        if not file.schema_arrow.equals(CHUNK_SCHEMA):
            raise pa.ArrowInvalid(f"its columns are {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(_BATCH_ROWS, columns=[*_COLUMNS, _HISTOGRAM]):
            yield from batch.to_pylist()


def _compare(
    name: tuple[str, str], total: _Total, described: Mapping[str, VectorStats], findings: Findings
) -> None:
    output, norm = name
    vectors = described.get(output)
    lengths = None if vectors is None else vectors.norms.get(norm)
    where = f"`{CHUNKS_PATH}`, output `{output}`, norm {norm}"
    if vectors is None or lengths is None:
        findings.add(f"{where}: the manifest has no such statistics.")
        return
    # Of vectors: rows, zero ones and ones that are not finite. Of their norms: the others.
    for key in (*_OF_VECTORS, "count", "min", "max"):
        expected = getattr(vectors if key in _OF_VECTORS else lengths, key)
        if (found := getattr(total, key)) != expected:
            said = f"{found}; the manifest has {expected}"
            findings.add(f"{where}: `{key}` over all chunks is {said}.")
    mean = lengths.mean
    if total.mean is not None and not math.isclose(total.mean, mean or 0.0, rel_tol=1e-9):
        findings.add(f"{where}: `mean` is {total.mean}; the manifest has {mean}.")


@dataclass
class Findings:
    """Damage found in one run or store; memory is bounded however much there is.

    Attributes:
        texts: The first findings.
        count: All findings.
    """

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        """Take in one finding."""
        self.count += 1
        if len(self.texts) < _NAMED:
            self.texts.append(text)

    def add_rows(self, file: str, rows: np.ndarray, text: str) -> None:
        """Take in one finding that several rows of a file share."""
        if not len(rows):
            return
        named = ", ".join(f"{int(row):,}" for row in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
        self.add(f"`{file}`, row {named}{more}: {text}")

    def raise_if_any(self, path: str, remedy: str = _REMEDY) -> None:
        """Raise `Damaged` with all of them and what to do, or nothing where there are none."""
        if not self.count:
            return
        more = self.count - len(self.texts)
        listed = [*self.texts, *([f"… and {more:,} more"] if more else [])]
        head = f"`{path}` is damaged; {plural(self.count, 'finding')}:"
        raise Damaged(Lines(head, *(f"  {text}" for text in listed), remedy))


def check_keys(run: StoredRun, findings: Findings) -> None:
    """Find null keys, and keys that several rows have.

    Needs 16 bytes for each row in the system's directory for temporary files.
    """
    try:
        with bucket_directory("verify") as directory:
            bits = bucket_bits(run.rows, _KEY_MEMORY_BYTES)
            buckets = Buckets(directory, "keys", bits, _KEY_ENTRY)
            for entries in _hashed(run, findings):
                buckets.add(entries)
            for suspects in _rounds(buckets):
                if _report_duplicates(run, suspects, findings):
                    return
    except Damaged as error:
        findings.add(f"Not all keys were checked: {error.message}")


def _hashed(run: StoredRun, findings: Findings) -> Iterator[np.ndarray]:
    """Yield row numbers and hashes of all rows that have a key; null keys are reported."""
    for part, first, batch in _key_batches(run, run.parts):
        null = np.zeros(batch.num_rows, bool)
        for column in batch.columns:
            null |= column.is_null().to_numpy(zero_copy_only=False)
        if null.any():
            names = ", ".join(f"`{name}`" for name in run.keys)
            rows = np.flatnonzero(null) + first
            findings.add_rows(run.file_of(part, run.keys[0]), rows, f"the key {names} is null.")
            batch = batch.filter(pa.array(~null))  # noqa: PLW2901
        entries = np.zeros(batch.num_rows, _KEY_ENTRY)
        entries["row"] = np.flatnonzero(~null) + part.first + first
        entries["id"][:, 0] = hash_keys(batch)
        yield entries


def _key_batches(
    run: StoredRun, parts: Iterable[StoredPart]
) -> Iterator[tuple[StoredPart, int, pa.RecordBatch]]:
    """Yield the key columns of ``parts``, with the number of each batch's first row in its part."""
    for part in parts:
        for first, batch in numbered(run.read_part(part, run.keys, _KEY_BATCH_ROWS)):
            yield part, first, batch


def hash_keys(batch: pa.RecordBatch) -> np.ndarray:
    """Return a hash of each row, over all columns; equal rows have equal ones.

    Returns:
        ``uint64[n]``.

    Example:
        >>> batch = pa.RecordBatch.from_pydict({"shop": ["a", "b", "a"], "item": [1, 1, 1]})
        >>> hashes = hash_keys(batch)
        >>> bool(hashes[0] == hashes[2]), bool(hashes[0] == hashes[1])
        (True, False)
    """
    from pandas.util import hash_array

    hashes = np.zeros(batch.num_rows, np.uint64)
    for column in batch.columns:
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        hashes = hashes * _MULTIPLIER ^ hash_array(values, categorize=False)
    return hashes


def _rounds(buckets: Buckets) -> Iterator[np.ndarray]:
    """Yield rows whose hash another row has too, as many as fit in memory, in their order."""
    waiting: list[np.ndarray] = []
    for entries in buckets.take():
        waiting.append(np.unique(repeated_rows(entries)))
        if sum(map(len, waiting)) >= _SUSPECTS:
            yield np.sort(np.concatenate(waiting))
            waiting = []
    if waiting:
        yield np.sort(np.concatenate(waiting))


def _report_duplicates(run: StoredRun, suspects: np.ndarray, findings: Findings) -> bool:
    """Compare the keys of ``suspects`` exactly; returns whether any occurs twice."""
    places: dict[str, list[str]] = defaultdict(list)
    starts = [part.first for part in run.parts]
    wanted = {bisect.bisect_right(starts, row) - 1 for row in suspects.tolist()}
    for part, first, batch in _key_batches(run, [run.parts[number] for number in sorted(wanted)]):
        start = part.first + first
        low, high = np.searchsorted(suspects, [start, start + batch.num_rows])
        file = run.file_of(part, run.keys[0])
        for row in (suspects[low:high] - start).tolist():
            key = ", ".join(repr(column[row].as_py()) for column in batch.columns)
            if len(places[key]) < _ROWS_OF_A_KEY:
                places[key].append(f"`{file}` row {first + row:,}")
    for key, rows in places.items():
        if len(rows) > 1:
            findings.add(f"{', '.join(rows)}: have the same key, {key}.")
    return any(len(rows) > 1 for rows in places.values())
