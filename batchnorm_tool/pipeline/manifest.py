"""What was done: the commit record of a part, and the manifest of a finished run.

Neither holds a host, a time or an engine: both are functions of the plan, so that a run that was
killed and resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer

from batchnorm_tool import environment
from batchnorm_tool._version import __version__
from batchnorm_tool.chunk import INPUT_REASONS, Reason
from batchnorm_tool.errors import RECREATE, Damaged, InputError, WorkFailed
from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.job import Job
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline.output_schema import StoredOutput
from batchnorm_tool.pipeline.plan import Identity, Plan, ResolvedOptions
from batchnorm_tool.storage import FileRecord, Storage, checked_json
from batchnorm_tool.storage.checked_json import (
    LEFT_OUT_IF_NONE,
    Count,
    FileName,
    Record,
    SealedRecord,
    stored_as,
)

MANIFEST_PATH = "_manifest.json"
SUCCESS_PATH = "_SUCCESS"

FORMAT: Literal[1] = 1
# Enough to see a pattern; the rest is counted, and lies in `_quarantine` where policy says so.
FIRST_BAD_ROWS = 10
_CHECKSUM_DIGITS = 64  # SHA-256, hexadecimal


@dataclass(frozen=True)
class BadRow(Record):
    """Where a bad row lies, and what is wrong with it."""

    row: Count
    file: FileName
    file_row: Count
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.file_row}, key {self.key}: {self.reason}"


@dataclass
class RowCounts(Record):
    """Rows by what became of them.

    Attributes:
        predicted: Good rows whose features no earlier row of the input has; ``None`` where that was
            not asked.
        reused: Good rows whose features an earlier row has. With these two, and those that are bad
            by their input, all rows are counted.
        clipped: Good rows with a component beyond the scale that was fitted for int8; ``None`` for
            none.
    """

    rows_in: Annotated[Count, stored_as("in")] = 0
    rows_out: Annotated[Count, stored_as("out")] = 0
    bad: Count = 0
    zero: Count = 0
    nullified: Count = 0
    dropped: Count = 0
    quarantined: Count = 0
    failed: Count = 0
    predicted: Annotated[Count | None, LEFT_OUT_IF_NONE] = None
    reused: Annotated[Count | None, LEFT_OUT_IF_NONE] = None
    clipped: Annotated[Count | None, LEFT_OUT_IF_NONE] = None

    def __add__(self, other: RowCounts) -> RowCounts:
        # `asdict` copies deeply, which takes as long as all the rest of counting a chunk.
        mine, theirs = vars(self), vars(other)
        return RowCounts(**{name: _sum(mine[name], theirs[name]) for name in mine})


def _sum(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


@dataclass(frozen=True)
class PartRecord(SealedRecord):
    """The commit record of a part, written once by its worker, after its files.

    Attributes:
        first_row: Global number of its first row.
        bits: `Identity.bits_id` of the worker that made it.
        reasons: Rows for each reason's label.
        files: What was committed, by the paths that readers will see.
        warnings: What a person should know of the rows, sorted, each text once.
        chunks: The statistics of each chunk: an Arrow IPC stream in base 64.
        hashes: Hashes of the rows in quarantine for each reason's label, and of all others.
    """

    part: Count
    first_row: Count
    bits: str
    counts: RowCounts
    reasons: dict[str, Count] = field(default_factory=dict)
    first_bad_rows: tuple[BadRow, ...] = ()
    files: tuple[FileRecord, ...] = ()
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    chunks: str = ""
    hashes: dict[str, str] = field(default_factory=dict)


REFUSED = "_state/refused"


def record_path(number: int) -> str:
    """Return where the record of a finished part lies while the run is under way."""
    return f"_state/records/{number:06d}.json"


def refusal_path(number: int) -> str:
    """Return where the record of a part lies in which a row broke the policy ``fail``."""
    return f"{REFUSED}/{number:06d}.json"


def read_record(storage: Storage, number: int) -> PartRecord | None:
    """Return the record of a finished part, or ``None`` where it is missing or damaged."""
    return PartRecord.from_json(storage.get(record_path(number)))


def existing_record(storage: Storage, number: int) -> PartRecord:
    """Return the record of a finished part."""
    record = read_record(storage, number)
    if record is None:
        raise WorkFailed(
            f"The commit record `{record_path(number)}` is missing or damaged. Run the same "
            "command again to redo that part."
        )
    return record


def read_refusals(storage: Storage) -> Iterator[PartRecord]:
    """Yield the records of all parts in which a row broke the policy ``fail``."""
    for name in storage.names(REFUSED):
        record = PartRecord.from_json(storage.get(f"{REFUSED}/{name}"))
        if record is None:
            raise WorkFailed(f"The record `{REFUSED}/{name}` is damaged. Run again to recreate it.")
        yield record


@dataclass(frozen=True)
class PartEntry(Record):
    """A part as the manifest lists it."""

    part: Count
    first_row: Count
    rows_in: Count
    rows_out: Count
    bits: str
    files: tuple[FileRecord, ...]


@dataclass
class Totals:
    """What the records of all parts come to; parts are added in their order."""

    counts: RowCounts = field(default_factory=RowCounts)
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad_rows: list[BadRow] = field(default_factory=list)
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    parts: list[PartEntry] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, record: PartRecord) -> None:
        """Take in the record of the next part."""
        self.counts = self.counts + record.counts
        self.reasons.update(record.reasons)
        space_left = FIRST_BAD_ROWS - len(self.first_bad_rows)
        self.first_bad_rows += record.first_bad_rows[:space_left]
        for name, stats in record.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = stats if known is None else known.merge(stats)
        self.warnings += [text for text in record.warnings if text not in self.warnings]
        counts = record.counts
        place = (record.part, record.first_row, counts.rows_in, counts.rows_out)
        self.parts.append(PartEntry(*place, record.bits, record.files))

    def count_predicted(self, *, deduplicated: bool) -> None:
        """Count rows predicted and reused where that is wanted, and nowhere else."""
        # A part of an attempt that was asked otherwise may stay; in one without these counts every
        # row was predicted.
        predicted = reused = None
        if deduplicated:
            reused = self.counts.reused or 0
            bad = sum(self.reasons[reason.label] for reason in INPUT_REASONS)
            predicted = self.counts.rows_in - bad - reused
        self.counts = replace(self.counts, predicted=predicted, reused=reused)


def total(storage: Storage, numbers: Iterator[int] | Sequence[int]) -> Totals:
    """Add up the records of the parts with these ``numbers``."""
    totals = Totals()
    for number in numbers:
        totals.add(existing_record(storage, number))
    return totals


@dataclass(frozen=True)
class UsedBackend(Record):
    """What computed the model; the graph and its proof only where it is another than TensorFlow."""

    name: str
    version: str | None
    graph_sha256: str | None
    largest_difference: float | None

    @classmethod
    def of(cls, plan: Plan) -> UsedBackend | None:
        """Return what computes a plan's model; ``None`` where there is none."""
        chosen = plan.resolved.backend
        if plan.job.model is None:
            return None
        name = "tensorflow" if chosen is None else chosen.name
        version = environment.versions((name,))[name]
        if chosen is None:
            return cls(name, version, None, None)
        return cls(name, version, chosen.graph_sha256, chosen.largest_difference)


