"""The plan of a run: its parts, and every choice that was made once, where the model runs.

A plan is written into the output before the first row is read, and everybody who works on the run
reads it from there. Nothing here reads or writes a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from batchnorm_tool import environment
from batchnorm_tool.chunk import Field, overlaps
from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.inputs.reading import Part, Slice
from batchnorm_tool.job import Job, Model
from batchnorm_tool.job.sections import VectorOptions
from batchnorm_tool.models.batching import BackendRecord, backend_name
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.pipeline.output_schema import Fitted, output_specs
from batchnorm_tool.storage import checked_json
from batchnorm_tool.storage.checked_json import (
    LEFT_OUT_IF_NONE,
    ArrowSchema,
    Count,
    Positive,
    Record,
    SealedRecord,
)

PLAN_PATH = "_state/plan.json"
# A kill loses at most about one part for each worker: a minute of work is what a person shrugs at.
_PART_SECONDS = 60.0
_PART_BYTES = 256 * 2**20
# Two cores to eight each get several parts, so that the last one does not leave others idle; more
# parts cost more commits (1 M rows in 62 parts took an eighth longer than in 31).
_PARTS_AT_LEAST = 24
# Features and vectors of one chunk: small enough for the cache that cores share, large enough that
# what Python does for each (3 ms, in which no other thread runs Python) disappears.
_CHUNK_BYTES = 8 * 2**20
_VERSIONED = ("numpy", "pyarrow", "batchnorm-tool")
_VERSIONED_WITH_MODEL = ("tensorflow", "keras", *_VERSIONED)


@dataclass(frozen=True)
class Identity(Record):
    """What a result is made of, as plain data.

    Attributes:
        space: What gives the vectors their meaning: model content, outputs, norms, features.
        bits: What can change their low-order bits besides: batch size, threads, versions, device,
            CPU.
        policies: How bad rows are treated.
        result: All the rest: the input files, the columns that are carried, the layout.
    """

    space: dict[str, object]
    bits: dict[str, object]
    policies: dict[str, object]
    result: dict[str, object]

    @property
    def versions(self) -> dict[str, object]:
        """The versions of what computed and wrote it, by name."""
        versions = self.bits.get("versions")
        return versions if isinstance(versions, dict) else {}

    @property
    def outputs(self) -> list[object]:
        """Names of the outputs that are normalized."""
        outputs = self.space.get("outputs")
        return outputs if isinstance(outputs, list) else []

    @property
    def space_id(self) -> str:
        """The vector space: vectors of two spaces are never mixed."""
        return checked_json.sha256(self.space)

    @property
    def bits_id(self) -> str:
        """The space and all that can change low-order bits: a resumed run must match it."""
        return checked_json.sha256([self.space, self.bits])

    @property
    def result_id(self) -> str:
        """The whole result: decides between "nothing to do" and a refusal."""
        return checked_json.sha256(self.to_dict())


def identify(
    job: Job, resolved: ResolvedOptions, files: tuple[InputFile, ...], limit: int | None
) -> Identity:
    """Identify the result of ``job`` over ``files`` with the choices in ``resolved``."""
    return Identity(
        space=_space(job, resolved),
        bits=_bits(resolved, with_model=job.model is not None),
        policies={
            "input.invalid": job.input.invalid,
            "normalize.zero": job.normalize.zero,
            "normalize.nonfinite": job.normalize.nonfinite,
            "normalize.max_bad_fraction": job.normalize.max_bad_fraction,
        },
        result={
            "input": [file.to_dict() for file in files],
            "input.key": job.input.key,
            "input.keys": job.input.keys,
            "input.passthrough": list(job.input.passthrough),
            "limit": limit,
            "output.format": job.output.format,
            "output.dtype": job.output.dtype,
            "output.columns": job.output.columns.model_dump(),
            "output.byte_stream_split": job.output.byte_stream_split,
            **({"output.compression": job.output.compression} if job.output.compression else {}),
            "part_rows": resolved.part_rows,
            "chunk_rows": resolved.chunk_rows,
        },
    )


def _space(job: Job, resolved: ResolvedOptions) -> dict[str, object]:
    norms = {}
    for output in resolved.outputs:
        norm, axis = job.normalize.for_output(output.name)
        options = _options(job.normalize.options_for(output.name), resolved.fitted_for(output.name))
        norms[output.name] = {"norm": norm.label, "axis": axis, **options}
    accepted = job.model is not None and job.model.batch_dependent == "accept"
    return {
        # Named only where it matters, so that it makes no new space of those that there are.
        **({"model.batch_dependent": resolved.batch_size} if accepted else {}),
        "model": resolved.model_content,
        "model.layer": job.model.layer if job.model else None,
        "model.signature": job.model.signature if job.model else None,
        "outputs": [output.name for output in resolved.outputs],
        "norms": norms,
        "features": {name: list(columns) for name, columns in resolved.features.items()},
        "input.fill": job.input.fill,
        "input.decode": job.input.decode,
        "input.dtype": job.input.dtype,
        "input.transform": resolved.transform,
    }


def _options(options: VectorOptions, fitted: Fitted) -> dict[str, object]:
    """Return the further options of an output that are used, with what was fitted for them."""
    mean = fitted.mean and checked_json.sha256(fitted.mean)
    found: dict[str, object] = {
        "truncate": options.truncate,
        "mean": options.project_mean and (mean or options.project_mean),
        "dtype": options.dtype,
        "scale": fitted.scale if options.dtype == "int8" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _bits(resolved: ResolvedOptions, *, with_model: bool) -> dict[str, object]:
    backend = resolved.backend
    by_tensorflow = with_model and backend is None
    bits: dict[str, object] = {
        "batch_size": resolved.batch_size,
        "threads": resolved.threads,
        "device": resolved.device,
        "cpu": environment.cpu(),
        "versions": environment.versions(_VERSIONED_WITH_MODEL if by_tensorflow else _VERSIONED),
    }
    if backend is not None:
        version = environment.versions((backend.name,))[backend.name]
        graph = {"graph_sha256": backend.graph_sha256}
        bits["backend"] = {"name": backend.name, "version": version, **graph}
        if backend.independent:
            del bits["batch_size"]
    return bits


def with_planned_backend(model: Model, resolved: ResolvedOptions) -> Model:
    """Return a job's model for the back end that was planned, whatever ``auto`` chooses now."""
    return model.model_copy(update={"backend": backend_name(resolved.backend)})


