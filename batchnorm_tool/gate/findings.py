"""What one limit measured, and what a person reads when a limit is broken."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import PlainSerializer

from batchnorm_tool.display import plural
from batchnorm_tool.errors import Lines
from batchnorm_tool.norms.stats import finite_or_none

Scope = Literal["input", "changed", "whole", "audit"]
Key = dict[str, bool | int | str]
# What JSON has no number for is None there.
Number = Annotated[float | None, PlainSerializer(finite_or_none)]
SHOWN_ROWS = 5
"""Rows that a finding names, at most."""

_SCOPES = {
    "input": "the input",
    "changed": "the changed rows",
    "whole": "all rows",
    "audit": "the staged rows",
}
_AUDIT = (
    "Next: audit findings cannot be accepted with `batchnorm-tool accept`; fix the cause and run "
    "the same command again. If the input is right, this is a bug in batchnorm_tool: please report "
    "it."
)
_WAYS_ON = (
    "Next: if these values are right, `{}` publishes this version; if not, fix the input or the "
    "model, or change the limit, and run the same command again."
)


@dataclass(frozen=True)
class MeasuredRow:
    """A row that a finding names, and what was measured of it; ``None`` where it is not finite."""

    key: Key
    value: float | None


@dataclass(frozen=True)
class FaultyRow:
    """A row that a finding names, and why it is bad."""

    key: Key
    reason: str


@dataclass(frozen=True)
class Finding:
    """What one limit measured: its key in the job file, or ``audit.…`` for what nothing turns off.

    ``measured`` is ``None`` where it was not judged, which passes, or is beyond any number;
    ``allowed`` is the largest value that passes, ``what`` a sentence with the numbers, and ``rows``
    are the worst.
    """

    limit: str
    scope: Scope
    measured: Number
    allowed: Number
    passed: bool
    what: str
    rows: tuple[MeasuredRow | FaultyRow, ...] = ()


def not_evaluated(limit: str, scope: Scope, allowed: float | None, why: str) -> Finding:
    """Return the finding of a limit that could not be judged, and passes."""
    return Finding(limit, scope, None, allowed, passed=True, what=f"Not checked: {why}.")


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings beyond their limits, in order."""
    return [finding for finding in findings if not finding.passed]


def refusal_text(findings: Iterable[Finding], accept: str) -> str:
    """Say which limits are broken, by how much, with the worst rows, and how to go on.

    The command ``accept`` publishes the candidate, unless the audit found something.
    """
    wrong = broken(findings)
    named = [line for finding in wrong for line in _finding_lines(finding)]
    is_audit = any(finding.scope == "audit" for finding in wrong)
    next_step = _AUDIT if is_audit else _WAYS_ON.format(accept)
    return Lines(f"{plural(len(wrong), 'limit')} broken; nothing was published.", *named, next_step)


def _finding_lines(finding: Finding) -> list[str]:
    rows = [f"    {describe_row(row)}" for row in finding.rows[:SHOWN_ROWS]]
    return [f"- {finding.limit} over {_SCOPES[finding.scope]}: {finding.what}", *rows]


def describe_row(row: MeasuredRow | FaultyRow) -> str:
    """Name one of a finding's rows, with its value or the reason why it is bad."""
    key = ", ".join(f"{column} {value}" for column, value in row.key.items())
    if isinstance(row, FaultyRow):
        return f"{key or 'a row'}: {row.reason}"
    return f"{key or 'a row'}: {'not finite' if row.value is None else f'{row.value:.4g}'}"
