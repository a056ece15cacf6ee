"""Publish targets beside a store: what each of them promises, and how versions are brought to them.

A target is a module of its own and one registry line: a class derived from `Target`, made of its
section of the job.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from batchnorm_tool import errors
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import BatchnormToolError, Interrupted, JobError, WorkFailed
from batchnorm_tool.gate.record import Outcome
from batchnorm_tool.job import Engine
from batchnorm_tool.job.refresh_sections import Publish
from batchnorm_tool.registry import TARGETS, load
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import SealedRecord
from batchnorm_tool.store import state
from batchnorm_tool.store.rows import Publication
from batchnorm_tool.store.state import StoreSchema, Unfit

Facts = dict[str, object]


class Target(ABC):
    """A place outside the store that is brought to each published version.

    `publish` may be killed at any point and called again, with the same or a later version: it
    ends in the same state as if nothing had happened. Its readers see one version or the other.

    Attributes:
        section: The class of what the job says of it.
        name: The target's name in the job.
        kind: Its key in `batchnorm_tool.registry.TARGETS`.
        place: Where it is, without anything secret: another place holds nothing yet.
    """

    section: ClassVar[type[Publish]] = Publish
    name: str
    kind: str
    place: str

    def __init__(self, section: Publish) -> None:
        self.name, self.kind = section.label, section.to

    def check(self) -> None:  # noqa: B027  (most need nothing)
        """Look for what `publish` will need, without touching the place.

        Raises:
            JobError: A library, a setting or a right is missing.
        """

    def check_layout(self, layout: StoreSchema) -> None:  # noqa: B027
        """Refuse columns that the target cannot have."""

    def prepare(self, contract: Contract, engine: Engine) -> bool:  # noqa: ARG002
        """Do what may be refused before a version with a contract is published.

        Returns:
            Whether the newest version of the same space that it holds has to be written again.
        """
        return False

    def find_unfit(self, table: pa.Table, keys: Sequence[str]) -> Unfit | None:  # noqa: ARG002
        """Return the first value of keys and passed-through columns that the target cannot take."""
        return None

    @abstractmethod
    def publish(self, publication: Publication, held: Facts | None) -> Facts:
        """Bring the target to a version, from what the last `publish` that succeeded returned.

        Where ``held`` is ``None``, nothing is known, and all rows are written. It returns plain
        data with ``version``, ``rows`` and ``warnings`` at least.

        Raises:
            WorkFailed: It did not work; the message names the target and the next step.
            OutputError: Likewise, and running it again will not help.
        """

    def check_libraries(self, *names: str) -> None:
        """Refuse to go on without libraries; an extra that is called as the kind installs them."""
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            raise JobError(
                f"`publish`: target `{self.name}` needs {' and '.join(missing)}, which cannot be "
                f"imported. Install it with `pip install 'batchnorm-tool[{self.kind}]'`."
            )

    def check_path(self, *, is_file: bool = False) -> None:
        """Refuse a place that is on no local disk, or where something else lies."""
        place = Path(self.place)
        if place.is_dir() if is_file else place.is_file():
            wanted, found = ("a file", "a directory") if is_file else ("a directory", "a file")
            raise JobError(
                f"`publish`: target `{self.name}` needs {wanted} in `path`. Received: "
                f"`{self.place}`, which is {found}. Choose another path."
            )
        if "://" in self.place:
            raise JobError(
                f"`publish`: target `{self.name}` writes to a local path in this version. "
                f"Expected `path` without a scheme. Received: `{self.place}`. Write to a local "
                "path and copy it from there."
            )

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Map what goes wrong in the target to an error that names it."""
        try:
            yield
        except Interrupted:
            raise
        except (BatchnormToolError, OSError, pa.ArrowException, ValueError, ArithmeticError) as one:
            ours = one if isinstance(one, BatchnormToolError) else errors.explained(one)
            may_help = isinstance(ours, WorkFailed | errors.Busy)
            raise (WorkFailed if may_help else errors.OutputError)(
                f"publish target `{self.name}`: {ours.message} The store itself is published; once "
                "the cause is fixed, the next `refresh` updates this target."
            ) from one


