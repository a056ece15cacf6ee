"""Chance alone breaks no default limit, however few the rows and however odd the vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from batchnorm_tool.gate.findings import Finding
from batchnorm_tool.gate.output_limits import evaluate_output
from batchnorm_tool.job.refresh_sections import OutputGate
from tests.gate.sets import NO_BAD, POPULATIONS, gaussian, vectors_of

NIGHTS = 200
SIZES = {
    "200 of 4,000": (200, 4000, 8),
    "200 against 200": (200, 200, 8),
    "200 against 400, wide": (200, 400, 24),
}
EACH = pytest.mark.parametrize("population", POPULATIONS.values(), ids=POPULATIONS)
Population = Callable[[np.random.Generator, int, int], np.ndarray]


@pytest.fixture(autouse=True, name="one_thread")
def _one_thread() -> Iterator[None]:
    """Without threads that wait for one another over matrices of a few rows."""
    with threadpool_limits(1, user_api="blas"):
        yield


def night(population: Population, size: tuple[int, int, int], seed: int) -> list[Finding]:
    """Judge changed rows that are drawn from the population of the live ones."""
    changed, live, width = size
    generator = np.random.default_rng(seed)
    before = vectors_of(population(generator, live, width))
    tonight = vectors_of(population(generator, changed, width))
    nothing = vectors_of(np.zeros((0, width)))
    findings = evaluate_output(OutputGate(), tonight, nothing, before, NO_BAD)
    return [f for f in findings if f.measured is not None]


@EACH
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_of_the_same_distribution_pass(
    population: Population, size: tuple[int, int, int]
) -> None:
    broken = [f.what for s in range(NIGHTS) for f in night(population, size, s) if not f.passed]
    assert broken == []


@EACH
def test_large_samples_of_the_same_distribution_pass_without_raised_limits(
    population: Population,
) -> None:
    findings = [f for seed in range(10) for f in night(population, (10_000, 10_000, 8), seed)]
    assert len(findings) == 10 * 7
    assert all(f.passed and "raised" not in f.what for f in findings)


def test_chance_hardly_breaks_even_a_limit_of_nothing() -> None:
    nothing = OutputGate(norm_psi=0, norm_quantiles=0, centroid_shift=0, dimension_shift=0)
    broken = 0
    for seed in range(NIGHTS):
        generator = np.random.default_rng(seed)
        live, tonight = (vectors_of(gaussian(generator, rows, 2)) for rows in (600, 200))
        findings = evaluate_output(nothing, tonight, tonight, live, NO_BAD)
        broken += sum(not f.passed for f in findings if f.scope == "changed")
    assert broken <= NIGHTS / 40  # of four limits each; without the margin, about one in nine
