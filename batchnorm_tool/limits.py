"""What a night may change at most; ``None`` for what is not judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIN_ROWS = 200
"""Rows below which moments and distributions say too little about the data to judge them."""


@dataclass(frozen=True)
class InputLimits:
    """Limits on tonight's input, judged before the model runs.

    Attributes:
        new: New rows, as a share of the live rows.
        changed: Rows with other features, as a share of the live rows.
        vanished: Live rows that are gone, as a share of the live rows.
        null_shift: How far the share of nulls of a column may move.
        constant_feature: What a component that varied last night and is constant tonight does.
        mean_shift: How far the mean of a component may move, in last night's standard deviations.
        deviation_ratio: How many times a component's standard deviation may grow or shrink.
        min_rows: Fewer rows in a delta are not judged by their nulls, constancy and moments.
    """

    new: float | None = None
    changed: float | None = 0.2
    vanished: float | None = 0.02
    null_shift: float | None = 0.01
    constant_feature: Literal["fail", "ignore"] = "fail"
    mean_shift: float | None = 1.0
    deviation_ratio: float | None = 4.0
    min_rows: int = MIN_ROWS


@dataclass(frozen=True)
class OutputLimits:
    """Limits on tonight's vectors against those of the live version.

    The defaults leave room for what a night of ordinary changes does, and stop what a broken model
    or feature does; ``tests/gate/test_output_limits.py`` shows which shifts each of them stops.

    Attributes:
        bad: Bad rows, as a share of the rows.
        norm_psi: Population stability index of the norms; below 0.1 is taken for stable, above
            0.25 for a shift (Siddiqi, "Credit Risk Scorecards", 2006).
        norm_quantiles: Largest relative shift of the norms' 5, 25, 50, 75 and 95 % quantiles.
        centroid_shift: How far the mean vector moved, relative to the root mean square distance of
            the live vectors from theirs.
        dimension_shift: Largest shift of a dimension's mean, in its standard deviations.
        frechet: Fréchet distance of the fitted normal distributions (squared, as in the FID) over
            the live vectors' total variance. So measured, a centroid shift of ``s`` alone gives
            ``s**2``, and a spread that grows by a factor ``f`` gives ``(f - 1)**2``, whatever the
            width and the scale: 0.3 is a shift by 0.55 of the spread, or a spread half as large
            again.
        min_rows: Fewer rows are not judged by their distribution, nor changed rows on their own.
    """

    bad: float | None = 0.001
    norm_psi: float | None = 0.2
    norm_quantiles: float | None = 0.2
    centroid_shift: float | None = 0.3
    dimension_shift: float | None = 1.5
    frechet: float | None = 0.3
    min_rows: int = MIN_ROWS
