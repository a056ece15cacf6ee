"""Targets that are directories: versions of which the newest few stay, in Parquet files."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa

from batchnorm_tool.errors import OutputError
from batchnorm_tool.formats import Layout
from batchnorm_tool.formats.parquet import ParquetSink
from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.job.types import Count, LocalOrUri
from batchnorm_tool.publish import Facts, Target, published_batches, published_schema, version_facts
from batchnorm_tool.storage import STATE, FileRecord, Storage
from batchnorm_tool.storage.checked_json import Record
from batchnorm_tool.storage.files import make_directories, write_errors
from batchnorm_tool.store.rows import Publication
from batchnorm_tool.store.state import StoreSchema

PART_BYTES = 512 << 20  # of rows in memory; about half of it on disk


class PublishDirectory(Publish):
    """The keys that all these targets have."""

    path: LocalOrUri
    keep: Count


class DirectoryTarget(Target):
    """A place ``below`` which each version has a directory that is named for its number."""

    below: ClassVar[str] = "."

    def __init__(self, section: PublishDirectory) -> None:
        super().__init__(section)
        self.place, self._keep = section.path, section.keep

    def check(self) -> None:
        """Refuse a path that is not local."""
        self.check_path()

    def publish(self, publication: Publication, held: Facts | None) -> Facts:
        """Add a version unless it is there, and remove those that are too old."""
        storage = Storage(self.place)
        with self.named_errors(), storage.lock():
            self._refuse_foreign(storage, publication)
            storage.remove(STATE)  # what a killed publication staged
            facts = self._add(storage, publication, held)
            for version in self._versions(storage)[: -self._keep]:
                self._remove(storage, version)
            storage.remove(STATE)
        return version_facts(publication) | facts

    @abstractmethod
    def _add(self, storage: Storage, publication: Publication, held: Facts | None) -> Facts:
        """Let a version appear, whole; return what there is to tell of it."""

    def _remove(self, storage: Storage, version: int) -> None:
        storage.remove(f"{self.below}/{version}")

    def _versions(self, storage: Storage) -> list[int]:
        """Return the versions that have a directory, in order."""
        names = storage.names(self.below)
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _refuse_foreign(self, storage: Storage, publication: Publication) -> None:
        """Refuse a place that is ahead of the store: another store writes to it."""
        newest = max(self._versions(storage), default=0)
        # A store only counts up: what is ahead of it cannot be its own.
        if newest > publication.version:
            raise OutputError(
                f"`{self.place}` holds version {newest}, and this store publishes "
                f"version {publication.version}: another store has written there. Choose another "
                "`path`, or remove that directory if it is no longer used."
            )


def publish_directory(storage: Storage, path: str) -> None:
    """Let the staged directory ``path`` appear in one rename, in place of one of that name.

    Its name outlives a power cut if it is at the top, or else once a file beside it is committed.
    """
    parent = (storage.root / path).parent
    with write_errors(parent):
        make_directories(parent)
    storage.begin_publish([path], [])
    storage.finish_publish()
    storage.end_publish()


@dataclass(frozen=True)
class PublishedColumns(Record):
    """What the columns of a published directory are called."""

    keys: tuple[str, ...]
    vector: str
    norm: str
    passthrough: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DirectoryManifest(Record):
    """What a loader needs to know of a directory; of a set of changes, what it builds on too."""

    format: Literal[1] = 1
    version: int
    rows: int
    run_id: str | None
    published: str | None
    space: str
    norm: str
    columns: PublishedColumns
    width: int
    dtype: str
    files: tuple[FileRecord, ...]

    @classmethod
    def of(
        cls, publication: Publication, files: Iterable[FileRecord], root: str, **more: Any
    ) -> Self:
        """Describe a directory, with the paths of its files below ``root``."""
        layout, record = publication.layout, publication.record
        below = (replace(file, path=file.path.removeprefix(f"{root}/")) for file in files)
        return cls(
            version=publication.version,
            rows=publication.rows,
            run_id=record.run_id,
            published=record.finished,
            space=record.space,
            norm=layout.norm_label,
            columns=PublishedColumns(layout.keys, layout.vector, layout.norm, layout.passthrough),
            width=layout.width,
            dtype=layout.dtype,
            files=tuple(below),
            **more,
        )

    def holds(self, publication: Publication) -> bool:
        """Tell whether it is that of this very publication."""
        return (self.version, self.run_id) == (publication.version, publication.record.run_id)


def write_parts(
    storage: Storage, directory: str, layout: StoreSchema, rows: Iterable[pa.RecordBatch]
) -> list[FileRecord]:
    """Publish rows in ``DIRECTORY/part-000000.parquet`` and so on, at least one file."""
    schema = published_schema(layout)
    waiting = published_batches(rows, schema)
    columns = Layout(rows=0, vector_columns=(layout.vector,), norm_columns=(layout.norm,))
    records: list[FileRecord] = []
    first = next(waiting, None)
    while first is not None or not records:
        path = f"{directory}/part-{len(records):06d}.parquet"
        filling = () if first is None else _fill_part(first, waiting)
        records.append(write_table(storage, path, schema, filling, columns))
        first = next(waiting, None)
    return records


def _fill_part(first: pa.Table, waiting: Iterator[pa.Table]) -> Iterator[pa.Table]:
    size = 0
    for table in itertools.chain([first], waiting):
        yield table
        size += table.nbytes
        if size >= PART_BYTES:
            return


def put_contract(storage: Storage, path: str, publication: Publication) -> list[FileRecord]:
    """Write the contract of a version, if it has one."""
    return [] if publication.contract is None else [storage.put(path, publication.contract)]


def write_table(
    storage: Storage,
    path: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    columns: Layout | None = None,
) -> FileRecord:
    """Write one Parquet file; without ``columns`` it holds no vectors."""
    with storage.create(path) as file:
        sink = ParquetSink(file, schema, columns or Layout(rows=0, vector_columns=()))
        for table in tables:
            sink.write(table)
        sink.close()
        return file.commit()
