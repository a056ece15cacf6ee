"""What is told of a refresh: rows by what became of them, norms, the gate, the targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, InstanceOf

from batchnorm_tool.features.statistics import InputSummary

# pydantic reads these annotations at run time.
from batchnorm_tool.gate.findings import Finding, broken
from batchnorm_tool.gate.rows import RefreshRows

PUBLISHED, WAITING, NOTHING = "published", "waiting", "nothing to do"


@dataclass(frozen=True)
class GateRecord:
    """What the gate found, and what a broken limit makes of the refresh: ``hold`` or ``warn``."""

    action: str
    passed: bool
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, action: str, findings: Iterable[Finding]) -> Self:
        """Return what some findings make of the refresh."""
        found = tuple(findings)
        return cls(action, not broken(found), found)

    @property
    def broken(self) -> list[Finding]:
        """The findings beyond their limits."""
        return broken(self.findings)


@dataclass(frozen=True)
class ModelRecord:
    """The model's file, and the hash of its architecture and weights."""

    path: str
    content: str | None


@dataclass(frozen=True)
class FileOfInput:
    """One input file; its name may hold bytes that are no text."""

    path: InstanceOf[str]
    rows: int
    bytes: int


@dataclass(frozen=True)
class InputRecord:
    """The input, with the types of the stored columns that feed the model.

    A later input is held against ``reference``: of a delta, that of the last full input. The hashes
    ``content`` are of how it was read, and of all that was; an input with the same changes nothing.
    They are ``None`` where a row may be missing from it, or gave reason to warn.
    """

    files: tuple[FileOfInput, ...]
    statistics: InputSummary
    reference: InputSummary
    types: dict[str, str] = field(default_factory=dict)
    content: tuple[str, str] | None = None


@dataclass(frozen=True)
class Hold:
    """Since when and why nothing is published, and the version that a rollback made."""

    since: str
    reason: str
    version: int


@dataclass(frozen=True)
class Outcome:
    """What became of one target.

    Attributes:
        facts: What the target holds now, if it was brought to the version; else there is an error.
        passing: Whether the next run may bring it to the version without anything being mended.
        skipped: Whether it held the version already.
        before: The version that it held before.
        caught_up: Whether it was behind before, and holds the live version now.
    """

    name: str
    kind: str
    seconds: float
    facts: dict[str, object] | None = None
    error: str | None = None
    passing: bool = True
    skipped: bool = False
    before: int | None = None
    caught_up: bool = False

    @property
    def warnings(self) -> list[str]:
        """What a person should know of the target."""
        warnings = (self.facts or {}).get("warnings")
        return list(map(str, warnings)) if isinstance(warnings, list | tuple) else []


@dataclass(frozen=True)
class Acceptance:
    """A person's decision to publish what waited: when, who on which machine, and why."""

    at: str
    user: str | None = None
    host: str | None = None
    note: str | None = None


def _acceptance(stored: object) -> object:
    """Read an acceptance; in older records, its time alone stands there."""
    return {"at": stored} if isinstance(stored, str) else stored


@dataclass(frozen=True, kw_only=True)
class RefreshRecord:
    """What stays of a refresh, of a rollback or of a candidate; each step completes a copy of it.

    Attributes:
        base: The version that was live before.
        kind: ``load`` (the first one), ``refresh``, ``rollback`` or ``nothing to do``.
        new_space: Whether its vectors mean something else than those before.
        state: ``published``, ``waiting``, ``superseded`` or ``discarded``.
        reason: Why it waits.
        run_id: What the attempt is known by.
        finished: When it was published, or began to wait.
        restores: The version that a rollback went back to.
        space: `Identity.space_id`, as ``bits`` is `Identity.bits_id`.
        settings: What can change the low-order bits of its vectors.
        model: What predicted; ``None`` where predictions were stored already.
        norms: Count, extremes, moments and quantiles of the norms; ``None`` before there are any.
        accepted: ``None`` where nobody had to accept it.
        seconds: What each phase took.
        targets: What became of each publish target now; not kept, because a target may catch up
            later, and the state says of each what it holds.
    """

    format: Literal[1] = 1
    version: int
    base: int | None
    kind: str
    new_space: bool
    state: str
    reason: str | None = None
    run_id: str
    started: str
    finished: str | None = None
    lance_version: int | None = None
    restores: int | None = None
    space: str
    bits: str
    settings: dict[str, object]
    model: ModelRecord | None
    input: InputRecord
    warnings: tuple[str, ...]
    rows: RefreshRows
    norms: dict[str, int | float | None] | None = None
    gate: GateRecord | None = None
    accepted: Annotated[
        Acceptance | None,
        BeforeValidator(_acceptance),
        Field(exclude_if=lambda accepted: accepted is None),
    ] = None
    seconds: dict[str, float] = field(default_factory=dict)
    targets: Annotated[tuple[Outcome, ...], Field(exclude=True)] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the gate found."""
        return self.gate.findings if self.gate else ()


@dataclass(frozen=True)
class History:
    """What happened to a store: its refreshes, oldest first, and the versions that can be read."""

    kind: Literal["history"]
    path: str
    live: int | None
    hold: Hold | None
    waiting: int | None
    kept: tuple[int, ...]
    nights: tuple[RefreshRecord, ...]

    @property
    def rollbacks(self) -> list[RefreshRecord]:
        """What stays of each rollback."""
        return [record for record in self.nights if record.kind == "rollback"]
