"""Rows of a night in a file of the state, while the night is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import WorkFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batchnorm_tool.storage import LocalStorage

# Rows that are in memory at a time.
BATCH_ROWS = 65_536


def write_rows(
    storage: LocalStorage, path: str, schema: pa.Schema, tables: Iterable[pa.Table]
) -> int:
    """Write tables into one Arrow file, which appears whole and synced.

    Args:
        storage: The state of a store.
        path: Below its root.
        schema: Of every table.
        tables: The rows, in order.

    Returns:
        Number of rows.
    """
    rows = 0
    file = storage.create(path)
    try:
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
            for table in tables:
                writer.write_table(table.select(schema.names).cast(schema))
                rows += table.num_rows
        file.commit()
    finally:
        file.discard()
    return rows


def read_rows(storage: LocalStorage, path: str) -> Iterator[pa.Table]:
    """The rows of a file that `write_rows` wrote, batch by batch.

    Raises:
        WorkFailed: It is damaged; the next run makes it anew.
    """
    try:
        with pa.memory_map(str(storage.root / path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])
    except (pa.ArrowException, OSError) as error:
        msg = (
            f"`{storage.root / path}` cannot be read: {error}. Run the same command again; if it "
            "fails again, remove the directory that holds this file."
        )
        raise WorkFailed(msg) from error


def read_directory(storage: LocalStorage, directory: str) -> Iterator[pa.Table]:
    """The rows of all files of a directory, in the order of their names."""
    for name in storage.names(directory):
        yield from read_rows(storage, f"{directory}/{name}")
