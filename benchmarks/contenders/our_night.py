"""The tool: one night of a store, without its imports.

Settings: ``job``, as in a job file; ``base``, the store as it was the night before, which is copied
to ``store.path`` first; without it the night is the first. TensorFlow is imported and awake before
the watch starts; the model is loaded afterwards.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from batchnorm_tool import Job, RefreshResult, refresh
from batchnorm_tool.environment import quiet_libraries
from batchnorm_tool.models.backends import start_tensorflow
from benchmarks.contenders.stopwatch import Stopwatch, settings
from benchmarks.contenders.store_copies import copy_store

# Whatever is imported while the watch runs all the same is told as ``imported``. pyarrow imports
# pandas at its first conversion to an array, pydantic its dataclasses at the first record.
_WITHOUT_A_MODEL = (
    *("lance", "xxhash", "pandas", "pyarrow.parquet", "pyarrow.compute"),
    "pydantic.dataclasses",
)
_WITH_A_MODEL = (
    "tensorflow",
    "keras",
    "h5py",
    "batchnorm_tool.engines.local",
    "batchnorm_tool.models.backends.keras",
    "batchnorm_tool.models.backends.loading",
)


def main() -> None:
    """Do the night and say what it took."""
    quiet_libraries()  # as the command line, whose process it may change
    wanted = settings()
    job = Job.from_dict(wanted["job"])
    assert job.store is not None  # noqa: S101  (a night has a store)
    if wanted.get("base"):
        copy_store(wanted["base"], job.store.path)
    wake(job)
    before = set(sys.modules)
    with Stopwatch() as watch:
        night = refresh(job)
    watch.say(
        rows=dict(night.rows),
        phases=dict(night.record["seconds"]),
        batch_size=batch_size(night),
        imported=sorted(set(sys.modules) - before),
    )


def wake(job: Job) -> None:
    """Import what a night needs, and let TensorFlow, set up as the job asks, find its devices."""
    for name in (*_WITHOUT_A_MODEL, *(_WITH_A_MODEL if job.model else ())):
        importlib.import_module(name)
    if job.model:
        start_tensorflow(job.engine.devices, job.engine.threads)
        importlib.import_module("tensorflow").constant(0.0).numpy()


def batch_size(night: RefreshResult) -> int | None:
    """The batch size at which rows met the model."""
    settings: dict[str, Any] = night.record["settings"]
    return settings.get("batch_size")


if __name__ == "__main__":
    main()
