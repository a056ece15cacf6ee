"""Records of refreshes, and histories, made of what a test says of them."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

from batchnorm_tool.gate.record import History, RefreshRecord
from batchnorm_tool.store.state import StoreDirectory

_T = TypeVar("_T")
_SUMMARY: dict[str, Any] = {"columns": {}, "inputs": {}, "sampled_every": 8}
_COUNTS = ("in", "new", "changed", "touched", "same", "vanished", "recomputed")
_RECORD: dict[str, Any] = {
    "version": 1,
    "base": None,
    "kind": "refresh",
    "new_space": False,
    "state": "published",
    "run_id": "1",
    "started": "2026-03-01T02:00:00+00:00",
    "space": "ab" * 32,
    "bits": "cd" * 32,
    "settings": {},
    "model": None,
    "warnings": [],
}


def typed(kind: type[_T], data: object) -> _T:
    """Read plain data."""
    return TypeAdapter(kind).validate_json(json.dumps(data))


def _completed(given: dict[str, Any]) -> dict[str, Any]:
    source = {"files": [], "statistics": _SUMMARY, "reference": _SUMMARY}
    rows = dict.fromkeys(_COUNTS, 0) | given.get("rows", {})
    return {**_RECORD, **given, "rows": rows, "input": source}


def stored_record(state: StoreDirectory, version: int) -> dict[str, Any] | None:
    """Read the record of a version as plain data."""
    record = state.record(version)
    return record and record.to_dict()


def record_of(**given: Any) -> RefreshRecord:
    """Complete a record, as plain data, with what goes without saying."""
    return typed(RefreshRecord, _completed(given))


def history_of(document: dict[str, Any]) -> History:
    """Complete the records of a history, as plain data."""
    return typed(History, document | {"nights": [_completed(each) for each in document["nights"]]})
