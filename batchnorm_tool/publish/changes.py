"""A feed of changes, from which any loader can bring its own index up to date.

::

    PATH/12/upserts/part-000000.parquet …   rows to write, whole
    PATH/12/deletes.parquet                 keys of the rows to remove
    PATH/12/manifest.json                   what it builds on, counts, checksums

A directory appears in one rename, when everything in it is synced. A loader that holds version
``builds_on`` writes the upserts, removes the deletes, and holds ``version``; doing it again changes
nothing. Where ``builds_on`` is null the upserts are a full set: a loader empties its index first.
A rollback is one more version, which builds on the one before it.

The newest ``keep`` versions stay. A loader that fell behind them finds no version that builds on
its own: it starts again from the newest full set here, if every version after that is here too, or
else from a full snapshot, such as the target ``parquet`` writes, and takes the versions after it.
What is *not* promised: that a full set is always among the versions that stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
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

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ChangesManifest(DirectoryManifest):
    """What a loader needs to know of a set of changes; of all rows, it builds on nothing."""

    upserts: int
    deletes: int
    builds_on: int | None


class PublishChanges(Publish):
    """The keys of ``to: changes``."""

    path: LocalOrUri = Field(description="Directory of the change sets.")
    keep: Count = Field(default=30, description="Versions that stay.")


class ChangeFeed(Target):
    """The target ``changes``: a directory of change sets."""

    section = PublishChanges

    def __init__(self, section: PublishChanges) -> None:
        super().__init__(section)
        self.place, self._keep = section.path, section.keep

    def check(self) -> None:
        """Refuse a path that is not local."""
        check_path(self.name, self.place)

    def publish(self, publication: Publication, held: Facts | None) -> Facts:
        """Add the directory of a version, and remove those that are too old."""
        storage = Storage(self.place)
        with target_errors(self.name), storage.lock():
            versions = directories.versions_in(storage)
            directories.refuse_foreign(versions, publication, self.place)
            found = _manifest_at(storage, publication.version)
            if found is None or not found.holds(publication):
                base = self._base(storage, versions, publication, held)
                found = _write(storage, publication, base)
            self._remove_old(storage)
            directories.clear_staging(storage)
        return _facts(publication, found)

    def _base(
        self, storage: Storage, versions: list[int], publication: Publication, held: Facts | None
    ) -> int | None:
        """Return the newest version here, if what is new since then can be told."""
        newest = max((number for number in versions if number < publication.version), default=None)
        # Without a note of ours what is there may be another store's: then a full set.
        if held is None or newest is None:
            return None
        # No loader could have taken a version whose manifest is not whole.
        if _manifest_at(storage, newest) is None:
            return None
        # After a change of space every row is another: changes would say so row by row, and a full
        # set says it once.
        return newest if publication.can_start_from(newest) else None

    def _remove_old(self, storage: Storage) -> None:
        for version in directories.versions_in(storage)[: -self._keep]:
            storage.remove(str(version))


def _write(storage: Storage, publication: Publication, base: int | None) -> ChangesManifest:
    """Write the directory of a version; its manifest."""
    directories.clear_staging(storage)
    found = _write_files(storage, publication, base)
    storage.put(storage.staged(_manifest_path(publication.version)), found.to_document())
    directories.publish_directory(storage, str(publication.version))
    return found


def _write_files(storage: Storage, publication: Publication, base: int | None) -> ChangesManifest:
    layout, root = publication.layout, storage.staged(str(publication.version))
    rows: Iterator[pa.RecordBatch] = publication.all_batches()
    gone: Iterator[pa.RecordBatch] = iter(())
    counts = {"upserts": publication.rows, "deletes": 0}
    if base is not None:
        changes = publication.changes(base)
        rows, gone = changes.upsert_batches(), changes.delete_batches()
        counts = {"upserts": changes.upserts, "deletes": changes.deletes}
    upserts = published_batches(rows, published_schema(layout))
    records = directories.write_parts(storage, f"{root}/upserts", layout, upserts)
    deletes = published_batches(gone, layout.key_schema)
    path = f"{root}/deletes.parquet"
    records.append(directories.write_table(storage, path, layout.key_schema, deletes))
    return ChangesManifest.of(publication, records, root, **counts, builds_on=base)


def _manifest_at(storage: Storage, version: int) -> ChangesManifest | None:
    return ChangesManifest.from_document(storage.get(_manifest_path(version)))


def _manifest_path(version: int) -> str:
    return f"{version}/{MANIFEST}"


def _facts(publication: Publication, found: ChangesManifest) -> Facts:
    counts: Facts = {"upserts": found.upserts, "deletes": found.deletes}
    return version_facts(publication) | {"builds_on": found.builds_on} | counts
