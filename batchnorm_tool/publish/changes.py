"""A feed of changes, from which any loader can bring its own index up to date.

::

    PATH/12/upserts/part-000000.parquet …   rows to write, whole
    PATH/12/deletes.parquet                 keys of the rows to remove
    PATH/12/contract.json                   what a query must do alike
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

import pyarrow as pa
from pydantic import Field

from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.job.types import Count, LocalOrUri, option
from batchnorm_tool.publish import Facts, directories, published_batches
from batchnorm_tool.publish.directories import DirectoryManifest, DirectoryTarget, PublishDirectory
from batchnorm_tool.storage import Storage
from batchnorm_tool.store.rows import Publication


@dataclass(frozen=True, kw_only=True)
class ChangesManifest(DirectoryManifest):
    """What a loader needs to know of a set of changes; of all rows, it builds on nothing."""

    upserts: int
    deletes: int
    builds_on: int | None


class PublishChanges(PublishDirectory):
    """The keys of ``to: changes``."""

    path: LocalOrUri = Field(description="Directory of the change sets.")
    keep: Count = option(30, "Versions that stay.")


class ChangeFeed(DirectoryTarget):
    """The target ``changes``: a directory of change sets."""

    section = PublishChanges

    def _add(self, storage: Storage, publication: Publication, held: Facts | None) -> Facts:
        found = _manifest_at(storage, publication.version)
        if found is None or not found.holds(publication):
            found = _write(storage, publication, self._base(storage, publication, held))
        return {name: getattr(found, name) for name in ("builds_on", "upserts", "deletes")}

    def _base(self, storage: Storage, publication: Publication, held: Facts | None) -> int | None:
        """Return the newest version here, if what is new since then can be told."""
        older = [each for each in self._versions(storage) if each < publication.version]
        # Without a note of ours what is there may be another store's: then a full set. And no
        # loader could have taken a version whose manifest is not whole.
        if held is None or not older or _manifest_at(storage, older[-1]) is None:
            return None
        # After a change of space every row is another: changes would say so row by row, and a full
        # set says it once.
        return older[-1] if publication.can_start_from(older[-1]) else None


def _write(storage: Storage, publication: Publication, base: int | None) -> ChangesManifest:
    """Write the directory of a version, its manifest last."""
    layout, root = publication.layout, storage.staged(str(publication.version))
    rows: Iterator[pa.RecordBatch] = publication.all_batches()
    gone: Iterator[pa.RecordBatch] = iter(())
    counts = {"upserts": publication.rows, "deletes": 0}
    if base is not None:
        changes = publication.changes(base)
        rows, gone = changes.upsert_batches(), changes.delete_batches()
        counts = {"upserts": changes.upserts, "deletes": changes.deletes}
    records = directories.write_parts(storage, f"{root}/upserts", layout, rows)
    deletes = published_batches(gone, layout.key_schema)
    path = f"{root}/deletes.parquet"
    records.append(directories.write_table(storage, path, layout.key_schema, deletes))
    records += directories.put_contract(storage, f"{root}/{CONTRACT}", publication)
    found = ChangesManifest.of(publication, records, root, **counts, builds_on=base)
    storage.put(storage.staged(_manifest_path(publication.version)), found.to_document())
    directories.publish_directory(storage, str(publication.version))
    return found


def _manifest_at(storage: Storage, version: int) -> ChangesManifest | None:
    return ChangesManifest.from_document(storage.get(_manifest_path(version)))


def _manifest_path(version: int) -> str:
    return f"{version}/manifest.json"
