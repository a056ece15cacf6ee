"""What a night came to, and the record that stays of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchnorm_tool.norms.stats import QUANTILES, NormStats, finite_or_none, quantile_column

if TYPE_CHECKING:
    from batchnorm_tool.commands.refresh.changes.result import ChangeSet
    from batchnorm_tool.commands.refresh.plan import RefreshPlan
    from batchnorm_tool.gate import Finding
    from batchnorm_tool.store.state import StorePointer

RECORD_FORMAT = 1
PUBLISHED, WAITING, NOTHING = "published", "waiting", "nothing to do"
SUPERSEDED, DISCARDED = "superseded", "discarded"


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh, an acceptance or a rollback came to.

    Attributes:
        path: The store.
        state: ``published``, ``waiting`` or ``nothing to do``.
        version: The version that was published or waits; where nothing was to do, the live one.
        record: The night's record, as plain data.
        targets: What became of each publish target.
    """

    path: str
    state: str
    version: int | None
    record: Mapping[str, Any] = field(repr=False)
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def rows(self) -> Mapping[str, int]:
        """Rows by what became of them: ``in``, ``new``, ``changed``, ``live`` and others."""
        counts: Mapping[str, int] = self.record["rows"]
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data: the record, ``store``, ``outcome`` and ``targets``."""
        return {
            **for_readers(self.record),
            "store": self.path,
            "outcome": self.state,
            "version": self.version,
            "targets": [dict(target) for target in self.targets],
        }


def for_readers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what only a later refresh or rollback needs of it."""
    return {name: value for name, value in record.items() if name not in _OWN}


_OWN = ("basis", "publish", "keep", "files")


@dataclass
class PhaseTimings:
    """What each phase of a night took, in seconds.

    Example:
        >>> clock = PhaseTimings()
        >>> with clock.phase("difference"):
        ...     pass
        >>> list(clock.seconds)
        ['difference']
    """

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


def begin_record(
    plan: RefreshPlan, pointer: StorePointer, version: int, started: Mapping[str, str]
) -> dict[str, Any]:
    """Return what is known of a night before anything of it is judged."""
    model, job = plan.job.model, plan.job
    files: Any = plan.identity.result["input"]
    return {
        "format": RECORD_FORMAT,
        "version": version,
        "base": pointer.live,
        "kind": "load" if pointer.live is None else "refresh",
        "new_space": plan.new_space,
        "state": WAITING,
        "reason": None,
        **started,
        "finished": None,
        "lance_version": None,
        "restores": None,
        "space": plan.identity.space_id,
        "bits": plan.identity.bits_id,
        "settings": plan.identity.bits,
        "model": {"path": model.path, "content": plan.resolved.model_content} if model else None,
        "input": {"files": [{name: file[name] for name in _OF_FILES} for file in files]},
        "basis": {
            "layout": plan.layout.to_dict(),
            "identity": plan.identity.to_dict(),
            "resolved": plan.resolved.to_dict(),
            "request": plan.options_fingerprint,
        },
        "publish": [target.model_dump(exclude_none=True) for target in job.publish],
        "keep": plan.store.keep.model_dump(),
        "warnings": list(plan.notes),
    }


_OF_FILES = ("path", "rows", "bytes")


def counted(difference: ChangeSet) -> dict[str, int]:
    """Return rows by kind where no vector was looked at: those that need one are not known yet."""
    counts = difference.counts
    return {
        "in": counts.rows_in,
        "new": counts.new,
        "changed": counts.changed,
        "touched": counts.touched,
        "same": counts.same,
        "vanished": counts.vanished,
        "recomputed": counts.recomputed,
        "predicted": 0,
        "reused": 0,
        "stale": 0,
        "quarantined": 0,
        "live": difference.live_rows,
    }


def norm_figures(norms: NormStats) -> dict[str, float | int | None]:
    """Return the norms of a version as a record has them."""
    found = {quantile_column(q): norms.quantile(q) for q in QUANTILES}
    return {
        "count": norms.count,
        "min": norms.min,
        "max": norms.max,
        "mean": norms.mean,
        "std": None if norms.std is None else finite_or_none(norms.std),
        **found,
    }


def gate_figures(action: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the gate's findings as a record has them."""
    return {
        "action": action,
        "passed": all(finding.passed for finding in findings),
        "findings": [finding.to_dict() for finding in findings],
    }
