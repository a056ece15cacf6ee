"""The files of an index: each whole or not there, each replaced in one rename."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm_tool.canonical import canonical_json, sealed, unsealed
from batchnorm_tool.formats import Layout
from batchnorm_tool.formats.parquet import ParquetSink
from batchnorm_tool.storage import OutputFile
from batchnorm_tool.storage.files import make_directories, read_errors, write_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from batchnorm_tool.storage import FileRecord

# The version that is published, the one that readers may still have open, and one more, which a
# kill may have left half done.
KEPT_KEYS = 3


@dataclass(frozen=True)
class IndexFiles:
    """The index at ``path`` and what lies beside it."""

    path: Path

    @property
    def document_path(self) -> Path:
        """What is told of the index."""
        return self.path.with_name(f"{self.path.name}.json")

    def keys_path(self, version: int) -> Path:
        """The file that explains the ids of a version."""
        return self.path.with_name(f"{self.path.name}.{version}.keys.parquet")

    def document(self) -> dict[str, Any] | None:
        """What is told of the index, unless it is of another one or there is none."""
        with read_errors(self.path):
            if not (self.path.is_file() and self.document_path.is_file()):
                return None
            document = unsealed(self.document_path.read_bytes())
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return document if document and document["sha256"] == digest else None

    def put_document(self, document: dict[str, Any]) -> None:
        """Tell what the index is."""
        with _created(self.document_path) as file:
            file.write(canonical_json(sealed(document)) + b"\n")
            file.commit()

    def put_index(self, index: Any) -> FileRecord:
        """Replace the index."""
        import faiss

        with _created(self.path) as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(index, writer)
            return file.commit()

    @contextlib.contextmanager
    def keys(self, version: int, schema: pa.Schema) -> Iterator[ParquetSink]:
        """A file that explains ids; it is there when the block has ended well."""
        with _created(self.keys_path(version)) as file:
            sink = ParquetSink(file, schema, Layout(rows=0, vector_columns=()))
            yield sink
            sink.close()
            file.commit()

    def remove_old_keys(self) -> None:
        """Remove the files that explain what nobody reads any more."""
        pattern = re.compile(re.escape(self.path.name) + r"\.(\d+)\.keys\.parquet")
        with write_errors(self.path):
            found = [pattern.fullmatch(path.name) for path in self.path.parent.iterdir()]
            versions = sorted(int(match[1]) for match in found if match)
            for version in versions[:-KEPT_KEYS]:
                self.keys_path(version).unlink()


@contextlib.contextmanager
def _created(path: Path) -> Iterator[OutputFile]:
    """A file in the making, thrown away unless it is committed."""
    aside = path.with_name(f".{path.name}.new")
    with write_errors(path):
        make_directories(path.parent)
        aside.unlink(missing_ok=True)  # a killed publication's
    file = OutputFile(path, aside, path.name)
    try:
        yield file
    finally:
        file.discard()
