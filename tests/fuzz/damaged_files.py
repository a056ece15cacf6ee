"""Damage files in many ways and give each to the commands, in a process that may die of it.

``python -m tests.fuzz.damaged_files FOLDER FORM FIRST COUNT`` prints a line before each file and a
JSON line for each outcome that must not be.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.command_line import invoke

ROWS = 40


def _table() -> pa.Table:
    values = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    return pa.table(
        {
            "id": np.arange(ROWS),
            "emb": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4),
            "tags": [[f"tag {i}"] * (i % 3) for i in range(ROWS)],
            "word": pa.array([f"w{i % 5}" for i in range(ROWS)]).dictionary_encode(),
        }
    )


def _parquet(path: Path, *, checksums: bool) -> None:
    pq.write_table(_table(), path, row_group_size=15, write_page_checksum=checksums)


def _arrow(path: Path, *, stream: bool, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression, unify_dictionaries=True)
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(path, _table().schema, options=options) as writer:
        writer.write_table(_table(), max_chunksize=15)


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, _table()["emb"].combine_chunks().flatten().to_numpy().reshape(ROWS, 4))


FORMS: dict[str, Callable[[Path], None]] = {
    "parquet": lambda path: _parquet(path, checksums=False),
    "parquet with checksums": lambda path: _parquet(path, checksums=True),
    "arrow": lambda path: _arrow(path, stream=False),
    "arrow compressed": lambda path: _arrow(path, stream=False, compression="zstd"),
    "stream": lambda path: _arrow(path, stream=True),
    "npy": _npy,
}


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes cut short, or with flipped bits or extreme numbers, often near the ends."""
    chance, changed = random.Random(seed), bytearray(data)  # noqa: S311
    kind = chance.choice(["truncate", "flip", "flip", "flip", "number", "hole"])
    if kind == "truncate":
        return data[: chance.randrange(len(data))]
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        edge = chance.choice([len(data), 300])
        place = chance.choice([chance.randrange(edge), len(data) - 1 - chance.randrange(edge)])
        place = min(max(place, 0), len(data) - 1)
        if kind == "flip":
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == "number":
            number = chance.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)])
            changed[place : place + 8] = number.to_bytes(8, "little", signed=True)
        else:
            changed[place : place + chance.randrange(64)] = bytes(chance.randrange(64))
    return bytes(changed)


def wrong_outcome(path: Path, out: Path) -> str | None:
    """What the commands make of a file, where that is not rows or an error of ours."""
    flags = [] if path.suffix == ".npy" else ["--column", "emb", "--passthrough", "tags"]
    policies = ["--invalid", "quarantine", "--nonfinite", "quarantine", "--max-bad-fraction", "1"]
    for command in (["show", path], ["normalize", path, out, *flags, *policies]):
        shutil.rmtree(out, ignore_errors=True)
        done = invoke(*command)
        if done.exit_code not in (0, 2, 4) or "unforeseen" in done.stderr:
            return f"{command[0]}: exit {done.exit_code}: {done.stderr}"
        if done.exit_code and str(path) not in done.stderr:
            return f"{command[0]}: names no file: {done.stderr}"
    return None


def main(folder: Path, form: str, first: int, count: int) -> None:
    path, out = folder / ("in.npy" if form == "npy" else "in.bin"), folder / "out"
    FORMS[form](path)
    data = path.read_bytes()
    for seed in range(first, first + count):
        sys.stdout.write(f"{seed}\n")
        sys.stdout.flush()
        path.write_bytes(damaged(data, seed))
        wrong = wrong_outcome(path, out)
        if wrong is not None:
            sys.stdout.write(f"{json.dumps([seed, wrong])}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