_OF_REFRESH = ("store", "gate", "publish")


def _without_engine(job: Job) -> dict[str, Any]:
    """Leave out of a job what a run has no part in, and who did it, but for what bits depend on."""
    data = job.to_dict()
    own = {name: section for name, section in data.items() if name not in _OF_REFRESH}
    return {**own, "engine": {"threads": data["engine"]["threads"]}}


@dataclass(frozen=True)
class Manifest(Record):
    """The manifest of a finished run.

    Attributes:
        format: The version of its form.
        limit: Only so many rows from the start were read; ``None`` for all.
        options_fingerprint: `Plan.options_fingerprint`.
        resolved: What the job left open.
        space: `Identity.space_id`.
        bits: `Identity.bits_id`.
        result: `Identity.result_id`.
        identity: What the result is made of.
        rows: Rows by what became of them.
        reasons: Bad rows for each reason's label.
        files: What was committed besides the parts' files.
        statistics: Statistics of each output; none without rows.
        backend: What computed the model; ``None`` without one.
        contract: SHA-256 of ``contract.json``; ``None`` where an earlier version wrote the result.
        checksum: SHA-256 over all the rest, as ``_SUCCESS`` holds it.
    """

    format: Literal[1]
    tool: str
    version: str
    job: Annotated[Job, PlainSerializer(_without_engine)]
    limit: Count | None
    options_fingerprint: Annotated[str, stored_as("request")]
    resolved: ResolvedOptions
    space: str
    bits: str
    result: str
    identity: Identity
    inputs: tuple[InputFile, ...]
    rows: RowCounts
    reasons: dict[str, Count]
    first_bad_rows: tuple[BadRow, ...]
    outputs: tuple[StoredOutput, ...]
    parts: tuple[PartEntry, ...]
    files: tuple[FileRecord, ...]
    statistics: dict[str, VectorStats]
    warnings: tuple[str, ...]
    backend: Annotated[UsedBackend | None, LEFT_OUT_IF_NONE] = None
    contract: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    checksum: Annotated[str | None, LEFT_OUT_IF_NONE] = None

    def __post_init__(self) -> None:
        """Check that the statistics are those of the outputs."""
        for output in self.outputs:
            measured = self.statistics.get(output.name)
            if measured and output.norm != "none" and output.norm not in measured.norms:
                raise ValueError(f"`statistics.{output.name}` has no norm {output.norm}")

    @property
    def directories(self) -> set[str]:
        """The directories that hold the files of its parts."""
        return {file.path.partition("/")[0] for part in self.parts for file in part.files}


