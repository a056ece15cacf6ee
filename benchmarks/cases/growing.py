"""How cost grows with rows, and with the width of the vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks import lineup
from benchmarks.bench import Bench, Contender
from benchmarks.data import DEEP, Model, Table
from benchmarks.findings import Finding, Target, figure

_LINEAR = Target("at most", 10, "%")


def growth(bench: Bench) -> list[Finding]:
    """Seconds against rows, and values a second against width."""
    return [_with_rows(bench), _with_width(bench)]


def _with_rows(bench: Bench) -> Finding:
    case, sizes = "growth", bench.size.growth_rows
    tables = {rows: _table(bench, rows) for rows in sizes}
    contenders = {
        f"{rows:,} rows": lineup.ours(table, DEEP, bench.output(case, f"rows-{rows}"))
        for rows, table in tables.items()
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    took = [each.body_seconds for each in runs.values()]
    bench.curves["rows"] = list(zip(map(float, sizes), took, strict=True))
    (fixed, each), worst = straight_line([[1.0] * len(sizes), sizes], took)
    work = f"{sizes[0]:,} to {sizes[-1]:,} rows, distance from a straight line"
    ours = ", ".join(f"{figure(one)} s" for one in took)
    line = f"line: {figure(fixed)} s + {figure(each * 1e6)} s for each million rows"
    return Finding(case, work, ours, line, 100 * worst, _LINEAR)


def _with_width(bench: Bench) -> Finding:
    case, widths = "growth", bench.size.widths
    rows = [bench.size.width_values // width for width in widths]
    contenders = {
        f"width {width}": _wide_vectors(bench, width, count)
        for width, count in zip(widths, rows, strict=True)
    }
    runs = bench.run(case, contenders)
    bench.clear(case)
    took = [each.body_seconds for each in runs.values()]
    values = [width * count for width, count in zip(widths, rows, strict=True)]
    rates = [count / one for count, one in zip(values, took, strict=True)]
    bench.curves["width"] = list(zip(map(float, widths), rates, strict=True))
    (each_row, each_value), worst = straight_line([rows, values], took)
    work = f"vectors of {widths[0]} to {widths[-1]:,} numbers, the same"
    ours = ", ".join(f"{figure(rate / 1e6)}" for rate in rates) + " million values/s"
    line = f"{figure(each_row * 1e6)} µs for a row + {figure(each_value * 1e9)} ns for a value"
    return Finding(case, work, ours, line, 100 * worst, Target("at most", 15, "%"))


def _wide_vectors(bench: Bench, width: int, rows: int) -> Contender:
    model, output = Model("dense", (width,)), bench.output("growth", f"width-{width}")
    return lineup.ours(_table(bench, max(rows, bench.size.rows)), model, output, rows)


def _table(bench: Bench, rows: int) -> Table:
    """So many rows or more, without storing more than the table of row 1."""
    base = bench.size.rows
    return Table(rows) if rows <= base else Table(base, copies=-(-rows // base))


def straight_line(
    terms: Sequence[Sequence[float]], took: Sequence[float]
) -> tuple[list[float], float]:
    """Fit what was measured as a sum of terms, each times a coefficient.

    Errors count relative to what was measured: the smallest size weighs as much as the largest.

    Args:
        terms: For each coefficient, its factor in every measurement.
        took: The measurements.

    Returns:
        The coefficients, and the largest relative distance of a measurement from the fit.

    Example:
        >>> [rounded, slope], worst = straight_line([[1, 1, 1], [1, 2, 3]], [3.0, 5.0, 7.0])
        >>> round(rounded, 6), round(slope, 6), round(worst, 6)
        (1.0, 2.0, 0.0)
    """
    measured = np.asarray(took, np.float64)
    scaled = np.asarray(terms, np.float64) / measured
    coefficients = np.linalg.lstsq(scaled.T, np.ones(len(measured)), rcond=None)[0]
    worst = np.abs(coefficients @ scaled - 1).max()
    return [float(each) for each in coefficients], float(worst)
