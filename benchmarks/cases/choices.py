"""Rows 9, 11 and 12: what is chosen, where it runs, and how the input lies on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks import lineup
from benchmarks.bench import Bench
from benchmarks.data import DEEP, SINGLE, Model, Table, made
from benchmarks.findings import Finding, Target, figure, seconds

# Fixed where bytes are compared: `auto` measures, and may choose differently in each run.
_BATCH_SIZE, _PARTS = 1024, 32
_SWEEP_SECONDS = {"tiny": 0.02, "quick": 0.2, "full": 0.5}


def batch_size(bench: Bench) -> list[Finding]:
    """Row 9: ``auto`` against a sweep, for a deep model and for a single layer."""
    return [
        finding
        for name, model in (("Dense 512-256-64", DEEP), ("Dense 64", SINGLE))
        for finding in _batch_size(bench, name, model)
    ]


def _batch_size(bench: Bench, name: str, model: Model) -> list[Finding]:
    contender = lineup.script(
        "batch_choice",
        model=made(model),
        width=model.features,
        rows=bench.size.rows,
        cores=bench.cores,
        seconds=_SWEEP_SECONDS[bench.size.name],
    )
    said = bench.run("9", {f"batch size for {name}": contender}, 1).popitem()[1].said
    speeds = {int(size): speed for size, speed in said["rows_per_second"].items()}
    best, chosen = max(speeds, key=speeds.__getitem__), said["chosen"]
    few_calls = said["calls"] <= 3
    spent = Target("at most", 2, "s")
    return [
        Finding(
            "9",
            f"batch_size: auto, {name}",
            f"{chosen}: {figure(speeds[chosen])} rows/s",
            f"best of a sweep, {best}: {figure(speeds[best])} rows/s",
            speeds[best] / speeds[chosen],
            Target("at most", 1.10),
        ),
        Finding(
            "9",
            f"deciding, {name} (2 s or three calls)",
            seconds(said["calls_seconds"]),
            f"{said['calls']} calls; {seconds(said['body_seconds'])} with compiling",
            0.0 if few_calls else said["calls_seconds"],
            spent,
        ),
    ]


def two_processes(bench: Bench) -> list[Finding]:
    """Row 11: two processes with half the workers each against one process with all of them."""
    case, table = "11", Table(bench.size.rows)
    workers = max(2, bench.cores)
    engines = {"one process": "cpu", "two processes": ["cpu", "cpu"]}
    outputs = {name: bench.output(case, name.replace(" ", "-")) for name in engines}
    contenders = {
        name: lineup.ours(
            table,
            DEEP,
            outputs[name],
            sections={
                "model": {"batch_size": _BATCH_SIZE},
                "output": {"part_rows": max(_BATCH_SIZE, table.rows // _PARTS)},
                "engine": {"devices": devices, "workers": workers},
            },
        )
        for name, devices in engines.items()
    }
    runs = bench.run(case, contenders)
    same = _digest(outputs["one process"]) == _digest(outputs["two processes"])
    bench.clear(case)
    one, two = (runs[name].body_seconds for name in engines)
    return [
        Finding(
            case,
            "rate lost by a second process on the same cores",
            f"{seconds(two)}, {'the same' if same else 'OTHER'} bytes",
            f"one process: {seconds(one)}",
            100 * (1 - one / two) if same else float("inf"),
            Target("at most", 15, "%"),
        )
    ]


def layouts(bench: Bench) -> list[Finding]:
    """Row 12: the same rows, laid out in other ways."""
    case, rows = "12", bench.size.rows
    tables = {
        "row 1's layout": Table(rows),
        "one row group": Table(rows, layout="one_group"),
        f"{bench.size.tiny_files:,} files": Table(rows, files=bench.size.tiny_files),
        "128 scalar columns": Table(rows, layout="wide"),
        "dictionary-encoded": Table(rows, layout="dictionary"),
    }
    contenders = {
        name: lineup.ours(table, DEEP, bench.output(case, str(place)))
        for place, (name, table) in enumerate(tables.items())
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    (base_name, base), *others = runs.items()
    return [
        Finding(
            case,
            f"{rows:,} rows, {name}",
            f"{figure(rows / each.body_seconds)} rows/s",
            f"{base_name}: {figure(rows / base.body_seconds)} rows/s",
            base.body_seconds / each.body_seconds,
            Target("at least", 0.5),
        )
        for name, each in others
    ]


def _digest(output: Path) -> str:
    """One hash over names and bytes of all files of vectors."""
    whole = hashlib.sha256()
    for path in sorted((output / "vectors").iterdir()):
        whole.update(path.name.encode())
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
