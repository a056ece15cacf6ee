"""What is known of a store without opening its dataset: its state, the last night, its index."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from batchnorm_tool.store.index import read_index
from batchnorm_tool.store.state import GOOD, STALE, STATUS, index_path, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchnorm_tool.store.state import StoreFacts, StoreState


def store_facts(path: str) -> dict[str, Any]:
    """What `show` tells of a store, as plain data.

    Returns:
        ``version`` (the live one, ``None`` before the first), ``lance_version``, ``hold`` (since
        when and why nothing is published), ``waiting`` (the candidate's record in short),
        ``versions`` (the kept ones, with Lance's numbers), ``running`` (whether a refresh holds
        the store), and of the live version: ``rows`` and those of them that are ``stale``,
        ``quarantined``, ``key``, ``passthrough``, ``width``, ``dtype``, ``norm``, ``space``,
        ``norms`` (their quantiles), ``published`` (when) and ``gate`` (of its night).

    Raises:
        Damaged: The store's state is not what its checksum says.
    """
    state, facts = open_store(path)
    return {
        "version": facts.live,
        "lance_version": facts.lance_version,
        "hold": facts.hold,
        "waiting": _waiting(state, facts),
        "versions": {str(version): lance for version, lance in sorted(facts.versions.items())},
        "running": state.storage.is_locked(),
        **(_live(state, facts) if facts.live is not None else {"rows": 0}),
    }


def _waiting(state: StoreState, facts: StoreFacts) -> dict[str, Any] | None:
    record = None if facts.waiting is None else state.record(facts.waiting)
    return None if record is None else _picked(record, "version", "reason", "started", "gate")


def _picked(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


def _live(state: StoreState, facts: StoreFacts) -> dict[str, Any]:
    """What holds of the live version."""
    layout = facts.layout
    assert facts.live is not None  # noqa: S101  (whoever calls this has looked)
    assert layout is not None  # noqa: S101  (a live version has one)
    record = state.record(facts.live) or {}
    return {
        **_counts(state, facts.live),
        "key": list(layout.keys),
        "passthrough": list(layout.passthrough),
        "width": layout.width,
        "dtype": layout.dtype,
        "norm": layout.norm_label,
        **_picked(record, "space", "norms", "gate"),
        "published": record.get("finished"),
    }


def _counts(state: StoreState, version: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in read_index(state.storage, index_path(version), [STATUS]):
        for each in table[STATUS].value_counts().to_pylist():
            counts[each["values"]] += each["counts"]
    stale = sum(count for word, count in counts.items() if word.startswith(STALE))
    live = stale + counts[GOOD]
    return {"rows": live, "stale": stale, "quarantined": counts.total() - live}