def published_schema(layout: StoreSchema) -> pa.Schema:
    """Return the columns that targets show: keys, vector, norm, status, version, passed-through."""
    # Both columns of hashes are left out: they tell the store what changed, and a reader nothing.
    internal = layout.stored(state.FEATURE_HASH, state.PASSTHROUGH_HASH)
    return pa.schema([field for field in layout.schema if field.name not in internal])


def published_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the columns of ``schema`` of each batch that has rows."""
    for batch in batches:
        if batch.num_rows:
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def version_facts(publication: Publication) -> Facts:
    """Return what every target says of what it holds."""
    return {
        "version": publication.version,
        "rows": publication.rows,
        "run_id": publication.record.run_id,
        "warnings": [],
    }


def open_target(section: Publish) -> Target:
    """Return the target of a section; its place is not touched."""
    target: Target = load(TARGETS, section.to)(section)
    return target


def check_targets(sections: Iterable[Publish]) -> None:
    """Find what a target misses before anything is published; no place is touched."""
    for section in sections:
        open_target(section).check()


def check_layout(sections: Iterable[Publish], layout: StoreSchema) -> None:
    """Find columns that a target cannot take, before anything is published."""
    for section in sections:
        open_target(section).check_layout(layout.as_floats)


def prepare(sections: Iterable[Publish], contract: Contract, engine: Engine) -> list[str]:
    """Let targets make ready for a version; returns the names of those that are outdated."""
    targets = map(open_target, sections)
    return [target.name for target in targets if target.prepare(contract, engine)]


def forget(sections: Iterable[Publish], names: Collection[str], storage: Storage) -> None:
    """Forget what targets hold, so that the next delivery writes the live version there again."""
    for target in map(open_target, sections):
        if target.name in names:
            storage.remove(_note_path(target))


def find_unfit(sections: Iterable[Publish], keys: Sequence[str], table: pa.Table) -> Unfit | None:
    """Return the first value that a target cannot take."""
    found = (open_target(section).find_unfit(table, keys) for section in sections)
    return next(filter(None, found), None)


def lagging(sections: Iterable[Publish], storage: Storage, version: int) -> list[str]:
    """Return the names of the targets that are not known to hold a version."""
    targets = map(open_target, sections)
    held = {target.name: _held(target, storage) or {} for target in targets}
    return [name for name, facts in held.items() if facts.get("version") != version]


def deliver(
    publication: Publication,
    sections: Iterable[Publish],
    storage: Storage,
    expected: int | None = None,
) -> list[Outcome]:
    """Bring every target to the live version; one that fails does not keep the others from it.

    The store's state remembers what each target holds; whoever calls this holds its lock. One that
    held another version than ``expected`` was behind; default: that before the live one.
    """
    expected = publication.record.base if expected is None else expected
    targets = map(open_target, sections)
    return [_deliver(publication, target, storage, expected) for target in targets]


def _deliver(
    publication: Publication, target: Target, storage: Storage, expected: int | None
) -> Outcome:
    start = time.monotonic()
    held = _held(target, storage)
    found = (held or {}).get("version")
    before = found if isinstance(found, int) else None
    outcome = Outcome(target.name, target.kind, 0.0, held, before=before)
    if before == publication.version:
        return replace(outcome, skipped=True)
    try:
        facts = target.publish(publication, held)
        note = TargetNote(target.kind, target.place, facts)
        storage.put(_note_path(target), note.to_json())
        caught_up = before is not None and before != expected
        outcome = replace(outcome, facts=facts, caught_up=caught_up)
    except Interrupted:
        raise
    except BatchnormToolError as error:
        passing = error.exit_code == WorkFailed.exit_code
        outcome = replace(outcome, facts=None, error=error.message, passing=passing)
    return replace(outcome, seconds=time.monotonic() - start)


@dataclass(frozen=True)
class TargetNote(SealedRecord):
    """What a target held when it was last written, and where that was."""

    kind: str
    place: str
    facts: Facts


def _note_path(target: Target) -> str:
    return f"{state.TARGETS_DIRECTORY}/{target.name}.json"


def _held(target: Target, storage: Storage) -> Facts | None:
    """Return what the target held when it was last written; another place holds nothing yet."""
    # A note that is damaged is no note: the target is then written whole.
    note = TargetNote.from_json(storage.get(_note_path(target)))
    is_its = note is not None and (note.kind, note.place) == (target.kind, target.place)
    return note.facts if note is not None and is_its else None
