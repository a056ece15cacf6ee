"""The contenders over the benchmark's data, each as the command that starts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.bench import Contender
from benchmarks.data import Model, Table, made
from benchmarks.places import OURS_PYTHON, PEERS_PYTHON

# Of 1024, 4096 and 16384 the one that cost both the least (CPU seconds for 200,000 rows of row 3:
# Ray Data 38, 36 and 35, Spark 65, 60 and 54).
PEER_BATCH_SIZE = 16_384


def script(
    name: str, output: Path | None = None, python: Path = OURS_PYTHON, **settings: Any
) -> Contender:
    """A script of `benchmarks.contenders` with its settings.

    Args:
        name: The module.
        output: The directory that it writes, which becomes a setting.
        python: The environment that it runs in.
        settings: What it is told.
    """
    if output is not None:
        settings["output"] = str(output)
    command = (python, "-m", f"benchmarks.contenders.{name}", json.dumps(settings, default=str))
    return Contender(command, output)


def ours(
    table: Table,
    model: Model | None,
    output: Path,
    limit: int | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Contender:
    """The tool over a table.

    Args:
        table: What is read; NPY has no key.
        model: What predicts; ``None`` for stored predictions.
        output: Where the result goes.
        limit: Only so many rows.
        sections: Further keys of the job, by section.
    """
    job = job_over(table, model, output)
    for name, keys in (sections or {}).items():
        job[name] = {**job.get(name, {}), **keys}
    command = script("ours", job=job, limit=limit).command
    return Contender(command, output)


def job_over(table: Table, model: Model | None, output: Path) -> dict[str, Any]:
    """A job over a table, as in a job file."""
    features: str | list[str] = table.columns if table.layout == "wide" else "features"
    columns = {} if table.layout == "npy" else {"key": "id", "features": features}
    job: dict[str, Any] = {
        "input": {"path": str(made(table)), **columns},
        "output": {"path": str(output)},
    }
    if model is not None:
        job["model"] = {"path": str(made(model))}
    return job


def night(table: Table, model: Model | None, output: Path, base: Path | None = None) -> Contender:
    """One night of the tool.

    Args:
        table: Tonight's input.
        model: What predicts; ``None`` for stored predictions.
        output: A directory for the store, which `store_in` tells.
        base: Such a directory with the store as it was the night before; without one the night is
            the first.
    """
    before = None if base is None else store_in(base)
    command = script("our_night", job=refresh_job(table, model, output), base=before).command
    return Contender(command, output)


def refresh_job(table: Table, model: Model | None, output: Path) -> dict[str, Any]:
    """A job that keeps a store in a directory, as in a job file."""
    job = job_over(table, model, output)
    del job["output"]
    return {**job, "store": {"path": str(store_in(output))}}


def store_in(output: Path) -> Path:
    """Where the store lies in a directory of its own."""
    return output / "items.lance"


def plain(table: Table, model: Model, output: Path, batch_size: int) -> Contender:
    """The script that people write by hand."""
    paths = {"input": made(table), "model": made(model)}
    return script("plain_script", output, batch_size=batch_size, **paths)


def peer(name: str, table: Table, model: Model, output: Path, cores: int) -> Contender:
    """Ray Data or Spark, by the name of its script."""
    return script(
        name,
        output,
        PEERS_PYTHON,
        input=made(table),
        model=made(model),
        batch_size=PEER_BATCH_SIZE,
        features=table.width,
        cores=cores,
    )
