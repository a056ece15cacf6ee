from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.report.bins import bin_norms, bin_together
from batchnorm_tool.report.norm_charts import norm_chart

Make = Callable[..., Any]


def exact(norms: np.ndarray, edges: tuple[float, ...]) -> list[int]:
    """Count norms between edges from the norms themselves, not from their buckets."""
    return [int(((norms >= low) & (norms < high)).sum()) for low, high in itertools.pairwise(edges)]


NORMS = {
    "narrow": np.random.default_rng(1).normal(1.0, 0.01, 5000),
    "octave boundary": np.random.default_rng(2).uniform(7.0, 9.0, 5000),
    "one octave and more": np.random.default_rng(3).uniform(3.0, 30.0, 5000),
    "many magnitudes": np.random.default_rng(4).lognormal(0, 6, 5000),
    "all equal": np.full(10, 3.7),
    "subnormal": np.full(10, 5e-324),
    "tiny": np.random.default_rng(5).uniform(1e-310, 9e-310, 500),
    "greatest": np.full(10, sys.float_info.max),
    "tiny to greatest": np.array([5e-324, 1e-300, 1.0, 1e300, 1.7e308]),
}


@pytest.mark.parametrize("norms", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("most", [16, 48])
def test_bars_count_exactly_the_norms_between_their_edges(
    norms: Any, most: int, make_stats: Make
) -> None:
    bins = bin_norms(make_stats(norms), most)
    assert list(bins.edges) == sorted(set(bins.edges))
    counted = exact(norms, bins.edges)
    if bins.edges[-1] == sys.float_info.max:
        counted[-1] += int((norms == sys.float_info.max).sum())
    assert list(bins.counts) == counted
    assert bins.below + sum(bins.counts) + bins.above == len(norms)
    assert len(bins.counts) <= most


def test_bars_are_equally_wide_so_that_their_heights_compare(make_stats: Make) -> None:
    bins = bin_norms(make_stats(NORMS["octave boundary"]))
    assert len(set(np.diff(bins.edges))) == 1
    assert bins.kind == "linear"
    # Uniform norms stay uniform where the buckets double their width, at 8.
    inner = np.array(bins.counts[1:-1])
    assert inner.max() < 1.5 * inner.min()


def test_norms_of_many_magnitudes_get_bars_that_are_equally_wide_in_logarithm(
    make_stats: Make,
) -> None:
    bins = bin_norms(make_stats(NORMS["many magnitudes"]))
    assert bins.kind == "log"
    widths = np.diff(np.log2(bins.edges))
    assert widths.max() - widths.min() < 0.01


def test_one_outlier_leaves_the_other_norms_their_shape(make_stats: Make) -> None:
    norms = np.append(np.random.default_rng(6).normal(10, 1, 5000), [1e6, 1e-6])
    bins = bin_norms(make_stats(norms))
    assert (bins.below, bins.above) == (1, 1)
    assert sum(amount > 50 for amount in bins.counts) >= 8


def test_zeros_are_counted_but_in_no_bar(make_stats: Make) -> None:
    bins = bin_norms(make_stats(np.array([0.0, 0.0, 1.0, 1.5])))
    assert bins.zero == 2
    assert sum(bins.counts) == 2
    assert bins.below == 0


@pytest.mark.parametrize("norms", [[], [0.0, 0.0], [np.nan, np.inf]], ids=str)
def test_no_norm_above_zero_makes_no_bars(norms: Any, make_stats: Make) -> None:
    assert bin_norms(make_stats(np.array(norms))) is None


def test_a_norm_without_bars_has_none_beside_others(make_stats: Make) -> None:
    norms = {"a": [1.0] * 5, "b": [0.0, 4.0], "c": []}
    several = {label: make_stats(np.array(values)) for label, values in norms.items()}
    bins = bin_together(several, log_from=2)
    assert bins.keys() == {"a", "b"}
    assert bins["a"].edges == bins["b"].edges
    assert bins["b"].zero == 1


def test_a_norm_that_all_share_is_an_edge(make_stats: Make) -> None:
    bins = bin_norms(make_stats(np.array([0.0, 0, 1, 1, 1, 1, 1])), most=16)
    assert (sum(bins.counts), bins.zero, 1.0 in bins.edges) == (5, 2, True)


def test_a_chart_says_what_its_own_bars_leave_out(make_stats: Make) -> None:
    stats = make_stats(np.append(np.random.default_rng(13).normal(10, 0.1, 500), 8.26))
    assert (bin_norms(stats, 16).below, bin_norms(stats).below) == (0, 1)
    assert "not shown: 1 below" in norm_chart("chart", "l2", stats)