def build_manifest(
    plan: Plan,
    totals: Totals,
    layouts: Sequence[OutputSpec],
    warnings: Sequence[str],
    contract: str,
) -> Manifest:
    """Return the manifest of a finished run, sealed with a checksum of its own."""
    manifest = Manifest(
        format=FORMAT,
        tool="batchnorm_tool",
        version=__version__,
        job=plan.job,
        limit=plan.limit,
        options_fingerprint=plan.options_fingerprint,
        resolved=plan.resolved,
        space=plan.identity.space_id,
        bits=plan.identity.bits_id,
        result=plan.identity.result_id,
        identity=plan.identity,
        inputs=plan.files,
        rows=totals.counts,
        reasons={reason.label: totals.reasons[reason.label] for reason in list(Reason)[1:]},
        first_bad_rows=tuple(totals.first_bad_rows),
        outputs=tuple(StoredOutput.of(layout, plan.job.output.dtype) for layout in layouts),
        parts=tuple(totals.parts),
        files=tuple(totals.files),
        statistics=totals.statistics,
        warnings=tuple(dict.fromkeys([*warnings, *totals.warnings])),
        backend=UsedBackend.of(plan),
        contract=contract,
    )
    # Over the document without it; `_SUCCESS` repeats it, so that one tells of the other's loss.
    return replace(manifest, checksum=checked_json.sha256(manifest.to_dict()))


def read_manifest(storage: Storage, path: str) -> Manifest | None:
    """Return the manifest of the finished run in ``storage``; ``None`` where there is none."""
    success = storage.get(SUCCESS_PATH)
    if success is None:
        return None
    text = storage.get(MANIFEST_PATH)
    if text is None and len(success.strip()) != _CHECKSUM_DIGITS:
        return None  # somebody else's: Spark and Hadoop leave an empty one
    data = checked_json.verified_json(text or b"")
    told = success.decode(errors="replace").strip()
    if text is None or data is None or checked_json.sha256(data) != told:
        raise Damaged(
            f"`{path}/{MANIFEST_PATH}` is missing or damaged: its checksum does not match. "
            f"{RECREATE.capitalize()}."
        )
    if data.get("format") != FORMAT:
        raise InputError(
            f"`{path}` was written by batchnorm_tool {data.get('version')}. Expected: a result in "
            f"format {FORMAT}. Received: format {data.get('format')}. Read it with that version."
        )
    return Manifest.decoded(text, f"{path}/{MANIFEST_PATH}")
