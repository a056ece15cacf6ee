"""The metrics file of a night, whichever way it ends."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import BatchnormToolError, Busy, Held, TargetFailed
from batchnorm_tool.metrics_file import write_metrics
from batchnorm_tool.store.state import StoreState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchnorm_tool.jobs.night import Night


def measured(
    path: str, metrics_file: str | os.PathLike[str] | None, work: Callable[[], Night]
) -> Night:
    """Do ``work``, and write what came of it to a metrics file, failures included.

    Args:
        path: The store.
        metrics_file: Where the metrics go; ``None`` for nowhere.
        work: What is done. Where another run holds the store, that run's metrics stay.
    """
    if metrics_file is None:
        return work()
    started = time.time()
    try:
        night = work()
    except Busy:
        raise
    except BatchnormToolError as error:
        document = error.night if isinstance(error, Held | TargetFailed) else None
        # What failed is said in any case; metrics that cannot be written must not hide it.
        with contextlib.suppress(BatchnormToolError):
            _write(metrics_file, path, document, error.exit_code, started)
        raise
    _write(metrics_file, path, night.to_dict(), 0, started)
    return night


def _write(
    metrics_file: str | os.PathLike[str],
    path: str,
    document: Mapping[str, Any] | None,
    exit_code: int,
    started: float,
) -> None:
    outcome: dict[str, Any] = {
        "exit_code": exit_code,
        "store": path,
        "seconds": time.time() - started,
        "targets": document["targets"] if document else [],
    }
    if exit_code == 0:
        outcome["last_success"] = time.time()
    with contextlib.suppress(BatchnormToolError):  # a store that is damaged has no facts
        facts = StoreState(path).facts()
        outcome |= {"live": facts.live, "waiting": facts.waiting, "hold": facts.hold is not None}
    write_metrics(metrics_file, document, outcome)
