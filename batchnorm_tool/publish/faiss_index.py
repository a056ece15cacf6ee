"""A FAISS index file with ids, made anew for each version.

::

    PATH                     the index: inner product on unit vectors, replaced in one rename
    PATH.12.keys.parquet     ``faiss_id`` (``faiss_id_`` if a key has that name) and the keys,
                             where these are no integers
    PATH.json                version, rows, recall, SHA-256 of the index; written after it

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
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchnorm_tool.errors import JobError, WorkFailed
from batchnorm_tool.publish import faiss_building, numbered
from batchnorm_tool.publish.contract import (
    TakesAll,
    check_path,
    target_errors,
    version_facts,
)
from batchnorm_tool.publish.faiss_files import IndexFiles
from batchnorm_tool.publish.faiss_ids import NO_RESULT, IdScheme
from batchnorm_tool.publish.faiss_recall import Neighbours, Sample
from batchnorm_tool.store.column_types import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchnorm_tool.publish.contract import Facts, Publication, TargetSection
    from batchnorm_tool.publish.faiss_recall import Queries
    from batchnorm_tool.store.state import StoreLayout


class FaissIndex(TakesAll):
    """The target ``faiss``.

    Args:
        section: ``path``, ``index`` and ``sample`` are looked at.
    """

    kind = "faiss"

    def __init__(self, section: TargetSection) -> None:
        self.name = section.label
        self.place = str(section.path)
        self._section, self._files = section, IndexFiles(Path(self.place))
        self._wanted, self._sample = str(section.index), section.sample or 1

    def check(self) -> None:
        """Look for FAISS, and refuse a path that is not local."""
        check_path(self._section, is_file=True)
        if importlib.util.find_spec("faiss") is None:
            msg = (
                f"`publish`: target `{self.name}` needs faiss, which cannot be imported. Install "
                "it with `pip install 'batchnorm-tool[faiss]'`."
            )
            raise JobError(msg)

    def check_layout(self, layout: StoreLayout) -> None:
        """Refuse an index that FAISS does not know for vectors of that width."""
        import faiss

        text = faiss_building.factory_text(self._wanted, 1)
        try:
            faiss.index_factory(layout.width, text, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            msg = f"`publish`: target `{self.name}`: {faiss_building.refusal(text, error)}"
            raise JobError(msg) from error

    def find_unfit(self, table: pa.Table, keys: Sequence[str]) -> Unfit | None:
        """Return the first key that FAISS returns where it finds nothing."""
        scheme = IdScheme(0, table.select(list(keys)).schema)
        if not (scheme.keys_are_ids and pa.types.is_signed_integer(scheme.key_schema.types[0])):
            return None
        row = table[keys[0]].index(NO_RESULT).as_py()
        reason = f"publish target `{self.name}`: {scheme.no_result}"
        return None if row < 0 else Unfit(row, keys[0], reason)

    def publish(self, publication: Publication, held: Mapping[str, Any] | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        """Build the index of a version and put it in the place of the one that is there."""
        text = faiss_building.factory_text(self._wanted, publication.rows)
        with target_errors(self.name), faiss_building.mapped_errors(text):
            document = self._files.document()
            if document is None or not numbered.holds(document, publication):
                document = self._build(publication, text)
            self._files.remove_old_keys()
        return document | {"warnings": _warnings(document)}

    def _build(self, publication: Publication, text: str) -> dict[str, Any]:
        scheme = IdScheme.of(publication)
        index = faiss_building.trained(publication, scheme, text)
        queries = self._fill(index, publication, scheme)
        neighbours = Neighbours(queries)
        for rows in faiss_building.rows_of(publication, scheme):
            neighbours.look_at(rows.vectors, rows.ids)
        recall, effort = faiss_building.tune(index, neighbours)
        measured = {"recall_at_10": recall, "queries": len(queries.ids), "effort": effort}
        document = {"index": text, **self._told(publication, scheme), **measured}
        written = self._files.put_index(index)
        document |= {"bytes": written.bytes, "sha256": written.sha256}
        self._files.put_document(document)
        return document

    def _fill(self, index: Any, publication: Publication, scheme: IdScheme) -> Queries:
        """Add all rows, and write the file that explains their ids; a sample of the rows."""
        sample = Sample(publication.rows, self._sample)
        keys = self._files.keys(scheme.version, scheme.file_schema)
        with contextlib.nullcontext() if scheme.keys_are_ids else keys as sink:
            for rows in faiss_building.rows_of(publication, scheme):
                index.add_with_ids(rows.vectors, rows.ids)
                sample.take(rows.first_row, rows.vectors, rows.ids)
                if sink is not None:
                    sink.write(scheme.explained(rows.batch, rows.ids))
        if index.ntotal != publication.rows:
            msg = f"the version has {publication.rows} rows, and {index.ntotal} were read."
            raise WorkFailed(msg)
        return sample.queries()

    def _told(self, publication: Publication, scheme: IdScheme) -> Facts:
        keys = None if scheme.keys_are_ids else self._files.keys_path(scheme.version).name
        return version_facts(publication) | {
            "keys": keys,
            "norm": publication.layout.norm_label,
            "space": publication.record.get("space"),
        }


def _warnings(document: Facts) -> list[str]:
    recall, wanted = document["recall_at_10"], faiss_building.WANTED_RECALL
    if recall is None or recall >= wanted:
        return []
    msg = (
        f"`{document['index']}` finds {recall:.1%} of the true neighbours, and {wanted:.0%} is "
        "wanted. Choose another `index`."
    )
    return [msg]
