"""Directories of a target, named for the versions that they hold, and the files in them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import OutputError
from batchnorm_tool.formats import Layout
from batchnorm_tool.formats.parquet import ParquetSink
from batchnorm_tool.storage.base import STATE
from batchnorm_tool.storage.checked_json import canonical_json, verified_json, with_checksum
from batchnorm_tool.storage.files import make_directories, write_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from batchnorm_tool.storage import FileRecord, LocalStorage, OutputFile, Storage
    from batchnorm_tool.store.state import StoreSchema
    from batchnorm_tool.store.version_changes import Publication

FORMAT = 1
PART_BYTES = 512 << 20  # of rows in memory; about half of it on disk


def versions_in(storage: LocalStorage, directory: str = "") -> list[int]:
    """Return the versions that have a directory, in order."""
    names = storage.names(directory)
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def refuse_foreign(versions: Iterable[int], publication: Publication, place: str) -> None:
    """Refuse a place that is ahead of the store: another store writes to it."""
    newest = max(versions, default=0)
    if newest > publication.version:
        msg = (
            f"`{place}` holds version {newest}, and this store publishes version "
            f"{publication.version}: another store wrote there. Choose another `path`, or remove "
            "that directory if nobody reads it any more."
        )
        raise OutputError(msg)


def publish_directory(storage: LocalStorage, path: str) -> None:
    """Let the staged directory ``path`` appear in one rename, in place of one of that name.

    Its name outlives a power cut if it is at the top, or else once a file beside it is committed.
    """
    parent = (storage.root / path).parent
    with write_errors(parent):
        make_directories(parent)
    storage.begin_publish([path], [])
    storage.finish_publish()
    storage.end_publish()


def clear_staging(storage: LocalStorage) -> None:
    """Remove what a killed publication left, or this one no longer needs."""
    storage.remove(STATE)


def manifest(publication: Publication, files: Iterable[FileRecord], root: str) -> dict[str, Any]:
    """Return what a loader needs to know of a directory."""
    layout, record = publication.layout, publication.record
    entries = [file.to_dict() for file in files]
    return {
        "format": FORMAT,
        "version": publication.version,
        "rows": publication.rows,
        "run_id": record.get("run_id"),
        "published": record.get("finished"),
        "space": record.get("space"),
        "norm": layout.norm_label,
        "columns": {
            "keys": list(layout.keys),
            "vector": layout.vector,
            "norm": layout.norm,
            "passthrough": list(layout.passthrough),
        },
        "width": layout.width,
        "dtype": layout.dtype,
        "files": [{**file, "path": file["path"].removeprefix(f"{root}/")} for file in entries],
    }


def put_manifest(storage: LocalStorage, path: str, document: dict[str, Any]) -> None:
    """Write a manifest: JSON with a checksum over all the rest of it."""
    storage.put(path, canonical_json(with_checksum(document)) + b"\n")


def manifest_at(storage: LocalStorage, path: str) -> dict[str, Any] | None:
    """Return a manifest, or ``None`` where there is none that is whole."""
    text = storage.get(path)
    return None if text is None else verified_json(text)


def holds(found: dict[str, Any] | None, publication: Publication) -> bool:
    """Tell whether a manifest is that of this very publication."""
    wanted = (publication.version, publication.record.get("run_id"))
    return found is not None and (found["version"], found["run_id"]) == wanted


class PartFiles:
    """A writer of tables into ``DIRECTORY/part-000000.parquet`` and so on.

    Args:
        storage: Where to.
        directory: Below it.
        schema: Of the rows.
        layout: Which columns are vectors and norms.
    """

    def __init__(
        self, storage: Storage, directory: str, schema: pa.Schema, layout: StoreSchema
    ) -> None:
        self._storage, self._directory, self._schema = storage, directory, schema
        self._layout = Layout(rows=0, vector_columns=(layout.vector,), norm_columns=(layout.norm,))
        self._records: list[FileRecord] = []

    def write(self, tables: Iterable[pa.Table]) -> list[FileRecord]:
        """Write all rows; where there are none, one file without rows."""
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
    """Open a Parquet file, and discard it unless it is committed."""
    file = storage.create(path)
    try:
        yield file, ParquetSink(file, schema, layout)
    finally:
        file.discard()
