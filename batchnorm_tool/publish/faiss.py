"""A FAISS index file with ids, made again for each version.

::

    PATH                     the index: inner product on unit vectors, replaced in one rename
    PATH.12.keys.parquet     ``faiss_id`` (``faiss_id_`` if a key has that name) and the keys,
                             where these are no integers
    PATH.contract.json       what a query must do alike; written after the index
    PATH.json                version, rows, recall, SHA-256 of the index; written last

A single integer key is the id itself. Every other key (text, several columns, uint64) has the id
``version * 2**40 + row``, and ``PATH.<version>.keys.parquet`` says which key that is. So every id
that a search returns names the file that explains it, which is there before the index is, and which
stays until the next version but one: whichever index a reader has open, it finds the right keys.

``PATH.json`` is for people and monitoring. A kill may leave it a version behind the index: it is
that of the index if its ``sha256`` is.

The recall@10 against exact search is measured on rows of the version itself, each without itself.
The index is searched with the least effort (``nprobe`` or ``efSearch``, kept in the file) that
reaches a recall of 0.95. Vectors are indexed as float32, in memory: the index must fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from batchnorm_tool.contract import CONTRACT
from batchnorm_tool.display import percent, plural
from batchnorm_tool.errors import JobError, WorkFailed
from batchnorm_tool.formats import Layout
from batchnorm_tool.formats.parquet import ParquetSink
from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.job.types import Count, LocalOrUri, Text, option
from batchnorm_tool.publish import Facts, Target, faiss_build
from batchnorm_tool.publish.faiss_build import IdScheme
from batchnorm_tool.storage import FileRecord, OutputFile, files
from batchnorm_tool.storage.checked_json import Record
from batchnorm_tool.store.rows import Publication
from batchnorm_tool.store.state import StoreSchema, Unfit

# The version that is published, the one that readers may still have open, and one more, which a
# kill may have left half done.
KEPT_KEYS = 3


class PublishFaiss(Publish):
    """The keys of ``to: faiss``."""

    path: LocalOrUri = Field(description="The file of the index.")
    index: Annotated[Text, Expects("the kind of an index")] = option(
        "auto", "auto, or a text for FAISS's index factory."
    )
    sample: Count = option(1000, "Queries with which the recall is measured.")


class FaissIndex(Target):
    """The target ``faiss``."""

    section = PublishFaiss

    def __init__(self, section: PublishFaiss) -> None:
        super().__init__(section)
        self.place, self._files = section.path, IndexFiles(Path(section.path))
        self._wanted, self._sample = section.index, section.sample

    def check(self) -> None:
        """Look for FAISS, and refuse a path that is not local."""
        self.check_path(is_file=True)
        self.check_libraries("faiss")

    def check_layout(self, layout: StoreSchema) -> None:
        """Refuse an index that FAISS does not know for vectors of that width."""
        import faiss

        text = faiss_build.factory_text(self._wanted, 1)
        try:
            faiss.index_factory(layout.width, text, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise JobError(
                f"`publish`: target `{self.name}`: {faiss_build.refusal(text, error)}"
            ) from error

    def find_unfit(self, table: pa.Table, keys: Sequence[str]) -> Unfit | None:
        """Return the first key that FAISS returns where it finds nothing."""
        scheme = IdScheme(0, table.select(list(keys)).schema)
        if not (scheme.keys_are_ids and pa.types.is_signed_integer(scheme.key_schema.types[0])):
            return None
        row = table[keys[0]].index(faiss_build.NO_RESULT).as_py()
        reason = f"publish target `{self.name}`: {scheme.no_result}"
        return None if row < 0 else Unfit(row, keys[0], reason)

    def publish(self, publication: Publication, held: Facts | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        """Build the index of a version and put it in the place of the one that is there."""
        text = faiss_build.factory_text(self._wanted, publication.rows)
        with self.named_errors(), faiss_build.mapped_errors(text):
            document = self._files.document()
            wanted = (publication.version, publication.record.run_id)
            if document is None or (document.version, document.run_id) != wanted:
                document = self._build(publication, text)
            self._files.remove_old_keys()
        return replace(document, warnings=tuple(_warnings(document))).to_dict()

    def _build(self, publication: Publication, text: str) -> IndexDocument:
        scheme = IdScheme(publication.version, publication.layout.key_schema)
        index = faiss_build.trained(publication, scheme, text)
        queries = self._fill(index, publication, scheme)
        neighbours = faiss_build.Neighbours(queries)
        for rows in faiss_build.rows_of(publication, scheme):
            # In a second pass: the exact neighbours need the queries, which the first one samples.
            neighbours.add(rows.vectors, rows.ids)
        recall, effort = faiss_build.tune(index, neighbours)
        written = self._files.put_index(index)
        self._files.put_contract(publication.contract)
        document = IndexDocument(
            index=text,
            version=publication.version,
            rows=publication.rows,
            run_id=publication.record.run_id,
            warnings=(),
            keys=None if scheme.keys_are_ids else self._files.keys_path(scheme.version).name,
            norm=publication.layout.norm_label,
            space=publication.record.space,
            recall_at_10=recall,
            queries=len(queries.ids),
            effort=effort,
            bytes=written.bytes,
            sha256=written.sha256,
        )
        # Last: its SHA-256 is that of an index that is in its place.
        self._files.put_document(document)
        return document

    def _fill(
        self, index: Any, publication: Publication, scheme: IdScheme
    ) -> faiss_build.RecallQueries:
        """Add all rows, and write the file that explains their ids; a sample of the rows."""
        sample = faiss_build.RecallSample(publication.rows, self._sample)
        keys = self._files.keys(scheme.version, scheme.file_schema)
        with contextlib.nullcontext() if scheme.keys_are_ids else keys as sink:
            for rows in faiss_build.rows_of(publication, scheme):
                index.add_with_ids(rows.vectors, rows.ids)
                sample.take(rows.first_row, rows.vectors, rows.ids)
                if sink is not None:
                    sink.write(scheme.explained(rows.batch, rows.ids))
        if index.ntotal != publication.rows:
            raise WorkFailed(
                f"the version has {plural(publication.rows, 'row')}; {index.ntotal:,} were read."
            )
        return sample.queries()


def _warnings(document: IndexDocument) -> list[str]:
    recall, wanted = document.recall_at_10, faiss_build.WANTED_RECALL
    if recall is None or recall >= wanted:
        return []
    found = f"`{document.index}` finds {percent(recall)} of the true neighbours"
    return [f"{found}; {percent(wanted, 0)} is required. Choose another `index`."]


@dataclass(frozen=True)
class IndexDocument(Record):
    """What is told of an index: which version it is, and how well it finds neighbours."""

    index: str
    version: int
    rows: int
    run_id: str | None
    warnings: tuple[str, ...]
    keys: str | None
    norm: str
    space: str
    recall_at_10: float | None
    queries: int
    effort: dict[str, int]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexFiles:
    """The index at ``path`` and what lies beside it."""

    path: Path

    @property
    def document_path(self) -> Path:
        """What is told of the index."""
        return self.path.with_name(f"{self.path.name}.json")

    def keys_path(self, version: int) -> Path:
        """Return the file that explains the ids of a version."""
        return self.path.with_name(f"{self.path.name}.{version}.keys.parquet")

    def document(self) -> IndexDocument | None:
        """Return what is told of the index, unless it is of another one or there is none."""
        with files.read_errors(self.path):
            if not (self.path.is_file() and self.document_path.is_file()):
                return None
            document = IndexDocument.from_document(self.document_path.read_bytes())
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return document if document and document.sha256 == digest else None

    def put_document(self, document: IndexDocument) -> None:
        """Tell what the index is."""
        _put(self.document_path, document.to_document())

    def put_contract(self, contract: bytes | None) -> None:
        """Replace what a query must do alike."""
        path = self.path.with_name(f"{self.path.name}.{CONTRACT}")
        if contract is None:
            path.unlink(missing_ok=True)
        else:
            _put(path, contract)

    def put_index(self, index: Any) -> FileRecord:
        """Replace the index."""
        import faiss

        with _created(self.path) as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(index, writer)
            return file.commit()

    @contextlib.contextmanager
    def keys(self, version: int, schema: pa.Schema) -> Iterator[ParquetSink]:
        """Write a file that explains ids; it is there when the block has ended well."""
        with _created(self.keys_path(version)) as file:
            sink = ParquetSink(file, schema, Layout(rows=0, vector_columns=()))
            yield sink
            sink.close()
            file.commit()

    def remove_old_keys(self) -> None:
        """Remove the files that explain what nobody reads any more."""
        pattern = re.compile(re.escape(self.path.name) + r"\.(\d+)\.keys\.parquet")
        with files.write_errors(self.path):
            found = [pattern.fullmatch(path.name) for path in self.path.parent.iterdir()]
            versions = sorted(int(match[1]) for match in found if match)
            for version in versions[:-KEPT_KEYS]:
                self.keys_path(version).unlink()


def _put(path: Path, content: bytes) -> None:
    with _created(path) as file:
        file.write(content)
        file.commit()


def _created(path: Path) -> OutputFile:
    """Create a file that a block discards unless it commits it."""
    aside = path.with_name(f".{path.name}.new")
    with files.write_errors(path):
        files.make_directories(path.parent)
        aside.unlink(missing_ok=True)  # a killed publication's
    return OutputFile(path, aside, path.name)
