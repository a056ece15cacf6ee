"""Rows 2, 5, 6 and 7: the tool against what the work costs at the very least."""

from __future__ import annotations

from benchmarks import lineup
from benchmarks.bench import Bench
from benchmarks.data import CONVOLUTION, DEEP, Table, made
from benchmarks.findings import NOTHING, Finding, Target, figure, seconds

_VECTOR = 64
_STORED_WIDTH = 256


def sum_of_stages(bench: Bench) -> list[Finding]:
    """Row 2: CPU seconds of all that must be done, each alone, over the cores."""
    table, case = Table(bench.size.rows), "2"
    output = bench.output(case, "ours")
    trial = {"ours, for its batch size": lineup.ours(table, DEEP, output)}
    chosen = bench.run(case, trial, 1).popitem()[1].said
    # `auto` measures, and may choose differently in the next run: all are held to this choice.
    fixed = {"model": {"batch_size": chosen["batch_size"]}}
    path = made(table)
    vectors = {"rows": table.rows, "width": _VECTOR, "chunk_rows": chosen["chunk_rows"]}
    contenders = {
        "ours": lineup.ours(table, DEEP, output, sections=fixed),
        "prediction alone": lineup.script(
            "predict_alone",
            model=made(DEEP),
            input=path,
            batch_size=chosen["batch_size"],
            cores=bench.cores,
        ),
        "reading alone": lineup.script(
            "read_alone", input=path, columns=["id", "features"], batch_rows=chosen["chunk_rows"]
        ),
        "writing alone": lineup.script(
            "write_alone", bench.output(case, "written"), rows=table.rows, width=_VECTOR
        ),
        "norms and statistics alone": lineup.script("norms_alone", stage="norms", **vectors),
        "checksums alone": lineup.script("norms_alone", stage="checksums", **vectors),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    parts = [each.body_cpu_seconds for name, each in runs.items() if name != "ours"]
    limit, took = sum(parts) / bench.cores, runs["ours"].body_seconds
    sums = " + ".join(map(figure, parts))
    each = "prediction, reading, writing, norms and statistics, checksums"
    other = f"{each}, each alone: ({sums}) CPU s / {bench.cores} cores"
    work = "the same against the limit"
    return [Finding(case, work, seconds(took), other, took / limit, Target("at most", 1.1))]


def convolution(bench: Bench) -> list[Finding]:
    """Row 5: images from NPY against one call of ``model.predict`` on the array in memory."""
    table, case = Table(bench.size.images, CONVOLUTION.features, "npy"), "5"
    contenders = {
        "ours": lineup.ours(table, CONVOLUTION, bench.output(case, "ours")),
        "one model.predict": lineup.script(
            "model_predict", model=made(CONVOLUTION), input=made(table)
        ),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    took, limit = runs["ours"].body_seconds, runs["one model.predict"].body_seconds
    best = runs["one model.predict"].said["batch_size"]
    return [
        Finding(
            case,
            f"{table.rows:,} images of 28 by 28 from NPY → convolution",
            seconds(took),
            f"one model.predict in memory, batch {best}: {seconds(limit)}",
            took / limit,
            Target("at most", 1.10),
        )
    ]


def stored_predictions(bench: Bench) -> list[Finding]:
    """Row 6: no model, against a loop that only copies the file."""
    table, case = Table(bench.size.stored, _STORED_WIDTH), "6"
    contenders = {
        "ours": lineup.ours(table, None, bench.output(case, "ours")),
        "copy loop": lineup.script(
            "copy_loop", bench.output(case, "copy"), input=made(table), width=_STORED_WIDTH
        ),
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    took, limit = runs["ours"].body_seconds, runs["copy loop"].body_seconds
    work = f"normalize {table.rows:,} rows of {_STORED_WIDTH}, Parquet to Parquet, no model"
    other = f"pyarrow loop that only copies: {seconds(limit)}"
    return [Finding(case, work, seconds(took), other, took / limit, Target("at most", 1.25))]


def norms_and_statistics(bench: Bench) -> list[Finding]:
    """Row 7: the part of normalizing and measuring in the CPU seconds of row 1."""
    case, work, target = "7", "norms and statistics of row 1", Target("at most", 10, "%")
    ours = lineup.ours(Table(bench.size.rows), DEEP, bench.output(case, "ours"))
    runs = bench.run(case, {"ours": ours})["ours"]
    bench.clear(case)
    stages = runs.said["stages"]
    if not stages:
        reason = "the result does not tell what its stages took"
        return [Finding(case, work, NOTHING, reason, None, target)]
    part, whole = stages["normalize"] + stages["statistics"], runs.said["body_cpu_seconds"]
    other = f"all of the work: {figure(whole)} CPU s"
    return [Finding(case, work, f"{figure(part)} CPU s", other, 100 * part / whole, target)]
