"""The rows of a model that was converted once: its start, its memory, families of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import lineup
from benchmarks.bench import Bench
from benchmarks.cases.against_others import CONVERTED
from benchmarks.cases.memory_and_start import SAME_PARTS
from benchmarks.data import CONVOLUTION, DEEP, FAMILIES, Table
from benchmarks.findings import Finding, Target, figure, megabytes, seconds

_FEW_ROWS = 1_000
_TIMES_THE_ROWS = 4
_NO_SLOWER, _CONVOLUTION = Target("at least", 0.95), Target("at least", 2)


def quick_start(bench: Bench) -> list[Finding]:
    """A thousand rows with a cached conversion: the whole process, and what it holds."""
    case = "start"
    table = Table(bench.size.rows)
    ours = lineup.ours(table, DEEP, bench.output(case, "ours"), _FEW_ROWS, CONVERTED)
    bench.run(case, {"the conversion": ours}, 1)
    runs = bench.run(case, {"ours": ours})["ours"]
    bench.clear(case)
    work, other = f"{_FEW_ROWS:,} rows, cached conversion, from start to exit", "onnxruntime"
    most = megabytes(runs.peak_rss_bytes)
    return [
        Finding(case, work, seconds(runs.seconds), other, runs.seconds, Target("at most", 2, "s")),
        Finding(case, work, most, other, runs.peak_rss_bytes / 1e6, Target("at most", 250, "MB")),
    ]


def memory(bench: Bench) -> list[Finding]:
    """Row 1's rows and four times as many with a cached conversion."""
    case, rows = "backend-memory", bench.size.rows
    few, many = Table(rows), Table(rows, copies=_TIMES_THE_ROWS)
    sections = CONVERTED | SAME_PARTS
    contenders = {
        name: lineup.ours(table, DEEP, bench.output(case, name), sections=sections)
        for name, table in (("few", few), ("many", many))
    }
    bench.run(case, {"the conversion": contenders["few"]}, 1)
    runs = bench.run(case, contenders)
    bench.clear(case)
    small, large = (runs[name].peak_rss_bytes for name in contenders)
    least, most = f"peak memory, {rows:,} rows", f"peak memory, {_TIMES_THE_ROWS} times the rows"
    growth = Target("at most", 1.05)
    return [
        Finding(case, least, megabytes(small), "", small / 1e6, Target("at most", 550, "MB")),
        Finding(case, most, megabytes(large), megabytes(small), large / small, growth),
    ]


def families(bench: Bench) -> list[Finding]:
    """``auto`` against TensorFlow, in CPU seconds for the same rows."""
    found = []
    for name, model in FAMILIES.items():
        case = f"families-{name}"
        images = model.kind == CONVOLUTION.kind
        layout = "npy" if images else "text_keys" if model.kind == "lookup" else "plain"
        table = Table(bench.size.images if images else bench.size.rows, model.features, layout)
        own = {"input": {"features": "id"}} if model.kind == "lookup" else {}
        contenders = {
            backend: lineup.ours(
                table,
                model,
                Path(bench.output(case, backend)),
                bench.size.images,
                {**own, "model": {"backend": backend}},
            )
            for backend in ("auto", "tensorflow")
        }
        bench.run(case, {"the conversion": contenders["auto"]}, 1)
        runs = bench.run(case, contenders)
        bench.clear(case)
        ours, theirs = (bench.size.images / runs[each].body_cpu_seconds for each in contenders)
        target = _CONVOLUTION if images else _NO_SLOWER
        other = f"tensorflow: {figure(theirs)} rows/CPU s"
        row = Finding("families", name, f"auto: {figure(ours)} rows/CPU s", other, None, target)
        found.append(replace(row, value=ours / theirs))
    return found
