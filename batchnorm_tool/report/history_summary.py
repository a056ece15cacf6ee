"""The terminal's table of a store's nights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from batchnorm_tool.display import visible
from batchnorm_tool.report.history_document import (
    changed_rows,
    counted,
    fate_words,
    gate_words,
    kind_words,
    norm_words,
    rows_of,
    when,
)
from batchnorm_tool.report.summary import aligned

_HEADINGS = (
    "version",
    "when (UTC)",
    "state",
    "kind",
    "model",
    "live",
    "new",
    "changed",
    "vanished",
    "norm median [5\N{EN DASH}95 %]",
)


def history_lines(document: Mapping[str, Any]) -> list[str]:
    """Summarize the nights of a store, one line each, the oldest first.

    Args:
        document: ``path``, ``live``, ``hold``, ``waiting``, ``kept`` and ``nights``, records of
            nights with the oldest first.

    Returns:
        Lines: where the store stands, then a table whose last column, the gate, may be long.
        Control characters are shown as U+FFFD.
    """
    nights = document["nights"]
    lines = [standing(document)]
    if nights:
        rows = [list(_HEADINGS), *(_cells(night, document) for night in nights)]
        gates = ["gate", *map(gate_words, nights)]
        table = (f"{line}  {gate}" for line, gate in zip(aligned(_even(rows)), gates, strict=True))
        lines += ["", *table]
    return [visible(line) for line in lines]


def standing(document: Mapping[str, Any]) -> str:
    """Say which version is live, which waits, and whether the store is on hold.

    Example:
        >>> standing({"path": "items.lance", "live": 3, "waiting": 4, "kept": [2, 3],
        ...           "hold": {"since": "2026-03-01T02:00:00+00:00", "reason": "rollback"}})
        'items.lance: version 3 is live, 4 waits, 2 kept; on hold since 2026-03-01 02:00 (rollback)'
    """
    live, waiting, hold = (document.get(name) for name in ("live", "waiting", "hold"))
    said = [f"version {live} is live" if live is not None else "no version is live"]
    if waiting is not None:
        said.append(f"{waiting} waits")
    said.append(f"{len(document['kept'])} kept")
    on_hold = ""
    if hold:
        on_hold = f"; on hold since {when({'started': hold['since']})} ({hold['reason']})"
    return f"{document['path']}: {', '.join(said)}{on_hold}"


def _cells(night: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    return [
        str(night["version"]),
        when(night),
        fate_words(night, document),
        kind_words(night),
        _model(night),
        counted(rows_of(night, "live")),
        counted(rows_of(night, "new")),
        counted(changed_rows(night)),
        counted(rows_of(night, "vanished")),
        norm_words(night),
    ]


def _model(night: Mapping[str, Any]) -> str:
    """The file of the model, and the beginning of its content's hash."""
    model = night.get("model")
    if not model:
        return "none"
    return f"{PurePath(model['path']).name} {str(model['content'])[:6]}"


def _even(rows: list[list[str]]) -> list[list[str]]:
    """Fill words up on the right and numbers on the left, to the width of their column."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_words = (False, *[True] * 4, *[False] * 4, True)
    return [
        [
            f"{cell:<{width}}" if words else f"{cell:>{width}}"
            for cell, width, words in zip(row, widths, is_words, strict=True)
        ]
        for row in rows
    ]
