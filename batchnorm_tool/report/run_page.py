"""The page about one finished run: its norms, its parts, its dimensions and its bad rows."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnorm_tool.display import count, number, plural, share, size
from batchnorm_tool.norms.norm import Float64s
from batchnorm_tool.norms.stats import MIDDLE_COLUMNS, MIDDLE_QUANTILES, quantile_label
from batchnorm_tool.report import Html, charts, join, page, tag
from batchnorm_tool.report.figures import base_name
from batchnorm_tool.report.norm_charts import norm_chart, norm_table
from batchnorm_tool.report.svg import Axis, ChartText
from batchnorm_tool.report.text_run import norm_shown

if TYPE_CHECKING:
    from batchnorm_tool.norms.stats import DimensionStats
    from batchnorm_tool.pipeline.manifest import Manifest

Int64s = np.ndarray
# More steps than this are thinner than two pixels of a wide chart.
_MOST_PART_STEPS = 360
# From this ratio on, the lower of two norms could not be told from zero on a linear axis.
_LOG_FROM = 50.0
# A wide chart has about as many pixels; more dimensions than this share a step.
_MOST_DIMENSION_STEPS = 512
# The y axis reaches this many times the range of all mean ± std; one runaway value in one
# dimension would otherwise flatten the others into a line.
_REACH = 8.0


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
    first, *others = manifest.job.input.paths
    more = f" and {len(others)} more" if others else ""
    model = manifest.job.model
    through = f" through {base_name(model.path)}" if model else ""
    return f"{base_name(f'{first}{more}')}{through}"


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
    columns = job.input.path if isinstance(job.input.path, dict) else {}
    named = [f"{name}: {file}" for name, file in columns.items()]
    yield "input", page.code(", ".join(named or job.input.paths))
    yield "model", page.code(model.path) if model else "none: predictions were already stored"
    yield "output", page.code(job.output.path)
    for output in manifest.outputs:
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, output.shape)) or "1"
        kind = ", ".join([f" {shape} {output.dtype}", output.norm, *output.options])
        yield "column", join(page.code(output.vector_column), kind)
    for name in ("space", "bits", "result"):
        yield name, page.identity(getattr(manifest, name))
    yield "batch size", str(resolved.batch_size)
    yield "device", str(resolved.device)
    yield "threads", f"{resolved.threads} for each model"
    versions = manifest.identity.versions.items()
    said = ", ".join(f"{name} {version}" for name, version in versions)
    yield "versions", page.name(said or f"batchnorm_tool {manifest.version}")


def _output(manifest: Manifest, index: int, chunks: pa.Table) -> Html:
    output = manifest.outputs[index]
    statistics = manifest.statistics.get(output.name)
    heading = join("Norms of ", page.code(output.name))
    if statistics is None:
        return page.section(heading, tag("p", "No rows, so there are no norms."))
    norms = statistics.norms
    shown = norm_shown(output.norm)
    prefix = f"output-{index}"
    others = (
        norm_chart(f"{prefix}-other-{n}", label, norms[label])
        for n, label in enumerate(label for label in norms if label != shown)
    )
    return page.section(
        heading,
        page.quiet(
            f"{plural(statistics.vectors, 'vector')} in {plural(statistics.rows, 'row')}, "
            f"{count(statistics.zero)} of them zero, {count(statistics.nonfinite)} not finite"
        ),
        tag("h3", f"{shown} norm before normalization"),
        norm_chart(f"{prefix}-norm", shown, norms[shown]),
        norm_table(norms, "Norms before normalization"),
        tag("h3", f"{shown} norm along the run"),
        _part_chart(f"{prefix}-run", chunks, output.name, shown),
        tag("h3", "Spread of each dimension, before normalization"),
        _dimension_chart(f"{prefix}-dimensions", statistics.dimensions),
        tag("h3", "Other norms"),
        tag("div", *others, class_="trio"),
    )


def _bad_rows(manifest: Manifest) -> Html:
    reasons = {reason: amount for reason, amount in manifest.reasons.items() if amount}
    if not reasons:
        return page.section("Bad rows", tag("p", "None."))
    by_reason = [[reason, count(amount)] for reason, amount in reasons.items()]
    actions = ("quarantined", "dropped", "nullified")
    amounts = {action: getattr(manifest.rows, action) for action in actions}
    said = ", ".join(f"{count(amount)} {action}" for action, amount in amounts.items() if amount)
    headings = ("row", "key", "reason", "file", "row in file")
    rows = [
        [count(row.row), page.name(row.key), row.reason, page.code(row.file), count(row.file_row)]
        for row in manifest.first_bad_rows
    ]
    return page.section(
        "Bad rows",
        page.quiet(said or "All were kept."),
        page.table("Bad rows by reason", ("reason", "rows"), by_reason),
        page.table("The first bad rows", headings, rows, "rlllr"),
    )


def _inputs(manifest: Manifest) -> Html:
    rows = ([page.code(file.path), count(file.rows), size(file.bytes)] for file in manifest.inputs)
    table = page.table("Files in reading order", ("file", "rows", "size"), rows)
    return page.section("Input files", table)


def _parts(manifest: Manifest) -> Html:
    amounts = ("part", "first_row", "rows_in", "rows_out")
    headings = ("part", "first row", "rows in", "rows out", "size", "files, with their SHA-256")
    rows = []
    for part in manifest.parts:
        bytes_ = size(sum(file.bytes for file in part.files))
        lines = (
            tag("div", page.code(file.path), " ", page.identity(file.sha256)) for file in part.files
        )
        rows.append([*(count(getattr(part, name)) for name in amounts), bytes_, join(*lines)])
    return page.section("Parts", page.table("Parts in order", headings, rows, "rrrrrl"))


@dataclass(frozen=True)
class _PartSteps:
    """Norm quantiles of consecutive chunks, several of them gathered into a step where need be.

    Edges are the first row of each step, and the end of the last; ``vectors`` counts finite ones,
    and quantiles are NaN in a step without any.
    """

    edges: Float64s
    vectors: Int64s
    quantiles: dict[str, Float64s]
    gathered: int
    chunks: int


def _part_chart(id_: str, chunks: pa.Table, output: str, norm: str) -> Html:
    """Draw median, middle half and middle 90 % of a norm along the rows of a run."""
    steps = _gather(chunks, output, norm)
    if steps is None:
        return page.note("No chunk has a finite vector.")
    words = ChartText(
        id_,
        f"Quantiles of the {norm} norm along the run",
        f"{plural(steps.chunks, 'chunk')}; the median lies "
        f"between {number(float(np.nanmin(steps.quantiles['q50'])))} "
        f"and {number(float(np.nanmax(steps.quantiles['q50'])))}.",
    )
    by_name = {name: values.tolist() for name, values in steps.quantiles.items()}
    series = charts.Steps.of_quantiles(steps.edges.tolist(), by_name)
    draw = partial(charts.band_chart, axes=_part_axes(steps, norm), steps=series)
    grouped = (
        f"Each step groups {steps.gathered} chunks: median and middle half are their means, the "
        "outer band spans all of their 5\N{EN DASH}95 % ranges."
    )
    notes = [grouped] if steps.gathered > 1 else []
    return page.chart(words, draw, notes, _part_table(steps, norm))


def _gather(chunks: pa.Table, output: str, norm: str) -> _PartSteps | None:
    wanted = pc.and_(pc.equal(chunks["output"], output), pc.equal(chunks["norm"], norm))
    rows = chunks.filter(wanted).sort_by([("first_row", "ascending"), ("part", "ascending")])
    quantiles = {name: _floats(rows, name) for name in MIDDLE_COLUMNS}
    if rows.num_rows == 0 or np.isnan(quantiles["q50"]).all():
        return None
    group = -(-rows.num_rows // _MOST_PART_STEPS)
    starts = np.arange(0, rows.num_rows, group)
    first, length = (_floats(rows, name) for name in ("first_row", "rows"))
    finite = np.where(np.isnan(quantiles["q50"]), 0.0, _floats(rows, "vectors"))
    finite -= np.where(finite > 0, _floats(rows, "nonfinite"), 0.0)
    return _PartSteps(
        edges=np.append(first[starts], first[-1] + length[-1]),
        vectors=np.add.reduceat(finite, starts).astype(np.int64),
        quantiles={
            name: _gathered(name, values, finite, starts) for name, values in quantiles.items()
        },
        gathered=group,
        chunks=rows.num_rows,
    )


def _gathered(name: str, values: Float64s, weights: Float64s, starts: Int64s) -> Float64s:
    # The outer band keeps every chunk's extremes, so that one odd chunk among many is not
    # averaged away; the inner quantiles are means over the vectors.
    if name == "q05":
        return np.fmin.reduceat(values, starts)
    if name == "q95":
        return np.fmax.reduceat(values, starts)
    totals = np.add.reduceat(weights, starts)
    shares = weights / np.repeat(totals, np.diff([*starts, len(values)])).clip(min=1)
    means = np.add.reduceat(np.where(weights > 0, values, 0.0) * shares, starts)
    return np.where(totals > 0, means, np.nan)


def _floats(rows: pa.Table, column: str) -> Float64s:
    values = rows[column].combine_chunks().cast(pa.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).copy()


def _part_axes(steps: _PartSteps, norm: str) -> tuple[Axis, Axis]:
    low = float(np.nanmin(steps.quantiles["q05"]))
    high = float(np.nanmax(steps.quantiles["q95"]))
    across = Axis("row", float(steps.edges[0]), float(steps.edges[-1]), "whole")
    if low > 0 and high / low >= _LOG_FROM:
        return across, Axis(f"{norm} norm (log scale)", low / 1.2, high, "log")
    room = (high / 2 - low / 2) / 5 or abs(high) / 20 or 1.0
    return across, Axis(f"{norm} norm", max(low - room, 0.0), high + room)


def _part_table(steps: _PartSteps, norm: str) -> Html:
    headings = ("first row", "vectors", *map(quantile_label, MIDDLE_QUANTILES))
    quantiles = np.column_stack([steps.quantiles[name] for name in MIDDLE_COLUMNS]).tolist()
    rows = (
        [count(int(first)), count(int(vectors)), *(number(value) for value in values)]
        for first, vectors, values in zip(steps.edges[:-1], steps.vectors, quantiles, strict=True)
    )
    return page.table(f"Quantiles of the {norm} norm", headings, rows, "")


@dataclass(frozen=True)
class _Spread:
    """Mean, mean ± std and extremes of consecutive groups of dimensions."""

    edges: Float64s
    mean: Float64s
    under: Float64s
    over: Float64s
    low: Float64s
    high: Float64s
    constant: int


def _dimension_chart(id_: str, statistics: DimensionStats) -> Html:
    """Draw mean, mean ± standard deviation and extremes of each dimension."""
    if not statistics.count or not len(statistics.mean):
        return page.note("No prediction is finite.")
    spread = _spread(statistics)
    dimensions = len(statistics.mean)
    words = ChartText(
        id_,
        "Spread of each dimension",
        f"{plural(dimensions, 'dimension')}; means from {number(float(spread.mean.min()))} "
        f"to {number(float(spread.mean.max()))}, values from {number(float(spread.low.min()))} "
        f"to {number(float(spread.high.max()))}.",
    )
    across, up = Axis("dimension", 0, dimensions, "whole"), _y_axis(spread)
    bands = {
        "min to max": (spread.low.tolist(), spread.high.tolist()),
        "mean ± std": (spread.under.tolist(), spread.over.tolist()),
    }
    steps = charts.Steps(spread.edges.tolist(), bands, {"mean": spread.mean.tolist()})
    draw = partial(charts.band_chart, axes=(across, up), steps=steps)
    notes = _dimension_notes(spread, dimensions, up)
    return page.chart(words, draw, notes, _dimension_table(spread))


def _spread(statistics: DimensionStats) -> _Spread:
    mean, low, high = statistics.mean, statistics.min, statistics.max
    std = np.sqrt(statistics.variance)
    # Where squares are beyond float64, the extremes stand in.
    under, over = (
        np.where(np.isfinite(edge), edge, extreme)
        for edge, extreme in ((mean - std, low), (mean + std, high))
    )
    starts = np.arange(0, len(mean), -(-len(mean) // _MOST_DIMENSION_STEPS))
    lengths = np.diff([*starts, len(mean)])
    return _Spread(
        edges=np.append(starts, len(mean)).astype(np.float64),
        mean=np.add.reduceat(mean, starts) / lengths,
        under=np.minimum.reduceat(under, starts),
        over=np.maximum.reduceat(over, starts),
        low=np.minimum.reduceat(low, starts),
        high=np.maximum.reduceat(high, starts),
        constant=int((low == high).sum()),
    )


def _y_axis(spread: _Spread) -> Axis:
    under, over = float(spread.under.min()), float(spread.over.max())
    reach = _REACH * (over / 2 - under / 2) or abs(over) / 10 or 1.0
    low = max(float(spread.low.min()), under - reach)
    high = min(float(spread.high.max()), over + reach)
    if not low < high:
        most = sys.float_info.max
        low, high = max(low - reach, -most), min(high + reach, most)
    return Axis("prediction", low, high)


def _dimension_notes(spread: _Spread, dimensions: int, up: Axis) -> Iterator[str]:
    group = -(-dimensions // _MOST_DIMENSION_STEPS)
    if group > 1:
        yield (
            f"Each step groups {group} dimensions: the mean of their means, and the widest range "
            "of each band."
        )
    low, high = float(spread.low.min()), float(spread.high.max())
    if low < up.low or high > up.high:
        yield f"Cut at the edges: values range from {number(low)} to {number(high)}."
    if spread.constant:
        yield f"{count(spread.constant)} of {count(dimensions)} never change."


def _dimension_table(spread: _Spread) -> Html:
    headings = ("dimension", "min", "mean \N{MINUS SIGN} std", "mean", "mean + std", "max")
    columns = (spread.low, spread.under, spread.mean, spread.over, spread.high)
    groups = zip(itertools.pairwise(spread.edges), np.column_stack(columns).tolist(), strict=True)
    rows = []
    for (first, end), values in groups:
        ends = dict.fromkeys((count(int(first)), count(int(end) - 1)))
        rows.append(["\N{EN DASH}".join(ends), *map(number, values)])
    return page.table("Spread of each dimension", headings, rows, "")
