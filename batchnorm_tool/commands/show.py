"""What a path is: a run, one under way, a store, a data file, or a model."""

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnorm_tool import environment
from batchnorm_tool.chunk import Field
from batchnorm_tool.commands.progress import Progress, SilentProgress, loading_model

# pydantic reads these annotations at run time.
from batchnorm_tool.errors import InputError, ModelError, capture_warnings
from batchnorm_tool.features.matching import is_key_name
from batchnorm_tool.formats.arrow_columns import is_list
from batchnorm_tool.gate.record import GateRecord, Hold
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.job import Engine, Input, Job, Model
from batchnorm_tool.models import describe_model, security
from batchnorm_tool.models.cache import Key, ModelCache
from batchnorm_tool.models.security.keras_allowlist import ModelFinding
from batchnorm_tool.pipeline.manifest import Manifest, read_manifest, read_record, read_refusals
from batchnorm_tool.pipeline.output_state import RECORDS
from batchnorm_tool.pipeline.part_output import CHUNKS_PATH
from batchnorm_tool.pipeline.plan import PLAN_PATH, Plan, ResolvedOptions
from batchnorm_tool.report.run_page import run_page
from batchnorm_tool.storage import STATE, Storage
from batchnorm_tool.storage.checked_json import LEFT_OUT_IF_NONE, Record, plain
from batchnorm_tool.storage.files import save_page
from batchnorm_tool.store import index, state

_SAMPLE_ROWS = 10_000
_SAMPLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that has not come to its end; of one that stopped before it was planned, little."""

    running: bool
    parts: int
    parts_done: int
    rows: int
    rows_done: int
    bad_rows: int
    parts_refused: int
    job: Annotated[Job | None, LEFT_OUT_IF_NONE] = None
    resolved: Annotated[ResolvedOptions | None, LEFT_OUT_IF_NONE] = None
    space: Annotated[str | None, LEFT_OUT_IF_NONE] = None


@dataclass(frozen=True)
class ModelDescription:
    """A model: inputs and outputs where the safety gate lets it load, else ``load_error``."""

    format: str
    sha256: str
    content: str
    keras_version: str | None
    classes: tuple[str, ...]
    findings: tuple[ModelFinding, ...]
    inputs: tuple[Field, ...] | None
    outputs: tuple[Field, ...] | None
    load_error: str | None = None


@dataclass(frozen=True)
class ModelEnds(Record):
    """All inputs and outputs of a model, as they are kept in the model cache."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


@dataclass(frozen=True)
class ColumnDescription:
    """A column of data; what is not known of it is ``None``."""

    name: str
    type: str
    width: int | None = None
    nulls: int | None = None
    min: int | float | str | None = None
    max: int | float | str | None = None
    distinct: int | None = None


@dataclass(frozen=True)
class DataDescription:
    """Files of rows."""

    format: str | None
    files: int
    bytes: int
    rows: int
    rows_sampled: int
    columns: tuple[ColumnDescription, ...]
    likely_key: str | None
    likely_features: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class WaitingVersion:
    """The candidate that waits for a decision, in short."""

    version: int
    reason: str | None
    started: str
    gate: GateRecord | None


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """A store, without its dataset being opened.

    Attributes:
        version: The live one; ``None`` before the first, and then little is known.
        versions: The kept ones, with Lance's numbers.
        running: Whether a refresh holds the store.
        rows: Rows of the live version; ``stale`` ones are among them, ``quarantined`` ones not.
        norms: Quantiles of the live version's norms.
        contract: SHA-256 of its contract.
    """

    version: int | None
    lance_version: int | None
    hold: Hold | None
    waiting: WaitingVersion | None
    versions: dict[int, int]
    running: bool
    rows: int = 0
    stale: Annotated[int | None, LEFT_OUT_IF_NONE] = None
    quarantined: Annotated[int | None, LEFT_OUT_IF_NONE] = None
    key: Annotated[tuple[str, ...] | None, LEFT_OUT_IF_NONE] = None
    passthrough: Annotated[tuple[str, ...] | None, LEFT_OUT_IF_NONE] = None
    width: Annotated[int | None, LEFT_OUT_IF_NONE] = None
    dtype: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    norm: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    space: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    norms: Annotated[dict[str, int | float | None] | None, LEFT_OUT_IF_NONE] = None
    gate: Annotated[GateRecord | None, LEFT_OUT_IF_NONE] = None
    published: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    contract: Annotated[str | None, LEFT_OUT_IF_NONE] = None


@dataclass(frozen=True)
class CachedModelDescription:
    """An entry of the model cache; ``kind`` is none where the model could not be converted."""

    model: str
    kind: str
    bytes: int
    last_used: str
    largest_difference: float | None
    cause: Annotated[str | None, LEFT_OUT_IF_NONE]


@dataclass(frozen=True)
class CacheDescription:
    """The model cache, last used first."""

    models: tuple[CachedModelDescription, ...]


