"""Rows on their way into files of the dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from batchnorm_tool.store.library import lance, writing


def write_fragments(
    place: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch], mode: str = "append"
) -> list[Any]:
    """Write rows as new fragments of a dataset, which nobody sees before a commit names them.

    Args:
        place: The dataset, or the path where one is to be.
        schema: Of the rows.
        batches: The rows; they are streamed, and cast to the schema.

        mode: ``append`` to the dataset's other rows, or ``overwrite`` or ``create`` it.

    Returns:
        What Lance calls them; none where there are no rows.

    Raises:
        WorkFailed: They cannot be written.
    """
    path = place if isinstance(place, str) else place.uri
    filled = (batch for batch in batches if batch.num_rows)
    rows = (_aligned(batch.select(schema.names).cast(schema)) for batch in filled)
    first = next(rows, None)
    if first is None:
        return []
    failures: list[BaseException] = []
    reader = pa.RecordBatchReader.from_batches(schema, _noting_failure(first, rows, failures))
    with _raising(failures), writing(path):
        write = lance().fragment.write_fragments
        return list(write(reader, place, schema, mode=mode, data_storage_version="stable"))


def _aligned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows where Rust takes decimals: at multiples of 16 bytes, which Arrow files lack."""
    every = pa.array(range(batch.num_rows), pa.int64())
    columns = [
        column.take(every) if "decimal" in str(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _noting_failure(
    first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], failures: list[BaseException]
) -> Iterator[pa.RecordBatch]:
    """All batches; an error on the way would come out of Lance as text."""
    try:
        yield first
        yield from rest
    except BaseException as error:
        failures.append(error)
        raise


@contextlib.contextmanager
def _raising(failures: list[BaseException]) -> Iterator[None]:
    """Raise the error that stopped the rows, rather than what became of it on its way."""
    try:
        yield
    except BaseException:
        if failures:
            raise failures[0] from None
        raise
