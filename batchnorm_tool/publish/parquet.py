"""A full snapshot of each version as Parquet files, and a pointer to the newest.

::

    PATH/current                        text, such as ``versions/12``; replaced last, in one rename
    PATH/versions/12/part-000000.parquet …   data alone, so that any reader takes the directory
    PATH/versions/12.json               counts, space and checksums

A reader reads ``current`` once and then opens that directory, which stays until ``keep`` later
versions are there. Every version is rewritten, also one to which a rollback returned: it has a
number of its own.
"""

from __future__ import annotations

from pydantic import Field

from batchnorm_tool.job.types import Count, LocalOrUri
from batchnorm_tool.publish import Facts, directories
from batchnorm_tool.publish.directories import DirectoryManifest, DirectoryTarget, PublishDirectory
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.rows import Publication

VERSIONS = "versions"
POINTER = "current"


class PublishParquet(PublishDirectory):
    """The keys of ``to: parquet``."""

    path: LocalOrUri = Field(description="Directory of the snapshots.")
    keep: Count = Field(default=3, description="Versions that stay.")


class ParquetSnapshot(DirectoryTarget):
    """The target ``parquet``: a directory of snapshots."""

    section = PublishParquet
    below = VERSIONS

    def _add(self, storage: Storage, publication: Publication, held: Facts | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        """Write the snapshot of a version, and point to it."""
        if not _is_here(storage, publication):
            _write(storage, publication)
        _point_to(storage, publication.version)
        return {"path": _directory(publication.version)}

    def _remove(self, storage: Storage, version: int) -> None:
        storage.remove(_manifest_path(version))
        super()._remove(storage, version)


def _is_here(storage: Storage, publication: Publication) -> bool:
    """Tell whether the snapshot was finished: its manifest is written after its directory."""
    found = DirectoryManifest.from_document(storage.get(_manifest_path(publication.version)))
    return found is not None and found.holds(publication)


def _write(storage: Storage, publication: Publication) -> None:
    directory = _directory(publication.version)
    staged, rows = storage.staged(directory), publication.all_batches()
    records = directories.write_parts(storage, staged, publication.layout, rows)
    # The manifest comes after it, and not before: it says that the directory is whole.
    directories.publish_directory(storage, directory)
    document = DirectoryManifest.of(publication, records, staged).to_document()
    storage.put(_manifest_path(publication.version), document)


def _point_to(storage: Storage, version: int) -> None:
    text = f"{_directory(version)}\n".encode()
    if storage.get(POINTER) != text:
        storage.put(POINTER, text)


def _directory(version: int) -> str:
    return f"{VERSIONS}/{version}"


def _manifest_path(version: int) -> str:
    return f"{VERSIONS}/{version}.json"
