"""What a refresh came to, and the record that stays of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool.gate.record import NOTHING, GateRecord, Hold, RefreshRecord
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.storage.checked_json import Record, plain

if TYPE_CHECKING:
    from batchnorm_tool.store.state import StoredRecord


@dataclass(frozen=True)
class PlannedRefresh(Record):
    """What a refresh would change, and what the limits on the input say."""

    store: str
    live: int | None
    rows: RefreshRows
    gate: GateRecord
    new_space: bool
    hold: Hold | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Released(Record):
    """What became of a hold, and which versions are live and wait."""

    store: str
    released: bool
    live: int | None
    waiting: int | None


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh, an acceptance or a rollback came to in the store at ``path``."""

    path: str
    stored: StoredRecord = field(repr=False)

    @property
    def state(self) -> str:
        """``published``, ``waiting`` or ``nothing to do``."""
        return NOTHING if self.stored.kind == NOTHING else self.stored.state

    @property
    def version(self) -> int:
        """The version that was published or waits; where nothing was to do, the live one."""
        return self.stored.version

    @property
    def record(self) -> dict[str, Any]:
        """What stays of it, as plain data."""
        return self.stored.to_dict()

    @property
    def rows(self) -> dict[str, int]:
        """Rows by what became of them: ``in``, ``new``, ``changed``, ``live`` and others."""
        return plain(self.stored.rows)

    @property
    def targets(self) -> tuple[dict[str, Any], ...]:
        """What became of each publish target, as plain data."""
        return tuple(map(plain, self.stored.targets))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data: the record, ``store``, ``outcome`` and ``targets``."""
        more = {"store": self.path, "outcome": self.state, "targets": list(self.targets)}
        return {**plain(self.stored, RefreshRecord), **more}


@dataclass
class PhaseTimings:
    """What each phase of a refresh took, in seconds; they add up to the time since the first."""

    seconds: dict[str, float] = field(default_factory=dict)
    _noted: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin the first phase."""
        self._noted = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add to a phase what the block takes, if it fails too, and what passed since the last."""
        try:
            yield
        finally:
            before, self._noted = self._noted, time.perf_counter()
            self.seconds[name] = round(self.seconds.get(name, 0.0) + self._noted - before, 4)


def now() -> str:
    """Return the time, as records have it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
