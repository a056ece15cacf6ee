"""What happened to a store, night by night."""

from __future__ import annotations

import os
from typing import Any

from batchnorm_tool import canonical
from batchnorm_tool.jobs.night import for_readers
from batchnorm_tool.jobs.saving import save_page
from batchnorm_tool.store.state import open_store


@canonical.told_of_records
def history(path: str | os.PathLike[str], *, html: str | None = None) -> dict[str, Any]:
    """List the nights of a store.

    Args:
        path: The store.
        html: Write a page that draws them over time to this file, which works offline.

    Returns:
        ``live``, ``hold``, ``waiting``, ``kept`` (versions) and ``nights``: their records, oldest
        first, as plain data.

    Raises:
        InputError: No store lies there.
        Damaged: A record is not what its checksum says.

    Example:
        >>> from batchnorm_tool import history
        >>> history("stores/items.lance")["live"]  # doctest: +SKIP
        12
    """
    state, facts = open_store(os.fspath(path))
    records = (state.record(version) for version in state.recorded())
    document = {
        "kind": "history",
        "path": state.path,
        "live": facts.live,
        "hold": facts.hold,
        "waiting": facts.waiting,
        "kept": sorted(facts.versions),
        "nights": [for_readers(record) for record in records if record],
    }
    if html is not None:
        from batchnorm_tool.report.history_page import history_page

        save_page(html, history_page(document))
    return document
