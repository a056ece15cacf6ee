"""The rows of `refresh`: first loads, nights against their parts, differences, memory, disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import yaml

from benchmarks import lineup
from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench, Contender, Runs
from benchmarks.cases.memory_and_start import imported_modules, packages
from benchmarks.data import DEEP, HEAVY, Model, Table, made
from benchmarks.findings import Finding, Target, figure, megabytes, seconds
from benchmarks.places import PROGRAM

# Of five rows of the table that most cases share, so many are loaded into a new store.
_LOADED = 2
# What a load may take beside `run`.
_LOAD_SECONDS, _LOAD_ROW_SECONDS = 1.0, 4e-6
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
    return [Finding(case, work, seconds(took), other, took / sum(parts), Target("at most", 1.5))]


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


def first_load(bench: Bench) -> list[Finding]:
    """A load into a new store against `run` over the same input, as processes; imports aside."""
    case, table = "refresh-load", Table(bench.size.rows * _LOADED // 5)
    loaded, scored = bench.output(case, "loaded"), bench.output(case, "scored")
    jobs = {
        ("refresh", loaded): lineup.refresh_job(table, DEEP, loaded),
        ("run", scored): lineup.job_over(table, DEEP, scored),
    }
    contenders = {}
    for (command, output), job in jobs.items():
        path = bench.output(case, f"{command}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(job))
        modules = imported_modules("batchnorm_tool", command, path)
        contenders[f"`{command}`"] = (Contender((PROGRAM, command, path), output), modules)
    (took, imports), (limit, _) = _without_imports(bench, case, contenders)
    most = _LOAD_SECONDS + _LOAD_ROW_SECONDS * table.rows
    work = f"first load of {table.rows:,} rows of {table.width}, whole process without imports"
    ours = f"{seconds(took)} (and {seconds(imports)} for imports)"
    other = f"`run` over the same input: {seconds(limit)}"
    allowed = f"{other}; 4 µs a row and 1 s more are {seconds(most)} more"
    more = f"{seconds(took - limit)} more"
    return [
        Finding(case, work, ours, other, took / limit, Target("at most", 1.35)),
        Finding(case, work, more, allowed, took - limit, Target("at most", most, "s more")),
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
        "ours": (Contender((PROGRAM, "refresh", job)), modules),
        "reading and hashing alone": (hashing, imported_modules(*words)),
    }
    (took, imports), (limit, _) = _without_imports(bench, case, contenders)
    heavy = sorted(packages(modules) & _HEAVY_PACKAGES)
    # What imports TensorFlow or Lance misses its target, however quick it is.
    value = float("inf") if heavy else took / limit
    ours = f"{seconds(took)} (and {seconds(imports)} for imports)"
    noted = f"imports {', '.join(heavy)}" if heavy else "neither TensorFlow nor Lance imported"
    other = f"reading and hashing alone: {seconds(limit)}; {noted}"
    work = f"`refresh` of {table.rows:,} rows, nothing changed, whole process without imports"
    return [Finding(case, work, ours, other, value, Target("at most", 1.0))]


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
    ratio = f"the difference takes {figure(took / limit)} times that"
    other = f"reading and hashing alone: {seconds(limit)}; {ratio}"
    target = Target("at least", 0.7, "million rows/s")
    return [Finding(case, work, seconds(took), other, table.rows / took / 1e6, target)]


def memory_of_the_difference(bench: Bench) -> list[Finding]:
    """Peak memory of the difference with some rows and four times as many: what one row takes."""
    case, counts = "refresh-memory", (bench.size.rows, _TIMES_THE_ROWS * bench.size.rows)
    keys = {"plain": "integers", "text_keys": "strings"}
    contenders = {}
    for layout, kind in keys.items():
        for rows in counts:
            table, name = Table(rows, _NARROW, layout), f"{layout}-{rows}"
            _first_night(bench, case, table, None, name)
            job = lineup.refresh_job(_tonight(table), None, bench.output(case, name))
            said = f"ours, {rows:,}, keys are {kind}"
            contenders[said] = lineup.script("difference_alone", job=job)
    runs = bench.run(case, contenders)
    bench.clear(case)
    peaks = [each.peak_rss_bytes for each in runs.values()]
    few, many = counts
    return [
        Finding(
            case,
            f"peak memory of the difference of {many:,} rows, keys are {kind}",
            megabytes(large),
            f"{few:,} rows: {megabytes(small)}",
            (large - small) / (many - few),
            Target("at most", 48, "bytes a row"),
        )
        for kind, small, large in zip(keys.values(), peaks[::2], peaks[1::2], strict=True)
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


def _without_imports(
    bench: Bench, case: str, contenders: Mapping[str, tuple[Contender, list[str]]]
) -> list[tuple[float, float]]:
    """Measure processes; returns the seconds of each without its imports, and those of these."""
    both = {}
    for number, (name, (contender, modules)) in enumerate(contenders.items()):
        path = bench.output(case, f"imports-{number}.json")
        path.write_text(json.dumps(modules))
        both[name] = contender
        both[f"the imports of {name}"] = lineup.script("imports_alone", modules=path)
    taken = [each.seconds for each in bench.run(case, both).values()]
    bench.clear(case)
    return [
        (whole - imports, imports) for whole, imports in zip(taken[::2], taken[1::2], strict=True)
    ]


def _check_changed(runs: Runs, tonight: Table) -> None:
    """A night that found other rows than have changed did other work."""
    found = runs.said["rows"]
    _check([found["changed"], found["new"], found["vanished"]], [len(tonight.changed), 0, 0])


def _check(found: object, expected: object) -> None:
    if found != expected:
        msg = f"The nights found {found} changed rows. Expected: {expected}."
        raise Disagreement(msg)
