"""A full snapshot of each version as Parquet files, and a pointer to the newest.

::

    PATH/current                        text, such as ``versions/12``; replaced last, in one rename
    PATH/versions/12/part-000000.parquet …   data alone, so that any reader takes the directory
    PATH/versions/12.json               counts, space and checksums
    PATH/versions/12.contract.json      what a query must do alike

A reader reads ``current`` once and then opens that directory, which stays until ``keep`` later
versions are there. Every version is rewritten, also one to which a rollback returned: it has a
number of its own.
"""

from __future__ import annotations

from pydantic import Field

from batchnorm_tool.job.types import Count, LocalOrUri, option
from batchnorm_tool.publish import Facts, directories
from batchnorm_tool.publish.directories import DirectoryManifest, DirectoryTarget, PublishDirectory
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.rows import Publication

VERSIONS = "versions"
POINTER = "current"


class PublishParquet(PublishDirectory):
    """The keys of ``to: parquet``."""

    path: LocalOrUri = Field(description="Directory of the snapshots.")
    keep: Count = option(3, "Versions that stay.")


class ParquetSnapshot(DirectoryTarget):
    """The target ``parquet``: a directory of snapshots."""

    section = PublishParquet
    below = VERSIONS

    def _add(self, storage: Storage, publication: Publication, held: Facts | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        """Write the snapshot of a version, and point to it."""
        directory = _directory(publication.version)
        document = storage.get(manifest_path(publication.version))
        found = DirectoryManifest.from_document(document)
        # Its manifest is written after its directory.
        if found is None or not found.holds(publication):
            _write(storage, publication, directory)
        pointer = f"{directory}\n".encode()
        if storage.get(POINTER) != pointer:
            storage.put(POINTER, pointer)
        return {"path": directory}

    def _remove(self, storage: Storage, version: int) -> None:
        storage.remove(manifest_path(version))
        storage.remove(_contract_path(version))
        super()._remove(storage, version)


def _write(storage: Storage, publication: Publication, directory: str) -> None:
    staged, rows = storage.staged(directory), publication.all_batches()
    records = directories.write_parts(storage, staged, publication.layout, rows)
    # The manifest comes after it, and not before: it says that the directory is whole.
    directories.publish_directory(storage, directory)
    directories.put_contract(storage, _contract_path(publication.version), publication)
    document = DirectoryManifest.of(publication, records, staged).to_document()
    storage.put(manifest_path(publication.version), document)


def _directory(version: int) -> str:
    return f"{VERSIONS}/{version}"


def manifest_path(version: int) -> str:
    """Say where the manifest of a version lies."""
    return f"{VERSIONS}/{version}.json"


def _contract_path(version: int) -> str:
    return f"{VERSIONS}/{version}.contract.json"
