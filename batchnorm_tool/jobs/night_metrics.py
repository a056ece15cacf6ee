"""The metrics file of a night, whichever way it ends."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from batchnorm_tool.errors import BatchnormToolError, Busy, Held, TargetFailed
from batchnorm_tool.metrics_file import check_metrics_file, write_metrics
from batchnorm_tool.store.state import StoreState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchnorm_tool.jobs.night import Night


def measured(
    path: str,
    metrics_file: str | os.PathLike[str] | None,
    work: Callable[[], Night],
    *,
    is_refresh: bool = True,
) -> Night:
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
        night = work()
    except Busy:
        raise
    except BaseException as error:
        document = error.night if isinstance(error, Held | TargetFailed) else None
        otherwise = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = getattr(error, "exit_code", otherwise)
        # What failed is said in any case; metrics that cannot be written must not hide it.
        with contextlib.suppress(BatchnormToolError):
            _write(metrics_file, path, document, code, started)
        raise
    succeeded = time.time() if is_refresh else None
    _write(metrics_file, path, night.to_dict(), 0, started, succeeded=succeeded)
    return night


def _write(  # noqa: PLR0913  (what a file of metrics is made of)
    metrics_file: str | os.PathLike[str],
    path: str,
    document: Mapping[str, Any] | None,
    exit_code: int,
    started: float,
    *,
    succeeded: float | None = None,
) -> None:
    outcome: dict[str, Any] = {
        "exit_code": exit_code,
        "store": path,
        "seconds": time.time() - started,
        "targets": document["targets"] if document else [],
        "last_success": succeeded,
    }
    with contextlib.suppress(BatchnormToolError):  # a store that is damaged has no facts
        facts = StoreState(path).facts()
        outcome |= {"live": facts.live, "waiting": facts.waiting, "hold": facts.hold is not None}
    write_metrics(metrics_file, document, outcome)