def chosen_model(job: Job) -> dict[str, object] | None:
    """Return the model of a job as choices depend on it: the default back end goes unnamed."""
    chosen: dict[str, object] | None = job.to_dict()["model"]
    if chosen is not None and chosen["backend"] == "tensorflow":
        del chosen["backend"]  # so that choices made before there was another one stay
    return chosen


@dataclass(frozen=True)
class ResolvedOptions(Record):
    """Every choice that a job may leave open, made.

    Attributes:
        batch_size: Rows in one call of the model.
        chunk_rows: Rows in memory at a time; a multiple of ``batch_size`` where bits depend on it.
        inputs: The model's inputs; empty where predictions are stored already.
        outputs: What is normalized, with true shapes.
        features: For each model input, the stored columns that feed it, in order.
        carried: Schema of the key and passed-through columns; without any, the row number's.
        device: ``"cpu"`` or ``"gpu"``.
        threads: Intra-op threads of one model call.
        model_content: Hash of the model's architecture and weights; ``None`` without a model.
        transform: SHA-256 of the source of ``input.transform``; ``None`` without one.
        backend: What computes the model; ``None`` for TensorFlow, and without a model.
        fitted: By output, what its normalization takes from all rows or from a file.
    """

    batch_size: Positive
    chunk_rows: Positive
    part_rows: Positive
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    features: dict[str, tuple[str, ...]]
    carried: ArrowSchema
    device: str
    threads: Positive
    model_content: str | None
    transform: str | None
    backend: Annotated[BackendRecord | None, LEFT_OUT_IF_NONE] = None
    fitted: Annotated[dict[str, Fitted] | None, LEFT_OUT_IF_NONE] = None

    def fitted_for(self, output: str) -> Fitted:
        """Return what was fitted for an output."""
        return (self.fitted or {}).get(output, Fitted())

    def layouts(self, job: Job) -> tuple[OutputSpec, ...]:
        """Return how each output is normalized and stored."""
        return output_specs(job, self.outputs, self.fitted)


