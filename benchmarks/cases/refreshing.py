"""The rows of `refresh`: a night against its parts, its difference, its memory, its disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks import lineup
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.cases.memory_and_start import imported_modules, packages
from benchmarks.data import DEEP, HEAVY, Model, Table, made
from benchmarks.findings import Finding, Target, figure, megabytes, seconds
from benchmarks.places import OURS_PYTHON

_TIMES_THE_ROWS = 4
# Memory is a matter of rows, not of their width; it is measured where rows are quick to make.
_NARROW = 16
_KEPT_WIDTH = 64
_KEEP = {"count": 14}
_HEAVY_PACKAGES = {"tensorflow", "keras", "lance"}


def night_against_its_parts(bench: Bench) -> list[Finding]:
    """A night with 1 % changed rows against what it cannot do without, each part alone."""
    case, tonight = "refresh-night", _tonight(Table(bench.size.rows))
    first = _first_night(bench, case, Table(bench.size.rows), DEEP)
    contenders = {
        "ours": lineup.night(
            tonight, DEEP, bench.output(case, "night"), base=bench.output(case, "first")
        ),
        "reading and hashing alone": _hash_alone(bench, tonight),
        "predicting 1 % alone": _predict_alone(bench, tonight, first.said["batch_size"]),
        "the merge alone": _merge_alone(bench, case, tonight),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    _check_changed(runs["ours"], tonight)
    took, *parts = (each.body_seconds for each in runs.values())
    sums = " + ".join(map(figure, parts))
    work = f"night of {tonight.rows:,} rows of {tonight.width}, 1 % changed → Dense 512-256-64"
    other = f"reading and hashing, predicting 1 % (model load included), merge alone: {sums} s"
    return [Finding(case, work, seconds(took), other, took / sum(parts), Target("at most", 1.4))]


def heavy_model(bench: Bench) -> list[Finding]:
    """A night with 1 % changed rows against the first load, with a model that takes long."""
    case, table = "refresh-heavy", Table(bench.size.rows)
    tonight = _tonight(table)
    first = bench.output(case, "first")
    contenders = {
        "first load": lineup.night(table, HEAVY, first),
        "ours": lineup.night(tonight, HEAVY, bench.output(case, "night"), base=first),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    _check_changed(runs["ours"], tonight)
    load, took = (each.body_seconds for each in runs.values())
    layers = "-".join(map(str, HEAVY.widths))
    operations = figure(HEAVY.row_operations / 1e6)
    work = f"night of {table.rows:,} rows, 1 % changed → Dense {layers} ({operations} MFLOP a row)"
    other = f"first load: {seconds(load)}"
    return [
        Finding(case, work, seconds(took), other, 100 * took / load, Target("at most", 10, "%"))
    ]


def nothing_changed(bench: Bench) -> list[Finding]:
    """A night without changes against reading and hashing, as processes; imports aside on both."""
    case, table = "refresh-nothing", Table(bench.size.rows)
    _first_night(bench, case, table, DEEP)
    job = bench.output(case, "job.yaml")
    job.write_text(yaml.safe_dump(lineup.refresh_job(table, DEEP, bench.output(case, "first"))))
    modules = imported_modules("batchnorm_tool", "refresh", job)
    hashing = _hash_alone(bench, table)
    _, _, *words = hashing.command
    contenders = {
        "ours": Contender((OURS_PYTHON.parent / "batchnorm-tool", "refresh", job)),
        "the imports of ours": _imports(bench.output(case, "ours.json"), modules),
        "reading and hashing alone": hashing,
        "the imports of that": _imports(bench.output(case, "hash.json"), imported_modules(*words)),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    whole, ours_imports, alone, its_imports = (each.seconds for each in runs.values())
    took, limit = whole - ours_imports, alone - its_imports
    heavy = sorted(packages(modules) & _HEAVY_PACKAGES)
    # What imports TensorFlow or Lance misses its target, however quick it is.
    value = float("inf") if heavy else took / limit
    ours = f"{seconds(took)} (and {seconds(ours_imports)} for imports)"
    noted = f"imports {', '.join(heavy)}" if heavy else "neither TensorFlow nor Lance imported"
    other = f"reading and hashing alone: {seconds(limit)}; {noted}"
    work = f"`refresh` of {table.rows:,} rows, nothing changed, whole process without imports"
    return [Finding(case, work, ours, other, value, Target("at most", 1.5))]


def difference_alone(bench: Bench) -> list[Finding]:
    """Rows in a second that are read, hashed and held against the live version."""
    case, table = "refresh-difference", Table(bench.size.rows)
    _first_night(bench, case, table, DEEP)
    tonight = _tonight(table)
    job = lineup.refresh_job(tonight, DEEP, bench.output(case, "first"))
    contenders = {
        "ours": lineup.script("difference_alone", job=job),
        "reading and hashing alone": _hash_alone(bench, tonight),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    _check_changed(runs["ours"], tonight)
    took, limit = (each.body_seconds for each in runs.values())
    work = f"the difference of {table.rows:,} rows of {table.width}, reading included"
    other = f"reading and hashing alone: {seconds(limit)}"
    target = Target("at least", 1, "million rows/s")
    return [Finding(case, work, seconds(took), other, table.rows / took / 1e6, target)]


def memory_of_the_difference(bench: Bench) -> list[Finding]:
    """Peak memory of the difference with some rows and four times as many: what one row takes."""
    case = "refresh-memory"
    counts = {"few": bench.size.rows, "many": _TIMES_THE_ROWS * bench.size.rows}
    contenders = {}
    for name, rows in counts.items():
        table = Table(rows, _NARROW)
        _first_night(bench, case, table, None, name)
        job = lineup.refresh_job(_tonight(table), None, bench.output(case, name))
        contenders[f"ours, {rows:,} rows"] = lineup.script("difference_alone", job=job)
    runs = bench.run(case, contenders)
    bench.clear(case)
    small, large = (each.peak_rss_bytes for each in runs.values())
    few, many = counts.values()
    return [
        Finding(
            case,
            f"peak memory of the difference of {many:,} rows",
            megabytes(large),
            f"{few:,} rows: {megabytes(small)}",
            (large - small) / (many - few),
            Target("at most", 64, "bytes a row"),
        )
    ]


def disk_after_nights(bench: Bench) -> list[Finding]:
    """Bytes of a store that 1 % of the rows change in every night, against those of a fresh one."""
    case, rows, nights = "refresh-disk", bench.size.kept, bench.size.nights
    ours = lineup.script(
        "our_month",
        bench.output(case, "stores"),
        rows=rows,
        width=_KEPT_WIDTH,
        nights=nights,
        keep=_KEEP,
    )
    said = bench.run(case, {"ours": ours}, 1)["ours"].said
    bench.clear(case)
    _check(said["changed"], [0] + [len(Table(rows, night=2).changed)] * (nights - 1))
    kept, fresh = said["kept_bytes"], said["fresh_bytes"]
    work = f"{nights} nights of 1 % of {rows:,} rows of {_KEPT_WIDTH}, {_KEEP['count']} kept"
    other = f"a fresh store of the last night: {megabytes(fresh)}"
    return [Finding(case, work, megabytes(kept), other, kept / fresh, Target("at most", 1.6))]


def _tonight(table: Table) -> Table:
    return replace(table, night=2)


def _first_night(
    bench: Bench, case: str, table: Table, model: Model | None, name: str = "first"
) -> Runs:
    """Load a store, once for the case."""
    loading = lineup.night(table, model, bench.output(case, name))
    return bench.run(case, {f"first load of {table.rows:,} rows": loading}, 1).popitem()[1]


def _hash_alone(bench: Bench, table: Table) -> Contender:
    return lineup.script("hash_alone", input=made(table), cores=bench.cores)


def _predict_alone(bench: Bench, tonight: Table, batch_size: int) -> Contender:
    return lineup.script(
        "predict_changed",
        model=made(DEEP),
        input=made(tonight),
        rows=tonight.rows,
        night=tonight.night,
        batch_size=batch_size,
        cores=bench.cores,
    )


def _merge_alone(bench: Bench, case: str, tonight: Table) -> Contender:
    merged = bench.output(case, "merged")
    command = lineup.script(
        "merge_alone",
        base=lineup.store_in(bench.output(case, "first")),
        store=lineup.store_in(merged),
        rows=tonight.rows,
        night=tonight.night,
    ).command
    return Contender(command, merged)


def _imports(path: Path, modules: list[str]) -> Contender:
    path.write_text(json.dumps(modules))
    return lineup.script("imports_alone", modules=path)


def _check_changed(runs: Runs, tonight: Table) -> None:
    """A night that found other rows than have changed did other work."""
    found = runs.said["rows"]
    _check([found["changed"], found["new"], found["vanished"]], [len(tonight.changed), 0, 0])


def _check(found: object, expected: object) -> None:
    if found != expected:
        msg = f"The nights found {found} changed rows. Expected: {expected}."
        raise Disagreement(msg)
