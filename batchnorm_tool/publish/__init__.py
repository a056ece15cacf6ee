"""Publish targets beside a store, one module and one registry line each; delivery to them.

A target is a class that is made of its section of the job and keeps the promises of
`batchnorm_tool.publish.base.Target`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.errors import BatchnormToolError, Interrupted, WorkFailed
from batchnorm_tool.gate.record import Outcome
from batchnorm_tool.job import Publish
from batchnorm_tool.publish.base import Facts, Target
from batchnorm_tool.registry import TARGETS, load
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store.state import TARGETS_DIRECTORY, StoreSchema, Unfit

if TYPE_CHECKING:
    from batchnorm_tool.store.version_changes import Publication

__all__ = ["open_target"]


def open_target(section: Publish) -> Target:
    """Return the target of a section; its place is not touched."""
    target: Target = load(TARGETS, section.to)(section)
    return target


@dataclass(frozen=True)
class TargetNote(SealedRecord):
    """What a target held when it was last written, and where that was."""

    kind: str
    place: str
    facts: Facts


def check_targets(sections: Iterable[Publish]) -> None:
    """Find what a target misses before anything is published; no place is touched."""
    for section in sections:
        open_target(section).check()


def check_layout(sections: Iterable[Publish], layout: StoreSchema) -> None:
    """Find columns that a target cannot take, before anything is published."""
    for section in sections:
        open_target(section).check_layout(layout)


def find_unfit(sections: Iterable[Publish], keys: Sequence[str], table: pa.Table) -> Unfit | None:
    """Return the first value that a target cannot take."""
    found = (open_target(section).find_unfit(table, keys) for section in sections)
    return next(filter(None, found), None)


def lagging(sections: Iterable[Publish], storage: Storage, version: int) -> list[str]:
    """Return the names of the targets that are not known to hold a version."""
    targets = [open_target(section) for section in sections]
    return [target.name for target in targets if not _holds(_held(target, storage), version)]


def deliver(
    publication: Publication, sections: Iterable[Publish], storage: Storage
) -> list[Outcome]:
    """Bring every target to a version; one that fails does not keep the others from it.

    Args:
        publication: The live version.
        sections: The items of ``publish``.
        storage: The store's state, which remembers what each target holds. Whoever calls this
            holds its lock.
    """
    return [_deliver(publication, open_target(section), storage) for section in sections]


def _deliver(publication: Publication, target: Target, storage: Storage) -> Outcome:
    start = time.monotonic()
    held = _held(target, storage)
    if _holds(held, publication.version):
        return Outcome(target.name, target.kind, 0.0, held, skipped=True)
    try:
        facts = target.publish(publication, held)
        _remember(target, storage, facts)
    except Interrupted:
        raise
    except BatchnormToolError as error:
        seconds = time.monotonic() - start
        passing = error.exit_code == WorkFailed.exit_code
        return Outcome(target.name, target.kind, seconds, error=error.message, passing=passing)
    return Outcome(target.name, target.kind, time.monotonic() - start, facts)


def _holds(held: Facts | None, version: int) -> bool:
    return held is not None and held.get("version") == version


def _note_path(target: Target) -> str:
    return f"{TARGETS_DIRECTORY}/{target.name}.json"


def _held(target: Target, storage: Storage) -> Facts | None:
    """Return what the target held when it was last written; another place holds nothing yet."""
    # A note that is damaged is no note: the target is then written whole.
    note = TargetNote.from_json(storage.get(_note_path(target)))
    is_its = note is not None and (note.kind, note.place) == (target.kind, target.place)
    return note.facts if note is not None and is_its else None


def _remember(target: Target, storage: Storage, facts: Facts) -> None:
    note = TargetNote(target.kind, target.place, facts)
    storage.put(_note_path(target), note.to_json())
