"""Rows 1, 3 and 4: the tool against what people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lineup
from benchmarks.agreement import check_agreement
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.data import DEEP, SINGLE, Table
from benchmarks.findings import NOTHING, Finding, Target, seconds
from benchmarks.places import PEERS_PYTHON

_DEFAULT_BATCH = 32
CONVERTED: dict[str, dict[str, Any]] = {"model": {"backend": "onnxruntime"}}


def deep_model(bench: Bench) -> list[Finding]:
    """Row 1: a model of three layers against the plain script, work alone."""
    table, case = Table(bench.size.rows), "1"
    contenders = {
        "ours": lineup.ours(table, DEEP, bench.output(case, "ours")),
        **{
            f"plain script, batch {size}": lineup.plain(
                table, DEEP, bench.output(case, f"plain-{size}"), size
            )
            for size in (_DEFAULT_BATCH, 1024)
        },
    }
    runs = _agreeing_runs(bench, case, contenders)
    work = f"{table.rows:,} rows of 128 → Dense 512-256-64 → Parquet"
    targets = (Target("at least", 9), Target("at least", 2.1))
    return _speedups(case, work, runs, targets, "body_seconds")


def whole_processes(bench: Bench) -> list[Finding]:
    """Row 3: the same against Ray Data and Spark, from start to exit."""
    table, case = Table(bench.size.rows), "3"
    work = f"{table.rows:,} rows of 128 → Dense 512-256-64, whole process"
    targets = (Target("at least", 3.5), Target("at least", 5))
    if not PEERS_PYTHON.exists():
        reason = "not measured: `make bench` sets their environment up"
        return [Finding(case, work, NOTHING, reason, None, target) for target in targets]
    ours = lineup.ours(table, DEEP, bench.output(case, "ours"), sections=CONVERTED)
    bench.run(case, {"ours, which converts the model": ours}, 1)
    contenders = {"ours": ours}
    for shown, name in (("Ray Data", "ray_data"), ("Spark", "spark_udf")):
        output = bench.output(case, name)
        contenders[shown] = lineup.peer(name, table, DEEP, output, bench.cores)
    runs = _agreeing_runs(bench, case, contenders)
    return _speedups(case, work, runs, targets, "seconds")


def single_layer(bench: Bench) -> list[Finding]:
    """Row 4: one layer, where the cost of a call dominates, written as Parquet and as Arrow."""
    table, case, name = Table(bench.size.rows), "4", f"plain script, batch {_DEFAULT_BATCH}"
    contenders = {
        "ours": lineup.ours(table, SINGLE, bench.output(case, "ours")),
        name: lineup.plain(table, SINGLE, bench.output(case, "plain"), _DEFAULT_BATCH),
    }
    runs = _agreeing_runs(bench, case, contenders)
    work = f"{table.rows:,} rows of 128 → Dense 64"
    arrow = lineup.ours(
        table, SINGLE, bench.output(case, "arrow"), sections={"output": {"format": "arrow"}}
    )
    others = {"ours": bench.run(case, {"ours, Arrow": arrow})["ours, Arrow"], name: runs[name]}
    bench.clear(case)
    return [
        *_speedups(case, f"{work} → Parquet", runs, (Target("at least", 18),), "body_seconds"),
        *_speedups(case, f"{work} → Arrow", others, (Target("at least", 25),), "body_seconds"),
    ]


def _agreeing_runs(bench: Bench, case: str, contenders: Mapping[str, Contender]) -> dict[str, Runs]:
    """Measure them, and compare what the first one wrote with what the others wrote."""
    runs = bench.run(case, contenders)
    first, *others = (each.output for each in contenders.values() if each.output is not None)
    for other in others:
        check_agreement(Path(first) / "vectors", other, bench.size.rows)
    bench.clear(case)
    return runs


def _speedups(
    case: str, work: str, runs: Mapping[str, Runs], targets: Sequence[Target], name: str
) -> list[Finding]:
    """How many times longer each of the others took."""
    own = runs["ours"].median(name)
    others = {other: each.median(name) for other, each in runs.items() if other != "ours"}
    return [
        Finding(case, work, seconds(own), f"{other}: {seconds(took)}", took / own, target)
        for (other, took), target in zip(others.items(), targets, strict=True)
    ]
