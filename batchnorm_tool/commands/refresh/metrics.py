"""The Prometheus text file of a refresh, for the node exporter's textfile collector."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm_tool.commands.refresh.record import RefreshDocument, RefreshResult
from batchnorm_tool.errors import BatchnormToolError, Busy, Held, JobError, TargetFailed
from batchnorm_tool.norms.stats import QUANTILES, quantile_column
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.storage.files import OutputFile, write_errors
from batchnorm_tool.store.state import StoreDirectory

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from batchnorm_tool.gate.record import Outcome, RefreshRecord

_PREFIX = "batchnorm_tool_refresh_"
_LAST_SUCCESS = f"{_PREFIX}last_success_timestamp_seconds"


@dataclass(frozen=True)
class _Metric:
    """One metric: its name after the prefix, its help, its labels beside the store's."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


_Sample = tuple[_Metric, tuple[str, ...], float]


_ROWS = _Metric("rows", "Rows of the refresh by kind.", ("kind",))


_SECONDS = _Metric("phase_seconds", "Duration of the refresh by phase, in seconds.", ("phase",))


_ALL_SECONDS = _Metric("duration_seconds", "Duration of the whole command, in seconds.")


_NORM = _Metric("norm", "Quantiles of the norms before normalization.", ("quantile",))


_GATE = ("limit", "scope")


_MEASURED = _Metric("gate_value", "Value measured for a limit of the gate.", _GATE)


_ALLOWED = _Metric("gate_limit", "Maximum that a limit of the gate allows.", _GATE)


_PASSED = _Metric("gate_passed", "1 if a limit of the gate is kept, 0 if it is broken.", _GATE)


_TARGET = _Metric("target_up_to_date", "1 if a publish target holds the version.", ("target",))


_EXIT = _Metric("exit_code", "Exit code of the last refresh.")


_SUCCESS = _Metric(
    "last_success_timestamp_seconds", "Unix time of the end of the last refresh that exited 0."
)


_VERSION = _Metric("version", "Version that the refresh made.")


_LIVE = _Metric("live_version", "Version that readers see.")


_WAITING = _Metric("waiting_version", "Version that is waiting for a decision, 0 if none.")


_HOLD = _Metric("on_hold", "1 if nothing is published until `release` or `accept`.")


@dataclass(frozen=True, kw_only=True)
class CommandOutcome:
    """How a command ended.

    Attributes:
        exit_code: Its exit code.
        store: The store.
        seconds: Wall time of the whole command.
        live: The live version.
        waiting: The version that waits for a decision.
        hold: Whether nothing is published.
        targets: What became of each target.
        last_success: When a refresh succeeded, as Unix time; ``None`` keeps what the file has.
    """

    exit_code: int
    store: str
    seconds: float
    live: int | None = None
    waiting: int | None = None
    hold: bool = False
    targets: tuple[Outcome, ...] = ()
    last_success: float | None = None


def write_metrics(
    path: str | os.PathLike[str], record: RefreshRecord | None, outcome: CommandOutcome
) -> None:
    """Write the metrics of a refresh; the file is replaced in one step, whole and synced.

    Args:
        path: The file; the node exporter reads those that end in ``.prom``.
        record: The record of the refresh; ``None`` where it has none: nothing changed, or it failed
            before the gate.
        outcome: How the command ended.
    """
    _check_installed()
    store, success = outcome.store, outcome.last_success
    samples = [*(_record_samples(record) if record else ()), *_outcome(outcome)]
    if success is None:
        success = last_success(path, store)
    if success is not None:
        samples.append((_SUCCESS, (), float(success)))
    _replace(Path(path), _text(samples, store))


def _record_samples(record: RefreshRecord) -> Iterator[_Sample]:
    for kind, rows in plain(record.rows).items():
        yield _ROWS, (kind,), _value(rows)
    for phase, seconds in record.seconds.items():
        yield _SECONDS, (phase,), _value(seconds)
    norms = record.norms or {}
    for q in QUANTILES:
        value = norms.get(quantile_column(q))
        if value is not None:
            yield _NORM, (str(q),), float(value)
    for finding in record.findings:
        labels = (finding.limit, finding.scope)
        yield _MEASURED, labels, _value(finding.measured)
        yield _ALLOWED, labels, _value(finding.allowed)
        yield _PASSED, labels, float(finding.passed)
    yield _VERSION, (), float(record.version)