@dataclass(frozen=True)
class Plan(SealedRecord):
    """All that a worker needs to know of a run; picklable, and the same for every worker.

    Attributes:
        files: The input files, in lexicographic path order.
        resolved: What the job left open.
        options_fingerprint: Hash of what the choices in ``resolved`` were made from: while it stays
            the same, they need not be made again.
        limit: Only so many rows from the start; ``None`` for all.
        warnings: What a person should know, found while planning.
    """

    job: Job
    files: tuple[InputFile, ...]
    resolved: ResolvedOptions
    identity: Identity
    options_fingerprint: Annotated[str, checked_json.stored_as("request")]
    limit: Count | None = None
    warnings: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> int:
        """Number of rows that go in."""
        rows = sum(file.rows for file in self.files)
        return rows if self.limit is None else min(rows, self.limit)

    @property
    def bytes_expected(self) -> int:
        """Bytes of vectors and norms before compression; what is carried along comes on top."""
        return self.rows * written_bytes(self.resolved.layouts(self.job))

    @property
    def part_count(self) -> int:
        """Number of parts; one, without rows, where the input is empty."""
        return max(1, -(-self.rows // self.resolved.part_rows))

    @cached_property
    def _file_starts(self) -> list[int]:
        return [0, *itertools.accumulate(file.rows for file in self.files)]

    def part(self, number: int) -> Part:
        """Return the part with this number."""
        # A part follows from its number: of a plan with ten thousand parts none is written down.
        first_row = number * self.resolved.part_rows
        stop_row = min(first_row + self.resolved.part_rows, self.rows)
        found = overlaps(self._file_starts, first_row, stop_row)
        return Part(number, first_row, tuple(Slice(*rows_of_file) for rows_of_file in found))


def written_bytes(layouts: Sequence[OutputSpec]) -> int:
    """Return the bytes of one row's vectors, in their stored dtype, and norms."""
    fields = [Field("", one.stored_shape, str(one.stored_dtype)) for one in layouts]
    return sum(field.row_bytes + 8 for field in fields)


def choose_part_rows(
    batch_size: int, rows: int, *, rows_per_second: float, bytes_per_row: int
) -> int:
    """Return rows of a part where the job leaves it open.

    Args:
        batch_size: Rows in one call of the model.
        rows: Rows of the whole run.
        rows_per_second: What one worker does; ``inf`` where there is no model.
        bytes_per_row: Bytes that a row adds to the output.
    """
    # The largest power-of-two multiple of the batch size within one minute of one worker's work,
    # 256 MiB of output, and a 24th of the rows.
    most = min(
        rows_per_second * _PART_SECONDS, _PART_BYTES / max(1, bytes_per_row), rows / _PARTS_AT_LEAST
    )
    part_rows = batch_size
    # Whole batches: otherwise each part would end with one that is padded.
    while 2 * part_rows <= most:
        part_rows *= 2
    return part_rows


def choose_chunk_rows(rows: int, part_rows: int, row_bytes: int) -> int:
    """Return the largest power-of-two multiple of the rows given that fits a chunk and a part."""
    while 2 * rows * row_bytes <= _CHUNK_BYTES and 2 * rows <= part_rows:
        rows *= 2
    return rows
