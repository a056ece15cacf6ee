"""What the summaries and the page of a store's history look up in its JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchnorm_tool.report.scale import count, number

DASH = "\N{EN DASH}"
QUANTILES = ("q05", "q25", "q50", "q75", "q95")

FATES = ("live", "kept", "rolled back", "removed", "waiting", "not published")
"""What can have become of a night, in the order in which a chart shows it."""

_NOT_PUBLISHED = {"superseded", "discarded"}
_SCOPES = {"input": "input", "changed": "changed rows", "whole": "all rows", "audit": "audit"}


def fate(night: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return what became of a night, one of `FATES`.

    Args:
        night: One of the document's nights.
        document: The whole history.

    Example:
        >>> nights = [{"version": v, "state": "published", "kind": "load"} for v in (1, 2)]
        >>> nights.append({"version": 3, "state": "published", "kind": "rollback", "restores": 1})
        >>> history = {"live": 3, "kept": [1, 2, 3], "nights": nights}
        >>> [fate(night, history) for night in nights]
        ['kept', 'rolled back', 'live']
    """
    version = night["version"]
    if version == document["live"]:
        return "live"
    if night["state"] == "waiting":
        return "waiting"
    if night["state"] in _NOT_PUBLISHED:
        return "not published"
    if any(low < version < high for low, high in _rollbacks(document)):
        return "rolled back"
    return "kept" if version in document["kept"] else "removed"


def _rollbacks(document: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for night in document["nights"]:
        if night["kind"] == "rollback":
            yield night["restores"], night["version"]


def fate_words(night: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return what became of a night, with the reason where it waits or never was published."""
    its = fate(night, document)
    if its == "waiting" and night.get("reason"):
        return f"waiting ({night['reason']})"
    if its == "rolled back" and night["version"] in document["kept"]:
        return "rolled back, kept"
    return str(night["state"]) if its == "not published" else its


def kind_words(night: Mapping[str, Any]) -> str:
    """Return the kind of a night.

    Example:
        >>> kind_words({"kind": "rollback", "restores": 3})
        'rollback to 3'
        >>> kind_words({"kind": "refresh", "new_space": True})
        'refresh, new space'
    """
    if night["kind"] == "rollback":
        return f"rollback to {night['restores']}"
    return f"{night['kind']}, new space" if night.get("new_space") else str(night["kind"])


def when(night: Mapping[str, Any]) -> str:
    """Return when a night began, to the minute, in UTC.

    Example:
        >>> when({"started": "2026-03-01T02:00:31.5+00:00"})
        '2026-03-01 02:00'
    """
    return str(night["started"])[:16].replace("T", " ")


def rows_of(night: Mapping[str, Any], name: str) -> int | None:
    """Return a count of a night's rows; ``None`` where it has none."""
    found: int | None = (night.get("rows") or {}).get(name)
    return found


def counted(value: int | None) -> str:
    """Return a count, a dash where there is none."""
    return DASH if value is None else count(value)


def changed_rows(night: Mapping[str, Any]) -> int | None:
    """Return how many rows a night computed again: changed ones and all others that it had to."""
    found = [rows_of(night, name) for name in ("changed", "recomputed")]
    known = [rows for rows in found if rows is not None]
    return sum(known) if known else None


def quantile(night: Mapping[str, Any], name: str) -> float:
    """Return a quantile of a night's norms; NaN where there is none."""
    value = (night.get("norms") or {}).get(name)
    return math.nan if value is None else float(value)


def norm_words(night: Mapping[str, Any]) -> str:
    """Return the median of a night's norms, and what 90 % of them lie between.

    Example:
        >>> norm_words({"norms": {"q05": 0.5, "q50": 1.0, "q95": 2.0}})
        '1.000 [0.5000\u20132.000]'
    """
    low, middle, high = (quantile(night, name) for name in ("q05", "q50", "q95"))
    if math.isnan(middle):
        return DASH
    return f"{number(middle)} [{number(low)}{DASH}{number(high)}]"


def findings_of(night: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what the gate found in a night."""
    return (night.get("gate") or {}).get("findings") or []


def broken_of(night: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the findings of a night that are beyond their limits."""
    return [finding for finding in findings_of(night) if not finding["passed"]]


def finding_name(finding: Mapping[str, Any]) -> str:
    """Name a limit and what it was held against, as short as can be.

    Example:
        >>> finding_name({"limit": "gate.output.norm_psi", "scope": "changed"})
        'norm_psi (changed rows)'
    """
    scope = str(finding["scope"])
    return f"{str(finding['limit']).rpartition('.')[2]} ({_SCOPES.get(scope, scope)})"


def gate_words(night: Mapping[str, Any]) -> str:
    """Return what the gate said of a night.

    Example:
        >>> finding = {"limit": "gate.input.changed", "scope": "input", "passed": False}
        >>> gate_words({"gate": {"action": "hold", "findings": [finding]}})
        'held: changed (input)'
        >>> gate_words({"gate": {"action": "hold", "findings": []}})
        'passed'
    """
    if not night.get("gate"):
        return DASH
    names = [finding_name(finding) for finding in broken_of(night)]
    if not names:
        return "passed"
    verb = "warned" if night["gate"].get("action") == "warn" else "held"
    return f"{verb}: {', '.join(names)}"
