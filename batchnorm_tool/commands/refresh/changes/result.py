"""What was found: the rows that need work in files, counts, and their document."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.commands.refresh.changes.source import HashedChunk, RefreshSource
from batchnorm_tool.display import plural
from batchnorm_tool.features.statistics import InputSummary
from batchnorm_tool.formats import Layout, Sink
from batchnorm_tool.formats.arrow import Arrow
from batchnorm_tool.formats.arrow_columns import free_name, vector_field
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.inputs.row_hash import HASH_VERSION
from batchnorm_tool.storage import OutputFile, Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.index import fixed_binary
from batchnorm_tool.store.state import HASHES, STAGING

DOCUMENT = f"{STAGING}/difference.json"
DISPOSITIONS = f"{STAGING}/fates.npy"
CHANGED = f"{STAGING}/changed"
TOUCHED = f"{STAGING}/touched"
BAD = f"{STAGING}/bad"


@dataclass(frozen=True)
class StagingSchemas:
    """The columns of the files: keys, passed-through columns, two hashes, then their own."""

    source: RefreshSource

    @cached_property
    def features(self) -> dict[str, str]:
        """The column of each model input."""
        names, taken = sorted(field.name for field in self.source.inputs), self.source.carried.names
        return {name: free_name(f"feature_{n}", taken) for n, name in enumerate(names)}

    @cached_property
    def reason(self) -> str:
        """The column that says why a row is bad."""
        return free_name("reason", self.source.carried.names)

    def of(self, directory: str) -> pa.Schema:
        """Return the columns of one set of files."""
        fields = [*self.source.carried, *HASHES]
        if directory == BAD:
            fields.append(pa.field(self.reason, pa.string()))
        if directory == CHANGED:
            inputs = sorted(self.source.inputs, key=lambda field: field.name)
            fields += (_feature_field(self.features[each.name], each) for each in inputs)
        return pa.schema(fields)


def _feature_field(name: str, field: Field) -> pa.Field:
    """Return the column that holds what a model input sees, to the bit."""
    # Arrow has no bfloat16: every one is a float32. What the model takes for text may be no UTF-8.
    dtype = "float32" if field.dtype == "bfloat16" else field.dtype
    kind = pa.binary() if dtype == "string" else pa.from_numpy_dtype(np.dtype(dtype))
    return vector_field(name, kind, tuple(size or 0 for size in field.shape))


def _feature_column(kind: pa.DataType, array: np.ndarray) -> pa.Array:
    """Return what a model sees of rows, ``[n, *shape]``, as a column; no number is copied."""
    flat = array.reshape(-1)
    if flat.dtype != object and flat.dtype.kind not in "fiub":
        flat = flat.astype(np.float32)
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(flat, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)


class StagingWriter:
    """The files of one part, whose names are ``stem`` with a suffix; without rows, no file."""

    def __init__(self, storage: Storage, schemas: StagingSchemas, stem: str) -> None:
        self._storage, self._schemas, self._stem = storage, schemas, stem
        self._sinks: dict[str, Sink] = {}
        self._files: list[OutputFile] = []

    def add(self, directory: str, chunk: HashedChunk, rows: np.ndarray) -> None:
        """Append the ``rows`` (``bool[n]``) of a chunk to a set, if there are any."""
        if not rows.any():
            return
        schemas, all_rows = self._schemas, bool(rows.all())

        def chosen(array: np.ndarray) -> np.ndarray:
            return array if all_rows else array[rows]

        schema = schemas.of(directory)
        table = chunk.table.select(schemas.source.carried.names)
        columns = (table if all_rows else table.filter(pa.array(rows))).columns
        hashes = (chunk.hashes.features, chunk.hashes.passthrough)
        columns += (fixed_binary(chosen(each)) for each in hashes)
        if directory == BAD:
            columns.append(pa.array(Reason(fault).label for fault in chosen(chunk.faults).tolist()))
        if directory == CHANGED:
            columns += (
                _feature_column(schema.field(column).type, chosen(chunk.arrays[name]))
                for name, column in schemas.features.items()
            )
        self._sink(directory, schema).write(pa.table(columns, schema=schema))

    def commit(self) -> None:
        """Let the files appear."""
        for sink in self._sinks.values():
            sink.close()
        for file in self._files:
            file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.discard()

    def _sink(self, directory: str, schema: pa.Schema) -> Sink:
        if directory not in self._sinks:
            path, layout = f"{directory}/{self._stem}", Layout(0, ())
            self._sinks[directory] = Arrow().open_sink(self._create, path, schema, layout)
        return self._sinks[directory]

    def _create(self, path: str) -> OutputFile:
        self._files.append(self._storage.create(path))
        return self._files[-1]


@dataclass(frozen=True)
class ChangeSet(SealedRecord):
    """The input against the live version; the rows themselves lie in ``night/``.

    Attributes:
        counts: Rows before any vector was looked at.
        features: For each input of the model, the column of ``night/changed`` that holds it.
        reason: The column of ``night/bad`` that says why.
        judged_again: Why there are recomputed rows, where not all rows are.
        cause: Why nearly all known rows changed, where that shows.
        content: See `InputRecord`, as ``types``.
    """

    counts: RefreshRows
    features: dict[str, str]
    reason: str
    inputs: tuple[Field, ...]
    statistics: InputSummary
    warnings: tuple[str, ...] = ()
    judged_again: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    cause: str | None = None
    content: tuple[str, str] | None = None
    hash_version: str = HASH_VERSION

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it before the model runs."""
        rows, whys = plural(self.counts.recomputed, "row"), ", ".join(self.judged_again)
        again = f"{rows} with unchanged features to be judged again: {whys}." if whys else None
        return tuple(note for note in (self.cause, again) if note)

    def save(self, storage: Storage) -> None:
        """Write the document: from here on the difference is found."""
        storage.put(DOCUMENT, self.to_json())

    @classmethod
    def load(cls, storage: Storage) -> ChangeSet | None:
        """Return what was found; ``None`` where nothing was, or its document is damaged."""
        return cls.from_json(storage.get(DOCUMENT))
