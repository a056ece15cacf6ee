"""Rows as Parquet files of bounded size in a directory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from batchnorm_tool.formats import Layout
from batchnorm_tool.formats.parquet import ParquetSink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from batchnorm_tool.storage import FileRecord, OutputFile, Storage
    from batchnorm_tool.store.state import StoreLayout

PART_BYTES = 512 << 20  # of rows in memory; about half of it on disk


class PartFiles:
    """Writes tables into ``DIRECTORY/part-000000.parquet`` and so on.

    Args:
        storage: Where to.
        directory: Below it.
        schema: Of the rows.
        layout: Which columns are vectors and norms.
    """

    def __init__(
        self, storage: Storage, directory: str, schema: pa.Schema, layout: StoreLayout
    ) -> None:
        self._storage, self._directory, self._schema = storage, directory, schema
        self._layout = Layout(rows=0, vector_columns=(layout.vector,), norm_columns=(layout.norm,))
        self._records: list[FileRecord] = []

    def write(self, tables: Iterable[pa.Table]) -> list[FileRecord]:
        """Write all rows; where there are none, one file without rows.

        Returns:
            The records of the files, by their paths below the storage.
        """
        waiting = iter(tables)
        while not self._records or self._last_bytes >= PART_BYTES:
            self._write_part(waiting)
        return self._records

    def _write_part(self, waiting: Iterator[pa.Table]) -> None:
        path = f"{self._directory}/part-{len(self._records):06d}.parquet"
        with _open_table(self._storage, path, self._schema, self._layout) as (file, sink):
            self._last_bytes = 0
            for table in waiting:
                sink.write(table)
                self._last_bytes += table.nbytes
                if self._last_bytes >= PART_BYTES:
                    break
            sink.close()
            self._records.append(file.commit())


def write_table(
    storage: Storage, path: str, schema: pa.Schema, tables: Iterable[pa.Table]
) -> FileRecord:
    """Write one Parquet file without vectors."""
    with _open_table(storage, path, schema, Layout(rows=0, vector_columns=())) as (file, sink):
        for table in tables:
            sink.write(table)
        sink.close()
        return file.commit()


@contextlib.contextmanager
def _open_table(
    storage: Storage, path: str, schema: pa.Schema, layout: Layout
) -> Iterator[tuple[OutputFile, ParquetSink]]:
    """An open Parquet file, thrown away unless it is committed."""
    file = storage.create(path)
    try:
        yield file, ParquetSink(file, schema, layout)
    finally:
        file.discard()
