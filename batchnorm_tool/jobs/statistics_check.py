"""The chunk statistics of a finished run, against the totals in its manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.chunk_statistics import CHUNK_SCHEMA, CHUNKS_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchnorm_tool.jobs.findings import Findings
    from batchnorm_tool.jobs.stored_run import StoredRun

_COLUMNS = ("output", "norm", "rows", "vectors", "zero", "nonfinite", "min", "max", "mean")
_HISTOGRAM = "histogram"
_BATCH_ROWS = 1024
_OF_VECTORS = ("rows", "vectors", "zero", "nonfinite")


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
        findings.add(f"`{CHUNKS_PATH}` cannot be read as it was written: {words}.")
        return
    described = run.manifest.data["statistics"]
    names = [(output, norm) for output in described for norm in described[output]["norms"]]
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
    name: tuple[str, str], total: _Total, described: dict[str, Any], findings: Findings
) -> None:
    output, norm = name
    vectors = described.get(output, {})
    lengths = vectors.get("norms", {}).get(norm)
    where = f"`{CHUNKS_PATH}`, output `{output}`, norm {norm}"
    if lengths is None:
        findings.add(f"{where}: the manifest knows of no such statistics.")
        return
    # Of vectors: rows, zero ones and ones that are not finite. Of their norms: the others.
    expected = {**lengths, **{key: vectors[key] for key in _OF_VECTORS}}
    for key in (*_OF_VECTORS, "count", "min", "max"):
        if getattr(total, key) != expected[key]:
            found = f"{getattr(total, key)}, and {expected[key]} by the manifest"
            findings.add(f"{where}: `{key}` of all chunks comes to {found}.")
    mean = expected["mean"]
    if total.mean is not None and not math.isclose(total.mean, mean or 0.0, rel_tol=1e-9):
        findings.add(f"{where}: `mean` comes to {total.mean}, and {mean} by the manifest.")
