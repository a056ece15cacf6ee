"""The rows of `compare`: nearest neighbours, their memory, and the norms of stored predictions."""

from __future__ import annotations

from pathlib import Path

from benchmarks import lineup
from benchmarks.agreement import check_same_neighbours
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.data import Table, made
from benchmarks.findings import NOTHING, Finding, Target, figure, megabytes, seconds
from benchmarks.places import PEERS_PYTHON

_NORMS = ("none", "l1", "l2", "max")
_NEIGHBOURS = 100
_SURVEYED_WIDTH = 64
# Above the base in float32.
_MOST_MEGABYTES = 300


def nearest_neighbours(bench: Bench) -> list[Finding]:
    """Neighbours under four norms against four exact searches of faiss, one for each norm."""
    case, target = "compare-neighbours", Target("at least", 2.5)
    work = f"{_searched(bench, bench.size.base)}, in memory"
    if not PEERS_PYTHON.exists():
        reason = "not measured: `make bench` sets faiss's environment up"
        return [Finding(case, work, NOTHING, reason, None, target)]
    outputs = {name: bench.output(case, name) for name in ("ours", "faiss")}
    contenders = {
        "ours": _ours_in_memory(bench, outputs["ours"]),
        "four searches of faiss": lineup.script(
            "faiss_neighbours",
            outputs["faiss"],
            PEERS_PYTHON,
            input=made(_base_in_memory(bench)),
            queries=bench.size.queries,
            k=_NEIGHBOURS,
            norms=_NORMS,
            cores=bench.cores,
        ),
    }
    runs = bench.run(case, contenders)
    check_same_neighbours(outputs["ours"], outputs["faiss"])
    bench.clear(case)
    ours, faiss = runs.values()
    shown = f"four searches of faiss: {_taken(faiss)}"
    return [
        Finding(case, work, _taken(ours), shown, faiss.body_seconds / ours.body_seconds, target)
    ]


def memory_of_neighbours(bench: Bench) -> list[Finding]:
    """Peak memory of that process, imports included, and of one whose base is never in memory."""
    case, streamed = "compare-memory", Table(bench.size.streamed_base, layout="uneven")
    contenders = {
        "ours, base in memory": _ours_in_memory(bench, bench.output(case, "ours")),
        "ours, base streamed": lineup.script(
            "our_comparison",
            input=made(streamed),
            queries=bench.size.queries,
            k=_NEIGHBOURS,
            norms=_NORMS,
        ),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    held, flat = (each.peak_rss_bytes for each in runs.values())
    base, larger = (_float32_bytes(one) for one in (_base_in_memory(bench), streamed))
    return [
        Finding(
            case,
            f"peak memory of a process: {_searched(bench, bench.size.base)}",
            megabytes(held),
            f"base in float32: {megabytes(base)}",
            (held - base) / 1e6,
            Target("at most", _MOST_MEGABYTES, "MB"),
        ),
        Finding(
            case,
            f"peak memory of `compare` from Parquet: {_searched(bench, streamed.rows)}",
            megabytes(flat),
            f"base in float32, never in memory: {megabytes(larger)}",
            flat / larger,
            Target("at most", 1),
        ),
    ]


def norm_survey(bench: Bench) -> list[Finding]:
    """Norm statistics of stored predictions against a loop that only reads them."""
    table, case = Table(bench.size.surveyed, _SURVEYED_WIDTH, "uneven"), "compare-norms"
    path = made(table)
    contenders = {
        "ours": lineup.script("our_survey", input=path, queries=bench.size.queries, norms=_NORMS),
        "read loop": lineup.script("read_loop", input=path, columns=table.columns),
        "read loop with the tool's settings": lineup.script(
            "read_alone", input=path, columns=table.columns, batch_rows=1 << 14
        ),
    }
    runs = bench.run(case, contenders)
    took, limit, quickest = (each.body_seconds for each in runs.values())
    work = f"norm statistics of {table.rows:,} rows of {table.width} in Parquet: L1, L2, max"
    other = (
        f"pyarrow loop that only reads: {seconds(limit)} (as the tool reads: {seconds(quickest)})"
    )
    return [Finding(case, work, seconds(took), other, took / limit, Target("at most", 1.3))]


def _taken(runs: Runs) -> str:
    """Wall and CPU seconds: where cores are not free, faiss' threads wait for one another busily.

    Of 3.7 s on two free cores (7.8 CPU s) they made 30 s (21 CPU s) on two that others used too.
    """
    return f"{seconds(runs.body_seconds)} ({figure(runs.body_cpu_seconds)} CPU s)"


def _ours_in_memory(bench: Bench, output: Path) -> Contender:
    return lineup.script(
        "our_neighbours",
        output,
        input=made(_base_in_memory(bench)),
        queries=bench.size.queries,
        k=_NEIGHBOURS,
        norms=_NORMS,
    )


def _base_in_memory(bench: Bench) -> Table:
    return Table(bench.size.base, layout="uneven_npy")


def _searched(bench: Bench, rows: int) -> str:
    return (
        f"{_NEIGHBOURS} neighbours of {bench.size.queries:,} queries in {rows:,} rows of "
        f"{Table(rows).width}, {len(_NORMS)} norms"
    )


def _float32_bytes(table: Table) -> int:
    return table.rows * table.width * 4
