"""`run` with a raw model against `run` with the copy that has the norm in its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import lineup
from benchmarks.agreement import check_agreement
from benchmarks.bench import Bench, Runs
from benchmarks.data import DEEP, Table
from benchmarks.findings import Finding, Target, figure, seconds

# What `auto` chose for this model in row 9: both get it, so that no choice is compared.
_SAME = {"model": {"batch_size": 8192}}
_NO_SLOWER = Target("at least", 0.95)


def baked_model(bench: Bench) -> list[Finding]:
    """The same job over both, and over the baked one with ``norm: none``."""
    table, case, raw = Table(bench.size.rows), "baked", "raw model"
    copy = replace(DEEP, baked=True)
    contenders = {
        raw: lineup.ours(table, DEEP, bench.output(case, "raw"), sections=_SAME),
        "baked model": lineup.ours(table, copy, bench.output(case, "baked"), sections=_SAME),
        "baked model, norm: none": lineup.ours(
            table,
            copy,
            bench.output(case, "none"),
            sections={**_SAME, "normalize": {"norm": "none"}},
        ),
    }
    runs = bench.run(case, contenders)
    for name in ("baked", "none"):
        ours, other = (Path(bench.output(case, one)) / "vectors" for one in ("raw", name))
        check_agreement(ours, other, table.rows, norms_too=False)
    bench.clear(case)
    work, own = f"{table.rows:,} rows of 128 → Dense 512-256-64, the raw model", runs.pop(raw)
    return [
        Finding(
            case,
            work,
            _took(own),
            f"{name}: {_took(other)}",
            other.body_seconds / own.body_seconds,
            _NO_SLOWER,
        )
        for name, other in runs.items()
    ]


def _took(runs: Runs) -> str:
    return f"{seconds(runs.body_seconds)}, {figure(runs.body_cpu_seconds)} CPU s"
