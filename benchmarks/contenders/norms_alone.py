"""Norms, statistics and checksums alone, of vectors of the same shape from memory.

Settings: ``rows``, ``width``, ``chunk_rows``, and ``stage``: ``norms`` (unit vectors, three norms
and their statistics) or ``checksums`` (SHA-256 of what is written, xxh3-128 of what is read).
"""

from __future__ import annotations

import hashlib

import numpy as np
import xxhash

from batchnorm_tool.norms.norm import L2, row_norms, unit_vectors, wide_blocks
from batchnorm_tool.norms.stats import VectorStats
from benchmarks.contenders.stopwatch import Stopwatch, settings

# So many different chunks are worked on again and again: more do not fit into a cache.
_DIFFERENT_CHUNKS = 16


def main() -> None:
    """Work on all rows once."""
    wanted = settings()
    chunks, count = chunks_of(wanted), -(-wanted["rows"] // wanted["chunk_rows"])
    work = {"norms": measure, "checksums": digest}[wanted["stage"]]
    with Stopwatch() as watch:
        work([chunks[number % len(chunks)] for number in range(count)])
    watch.say(rows=count * wanted["chunk_rows"])


def chunks_of(wanted: dict[str, int]) -> list[np.ndarray]:
    """Random vectors."""
    random, shape = np.random.default_rng(0), (wanted["chunk_rows"], wanted["width"])
    return [random.standard_normal(shape, dtype=np.float32) for _ in range(_DIFFERENT_CHUNKS)]


def measure(chunks: list[np.ndarray]) -> None:
    """Normalize and measure chunks."""
    for vectors in chunks:
        unit, lengths = np.empty_like(vectors), np.empty((len(vectors), 1))
        for block, x64 in wide_blocks(vectors):
            lengths[block] = row_norms(x64, L2)
            unit[block] = unit_vectors(x64, lengths[block], L2, np.float32)
        VectorStats.of(vectors, rows=len(vectors), in_use=L2, in_use_norms=lengths)


def digest(chunks: list[np.ndarray]) -> None:
    """Hash chunks as files are, and as rows are: of two numbers that come in, one goes out."""
    written, read = hashlib.sha256(), xxhash.xxh3_128()
    for vectors in chunks:
        written.update(vectors.data)
        read.update(vectors.data)
        read.update(vectors.data)


if __name__ == "__main__":
    main()