def _outcome(outcome: CommandOutcome) -> Iterator[_Sample]:
    yield _EXIT, (), float(outcome.exit_code)
    yield _ALL_SECONDS, (), outcome.seconds
    if outcome.live is not None:
        yield _LIVE, (), float(outcome.live)
    yield _WAITING, (), float(outcome.waiting or 0)
    yield _HOLD, (), float(outcome.hold)
    for target in outcome.targets:
        yield _TARGET, (target.name,), float(not target.error)


def _value(value: float | None) -> float:
    """Return a number of the record; NaN, which Prometheus knows, where it has none."""
    return math.nan if value is None else float(value)


def _text(samples: list[_Sample], store: str) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    gauges: dict[str, Any] = {}
    for metric, labels, value in samples:
        if metric.name not in gauges:
            gauges[metric.name] = _gauge(metric, registry)
        gauges[metric.name].labels(store, *labels).set(value)
    return generate_latest(registry)


def _gauge(metric: _Metric, registry: CollectorRegistry) -> Any:
    from prometheus_client import Gauge

    names = ("store", *metric.labels)
    return Gauge(_PREFIX + metric.name, metric.help, names, registry=registry)


def last_success(path: str | os.PathLike[str], store: str = "") -> float | None:
    """Return when the last refresh succeeded, as a metrics file has it.

    Returns:
        Unix time; ``None`` where the file has none of this store.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    samples = [sample for family in families for sample in family.samples]
    found = [s.value for s in samples if s.name == _LAST_SUCCESS and s.labels.get("store") == store]
    return float(found[0]) if found else None


def _check_installed() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise JobError(
            "`--metrics-file` needs prometheus_client, which is not installed. Install it with "
            "`pip install 'batchnorm-tool[refresh]'`, or omit the flag."
        ) from error


def check_metrics_file(path: str | os.PathLike[str]) -> None:
    """Refuse what cannot be replaced by a file, before any work is done."""
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
    """Do ``work``, and write what came of it to a metrics file, failures included.

    Args:
        path: The store.
        metrics_file: Where the metrics go; ``None`` for nowhere.
        work: What is done. Where another run holds the store, that run's metrics stay.
        is_refresh: Whether a success is one of the refresh; a rollback's is not.
    """
    if metrics_file is None:
        return work()
    check_metrics_file(metrics_file)
    started = time.time()
    try:
        result = work()
    except Busy:
        raise
    except BaseException as error:
        told = error.night if isinstance(error, Held | TargetFailed) else None
        document = None if told is None else RefreshDocument.from_dict(told)
        otherwise = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = getattr(error, "exit_code", otherwise)
        # What failed is said in any case; metrics that cannot be written must not hide it.
        with contextlib.suppress(BatchnormToolError):
            _write(metrics_file, path, document, code, started)
        raise
    succeeded = time.time() if is_refresh else None
    _write(metrics_file, path, result.document, 0, started, succeeded=succeeded)
    return result


def _write(  # noqa: PLR0913  (what a file of metrics is made of)
    metrics_file: str | os.PathLike[str],
    path: str,
    document: RefreshDocument | None,
    exit_code: int,
    started: float,
    *,
    succeeded: float | None = None,
) -> None:
    outcome = CommandOutcome(
        exit_code=exit_code,
        store=path,
        seconds=time.time() - started,
        targets=document.targets if document else (),
        last_success=succeeded,
    )
    with contextlib.suppress(BatchnormToolError):  # a store that is damaged has no facts
        pointer = StoreDirectory(path).pointer()
        outcome = replace(
            outcome, live=pointer.live, waiting=pointer.waiting, hold=pointer.hold is not None
        )
    write_metrics(metrics_file, document, outcome)