Details = (
    CacheDescription
    | Manifest
    | UnfinishedRun
    | ModelDescription
    | DataDescription
    | StoreDescription
)


@dataclass(frozen=True)
class Description:
    """What a path is: its kind (run, unfinished run, store, data or model), and what is known."""

    kind: str
    path: str
    details: Details = field(repr=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it, as plain data."""
        return plain(self.details)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {"kind": self.kind, "path": self.path, **self.facts}


def show(
    path: str | os.PathLike[str] | None = None,
    *,
    html: str | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Description:
    """Say what a path is.

    Args:
        path: A run's output directory (finished or not), a store's dataset, a model, or
            data: a file, a directory or a glob.
        html: For a finished run: write a page about it to this file, which works offline.
        cache: Show the cache of converted models instead of a path.
        progress: Hears that a model is loaded; default: nothing does.

    Returns:
        What it is, and what is known of it. Ranges and nulls of data come from its first 10,000
        rows, or as many as 64 MiB hold.

    Raises:
        InputError: The path is none of these, or cannot be read.
        ModelError: The model cannot be read at all; of one that the safety gate refuses, or that
            does not load, ``load_error`` says why.
        Damaged: The manifest of the run, or the state of the store, is damaged.

    Example:
        >>> show("data_samples/digits.parquet").facts["rows"]
        1797
    """
    if cache is (path is not None):
        raise InputError("`show` takes either a path or `--cache`. Give one of them.")
    if path is None:
        shown = _cache(ModelCache.of_user())
    else:
        shown = _show(os.fspath(path), progress or SilentProgress())
    if html is not None:
        _write_page(shown, html)
    return shown


def _cache(cache: ModelCache) -> Description:
    entries = tuple(
        CachedModelDescription(
            each.entry.model,
            each.entry.kind,
            each.size,
            datetime.fromtimestamp(each.last_used, UTC).isoformat(timespec="seconds"),
            each.entry.proof.largest_difference if each.entry.proof else None,
            each.entry.cause,
        )
        for each in cache.entries()
    )
    return Description("model cache", str(cache.root), CacheDescription(entries))


def _show(path: str, progress: Progress) -> Description:
    if state.is_store(path):
        directory, _ = state.open_store(path)
        described = directory.look(functools.partial(_store, directory))
        return Description("store", path, described)
    if Path(path).is_dir():
        storage = Storage(Path(path))
        manifest = read_manifest(storage, path)
        if manifest is not None:
            return Description("run", path, manifest)
        if STATE in storage.names():
            return Description("unfinished run", path, _unfinished(storage))
    if security.is_model(path):
        return Description("model", path, _model(path, progress))
    return Description("data", path, _data(path))


def _unfinished(storage: Storage) -> UnfinishedRun:
    plan = Plan.from_json(storage.get(PLAN_PATH))
    numbers = [int(name.partition(".")[0]) for name in storage.names(RECORDS)]
    records = [record for number in numbers if (record := read_record(storage, number))]
    refused = list(read_refusals(storage))
    return UnfinishedRun(
        running=storage.is_locked(),
        parts=plan.part_count if plan else 0,
        parts_done=len(records),
        rows=plan.rows if plan else 0,
        rows_done=sum(record.counts.rows_in for record in records),
        bad_rows=sum(record.counts.bad for record in [*records, *refused]),
        parts_refused=len(refused),
        job=plan.job if plan else None,
        resolved=plan.resolved if plan else None,
        space=plan.identity.space_id if plan else None,
    )


def _model(path: str, progress: Progress) -> ModelDescription:
    ends, load_error = None, None
    with security.examine_copy(path) as copied:
        report = copied.report
        try:
            security.check(Model(path=path), report)
            ends = _ends(path, copied, progress)
        except ModelError as error:
            load_error = error.message
    return ModelDescription(
        format=report.kind,
        sha256=report.sha256,
        content=report.content,
        keras_version=report.keras_version,
        classes=report.classes,
        findings=report.findings,
        inputs=ends.inputs if ends else None,
        outputs=ends.outputs if ends else None,
        load_error=load_error,
    )


def _ends(path: str, copied: security.ModelCopy, progress: Progress) -> ModelEnds:
    """Return what loading the model tells, or told before."""
    report, model = copied.report, Model(path=path)
    versions = environment.versions(("tensorflow", "keras", "batchnorm-tool"))
    key: Key = {"content": report.content, "versions": versions}

    def load() -> ModelEnds:
        with loading_model(progress, tensorflow=report.kind != "onnx"):
            return ModelEnds(*describe_model(model, copied.path, Engine(), report))

    return ModelCache.of_user().remembered("ends", key, ModelEnds, load)


def _data(path: str) -> DataDescription:
    warnings: list[str] = []
    with capture_warnings(warnings.append):
        table = inputs_table.open_table(Input(path=path))
    sample = reading.head_within(table, _SAMPLE_ROWS, _SAMPLE_BYTES)
    schema = pa.schema([table.schema.field(name) for name in table.columns])
    columns = tuple(_column(field, sample) for field in schema)
    # Vectors are features; where there are none, floats are.
    vectors = tuple(column.name for column in columns if column.width)
    floats = tuple(each.name for each in schema if pa.types.is_floating(each.type))
    return DataDescription(
        format=table.files[0].format if table.files else None,
        files=len(table.files),
        bytes=sum(file.bytes for file in table.files),
        rows=table.rows,
        rows_sampled=sample.num_rows,
        columns=columns,
        likely_key=_likely_key(columns, sample.num_rows),
        likely_features=vectors or floats,
        warnings=(*warnings, *table.unreadable.values()),
    )


def _column(field: pa.Field, sample: pa.Table) -> ColumnDescription:
    if field.name not in sample.column_names:
        return ColumnDescription(field.name, str(field.type))
    values = sample[field.name]
    flat, width, nulls = values, None, values.null_count
    while is_list(flat.type):
        width = (width or 1) * _usual_length(flat)
        flat = pc.list_flatten(flat)
        nulls += flat.null_count
    if pa.types.is_float16(flat.type):
        flat = flat.cast(pa.float32())  # Arrow compares no halves
    is_number = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)
    ends = pc.min_max(flat).as_py() if is_number and len(flat) else {"min": None, "max": None}
    return ColumnDescription(
        name=field.name,
        type=str(field.type),
        width=width if is_number else None,
        nulls=nulls,
        min=_to_json_value(ends["min"]),
        max=_to_json_value(ends["max"]),
        distinct=_distinct(values),
    )


def _usual_length(lists: pa.ChunkedArray) -> int:
    lengths = pc.list_value_length(lists)
    most = pc.mode(lengths.filter(pc.greater(lengths, 0)))
    return most[0]["mode"].as_py() if len(most) else 0


def _to_json_value(value: Any) -> Any:
    """Return a number that JSON knows; NaN and infinities as words."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _distinct(values: pa.ChunkedArray) -> int | None:
    try:
        return int(pc.count_distinct(values).as_py())
    except pa.ArrowNotImplementedError:  # lists, structs, and what else cannot be a key
        return None


def _likely_key(columns: Sequence[ColumnDescription], rows: int) -> str | None:
    """Return a column that could name a row, without nulls or repetitions, of the best name."""
    unique = (
        column.name
        for column in columns
        if column.distinct == rows
        and not column.nulls
        and not column.type.startswith(("float", "double", "halffloat"))
    )
    return min(unique, key=lambda name: not is_key_name(name), default=None)


def _write_page(shown: Description, html: str) -> None:
    if not isinstance(shown.details, Manifest):
        history = f"Use `batchnorm-tool history {shown.path} --html {html}`."
        raise InputError(
            f"`--html` needs a finished run. Received: `{shown.path}` ({shown.kind}). "
            + (history if shown.kind == "store" else "Give the output directory of a finished run.")
        )
    chunks = pq.read_table(Path(shown.path) / CHUNKS_PATH)
    save_page(html, run_page(shown.details, chunks))


def _store(directory: state.StoreDirectory, pointer: state.StorePointer) -> StoreDescription:
    waiting = None if pointer.waiting is None else directory.record(pointer.waiting)
    store = StoreDescription(
        version=pointer.live,
        lance_version=pointer.lance_version,
        hold=pointer.hold,
        waiting=WaitingVersion(waiting.version, waiting.reason, waiting.started, waiting.gate)
        if waiting
        else None,
        versions=dict(sorted(pointer.versions.items())),
        running=directory.storage.is_locked(),
    )
    layout = pointer.layout
    if pointer.live is None or layout is None:
        return store
    record = directory.existing_record(pointer.live)
    statuses = _statuses(directory, pointer.live)
    stale = sum(count for word, count in statuses.items() if word.startswith(state.STALE))
    rows = stale + statuses[state.GOOD]
    return replace(
        store,
        rows=rows,
        stale=stale,
        quarantined=statuses.total() - rows,
        key=layout.keys,
        passthrough=layout.passthrough,
        width=layout.width,
        dtype=layout.normalization.dtype or layout.dtype,
        norm=layout.norm_label,
        space=record.space,
        norms=record.norms,
        gate=record.gate,
        published=record.finished,
        contract=record.contract,
    )


def _statuses(directory: state.StoreDirectory, version: int) -> Counter[str]:
    """Count the rows of a version's index by their status."""
    counts: Counter[str] = Counter()
    for table in index.read_index(directory.storage, state.index_path(version), [state.STATUS]):
        for each in table[state.STATUS].value_counts().to_pylist():
            counts[each["values"]] += each["counts"]
    return counts
