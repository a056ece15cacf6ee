"""What was done: the commit record of a part, and the manifest of a finished run.

Neither holds a host, a time or an engine: both are functions of the plan, so that a run that was
killed and resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool._version import __version__
from batchnorm_tool.chunk import Reason
from batchnorm_tool.errors import Damaged, WorkFailed
from batchnorm_tool.norms.vector_stats import VectorStats
from batchnorm_tool.pipeline.plan import Identity
from batchnorm_tool.storage import FileRecord, Storage, checked_json

if TYPE_CHECKING:
    from batchnorm_tool.pipeline.output_schema import OutputSpec
    from batchnorm_tool.pipeline.plan import Plan

MANIFEST_PATH = "_manifest.json"
SUCCESS_PATH = "_SUCCESS"
FORMAT = 1
# Enough to see a pattern; the rest is counted, and lies in `_quarantine` where policy says so.
FIRST_BAD_ROWS = 10
_CHECKSUM_DIGITS = 64  # SHA-256, hexadecimal


@dataclass(frozen=True)
class BadRow:
    """Where a bad row lies, and what is wrong with it."""

    row: int
    file: str
    file_row: int
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.file_row}, key {self.key}: {self.reason}"


@dataclass
class RowCounts:
    """Rows by what became of them."""

    rows_in: int = 0
    rows_out: int = 0
    bad: int = 0
    zero: int = 0
    nullified: int = 0
    dropped: int = 0
    quarantined: int = 0
    failed: int = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        # `asdict` copies deeply, which takes as long as all the rest of counting a chunk.
        mine, theirs = vars(self), vars(other)
        return RowCounts(**{name: mine[name] + theirs[name] for name in mine})

    def to_dict(self) -> dict[str, int]:
        """Return the counts as plain data, rows in and out as ``in`` and ``out``."""
        return {name.removeprefix("rows_"): count for name, count in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, int]) -> RowCounts:
        """Return the counts that `to_dict` gave."""
        if not all(type(count) is int for count in data.values()):
            raise TypeError(f"counts that are not whole numbers: {data}")
        names = {"in": "rows_in", "out": "rows_out"}
        return cls(**{names.get(name, name): count for name, count in data.items()})


@dataclass(frozen=True)
class PartRecord:
    """The commit record of a part, written once by its worker, after its files.

    Attributes:
        part: Number of the part.
        first_row: Global number of its first row.
        bits: `Identity.bits_id` of the worker that made it.
        counts: Its rows by what became of them.
        reasons: Rows for each reason's label.
        first_bad_rows: The first few bad rows.
        files: What was committed, by the paths that readers will see.
        statistics: Statistics of each output.
        warnings: What a person should know of the rows, sorted, each text once.
        chunks: The statistics of each chunk: an Arrow IPC stream in base 64.
    """

    part: int
    first_row: int
    bits: str
    counts: RowCounts
    reasons: dict[str, int] = field(default_factory=dict)
    first_bad_rows: tuple[BadRow, ...] = ()
    files: tuple[FileRecord, ...] = ()
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    chunks: str = ""

    def to_json(self) -> bytes:
        """Return the record as a sealed JSON document."""
        data = {
            "part": self.part,
            "first_row": self.first_row,
            "bits": self.bits,
            "counts": self.counts.to_dict(),
            "reasons": self.reasons,
            "first_bad_rows": [asdict(row) for row in self.first_bad_rows],
            "files": [file.to_dict() for file in self.files],
            "statistics": {name: stats.to_dict() for name, stats in self.statistics.items()},
            "warnings": self.warnings,
            "chunks": self.chunks,
        }
        return checked_json.dump_checked_json(data)

    @classmethod
    def from_json(cls, text: bytes) -> PartRecord | None:
        """Read what `to_json` gave; ``None`` where it is damaged or of another version."""
        data = checked_json.load_checked_json(text)
        try:
            return None if data is None else cls._from_dict(data)
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> PartRecord:
        return cls(
            part=data["part"],
            first_row=data["first_row"],
            bits=data["bits"],
            counts=RowCounts.from_dict(data["counts"]),
            reasons=data["reasons"],
            first_bad_rows=tuple(BadRow(**row) for row in data["first_bad_rows"]),
            files=tuple(FileRecord(**file) for file in data["files"]),
            statistics={
                name: VectorStats.from_dict(stats) for name, stats in data["statistics"].items()
            },
            warnings=tuple(data["warnings"]),
            chunks=data["chunks"] + "",  # a text, or no record of ours
        )


REFUSED = "_state/refused"


def record_path(number: int) -> str:
    """Return where the record of a finished part lies while the run is under way."""
    return f"_state/records/{number:06d}.json"


def refusal_path(number: int) -> str:
    """Return where the record of a part lies in which a row broke the policy ``fail``."""
    return f"{REFUSED}/{number:06d}.json"


def read_record(storage: Storage, number: int) -> PartRecord | None:
    """Return the record of a finished part, or ``None`` where it is missing or damaged."""
    text = storage.get(record_path(number))
    return None if text is None else PartRecord.from_json(text)


def existing_record(storage: Storage, number: int) -> PartRecord:
    """Return the record of a finished part."""
    record = read_record(storage, number)
    if record is None:
        msg = (
            f"The commit record `{record_path(number)}` is missing or damaged. "
            "Run the same command again: it does that part anew."
        )
        raise WorkFailed(msg)
    return record


def read_refusals(storage: Storage) -> Iterator[PartRecord]:
    """Yield the records of all parts in which a row broke the policy ``fail``."""
    for name in storage.names(REFUSED):
        text = storage.get(f"{REFUSED}/{name}")
        record = None if text is None else PartRecord.from_json(text)
        if record is None:
            msg = f"The record `{REFUSED}/{name}` is damaged. Run it again: it is made anew."
            raise WorkFailed(msg)
        yield record


@dataclass
class Totals:
    """What the records of all parts come to; parts are added in their order."""

    counts: RowCounts = field(default_factory=RowCounts)
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad_rows: list[BadRow] = field(default_factory=list)
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
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
        self.parts.append(_part_summary(record))


def _part_summary(record: PartRecord) -> dict[str, Any]:
    return {
        "part": record.part,
        "first_row": record.first_row,
        "rows_in": record.counts.rows_in,
        "rows_out": record.counts.rows_out,
        "bits": record.bits,
        "files": [file.to_dict() for file in record.files],
    }


def total(storage: Storage, numbers: Iterator[int] | Sequence[int]) -> Totals:
    """Add up the records of the parts with these ``numbers``."""
    totals = Totals()
    for number in numbers:
        totals.add(existing_record(storage, number))
    return totals


def build_manifest(
    plan: Plan, totals: Totals, layouts: Sequence[OutputSpec], warnings: Sequence[str]
) -> dict[str, Any]:
    """Return the manifest of a finished run, sealed with a checksum of its own."""
    data = {
        "format": FORMAT,
        "tool": "batchnorm_tool",
        "version": __version__,
        "job": _without_engine(plan.job.to_dict()),
        "limit": plan.limit,
        "request": plan.options_fingerprint,
        "resolved": plan.resolved.to_dict(),
        "space": plan.identity.space_id,
        "bits": plan.identity.bits_id,
        "result": plan.identity.result_id,
        "identity": plan.identity.to_dict(),
        "inputs": [file.to_dict() for file in plan.files],
        "rows": totals.counts.to_dict(),
        "reasons": {reason.label: totals.reasons[reason.label] for reason in list(Reason)[1:]},
        "first_bad_rows": [asdict(row) for row in totals.first_bad_rows],
        "outputs": [{**layout.to_dict(), "dtype": plan.job.output.dtype} for layout in layouts],
        "parts": totals.parts,
        "files": [file.to_dict() for file in totals.files],
        "statistics": {name: stats.to_dict() for name, stats in totals.statistics.items()},
        "warnings": list(dict.fromkeys([*warnings, *totals.warnings])),
    }
    return checked_json.with_checksum(data)


_OF_REFRESH = ("store", "gate", "publish")


def _without_engine(job: dict[str, Any]) -> dict[str, Any]:
    """Return the job without who did it, and what a run has no part in.

    Of its engine only what the bits depend on stays.
    """
    own = {name: section for name, section in job.items() if name not in _OF_REFRESH}
    return {**own, "engine": {"threads": job["engine"]["threads"]}}


@dataclass(frozen=True)
class Manifest:
    """The manifest of a finished run, read back and checked.

    Attributes:
        data: All of it, as plain data.
        checksum: SHA-256 over ``data``, as ``_SUCCESS`` holds it.
    """

    data: Mapping[str, Any]
    checksum: str

    @property
    def directories(self) -> set[str]:
        """The directories that hold the files of its parts."""
        paths = [file["path"] for part in self.data["parts"] for file in part["files"]]
        return {path.partition("/")[0] for path in paths}

    @property
    def identity(self) -> Identity:
        """What the result was made of."""
        return Identity.from_dict(self.data["identity"])


def read_manifest(storage: Storage, path: str) -> Manifest | None:
    """Return the manifest of the finished run in ``storage``; ``None`` where there is none."""
    success = storage.get(SUCCESS_PATH)
    if success is None:
        return None
    text = storage.get(MANIFEST_PATH)
    if text is None and len(success.strip()) != _CHECKSUM_DIGITS:
        return None  # somebody else's: Spark and Hadoop leave an empty one
    data = None if text is None else checked_json.verified_json(text)
    if data is None or checked_json.sha256(data) != success.decode(errors="replace").strip():
        msg = (
            f"`{path}/{MANIFEST_PATH}` is missing or damaged: its checksum disagrees. "
            "Make the result again with `--fresh`."
        )
        raise Damaged(msg)
    return Manifest(data, checked_json.sha256(data))
