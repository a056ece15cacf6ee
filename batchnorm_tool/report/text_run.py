"""The pieces of a terminal's summary of a run: plain lines, nothing printed, no colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batchnorm_tool import display
from batchnorm_tool.norms.stats import MIDDLE_QUANTILES, NormStats, quantile_label
from batchnorm_tool.report.bins import NormBins, bin_norms

if TYPE_CHECKING:
    from batchnorm_tool.pipeline.manifest import Manifest, RowCounts
    from batchnorm_tool.pipeline.timing import Profile

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
_FEWEST_CELLS = 8
# Asking for at most 16 makes 8 to 16 bars: enough for a shape, few enough for a terminal.
_BARS = 16
_FIRST_BAD_ROWS = 5
SPREAD = ("min", *map(quantile_label, MIDDLE_QUANTILES), "max")
"""What `spread` returns, in words."""


def norm_histogram(stats: NormStats, width: int = 72) -> list[str]:
    """Draw a histogram of norms with block characters.

    A bar reaches from its own norm up to the next line's.
    """
    bins = bin_norms(stats, _BARS)
    if bins is None:
        return ["no norm is finite and positive"]
    names = _edge_names(bins.edges[:-1])
    amounts = [display.count(amount) for amount in bins.counts]
    left, right = max(map(len, names)), max(map(len, amounts))
    cells = max(width - left - right - 4, _FEWEST_CELLS)
    largest = max(bins.counts)
    bars = [_bar(amount / largest, cells) for amount in bins.counts]
    return [*display.table(zip(names, bars, amounts, strict=True), "rlr"), *outside(stats, bins)]


def left_out(stats: NormStats, bins: NormBins | None) -> str:
    """Count the norms that no bar holds, with the reason."""
    kinds = {
        "zero": stats.zero,
        "not finite": stats.nonfinite,
        "below": bins.below if bins else 0,
        "above": bins.above if bins else 0,
    }
    return ", ".join(f"{display.count(amount)} {kind}" for kind, amount in kinds.items() if amount)


def outside(stats: NormStats, bins: NormBins | None) -> list[str]:
    """Say which norms the bars of a histogram leave out."""
    said = left_out(stats, bins)
    return [f"not shown: {said}"] if said else []


def quantile_table(norms: Mapping[str, NormStats]) -> list[str]:
    """Set the quantiles of several norms below one another."""
    rows = [[label, *map(display.number, spread(stats))] for label, stats in norms.items()]
    return display.table([["norm", *SPREAD], *rows])


def spread(stats: NormStats) -> list[float | None]:
    """Return minimum, quantiles and maximum, as `SPREAD` names them; ``None`` where empty."""
    return [stats.min, *map(stats.quantile, MIDDLE_QUANTILES), stats.max]


def rows_line(rows: RowCounts, seconds: float | None = None) -> str:
    """Say how many rows came in, went out and how fast."""
    pieces = [f"{display.plural(rows.rows_in, 'row')} in", f"{display.count(rows.rows_out)} out"]
    part = f" ({display.share(rows.bad, rows.rows_in)})" if rows.bad else ""
    pieces.append(f"{display.count(rows.bad)} bad{part}")
    if rows.predicted is not None and rows.reused is not None:
        pieces.append(f"{display.count(rows.predicted)} predicted")
        pieces.append(f"{display.count(rows.reused)} reused")
    if seconds:
        pieces.append(f"{display.count(round(rows.rows_in / seconds))} rows/s")
    return ", ".join(pieces)


def bad_row_lines(manifest: Manifest) -> list[str]:
    """Say why rows are bad and where the first ones are."""
    reasons = {reason: amount for reason, amount in manifest.reasons.items() if amount}
    # Of all reasons, only a zero vector that is kept does not make a bad row.
    kept_zeros = sum(reasons.values()) - manifest.rows.bad
    if kept_zeros:
        reasons.pop("zero_vector", None)
    said = ", ".join(f"{reason} {display.count(amount)}" for reason, amount in reasons.items())
    lines = [f"bad rows: {said}"] if said else []
    lines += [
        display.visible(
            f"  row {row.row} (key {row.key}) is row {row.file_row} of {row.file}: {row.reason}"
        )
        for row in manifest.first_bad_rows[:_FIRST_BAD_ROWS]
    ]
    return [*lines, f"zero vectors, kept: {display.count(kept_zeros)}"] if kept_zeros else lines


def norm_lines(manifest: Manifest, width: int = 72) -> list[str]:
    """Show the norms of every output: quantiles of each norm, a histogram of the one in use."""
    lines: list[str] = []
    for output in manifest.outputs:
        statistics = manifest.statistics.get(output.name)
        if statistics is None:  # no rows
            continue
        label = norm_shown(output.norm)
        options = "".join(f"; {words}" for words in output.options)
        name = display.visible(output.name)
        lines += ["", f"norms of {name} before normalization{options}", ""]
        lines += [*quantile_table(statistics.norms), "", f"{label} norm", ""]
        lines += norm_histogram(statistics.norms[label], width)
    return lines[1:]


def norm_shown(label: str) -> str:
    """Return the norm whose statistics stand for an output: its own, or l2 for ``none``."""
    return "l2" if label == "none" else label


def profile_lines(profile: Profile, width: int = 72) -> list[str]:
    """Show where the time of a run went."""
    rows = [
        [stage, f"{display.fixed(seconds, 2)} s", display.percent(profile.shares[stage], 0)]
        for stage, seconds in profile.stages.items()
    ]
    cells = max(0, width - len(display.table(rows)[0]) - 2)
    workers = display.plural(profile.workers, "worker")
    return [
        f"where the time of {workers} went, {display.number(profile.seconds)} s each",
        "",
        *display.table([[*row, _bar(profile.shares[row[0]], cells)] for row in rows], "lrrl"),
        "",
        *display.wrapped(profile.bottleneck, width),
    ]


def next_steps(place: str) -> list[str]:
    """Return the commands worth trying on a finished run, with what each does."""
    rows = [
        [f"batchnorm-tool verify {place}", "re-read and check every file"],
        [f"batchnorm-tool show {place} --html run.html", "write a report with charts"],
    ]
    return display.table(rows, "ll")


def _bar(part: float, cells: int) -> str:
    eighths = round(part * cells * 8)
    if part > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return _FULL * whole + (_EIGHTHS[rest] if rest else "")


def _edge_names(edges: Sequence[float]) -> list[str]:
    # Edges of narrow bars need more digits before they differ.
    for digits in range(4, 17):
        names = [display.number(edge, digits) for edge in edges]
        if len(set(names)) == len(names):
            break
    return names
