"""The tool's difference between tonight's input and a store, without the rest of the night.

Settings: ``job``, as in a job file. The store stays as it is: what is found goes to a directory of
its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import xxhash

from batchnorm_tool import Job
from batchnorm_tool.commands.refresh.changes.detect import ChangeDetector
from batchnorm_tool.commands.refresh.plan import make_plan, store_of
from batchnorm_tool.storage import Storage
from batchnorm_tool.storage.checked_json import plain
from batchnorm_tool.store.state import INDEX, RECORDS, StoreDirectory, index_path
from benchmarks.contenders.stopwatch import Stopwatch, peak_rss_bytes, settings

AWAKE = (pd, pyarrow.parquet, xxhash)  # imported lazily otherwise


def main() -> None:
    """Find it once."""
    job = Job.from_dict(settings()["job"])
    state = StoreDirectory(store_of(job).path)
    facts = state.pointer()
    plan = make_plan(job, facts)
    assert facts.live is not None  # noqa: S101  (there is a night before)
    index = index_path(facts.live)
    with tempfile.TemporaryDirectory(prefix="difference-", dir=Path(state.root).parent) as scratch:
        for directory in (INDEX, RECORDS):  # where the index lies, and its base
            (Path(scratch) / directory).symlink_to(state.storage.root / directory)
        before = peak_rss_bytes()
        with Stopwatch() as watch:
            found = ChangeDetector(plan.source, index, Storage(scratch)).run()
    watch.say(rows=plain(found.counts), before_bytes=before)


if __name__ == "__main__":
    main()
