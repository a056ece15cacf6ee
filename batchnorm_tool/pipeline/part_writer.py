"""Writing one part: vectors and quarantined rows, committed together or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import INPUT_REASONS, Reason
from batchnorm_tool.formats import Layout, Sink, format_named
from batchnorm_tool.formats.arrow_columns import free_name
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.output_schema import OutputSpec
from batchnorm_tool.pipeline.scored_chunk import DROP, NULLIFY, QUARANTINE, Scored
from batchnorm_tool.storage import FileRecord, OutputFile, Storage
from batchnorm_tool.storage.checked_json import canonical_json

if TYPE_CHECKING:
    from batchnorm_tool.inputs.reading import Part
    from batchnorm_tool.pipeline.plan import Plan

QUARANTINE_DIRECTORY = "_quarantine"
_ORIGIN = (("file", pa.string()), ("file_row", pa.int64()), ("reason", pa.string()))


class PartWriter:
    """The open files of a part; nothing of it can be seen before `commit`.

    Args:
        plan: The run's plan.
        storage: The run's output.
        part: The part to write.
        layouts: The outputs of the model.
    """

    def __init__(
        self, plan: Plan, storage: Storage, part: Part, layouts: Sequence[OutputSpec]
    ) -> None:
        self._plan, self._storage, self._part, self._layouts = plan, storage, part, layouts
        self._files: list[tuple[str, OutputFile]] = []
        self._sinks: list[Sink] = []
        self._quarantine: Sink | None = None
        try:
            self._vectors = self._open_vectors()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def _discard(self) -> None:
        for _, file in self._files:
            file.discard()

    def write(self, scored: Scored, actions: np.ndarray) -> None:
        """Write the rows of a chunk, each as its action (``uint8[n]``) says."""
        nulls = actions == NULLIFY
        table = output_schema.output_table(
            scored.chunk.carried, self._layouts, scored.results, nulls
        )
        gone = (actions == DROP) | (actions == QUARANTINE)
        # Rows leave after normalization, not before: a row's place in its batch, and with it the
        # bits of the others, must not depend on a policy.
        self._vectors.write(table.filter(pa.array(~gone)) if gone.any() else table)
        if (actions == QUARANTINE).any():
            self._write_quarantine(scored, np.flatnonzero(actions == QUARANTINE))

    def commit(self) -> tuple[FileRecord, ...]:
        """Close and commit all files.

        Returns:
            Their records, by the paths that readers will see.
        """
        for sink in self._sinks:
            sink.close()
        committed = [(path, file.commit()) for path, file in self._files]
        return tuple(replace(record, path=path) for path, record in committed)

    def _create(self, path: str) -> OutputFile:
        file = self._storage.create(self._storage.staged(path))
        self._files.append((path, file))
        return file

    def _open(self, kind: str, directory: str, schema: pa.Schema, shape: Layout) -> Sink:
        sink = format_named(kind).open_sink(
            self._create, f"{directory}/{self._part.stem}", schema, shape
        )
        self._sinks.append(sink)
        return sink

    def _open_vectors(self) -> Sink:
        job = self._plan.job
        schema = output_schema.output_schema(
            self._plan.resolved.carried, self._layouts, job.output.dtype
        )
        shape = Layout(
            byte_stream_split=job.output.byte_stream_split,
            vector_columns=tuple(output.vector_column for output in self._layouts),
            norm_columns=tuple(output.norm_column for output in self._layouts),
            rows=self._part.rows,
            metadata=self._provenance(),
        )
        return self._open(job.output.format, "vectors", schema, shape)

    def _provenance(self) -> dict[str, str]:
        """Return what a lone file tells of its origin; a function of plan and part alone."""
        provenance = {
            "space": self._plan.identity.space_id,
            "bits": self._plan.identity.bits_id,
            "part": self._part.number,
            "first_row": self._part.first_row,
            "outputs": [output.stored().to_dict() for output in self._layouts],
        }
        return {"batchnorm_tool": canonical_json(provenance).decode()}

    def _write_quarantine(self, scored: Scored, offsets: np.ndarray) -> None:
        if self._quarantine is None:
            # Opened with the first such row: a file without rows would say that something was set
            # aside.
            schema = _quarantine_schema(self._plan, self._layouts)
            predictions = tuple(schema.names[-len(self._layouts) :])
            shape = Layout(vector_columns=predictions, rows=self._part.rows)
            self._quarantine = self._open("parquet", QUARANTINE_DIRECTORY, schema, shape)
        self._quarantine.write(self._quarantine_table(scored, offsets))

    def _quarantine_table(self, scored: Scored, offsets: np.ndarray) -> pa.Table:
        located = [self._part.locate(scored.chunk.first_row + int(row)) for row in offsets]
        reasons = [Reason(code) for code in scored.faults[offsets]]
        no_prediction = np.array([reason in INPUT_REASONS for reason in reasons])
        columns = [
            *scored.chunk.carried.take(pa.array(offsets)).columns,
            pa.array([self._plan.files[file].path for file, _ in located], pa.string()),
            pa.array([row for _, row in located], pa.int64()),
            pa.array([reason.label for reason in reasons], pa.string()),
        ]
        for output in self._layouts:
            raw = scored.predictions[output.name][offsets].reshape(len(offsets), -1)
            columns.append(output_schema.fixed_size_list(np.ascontiguousarray(raw), no_prediction))
        return pa.table(columns, schema=_quarantine_schema(self._plan, self._layouts))


def _quarantine_schema(plan: Plan, layouts: Sequence[OutputSpec]) -> pa.Schema:
    """Return the schema of quarantined rows: carried columns, origin and reason, predictions.

    Ours are called ``file``, ``file_row``, ``reason``, and ``prediction`` or, of several outputs,
    ``NAME_prediction``. Where a carried column has that name, ours ends in ``_`` (or more of them).
    Predictions are raw: in the model's own dtype, flat, their shape in the field's metadata.
    """
    schema = plan.resolved.carried
    for name, kind in _ORIGIN:
        schema = schema.append(pa.field(free_name(name, schema.names), kind))
    for output, stored in zip(layouts, plan.resolved.outputs, strict=True):
        name = "prediction" if len(layouts) == 1 else f"{output.name}_prediction"
        free = free_name(name, schema.names)
        schema = schema.append(output_schema.flat_field(free, stored.dtype, output.shape))
    return schema.remove_metadata()
