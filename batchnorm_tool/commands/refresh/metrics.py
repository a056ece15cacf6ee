"""The Prometheus text file of a refresh, for the node exporter's textfile collector."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm_tool.commands.refresh.record import RefreshResult
from batchnorm_tool.errors import BatchnormToolError, Busy, Held, JobError, TargetFailed
from batchnorm_tool.norms.stats import QUANTILES, quantile_column
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.storage.files import OutputFile, write_errors
from batchnorm_tool.store.state import StoreDirectory, StorePointer

if TYPE_CHECKING:
    from batchnorm_tool.gate.record import RefreshRecord

_PREFIX = "batchnorm_tool_refresh_"
_LAST_SUCCESS = "last_success_timestamp_seconds"
# By the name after the prefix: the help, and the labels beside the store's.
_METRICS = {
    "rows": ("Rows of the refresh by kind.", "kind"),
    "phase_seconds": ("Duration of the refresh by phase, in seconds.", "phase"),
    "norm": ("Quantiles of the norms before normalization.", "quantile"),
    "gate_value": ("Value measured for a limit of the gate.", "limit", "scope"),
    "gate_limit": ("Maximum that a limit of the gate allows.", "limit", "scope"),
    "gate_passed": ("1 if a limit of the gate is kept, 0 if it is broken.", "limit", "scope"),
    "version": ("Version that the refresh made.",),
    "exit_code": ("Exit code of the last refresh.",),
    "duration_seconds": ("Duration of the whole command, in seconds.",),
    "live_version": ("Version that readers see.",),
    "waiting_version": ("Version that is waiting for a decision, 0 if none.",),
    "on_hold": ("1 if nothing is published until `release` or `accept`.",),
    "target_up_to_date": ("1 if a publish target holds the version.", "target"),
    _LAST_SUCCESS: ("Unix time of the end of the last refresh that exited 0.",),
}
# The name of a metric, its labels, and its value.
_Sample = tuple[str, tuple[str, ...], float]


@dataclass(frozen=True)
class CommandOutcome:
    """How a command ended; ``last_success`` is a Unix time, ``None`` keeps what the file has."""

    exit_code: int
    store: str
    seconds: float
    live: int | None = None
    waiting: int | None = None
    hold: bool = False
    last_success: float | None = None


def write_metrics(
    path: str | os.PathLike[str], record: RefreshRecord | None, outcome: CommandOutcome
) -> None:
    """Write the metrics of a refresh in one step; it has no record if it failed before the gate."""
    store, success = outcome.store, outcome.last_success
    facts = {
        "exit_code": outcome.exit_code,
        "duration_seconds": outcome.seconds,
        "live_version": outcome.live,
        "waiting_version": outcome.waiting or 0,
        "on_hold": outcome.hold,
        _LAST_SUCCESS: last_success(path, store) if success is None else success,
    }
    samples = list(_record_samples(record) if record else ())
    samples += ((name, (), float(value)) for name, value in facts.items() if value is not None)
    _replace(Path(path), _text(samples, store))


def _record_samples(record: RefreshRecord) -> Iterator[_Sample]:
    for kind, rows in plain(record.rows).items():
        yield "rows", (kind,), _value(rows)
    for phase, seconds in record.seconds.items():
        yield "phase_seconds", (phase,), _value(seconds)
    norms = record.norms or {}
    quantiles = ((str(q), norms.get(quantile_column(q))) for q in QUANTILES)
    yield from (("norm", (q,), float(value)) for q, value in quantiles if value is not None)
    for finding in record.findings:
        labels = (finding.limit, finding.scope)
        yield "gate_value", labels, _value(finding.measured)
        yield "gate_limit", labels, _value(finding.allowed)
        yield "gate_passed", labels, float(finding.passed)
    yield "version", (), float(record.version)
    for target in record.targets:
        yield "target_up_to_date", (target.name,), float(not target.error)


def _value(value: float | None) -> float:
    """Return a number of the record; NaN, which Prometheus knows, where it has none."""
    return math.nan if value is None else float(value)


def _text(samples: list[_Sample], store: str) -> bytes:
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for name, labels, value in samples:
        if name not in gauges:
            meaning, *more = _METRICS[name]
            gauges[name] = Gauge(_PREFIX + name, meaning, ("store", *more), registry=registry)
        gauges[name].labels(store, *labels).set(value)
    return generate_latest(registry)


def last_success(path: str | os.PathLike[str], store: str = "") -> float | None:
    """Return the Unix time of a store's last success in a metrics file; ``None``: it has none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    samples = (sample for family in families for sample in family.samples)
    wanted = (_PREFIX + _LAST_SUCCESS, store)
    found = (each.value for each in samples if (each.name, each.labels.get("store")) == wanted)
    return next(map(float, found), None)


def check_metrics_file(path: str | os.PathLike[str]) -> None:
    """Refuse what cannot be replaced by a file, before any work is done."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise JobError(
            "`--metrics-file` needs prometheus_client, which is not installed. Install it with "
            "`pip install 'batchnorm-tool[refresh]'`, or omit the flag."
        ) from error
    place = Path(path)
    if place.exists() and not place.is_file():
        raise JobError(
            f"`--metrics-file` must be a file. Received: `{path}`, which is a directory or a "
            "device. Choose another path."
        )
    folder = Path(os.path.realpath(path)).parent
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        raise JobError(
            f"`--metrics-file {path}` cannot be written in `{folder}`. Choose another path."
        )


def _replace(path: Path, text: bytes) -> None:
    """Let the file appear whole and synced: a collector may read it at any moment."""
    path = Path(os.path.realpath(path))  # a link stays one
    # A name that does not end in `.prom`, which a collector would read.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with OutputFile(path, aside, path.name) as file:
        file.write(text)
        with write_errors(path):
            aside.chmod(0o644)  # whatever the umask: the node exporter runs as another user
        file.commit()


def measured(
    path: str,
    metrics_file: str | os.PathLike[str] | None,
    work: Callable[[], RefreshResult],
    *,
    is_refresh: bool = True,
) -> RefreshResult:
    """Do ``work`` on a store, and write what came of it to a metrics file, failures included.

    Where another run holds the store, that run's metrics stay. A rollback does not count as a
    successful refresh: the time of the last success stays what the file has.
    """
    if metrics_file is None:
        return work()
    check_metrics_file(metrics_file)
    started = time.time()

    def write(result: RefreshResult | None, exit_code: int, success: float | None = None) -> None:
        found, seconds = StorePointer(), time.time() - started
        with contextlib.suppress(BatchnormToolError):  # a store that is damaged has no facts
            found = StoreDirectory(path).pointer()
        facts = found.live, found.waiting, found.hold is not None, success
        outcome = CommandOutcome(exit_code, path, seconds, *facts)
        write_metrics(metrics_file, result.stored if result else None, outcome)

    try:
        result = work()
    except Busy:
        raise
    except BaseException as error:
        held: Any = error.result if isinstance(error, Held | TargetFailed) else None
        otherwise = 130 if isinstance(error, KeyboardInterrupt) else 1
        # What failed is said in any case; metrics that cannot be written must not hide it.
        with contextlib.suppress(BatchnormToolError):
            write(held, getattr(error, "exit_code", otherwise))
        raise
    write(result, 0, time.time() if is_refresh else None)
    return result
