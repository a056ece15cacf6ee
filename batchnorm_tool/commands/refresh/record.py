"""What a refresh came to, and the record that stays of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from batchnorm_tool.gate.record import GateRecord, Hold, Outcome, RefreshRecord, RefreshRows
from batchnorm_tool.storage.checked_json import Record, plain

if TYPE_CHECKING:
    from batchnorm_tool.store.state import StoredRecord

PUBLISHED, WAITING, NOTHING = "published", "waiting", "nothing to do"


@dataclass(frozen=True, kw_only=True)
class RefreshDocument(RefreshRecord, Record):
    """The report of a refresh, an acceptance or a rollback, as `RefreshResult.to_dict` gives it.

    ``outcome`` is ``published``, ``waiting`` or ``nothing to do``.
    """

    store: str
    outcome: str
    targets: tuple[Outcome, ...]


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
    """What a refresh, an acceptance or a rollback came to.

    Attributes:
        path: The store.
        state: ``published``, ``waiting`` or ``nothing to do``.
        version: The version that was published or waits; where nothing was to do, the live one.
        stored: What stays of it.
        outcomes: What became of each publish target.
    """

    path: str
    state: str
    version: int
    stored: StoredRecord = field(repr=False)
    outcomes: tuple[Outcome, ...] = ()

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
        return tuple(map(plain, self.outcomes))

    @property
    def document(self) -> RefreshDocument:
        """The report, as `to_dict` gives it."""
        told = vars(replace(self.stored.for_readers, version=self.version))
        return RefreshDocument(**told, store=self.path, outcome=self.state, targets=self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data: the record, ``store``, ``outcome`` and ``targets``."""
        return self.document.to_dict()


@dataclass
class PhaseTimings:
    """What each phase of a refresh took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what the block takes to a phase, also where it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.seconds[name] = round(taken, 4)


def now() -> str:
    """Return the time, as records have it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
