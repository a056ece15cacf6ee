"""The page about one finished run: what it is, its norms, its parts and its bad rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from batchnorm_tool.display import count, number, plural, share, size
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report import Html, join, page, svg, tag
from batchnorm_tool.report.axes import Axis
from batchnorm_tool.report.bins import NormBins, bin_norms
from batchnorm_tool.report.figures import base_name
from batchnorm_tool.report.page import Column
from batchnorm_tool.report.run_charts import dimension_chart, norm_table, part_chart
from batchnorm_tool.report.text_run import norm_shown, outside, spread

if TYPE_CHECKING:
    from batchnorm_tool.norms.stats import VectorStats
    from batchnorm_tool.pipeline.manifest import Manifest, PartEntry, RowCounts
    from batchnorm_tool.pipeline.output_schema import StoredOutput
_HEADROOM = 1.04


def run_page(manifest: Manifest, chunks: pa.Table) -> str:
    """Describe a finished run on one HTML page that works offline."""
    title = _title(manifest)
    sections = [
        *page.warnings(manifest.warnings),
        *(_output(manifest, index, chunks) for index in range(len(manifest.outputs))),
        _bad_rows(manifest),
        _inputs(manifest),
        _parts(manifest),
    ]
    return page.document(title, _header(manifest, title), sections, manifest.version)


def _title(manifest: Manifest) -> str:
    source = base_name(_first_path(manifest.job.input.path))
    model = manifest.job.model
    through = f" through {base_name(model.path)}" if model else ""
    return f"{source}{through}"


def _header(manifest: Manifest, title: str) -> Html:
    norms = sorted({output.norm for output in manifest.outputs})
    outcome = (
        "predictions not normalized"
        if norms == ["none"]
        else f"vectors normalized by {' and '.join(norms)}"
    )
    return page.header(
        f"A finished run: {outcome}",
        page.name(title),
        page.figures(_figures(manifest)),
        page.facts(_facts(manifest)),
    )


def _figures(manifest: Manifest) -> Iterator[tuple[str, object, bool]]:
    rows = manifest.rows
    bad = rows.bad
    yield "rows in", count(rows.rows_in), False
    yield "rows out", count(rows.rows_out), False
    yield f"bad rows, {share(bad, rows.rows_in)}" if bad else "bad rows", count(bad), bad > 0
    yield "zero vectors", count(rows.zero), False
    yield "parts", count(len(manifest.parts)), False


def _facts(manifest: Manifest) -> Iterator[tuple[str, object]]:
    job, resolved = manifest.job, manifest.resolved
    model = job.model
    yield "input", page.code(_paths(job.input.path))
    yield "model", page.code(model.path) if model else "none: predictions were already stored"
    yield "output", page.code(job.output.path)
    for output in manifest.outputs:
        yield "column", join(page.code(output.vector_column), f" {_kind(output)}")
    for name in ("space", "bits", "result"):
        yield name, page.identity(getattr(manifest, name))
    yield "batch size", str(resolved.batch_size)
    yield "device", str(resolved.device)
    yield "threads", f"{resolved.threads} for each model"
    versions = manifest.identity.versions.items()
    said = ", ".join(f"{name} {version}" for name, version in versions)
    yield "versions", page.name(said or f"batchnorm_tool {manifest.version}")


def _kind(output: StoredOutput) -> str:
    shape = " \N{MULTIPLICATION SIGN} ".join(str(length) for length in output.shape) or "1"
    return f"{shape} {output.dtype}, {output.norm}"


def _output(manifest: Manifest, index: int, chunks: pa.Table) -> Html:
    output = manifest.outputs[index]
    statistics = manifest.statistics.get(output.name)
    heading = join("Norms of ", page.code(output.name))
    if statistics is None:
        return page.section(heading, tag("p", "No rows, so there are no norms."))
    norms = statistics.norms
    shown = norm_shown(output.norm)
    prefix = f"output-{index}"
    others = [label for label in norms if label != shown]
    return page.section(
        heading,
        page.quiet(_vectors(statistics)),
        tag("h3", f"{shown} norm before normalization"),
        _histogram(f"{prefix}-norm", shown, norms[shown]),
        norm_table(norms, "Norms before normalization"),
        tag("h3", f"{shown} norm along the run"),
        part_chart(f"{prefix}-run", chunks, output.name, shown),
        tag("h3", "Spread of each dimension, before normalization"),
        dimension_chart(f"{prefix}-dimensions", statistics.dimensions),
        tag("h3", "Other norms"),
        tag(
            "div",
            *(
                _histogram(f"{prefix}-other-{n}", label, norms[label])
                for n, label in enumerate(others)
            ),
            class_="trio",
        ),
    )


def _vectors(statistics: VectorStats) -> str:
    said = [f"{plural(statistics.vectors, 'vector')} in {plural(statistics.rows, 'row')}"]
    said.append(f"{count(statistics.zero)} of them zero")
    said.append(f"{count(statistics.nonfinite)} not finite")
    return ", ".join(said)


def _histogram(id_: str, label: str, stats: NormStats) -> Html:
    bins = bin_norms(stats)
    if bins is None:
        return page.note(f"No {label} norm is finite and positive.")
    scale = " (log scale)" if bins.kind == "log" else ""
    axes = (
        Axis(f"{label} norm{scale}", bins.edges[0], bins.edges[-1], bins.kind),
        Axis("vectors", 0, max(bins.counts) * _HEADROOM, "whole"),
    )
    words = svg.ChartText(id_, f"Histogram of {label} norms", _description(label, stats))
    draw = partial(svg.bar_chart, axes=axes, bars=_bars(bins))
    data = page.behind("The numbers behind this chart", _bin_table(label, bins))
    return page.chart(words, draw, *map(page.note, outside(stats)), data)


def _bars(bins: NormBins) -> list[svg.Bar]:
    pairs = zip(bins.edges[:-1], bins.edges[1:], bins.counts, strict=True)
    return [
        svg.Bar(low, high, amount, f"{number(low)} to {number(high)}: {count(amount)}")
        for low, high, amount in pairs
    ]


def _description(label: str, stats: NormStats) -> str:
    low, _, _, median, _, _, high = map(number, spread(stats))
    return f"{plural(stats.count, f'{label} norm')} from {low} to {high}, median {median}."


def _bin_table(label: str, bins: NormBins) -> Html:
    columns = [Column("from"), Column("to"), Column("vectors")]
    pairs = zip(bins.edges[:-1], bins.edges[1:], bins.counts, strict=True)
    rows = [[number(low, 6), number(high, 6), count(amount)] for low, high, amount in pairs]
    return page.table(f"Vectors by {label} norm", columns, rows)


def _bad_rows(manifest: Manifest) -> Html:
    reasons = {reason: amount for reason, amount in manifest.reasons.items() if amount}
    if not reasons:
        return page.section("Bad rows", tag("p", "None."))
    by_reason = page.table(
        "Bad rows by reason",
        [Column("reason", numeric=False), Column("rows")],
        [[reason, count(amount)] for reason, amount in reasons.items()],
    )
    headings = [Column("row"), Column("key", numeric=False), Column("reason", numeric=False)]
    where = [Column("file", numeric=False), Column("row in file")]
    rows = [
        [count(row.row), page.name(row.key), row.reason, page.code(row.file), count(row.file_row)]
        for row in manifest.first_bad_rows
    ]
    return page.section(
        "Bad rows",
        page.quiet(_bad_row_counts(manifest.rows)),
        by_reason,
        page.table("The first bad rows", [*headings, *where], rows),
    )


def _bad_row_counts(rows: RowCounts) -> str:
    actions = ("quarantined", "dropped", "nullified")
    amounts = {action: getattr(rows, action) for action in actions}
    said = [f"{count(amount)} {action}" for action, amount in amounts.items() if amount]
    return ", ".join(said) if said else "All were kept."


def _inputs(manifest: Manifest) -> Html:
    columns = [Column("file", numeric=False), Column("rows"), Column("size")]
    rows = [
        [page.code(entry.path), count(entry.rows), size(entry.bytes)] for entry in manifest.inputs
    ]
    return page.section("Input files", page.table("Files in reading order", columns, rows))


def _parts(manifest: Manifest) -> Html:
    columns = [Column("part"), Column("first row"), Column("rows in"), Column("rows out")]
    columns += [Column("size"), Column("files, with their SHA-256", numeric=False)]
    rows = [
        [count(getattr(part, name)) for name in ("part", "first_row", "rows_in", "rows_out")]
        + [size(sum(file.bytes for file in part.files)), _files(part)]
        for part in manifest.parts
    ]
    return page.section("Parts", page.table("Parts in order", columns, rows))


def _files(part: PartEntry) -> Html:
    lines = (
        tag("div", page.code(file.path), " ", page.identity(file.sha256)) for file in part.files
    )
    return join(*lines)


def _paths(path: object) -> str:
    if isinstance(path, Mapping):
        return ", ".join(f"{name}: {file}" for name, file in path.items())
    return ", ".join(path) if isinstance(path, list | tuple) else str(path)


def _first_path(path: object) -> str:
    several = list(path.values()) if isinstance(path, Mapping) else path
    if not isinstance(several, list | tuple):
        return str(several)
    more = f" and {len(several) - 1} more" if len(several) > 1 else ""
    return f"{several[0]}{more}" if several else "no files"
