"""The tool: a store over many nights, in each of which 1 % of the rows change.

Settings: ``output``; ``rows``, ``width``, ``nights``; ``keep``, as in a job file. The rows are
stored predictions. Says what the store takes on disk after the last night, and what one takes that
holds that night alone.
"""

from __future__ import annotations

from typing import Any

from batchnorm_tool import Job, RefreshResult, refresh
from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.contenders.store_copies import store_bytes
from benchmarks.data import Table, make


def main() -> None:
    """Let the nights pass."""
    wanted = settings()
    kept, fresh = (f"{wanted['output']}/{name}.lance" for name in ("kept", "fresh"))
    with Stopwatch() as watch:
        changed = [pass_night(wanted, kept, number) for number in range(1, wanted["nights"] + 1)]
    pass_night(wanted, fresh, wanted["nights"])
    watch.say(
        kept_bytes=store_bytes(kept),
        fresh_bytes=store_bytes(fresh),
        changed=[night.rows["changed"] for night in changed],
        live=changed[-1].rows["live"],
    )


def pass_night(wanted: dict[str, Any], store: str, number: int) -> RefreshResult:
    """Bring a store up to date with the table of a night, which does not stay."""
    table = Table(wanted["rows"], wanted["width"], night=number)
    make(table)
    job = {
        "input": {"path": str(table.path), "key": "id", "features": "features"},
        "store": {"path": store, "keep": wanted["keep"]},
    }
    try:
        return refresh(Job.from_dict(job))
    finally:
        table.path.unlink()


if __name__ == "__main__":
    main()
