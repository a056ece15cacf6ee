"""Rows 8 and 10: memory that does not grow, and commands that answer at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks import lineup
from benchmarks.bench import Bench, Contender
from benchmarks.data import DEEP, Table, made
from benchmarks.findings import Finding, Target, megabytes, seconds
from benchmarks.places import OURS_PYTHON, PROGRAM, ROOT

_TIMES_THE_ROWS = 4
_STARTS = 5
# Left open, parts grow with the rows until a row group is full: 32,768 rows for a million, and four
# times as many, which 56 MB more hold, for four million.
SAME_PARTS: dict[str, dict[str, Any]] = {"output": {"part_rows": 32_768}}


def flat_memory(bench: Bench) -> list[Finding]:
    """Row 8: four times the rows in the same memory, and little more than TensorFlow needs."""
    case, rows = "8", bench.size.rows
    few, many = Table(rows), Table(rows, copies=_TIMES_THE_ROWS)
    contenders = {
        "ours": lineup.ours(few, DEEP, bench.output(case, "few"), sections=SAME_PARTS),
        "ours, 4 times the rows": lineup.ours(
            many, DEEP, bench.output(case, "many"), sections=SAME_PARTS
        ),
        "TensorFlow and model loaded": lineup.script("load_only", model=made(DEEP)),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    small, large, loaded = (runs[name].peak_rss_bytes for name in contenders)
    most = Target("at most", 450, "MB")
    return [
        Finding(
            case,
            f"peak memory, {many.rows * _TIMES_THE_ROWS:,} rows",
            megabytes(large),
            f"{rows:,} rows: {megabytes(small)}",
            large / small,
            Target("at most", 1.05),
        ),
        Finding(
            case,
            "peak memory above TensorFlow and the loaded model",
            megabytes(large),
            f"both loaded, nothing done: {megabytes(loaded)}",
            (large - loaded) / 1e6,
            most,
        ),
    ]


def quick_starts(bench: Bench) -> list[Finding]:
    """Row 10: the help, and a finished job asked again; neither imports TensorFlow."""
    case = "10"
    output = bench.output(case, "ours")
    output.parent.mkdir(parents=True, exist_ok=True)
    job = output.parent / "job.yaml"
    job.write_text(yaml.safe_dump(lineup.job_over(Table(bench.size.rows), DEEP, output)))
    bench.run(case, {"the job itself": Contender((PROGRAM, "run", job))}, 1)
    arguments: dict[str, tuple[str | Path, ...]] = {
        "--help": ("--help",),
        "finished job again": ("run", job),
    }
    contenders = {name: Contender((PROGRAM, *words)) for name, words in arguments.items()}
    runs = bench.run(case, contenders, _STARTS)
    findings = []
    for (name, words), limit in zip(arguments.items(), (0.15, 0.6), strict=True):
        took = runs[name].seconds
        light = "tensorflow" not in packages(imported_modules("batchnorm_tool", *words))
        other = "TensorFlow not imported" if light else "imports TensorFlow"
        # What imports TensorFlow misses its target, however quick it is.
        value = took if light else max(took, float("inf"))
        target = Target("at most", limit, "s")
        findings.append(Finding(case, name, seconds(took), other, value, target))
    bench.clear(case)
    return findings


def imported_modules(*arguments: str | Path) -> list[str]:
    """The modules that ``python -m ARGUMENTS`` imports, in the order in which they are ready."""
    done = subprocess.run(
        [OURS_PYTHON, "-X", "importtime", "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return [line.rpartition("|")[2].strip() for line in lines][1:]  # the first is the head


def packages(modules: Iterable[str]) -> set[str]:
    """The packages at the top of some modules."""
    return {name.partition(".")[0] for name in modules}
