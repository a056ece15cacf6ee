"""What is said of refreshes: the terminal's summary and history, and the words that pages share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from batchnorm_tool import display
from batchnorm_tool.display import DASH, NAME_WIDTH, count, entry, number, plural, wrapped
from batchnorm_tool.gate.findings import describe_row
from batchnorm_tool.gate.record import (
    WAITING,
    Acceptance,
    GateRecord,
    History,
    Outcome,
    RefreshRecord,
)
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.report.figures import real

_ROWS = 5
_INPUT_KINDS = ("new", "changed", "recomputed", "touched", "same", "vanished")
_OUTPUT_KINDS = ("predicted", "reused", "stale", "quarantined")
_WHY = {
    "gate": "the gate rejected it",
    "audit": "the audit found a fault in the staged rows",
    "hold": "the store is on hold",
    "new space": "its vectors are in a new space, and queries must switch to the new model",
}
# To the left what is words, to the right what is numbers.
_SIDES = "rllllrrrrll"
OUTCOMES = ("live", "kept", "rolled back", "removed", "waiting", "not published")
"""What can have become of a refresh, in the order in which a chart shows it."""
_NOT_PUBLISHED = {"superseded", "discarded"}
_SCOPES = {"input": "input", "changed": "changed rows", "whole": "all rows", "audit": "audit"}


def refresh_lines(record: RefreshRecord, width: int = 72, store: str = "STORE") -> list[str]:
    """Summarize a refresh, a rollback or a candidate; control characters are shown as U+FFFD."""
    lines = wrapped(_headline(record), width)
    for name, words in _facts(record):
        lines += entry(name, words, width)
    lines += _gate(record.gate, width, waits=record.state == WAITING)
    if record.accepted is not None:
        lines += entry("accepted", describe_acceptance(record.accepted), width)
    lines += target_lines(record.targets, width)
    warned = itertools.chain(*(target.warnings for target in record.targets))
    for warning in [*record.warnings, *warned]:
        lines += entry("warning", warning, width)
    lines += _next(record, store, width)
    return [display.visible(line) for line in lines]


def dry_run_lines(rows: RefreshRows, gate: GateRecord | None = None, width: int = 72) -> list[str]:
    """Say what a refresh would change."""
    model = plural(rows.new + rows.computed, "row")
    headline = (
        f"Dry run: nothing was written; at most {model} would go through the model. Limits on "
        "vectors are checked after it."
    )
    lines = [*wrapped(headline, width), *entry("rows", _input_rows(rows), width)]
    return [display.visible(line) for line in [*lines, *_gate(gate, width)]]


def _headline(record: RefreshRecord) -> str:
    version = record.version
    if record.state == "waiting":
        why = _WHY.get(str(record.reason), "it needs a decision")
        return f"Version {version} is waiting and was not published: {why}."
    if record.state != "published":
        return f"Version {version} was {record.state}; it was never published."
    restored = f": it restores version {record.restores}" if record.kind == "rollback" else ""
    return f"Version {version} is live with {plural(record.rows.live, 'row')}{restored}."


def _facts(record: RefreshRecord) -> Iterator[tuple[str, str]]:
    if record.kind != "rollback":
        yield "rows", _input_rows(record.rows)
    if computed := _kinds(record.rows, _OUTPUT_KINDS, zeros=False):
        yield "vectors", computed
    if record.norms:
        yield "norms", f"median {_norms(record)}"
    if record.seconds:
        spent = (f"{phase} {value:,.1f} s" for phase, value in record.seconds.items())
        yield "time", f"{sum(record.seconds.values()):,.1f} s: {', '.join(spent)}"


def _input_rows(rows: RefreshRows) -> str:
    return f"{count(rows.rows_in)} in: {_kinds(rows, _INPUT_KINDS, zeros=True)}"


def _kinds(rows: RefreshRows, kinds: Sequence[str], *, zeros: bool) -> str:
    found = ((kind, getattr(rows, kind)) for kind in kinds)
    # Kinds that are rare are named only where there are any.
    rare = {"recomputed", "touched"}
    return ", ".join(
        f"{count(amount)} {kind}"
        for kind, amount in found
        if amount or (zeros and kind not in rare)
    )


def _gate(gate: GateRecord | None, width: int, *, waits: bool = False) -> list[str]:
    if gate is None or not gate.findings:
        return []
    judged = sum(each.measured is not None or not each.passed for each in gate.findings)
    if not gate.broken:
        return entry("gate", f"passed, {plural(judged, 'limit')} checked", width)
    warned = ""
    if gate.action == "warn":
        warned = f"{'' if waits else ', published anyway'} (`gate.action: warn`)"
    lines = entry("gate", f"{len(gate.broken)} of {plural(judged, 'limit')} broken{warned}", width)
    for finding in gate.broken:
        name = finding_name(finding.limit, finding.scope)
        lines += wrapped(f"- {name}: {finding.what}", width, "  ", NAME_WIDTH)
        lines += [
            f"{' ' * (NAME_WIDTH + 4)}{display.cut(describe_row(row), width - NAME_WIDTH - 4)}"
            for row in finding.rows[:_ROWS]
        ]
    return lines


def target_lines(targets: Iterable[Outcome], width: int) -> list[str]:
    """Say what became of each target."""
    return [line for target in targets for line in entry("target", _target(target), width)]


def _target(target: Outcome) -> str:
    if target.error:
        return f"{target.name}: failed: {target.error}"
    version = (target.facts or {}).get("version")
    if target.caught_up:
        return (
            f"{target.name} was behind and has caught up: version {target.before} → {version}, "
            f"{target.seconds:,.1f} s"
        )
    holds = " is up to date" if version is None else f" holds version {version}"
    return f"{target.name}{holds}, {target.seconds:,.1f} s"


def _next(record: RefreshRecord, store: str, width: int) -> list[str]:
    version, steps = record.version, []
    if record.state == "waiting" and record.reason == "audit":
        steps.append(
            "`batchnorm-tool accept` cannot publish it: fix the cause and run the same command "
            "again; if the input is right, this is a bug: please report it"
        )
    elif record.state == "waiting":
        steps.append(f"`batchnorm-tool accept {store} {version}` publishes it unchanged")
        if record.reason == "gate":
            steps.append("to replace it, fix the input or the model and run the same command again")
        elif record.reason == "hold":
            steps.append(f"`batchnorm-tool release {store}` ends the hold")
    elif record.kind == "rollback" and record.state == "published":
        steps.append(
            f"nothing is published until `batchnorm-tool release {store}`, or `accept` of a version"
        )
    if any(target.error for target in record.targets):
        steps.append("fix the failed target; the next refresh updates it")
    return [line for step in steps for line in entry("next", step, width)]


def history_lines(history: History) -> list[str]:
    """Summarize the versions of a store, one line each, the oldest first."""
    lines = [describe_store(history)]
    if history.nights:
        rows = [table_row(record, history) for record in history.nights]
        cells = [[*rows[0]], *([*row.values()] for row in rows)]
        lines += ["", *display.table(cells, _SIDES)]
    said = [
        f"version {record.version} accepted {describe_acceptance(record.accepted)}"
        for record in history.nights
        if record.accepted is not None
    ]
    lines += ["", *said] if said else []
    return [display.visible(line) for line in lines]


def describe_acceptance(accepted: Acceptance) -> str:
    """Say when a person accepted a version, who, where, and why."""
    place = f" on {accepted.host}" if accepted.host else ""
    who = f" by {accepted.user}{place}" if accepted.user else ""
    return f"{minute(accepted.at)}{who}{f': {accepted.note}' if accepted.note else ''}"


def describe_store(history: History) -> str:
    """Say which version is live, which waits, and whether the store is on hold."""
    live, hold = history.live, history.hold
    said = [f"version {live} is live" if live is not None else "no version is live"]
    if history.waiting is not None:
        said.append(f"{history.waiting} is waiting")
    said.append(f"{len(history.kept)} kept")
    on_hold = f"; on hold since {minute(hold.since)} ({hold.reason})" if hold else ""
    return f"{history.path}: {', '.join(said)}{on_hold}"


def table_row(record: RefreshRecord, history: History) -> dict[str, str]:
    """Return what a table says of a refresh, by the headings of its columns."""
    rows, model = record.rows, record.model
    kind = f"{record.kind}, new space" if record.new_space else record.kind
    return {
        "version": str(record.version),
        "when (UTC)": minute(record.started),
        "state": _state(record, history),
        "kind": f"rollback to {record.restores}" if record.kind == "rollback" else kind,
        "model": f"{PurePath(model.path).name} {str(model.content)[:6]}" if model else "none",
        "live": count(rows.live),
        "new": count(rows.new),
        "changed": count(rows.computed),
        "vanished": count(rows.vanished),
        "norm median [5\N{EN DASH}95 %]": _norms(record),
        "gate": _findings(record),
    }


def outcome(record: RefreshRecord, history: History) -> str:
    """Return what became of a refresh, one of `OUTCOMES`."""
    version = record.version
    if version == history.live:
        return "live"
    if record.state == "waiting":
        return "waiting"
    if record.state in _NOT_PUBLISHED:
        return "not published"
    if any((its.restores or 0) < version < its.version for its in history.rollbacks):
        return "rolled back"
    return "kept" if version in history.kept else "removed"


def _state(record: RefreshRecord, history: History) -> str:
    """Return what became of a refresh, with the reason where it waits or never was published."""
    its = outcome(record, history)
    if its == "waiting" and record.reason:
        return f"waiting ({record.reason})"
    if its == "rolled back" and record.version in history.kept:
        return "rolled back, kept"
    return record.state if its == "not published" else its


def minute(time: str) -> str:
    """Return a time to the minute, in UTC."""
    return time[:16].replace("T", " ")


def quantile(record: RefreshRecord, name: str) -> float:
    """Return a quantile of a refresh's norms; NaN where there is none."""
    return real((record.norms or {}).get(name))


def _norms(record: RefreshRecord) -> str:
    """Return the median of a refresh's norms, and what 90 % of them lie between."""
    low, middle, high = (quantile(record, name) for name in ("q05", "q50", "q95"))
    if math.isnan(middle):
        return DASH
    return f"{number(middle)} [{number(low)}{DASH}{number(high)}]"


def finding_name(limit: str, scope: str) -> str:
    """Name a limit and what it was held against, as short as can be."""
    return f"{limit.rpartition('.')[2]} ({_SCOPES.get(scope, scope)})"


def _findings(record: RefreshRecord) -> str:
    """Return what the gate said of a refresh, and a person of that."""
    gate = record.gate
    if gate is None:
        return DASH
    names = [finding_name(finding.limit, finding.scope) for finding in gate.broken]
    if not names:
        return "passed"
    held = "held" if record.accepted is None else "accepted"
    return f"{'warned' if gate.action == 'warn' else held}: {', '.join(names)}"
