"""`run` with a raw model against `run` with the copy that has the norm in its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import lineup
from benchmarks.agreement import check_agreement
from benchmarks.bench import Bench
from benchmarks.data import DEEP, Table
from benchmarks.findings import Finding, Target, figure

# What `auto` chose for this model in row 9: both get it, so that no choice is compared.
_SAME: dict[str, dict[str, object]] = {"model": {"batch_size": 8192}}
_WITHOUT_NORM: dict[str, dict[str, object]] = {**_SAME, "normalize": {"norm": "none"}}
_NO_SLOWER = Target("at least", 0.95)


def baked_model(bench: Bench) -> list[Finding]:
    """The same job over both, and over the baked one with ``norm: none``, in CPU seconds."""
    table, case, raw = Table(bench.size.rows), "baked", "raw model"
    copy = replace(DEEP, baked=True)
    contenders = {
        raw: lineup.ours(table, DEEP, bench.output(case, "raw"), sections=_SAME),
        "baked model": lineup.ours(table, copy, bench.output(case, "baked"), sections=_SAME),
        "baked model, norm: none": lineup.ours(
            table, copy, bench.output(case, "none"), sections=_WITHOUT_NORM
        ),
    }
    runs = bench.run(case, contenders)
    for name in ("baked", "none"):
        ours, other = (Path(bench.output(case, one)) / "vectors" for one in ("raw", name))
        check_agreement(ours, other, table.rows, norms_too=False)
    bench.clear(case)
    work = f"{table.rows:,} rows of 128 → Dense 512-256-64, the raw model"
    took = {name: each.body_cpu_seconds for name, each in runs.items()}
    own = took.pop(raw)
    return [
        Finding(case, work, _shown(own), f"{name}: {_shown(other)}", other / own, _NO_SLOWER)
        for name, other in took.items()
    ]


def _shown(cpu_seconds: float) -> str:
    return f"{figure(cpu_seconds)} CPU s"
