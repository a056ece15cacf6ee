"""The terminal's summary of one night: its rows, norms, gate and targets, and what to do next."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from batchnorm_tool.display import NAME_WIDTH, count, cut, entry, plural, table, visible, wrapped
from batchnorm_tool.gate.findings import describe_row
from batchnorm_tool.report.figures import (
    FindingEntry,
    HistoryDocument,
    ShownRecord,
    broken_of,
    changed_rows,
    counted,
    describe_gate,
    describe_kind,
    describe_norms,
    describe_outcome,
    finding_name,
    findings_of,
    rows_of,
    when,
)

_ROWS = 5
_INPUT_KINDS = ("new", "changed", "recomputed", "touched", "same", "vanished")
_OUTPUT_KINDS = ("predicted", "reused", "stale", "quarantined")
_WHY = {
    "gate": "the gate rejected it",
    "hold": "the store is on hold",
    "new space": "its vectors are in a new space, and queries must switch to the new model",
}
# To the left what is words, to the right what is numbers.
_SIDES = "rllllrrrrll"


def refresh_lines(
    record: ShownRecord,
    width: int = 72,
    targets: Sequence[Mapping[str, Any]] = (),
    store: str = "STORE",
) -> list[str]:
    """Summarize a night, a rollback or a candidate; control characters are shown as U+FFFD."""
    lines = wrapped(_headline(record), width)
    for name, words in _facts(record):
        lines += entry(name, words, width)
    lines += _gate(record, width)
    for target in targets:
        lines += entry("target", _target(target), width)
    warned = [(target.get("facts") or {}).get("warnings") or [] for target in targets]
    for warning in [*(record.get("warnings") or []), *itertools.chain(*warned)]:
        lines += entry("warning", str(warning), width)
    lines += _next(record, targets, store, width)
    return [visible(line) for line in lines]


def dry_run_lines(
    rows: Mapping[str, int], findings: Sequence[FindingEntry] = (), width: int = 72
) -> list[str]:
    """Say what a night would change.

    Example:
        >>> print(*dry_run_lines({"in": 100, "new": 2, "changed": 1, "same": 97, "vanished": 0}),
        ...       sep=chr(10))
        Dry run: nothing was written; 3 rows would go through the model.
        rows        100 in: 2 new, 1 changed, 97 same, 0 vanished
    """
    model = sum(rows.get(kind, 0) for kind in ("new", "changed", "recomputed"))
    headline = f"Dry run: nothing was written; {plural(model, 'row')} would go through the model."
    record: ShownRecord = {"rows": rows, "gate": {"findings": findings} if findings else None}
    lines = [*wrapped(headline, width), *entry("rows", _input_rows(record), width)]
    return [visible(line) for line in [*lines, *_gate(record, width)]]


def _headline(record: ShownRecord) -> str:
    version, state = record["version"], record["state"]
    if state == "waiting":
        why = _WHY.get(str(record.get("reason")), "it needs a decision")
        return f"Version {version} is waiting and was not published: {why}."
    if state != "published":
        return f"Version {version} was {state}; it was never published."
    live = rows_of(record, "live")
    rows = "" if live is None else f" with {plural(live, 'row')}"
    if record["kind"] == "rollback":
        return f"Version {version} is live{rows}: it restores version {record['restores']}."
    return f"Version {version} is live{rows}."


def _facts(record: ShownRecord) -> Iterator[tuple[str, str]]:
    rows = "" if record["kind"] == "rollback" else _input_rows(record)
    if rows:
        yield "rows", rows
    computed = _kinds(record, _OUTPUT_KINDS, zeros=False)
    if computed:
        yield "vectors", computed
    if record.get("norms"):
        yield "norms", f"median {describe_norms(record)}"
    seconds = record.get("seconds") or {}
    if seconds:
        spent = (f"{phase} {value:,.1f} s" for phase, value in seconds.items() if value is not None)
        yield "time", ", ".join(spent)


def _input_rows(record: ShownRecord) -> str:
    rows_in = rows_of(record, "in")
    kinds = _kinds(record, _INPUT_KINDS, zeros=True)
    return f"{count(rows_in)} in: {kinds}" if rows_in is not None else kinds


def _kinds(record: ShownRecord, kinds: Sequence[str], *, zeros: bool) -> str:
    found = ((kind, rows_of(record, kind)) for kind in kinds)
    # Kinds that are rare are named only where there are any.
    rare = {"recomputed", "touched"}
    return ", ".join(
        f"{count(rows)} {kind}"
        for kind, rows in found
        if rows or (rows == 0 and zeros and kind not in rare)
    )


def _gate(record: ShownRecord, width: int) -> list[str]:
    gate = record.get("gate")
    if not gate:
        return []
    broken, findings = broken_of(record), findings_of(record)
    judged = sum(finding["measured"] is not None or not finding["passed"] for finding in findings)
    if not broken:
        return entry("gate", f"passed, {plural(judged, 'limit')} checked", width)
    warned = ", published anyway (`gate.action: warn`)" if gate.get("action") == "warn" else ""
    lines = entry("gate", f"{len(broken)} of {plural(judged, 'limit')} broken{warned}", width)
    for finding in broken:
        lines += wrapped(f"- {finding_name(finding)}: {finding['what']}", width, "  ", NAME_WIDTH)
        rows = (finding.get("rows") or [])[:_ROWS]
        lines += [
            f"{' ' * (NAME_WIDTH + 4)}{cut(describe_row(row), width - NAME_WIDTH - 4)}"
            for row in rows
        ]
    return lines


def _target(target: Mapping[str, Any]) -> str:
    if target.get("error"):
        return f"{target['name']}: failed: {target['error']}"
    facts = target.get("facts") or {}
    version = f" holds version {facts['version']}" if "version" in facts else " is up to date"
    seconds = target.get("seconds")
    return f"{target['name']}{version}" + ("" if seconds is None else f", {seconds:,.1f} s")


def _next(
    record: ShownRecord, targets: Sequence[Mapping[str, Any]], store: str, width: int
) -> list[str]:
    version, steps = record["version"], []
    if record["state"] == "waiting":
        steps.append(f"`batchnorm-tool accept {store} {version}` publishes it unchanged")
        if record.get("reason") == "gate":
            steps.append("to replace it, fix the input or the model and run the same command again")
        elif record.get("reason") == "hold":
            steps.append(f"`batchnorm-tool release {store}` ends the hold")
    elif record["kind"] == "rollback" and record["state"] == "published":
        steps.append(
            f"nothing is published until `batchnorm-tool release {store}`, or `accept` of a version"
        )
    if any(target.get("error") for target in targets):
        steps.append("fix the failed target; the next refresh updates it")
    return [line for step in steps for line in entry("next", step, width)]


def history_lines(document: HistoryDocument) -> list[str]:
    """Summarize the nights of a store, one line each, the oldest first."""
    records = document["nights"]
    lines = [describe_store(document)]
    if records:
        rows = [table_row(record, document) for record in records]
        lines += ["", *table([list(rows[0]), *(list(row.values()) for row in rows)], _SIDES)]
    return [visible(line) for line in lines]


def describe_store(document: HistoryDocument) -> str:
    """Say which version is live, which waits, and whether the store is on hold.

    Example:
        >>> describe_store({"path": "items", "live": 3, "waiting": 4, "kept": [2, 3],
        ...           "hold": {"since": "2026-03-01T02:00:00+00:00", "reason": "rollback"}})
        'items: version 3 is live, 4 is waiting, 2 kept; on hold since 2026-03-01 02:00 (rollback)'
    """
    live, waiting, hold = document["live"], document.get("waiting"), document.get("hold")
    said = [f"version {live} is live" if live is not None else "no version is live"]
    if waiting is not None:
        said.append(f"{waiting} is waiting")
    said.append(f"{len(document['kept'])} kept")
    on_hold = ""
    if hold:
        on_hold = f"; on hold since {when({'started': hold['since']})} ({hold['reason']})"
    return f"{document['path']}: {', '.join(said)}{on_hold}"


def table_row(record: ShownRecord, document: HistoryDocument) -> dict[str, str]:
    """Return what a table says of a night, by the headings of its columns."""
    return {
        "version": str(record["version"]),
        "when (UTC)": when(record),
        "state": describe_outcome(record, document),
        "kind": describe_kind(record),
        "model": _model(record),
        "live": counted(rows_of(record, "live")),
        "new": counted(rows_of(record, "new")),
        "changed": counted(changed_rows(record)),
        "vanished": counted(rows_of(record, "vanished")),
        "norm median [5\N{EN DASH}95 %]": describe_norms(record),
        "gate": describe_gate(record),
    }


def _model(record: ShownRecord) -> str:
    """Return the file of the model, and the beginning of its content's hash."""
    model = record.get("model")
    if not model:
        return "none"
    return f"{PurePath(model['path']).name} {str(model['content'])[:6]}"
