"""The tool's difference between tonight's input and a store, without the rest of the night.

Settings: ``job``, as in a job file. The store stays as it is: what is found goes to a directory of
its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet
import xxhash

from batchnorm_tool import Job
from batchnorm_tool.commands.refresh.changes.detect import find_difference
from batchnorm_tool.commands.refresh.plan import plan_night, store_of
from batchnorm_tool.commands.refresh.staging import tonight_of
from batchnorm_tool.storage import LocalStorage
from batchnorm_tool.store.state import StoreState, index_path
from benchmarks.contenders.stopwatch import Stopwatch, peak_rss_bytes, settings

AWAKE = (pyarrow.parquet, xxhash)  # imported lazily otherwise


def main() -> None:
    """Find it once."""
    job = Job.from_dict(settings()["job"])
    state = StoreState(store_of(job).path)
    facts = state.facts()
    plan = plan_night(job, facts)
    assert facts.live is not None  # noqa: S101  (there is a night before)
    index = index_path(facts.live)
    with tempfile.TemporaryDirectory(prefix="difference-", dir=Path(state.root).parent) as scratch:
        (Path(scratch) / index).parent.mkdir()
        (Path(scratch) / index).symlink_to(state.storage.root / index)
        before = peak_rss_bytes()
        with Stopwatch() as watch:
            found = find_difference(tonight_of(plan), index, LocalStorage(scratch))
    watch.say(rows=asdict(found.counts), before_bytes=before)


if __name__ == "__main__":
    main()
