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

from typing import TYPE_CHECKING

from pydantic import Field

from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.job.types import Count, LocalOrUri
from batchnorm_tool.publish import directories
from batchnorm_tool.publish.base import (
    Facts,
    Target,
    check_path,
    published_batches,
    published_schema,
    target_errors,
    version_facts,
)
from batchnorm_tool.publish.directories import DirectoryManifest
from batchnorm_tool.storage import Storage

if TYPE_CHECKING:
    from batchnorm_tool.store.version_changes import Publication

VERSIONS = "versions"
POINTER = "current"


class PublishParquet(Publish):
    """The keys of ``to: parquet``."""

    path: LocalOrUri = Field(description="Directory of the snapshots.")
    keep: Count = Field(default=3, description="Versions that stay.")


class ParquetSnapshot(Target):
    """The target ``parquet``: a directory of snapshots."""

    section = PublishParquet

    def __init__(self, section: PublishParquet) -> None:
        super().__init__(section)
        self.place, self._keep = section.path, section.keep

    def check(self) -> None:
        """Refuse a path that is not local."""
        check_path(self.name, self.place)

    def publish(self, publication: Publication, held: Facts | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        """Write the snapshot of a version, point to it, and remove those that are too old."""
        storage = Storage(self.place)
        with target_errors(self.name), storage.lock():
            versions = directories.versions_in(storage, VERSIONS)
            directories.refuse_foreign(versions, publication, self.place)
            if not _is_here(storage, publication):
                _write(storage, publication)
            _point_to(storage, publication.version)
            self._remove_old(storage)
            directories.clear_staging(storage)
        return version_facts(publication) | {"path": _directory(publication.version)}

    def _remove_old(self, storage: Storage) -> None:
        for version in directories.versions_in(storage, VERSIONS)[: -self._keep]:
            storage.remove(_manifest_path(version))
            storage.remove(_directory(version))


def _is_here(storage: Storage, publication: Publication) -> bool:
    """Tell whether the snapshot was finished: its manifest is written after its directory."""
    found = DirectoryManifest.from_document(storage.get(_manifest_path(publication.version)))
    return found is not None and found.holds(publication)


def _write(storage: Storage, publication: Publication) -> None:
    directories.clear_staging(storage)
    directory = _directory(publication.version)
    staged, layout = storage.staged(directory), publication.layout
    rows = published_batches(publication.all_batches(), published_schema(layout))
    records = directories.write_parts(storage, staged, layout, rows)
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
