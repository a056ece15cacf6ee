"""The refusal of keys that two rows have, found exactly and in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchnorm_tool.difference.buckets import KEY_ENTRY, Buckets, bucket_bits, bucket_directory
from batchnorm_tool.difference.reading import key_in_words, locate, read_tables
from batchnorm_tool.errors import InputError
from batchnorm_tool.row_hash import key_ids
from batchnorm_tool.sources import read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchnorm_tool.difference.slices import Slice
    from batchnorm_tool.difference.tonight import Tonight


def refuse_duplicates(tonight: Tonight, slices: Sequence[Slice], memory_bytes: int) -> None:
    """Look for keys that two rows have; reads the keys once more.

    Args:
        tonight: The input.
        slices: All of it.
        memory_bytes: About how much memory to use.

    Raises:
        InputError: There are some; it names the first row that has a key again, and the one that
            had it before.
        WorkFailed: A file cannot be read or written.
    """
    with bucket_directory() as directory:
        bits = bucket_bits(tonight.table.rows, memory_bytes)
        buckets = Buckets(directory, "keys", bits, KEY_ENTRY)
        for piece in slices:
            _add_keys(tonight, piece, buckets)
        again = [_again(buckets.take(number)) for number in range(len(buckets))]
    pairs = np.concatenate(again)
    if len(pairs):
        raise InputError(_refusal(tonight, pairs[pairs[:, 1].argmin()], len(pairs)))


def _add_keys(tonight: Tonight, piece: Slice, buckets: Buckets) -> None:
    ids = [key_ids(table, tonight.keys) for table in read_tables(tonight, piece, tonight.keys)]
    entries = np.zeros(piece.rows, KEY_ENTRY)
    entries["row"] = np.arange(piece.first_row, piece.first_row + piece.rows)
    entries["id"] = np.concatenate(ids)
    buckets.add(entries)


def _again(entries: np.ndarray) -> np.ndarray:
    """Rows that have the same key, ``int64[m, 2]``: one, and the next one after it."""
    order = np.lexsort((entries["row"], entries["id"][:, 1], entries["id"][:, 0]))
    ids, rows = entries["id"][order], entries["row"][order]
    equal = (ids[1:] == ids[:-1]).all(axis=1)
    return np.column_stack((rows[:-1][equal], rows[1:][equal]))


def _refusal(tonight: Tonight, pair: np.ndarray, count: int) -> str:
    (first_path, first), (path, row) = (locate(tonight.table, number) for number in pair.tolist())
    names = ", ".join(f"`{name}`" for name in tonight.keys)
    return (
        f"{path}, row {row}, column {names}: the key {_key(tonight, int(pair[1]))} is there "
        f"already, in {first_path}, row {first}. Expected each key once. Received: {count:,} rows "
        "whose key another row before them has. Remove them, or name more columns in `input.key`."
    )


def _key(tonight: Tonight, row: int) -> str:
    for file in tonight.table.files:
        if row < file.rows:
            batches = list(read_rows(file, tonight.keys, row, row + 1, 1))
            return key_in_words(pa.Table.from_batches(batches), 0)
        row -= file.rows
    return "that it has"
