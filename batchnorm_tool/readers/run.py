"""A finished run as it lies on disk: which file holds which columns, and its rows part by part.

Whatever format was written, rows come with the schema that Parquet has.
"""

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchnorm_tool.comparison.norm_survey import Provenance
from batchnorm_tool.display import plural
from batchnorm_tool.errors import RECREATE, Damaged, InputError, Refused, WorkFailed
from batchnorm_tool.formats import DATA_DIRECTORY, format_named
from batchnorm_tool.formats.arrow_columns import plain_schema, provenance_in, regrouped
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.manifest import MANIFEST_PATH, SUCCESS_PATH, Manifest, read_manifest
from batchnorm_tool.pipeline.output_state import RECORDS
from batchnorm_tool.pipeline.part_output import QUARANTINE_DIRECTORY
from batchnorm_tool.pipeline.plan import PLAN_PATH, Plan
from batchnorm_tool.readers.source import MIX, VectorSource, provenance_of
from batchnorm_tool.storage import STATE, FileRecord, Storage


@dataclass(frozen=True)
class StoredPart:
    """One part of a finished run: the rows that are stored, and all its files.

    Its ``first`` row is numbered among those that are stored.
    """

    first: int
    rows: int
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, kw_only=True)
class StoredRun(VectorSource):
    """A finished run, its parts in plan order; only of ``one_space``, or whatever lies there."""

    manifest: Manifest
    parts: tuple[StoredPart, ...]
    stored: pa.Schema
    one_space: bool = False

    @property
    def rows(self) -> int:
        """Number of stored rows."""
        return self.manifest.rows.rows_out

    @property
    def document(self) -> dict[str, Any]:
        """The manifest, as plain data."""
        return self.manifest.to_dict()

    @cached_property
    def provenance(self) -> Provenance:
        """What made the vectors of the output."""
        made_by, model = self.manifest, self.manifest.job.model
        return provenance_of(self, made_by.identity, made_by.space, model.path if model else None)

    @cached_property
    def _directories(self) -> dict[str, tuple[str, ...]]:
        """Which columns the files of each directory hold."""
        form = self.manifest.job.output.format
        return output_schema.directories(self.schema.names, self.outputs, form)

    @property
    def directories(self) -> set[str]:
        """Names of the directories that hold rows."""
        return {*self._directories, QUARANTINE_DIRECTORY}

    def locate(self, row: int) -> str:
        """Say where a row lies, for messages."""
        part = self.part_of(row)
        file = self.file_of(part, self.output.vector_column)
        return f"{self.path}/{file}, row {row - part.first}"

    def part_of(self, row: int) -> StoredPart:
        """Return the part that holds a row."""
        return self.parts[bisect.bisect_right(self.parts, row, key=lambda part: part.first) - 1]

    def file_of(self, part: StoredPart, column: str) -> str:
        """Return the path, below the output, of the file that holds ``column`` of ``part``."""
        return next(file.path for file, columns in self._data_files(part) if column in columns)

    def _data_files(self, part: StoredPart) -> Iterator[tuple[FileRecord, tuple[str, ...]]]:
        for file in part.files:
            if (columns := self._directories.get(_directory(file))) is not None:
                yield file, columns

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows, part by part; see `read_part`."""
        for part in self.parts:
            for batch in self.read_part(part, columns, batch_rows):
                is_read = self.schema == self.stored
                yield batch if is_read else output_schema.decoded(batch, self.outputs)

    def read_part(
        self, part: StoredPart, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a part, as they are stored, in batches of ``batch_rows`` at most."""
        sides = []
        for file, stored in self._data_files(part):
            wanted = [name for name in columns if name in stored]
            if wanted:
                sides.append(self._read_file(file, wanted, part.rows, batch_rows))
        schema = self._stored_schema(columns)
        for batches in zip(*sides, strict=True):
            found = {name: batch[name] for batch in batches for name in batch.schema.names}
            yield pa.RecordBatch.from_arrays([found[name] for name in columns], schema=schema)

    def _read_file(
        self, file: FileRecord, wanted: Sequence[str], rows: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        path = f"{self.path}/{file.path}"
        if not Path(path).exists():
            raise Damaged(f"`{file.path}` of `{self.path}` is missing. Restore it, or {RECREATE}.")
        with damaged_if_unreadable(file.path):
            # Beside arrays in NPY, the other columns lie in Parquet.
            form = format_named(path.rpartition(".")[2])
            inspected = form.inspect(path)
        self._check_space(file.path, inspected.schema)
        with damaged_if_unreadable(file.path):
            stored = wanted if form.is_table else inspected.schema.names
            if rows != inspected.rows:
                stored_rows = plural(inspected.rows, "row")
                raise Damaged(f"`{file.path}` has {stored_rows}; the manifest has {rows:,}.")
            schema = self._stored_schema(wanted)
            for table in regrouped(form.read(path, stored, 0, rows, batch_rows), batch_rows):
                yield table.rename_columns(wanted).cast(schema).combine_chunks().to_batches()[0]

    def _check_space(self, file: str, schema: pa.Schema) -> None:
        space = str(provenance_in(schema).get("space", self.manifest.space))
        if self.one_space and space != self.manifest.space:
            raise InputError(
                f"`{file}` of `{self.path}` is of another run. Expected: "
                f"space {self.manifest.space}, as in `{MANIFEST_PATH}`. Received: space {space}. "
                f"Restore the file, or {RECREATE}. {MIX}"
            )

    def _stored_schema(self, columns: Sequence[str]) -> pa.Schema:
        return pa.schema([self.stored.field(name) for name in columns])


def open_run(path: str, *, one_space: bool = False, decode: bool = True) -> StoredRun:
    """Open a finished run, to be read as floats or, unless ``decode``, as it is stored.

    It refuses to read parts of another space if it is ``one_space``.
    """
    root = _root(path)
    storage = Storage(root)
    try:
        manifest = read_manifest(storage, str(root))
    except OSError as error:
        raise InputError(
            f"`{root}` cannot be read: {error.strerror}. Change its permissions."
        ) from error
    if manifest is None:
        raise InputError(_why_no_run(storage, str(root)))
    job, resolved = manifest.job, manifest.resolved
    try:
        outputs = resolved.layouts(job)
        schema = output_schema.output_schema(resolved.carried, outputs)
        stored = plain_schema(schema)
    except Refused as error:
        raise Damaged(f"`{root}/{MANIFEST_PATH}` contradicts itself: {error.message}") from error
    ends = itertools.accumulate(part.rows_out for part in manifest.parts)
    return StoredRun(
        path=str(root),
        name=path,
        kind="run",
        dtype=job.output.dtype,
        schema=output_schema.decoded_schema(stored, outputs) if decode else stored,
        stored=stored,
        keys=tuple(name for name in resolved.carried.names if name not in job.input.passthrough),
        outputs=outputs,
        manifest=manifest,
        one_space=one_space,
        parts=tuple(
            StoredPart(end - part.rows_out, part.rows_out, part.files)
            for end, part in zip(ends, manifest.parts, strict=True)
        ),
    )


@contextlib.contextmanager
def damaged_if_unreadable(path: str) -> Iterator[None]:
    """Map what reading input says of a file to `Damaged`, because the file is a result of ours."""
    try:
        yield
    except (InputError, WorkFailed, pa.ArrowException) as error:
        raise Damaged(f"`{path}` cannot be read: {error}") from error


def _directory(file: FileRecord) -> str:
    return file.path.partition("/")[0]


def _root(path: str) -> Path:
    if "://" in path:
        raise InputError(
            f"This version reads runs from local directories only. Received: `{path}`."
        )
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"`{path}` {what}. Expected the output directory of a finished run.")
    above = root.absolute().parent
    is_inside = root.absolute().name == DATA_DIRECTORY and (above / SUCCESS_PATH).is_file()
    return above if is_inside else root


def _why_no_run(storage: Storage, path: str) -> str:
    names = storage.names()
    if STATE in names:
        return _under_way(storage, path)
    if MANIFEST_PATH in names:
        return (
            f"`{path}` lacks `{SUCCESS_PATH}`, which every finished run has. If it is a copy, "
            "copy all files; otherwise run the same command again."
        )
    if "_versions" in names:
        return (
            f"`{path}` is a Lance dataset, but not a store: `{path}.state` is missing, which "
            "`batchnorm-tool refresh` writes next to it. If it is a copy of a store, copy both."
        )
    held = f"Received: {', '.join(names[:5])}" if names else "Received: an empty directory"
    return (
        f"`{path}` does not contain a run. Expected the output directory of a finished run. {held}."
    )


def _under_way(storage: Storage, path: str) -> str:
    plan = Plan.from_json(storage.get(PLAN_PATH))
    done = len(storage.names(RECORDS))
    share = f"{done:,} of {plural(plan.part_count, 'part')}" if plan else plural(done, "part")
    begin = f"`{path}` contains an unfinished run: {share} finished."
    if storage.is_locked():
        return f"{begin} It is still running; wait for it to finish."
    return f"{begin} Run the same command again to resume."
