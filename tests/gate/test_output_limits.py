"""What each limit on the vectors stops, and what it lets through."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import linalg

from batchnorm_tool.gate.findings import FaultyRow, Finding
from batchnorm_tool.gate.output_limits import (
    FRECHET_WIDTH,
    BadCounts,
    Vectors,
    evaluate_output,
    frechet,
)
from batchnorm_tool.job.refresh_sections import OutputGate
from batchnorm_tool.storage.checked_json import plain
from tests.gate.sets import NO_BAD, gaussian, heavy, judged, sparse, vectors_of
from tests.refresh_records import typed

MEASURES = ("norm_psi", "norm_quantiles", "centroid_shift", "dimension_shift", "frechet")
generator = np.random.default_rng(5)
LIVE = gaussian(generator, 10_000, 16)
TONIGHT = gaussian(generator, 2_000, 16)
UNIT = LIVE / np.linalg.norm(LIVE, axis=1, keepdims=True)
SPREAD = float(np.sqrt(np.var(UNIT, axis=0).sum()))


def of_unit(unit: np.ndarray, norms: np.ndarray | None = None, first_key: int = 0) -> Vectors:
    """Vectors as they are, whatever their lengths: the gate measures shifts, not lengths."""
    lengths = np.ones(len(unit)) if norms is None else norms
    return Vectors(unit, lengths, lengths, pa.table({"id": np.arange(len(unit)) + first_key}))


def shifted(unit: np.ndarray, limits: OutputGate | None = None) -> dict[str, Finding]:
    """Judge changed rows that differ from the live ones by a known shift."""
    live = of_unit(UNIT)
    findings = evaluate_output(limits or OutputGate(), of_unit(unit), live, live, NO_BAD)
    return {f.limit.rpartition(".")[2]: f for f in findings if f.scope == "changed"}


# What trips each limit


@pytest.mark.parametrize(
    ("share_of_spread", "broken"), [(0.25, False), (0.35, True)], ids=["below", "beyond"]
)
def test_the_centroid_may_move_by_three_tenths_of_the_spread(
    share_of_spread: float, *, broken: bool
) -> None:
    finding = shifted(UNIT + share_of_spread * SPREAD / 4)["centroid_shift"]
    assert finding.measured == pytest.approx(share_of_spread)
    assert finding.passed is not broken


@pytest.mark.parametrize(("deviations", "broken"), [(1.4, False), (1.6, True)], ids=str)
def test_a_dimension_may_move_by_one_and_a_half_deviations(
    deviations: float, *, broken: bool
) -> None:
    unit = UNIT.copy()
    unit[:, 7] -= deviations * UNIT[:, 7].std()
    finding = shifted(unit)["dimension_shift"]
    assert finding.measured == pytest.approx(deviations)
    assert finding.passed is not broken


@pytest.mark.parametrize(("factor", "broken"), [(1.5, False), (1.6, True)], ids=str)
def test_the_spread_may_grow_by_half(factor: float, *, broken: bool) -> None:
    unit = UNIT.mean(axis=0) + factor * (UNIT - UNIT.mean(axis=0))
    finding = shifted(unit)["frechet"]
    assert finding.measured == pytest.approx((factor - 1) ** 2, rel=1e-6)
    assert finding.passed is not broken


@pytest.mark.parametrize(("factor", "broken"), [(1.19, False), (1.21, True)], ids=str)
def test_norms_may_grow_by_a_fifth(factor: float, *, broken: bool) -> None:
    live = of_unit(UNIT, np.linalg.norm(LIVE, axis=1))
    scaled = of_unit(UNIT, np.linalg.norm(LIVE, axis=1) * factor)
    limits = OutputGate(norm_psi=None)
    findings = evaluate_output(limits, scaled, scaled, live, NO_BAD)
    measured = [f for f in findings if f.limit == "gate.output.norm_quantiles"]
    assert [f.measured for f in measured] == pytest.approx([factor - 1] * 2)
    assert all(f.passed is not broken for f in measured)


def test_norms_that_move_by_half_their_deviation_break_the_psi() -> None:
    findings = {}
    for share in (0.3, 0.6):
        norms = generator.normal(10, 1, 10_000)
        live, tonight = of_unit(UNIT, norms), of_unit(UNIT, norms + share)
        found = evaluate_output(OutputGate(norm_quantiles=None), tonight, tonight, live, NO_BAD)
        findings[share] = [f.passed for f in found if f.limit == "gate.output.norm_psi"]
    assert findings == {0.3: [True, True], 0.6: [False, False]}


def test_another_model_breaks_everything() -> None:
    other = heavy(generator, 2_000, 16) / 10
    other[:, 0] -= 5
    findings = judged(other, LIVE)
    assert {name for (name, scope), f in findings.items() if not f.passed} == set(MEASURES)
    assert all(f.passed for (_, scope), f in findings.items() if scope == "whole")


def test_a_drift_of_all_rows_breaks_the_whole_too() -> None:
    live, tonight = vectors_of(LIVE), vectors_of(LIVE * 1.5)
    findings = evaluate_output(OutputGate(), tonight, tonight, live, NO_BAD)
    broken = {(f.limit, f.scope) for f in findings if not f.passed}
    names = ("gate.output.norm_psi", "gate.output.norm_quantiles")
    assert broken == {(name, scope) for name in names for scope in ("changed", "whole")}


def test_a_broken_half_of_few_rows_is_seen() -> None:
    tonight = gaussian(generator, 200, 16)
    tonight[:100] = LIVE[0]
    assert not judged(tonight, LIVE)["frechet", "changed"].passed


# Odd sets


def test_the_same_vectors_have_no_shift() -> None:
    live = vectors_of(LIVE)
    findings = evaluate_output(OutputGate(), live, live, live, NO_BAD)
    assert [f.measured for f in findings] == pytest.approx([0.0] * 12, abs=1e-9)


def test_a_dimension_that_never_varied_counts_by_a_tenth_of_a_typical_deviation() -> None:
    live, tonight = UNIT.copy(), UNIT.copy()
    live[:, 3] = 0
    typical = float(np.sqrt(np.var(live, axis=0).sum() / 16))
    measured = []
    for moved in (1e-9, 0.1 * typical, 0.2 * typical):
        tonight[:, 3] = moved
        found = evaluate_output(
            OutputGate(), of_unit(tonight), of_unit(live), of_unit(live), NO_BAD
        )
        measured += [
            f.measured for f in found if (f.limit[12:], f.scope) == ("dimension_shift", "changed")
        ]
    assert measured == pytest.approx([0.0, 1.0, 2.0], abs=1e-6)


def test_live_vectors_that_are_all_equal_allow_no_shift() -> None:
    same = np.tile(UNIT[:1], (500, 1))
    live = of_unit(same)
    findings = evaluate_output(OutputGate(), of_unit(UNIT[:500]), live, live, NO_BAD)
    broken = {f.limit[12:]: plain(f)["measured"] for f in findings if not f.passed}
    assert broken == {"centroid_shift": None, "dimension_shift": None, "frechet": None}


def test_norms_of_none_never_move() -> None:
    live = of_unit(UNIT)
    findings = evaluate_output(OutputGate(), live, live, live, NO_BAD)
    measured = {f.limit[12:]: f.measured for f in findings}
    assert measured["norm_psi"] == measured["norm_quantiles"] == 0


def test_a_quantile_near_zero_is_measured_against_a_quarter_of_the_median() -> None:
    norms = np.concatenate([np.zeros(2_000), np.full(8_000, 4.0)])
    moved = np.where(norms == 0, 0.5, norms)
    live, tonight = of_unit(UNIT, norms), of_unit(UNIT, moved)
    found = evaluate_output(OutputGate(), tonight, tonight, live, NO_BAD)
    assert [f.measured for f in found if f.limit.endswith("quantiles")] == [0.5, 0.5]


def test_the_frechet_distance_is_relative_and_agrees_with_scipy() -> None:
    one, other = of_unit(UNIT), of_unit(sparse(generator, 3_000, 16))
    c1, c2 = np.cov(one.unit.T), np.cov(other.unit.T)
    means = np.sum((one.unit.mean(axis=0) - other.unit.mean(axis=0)) ** 2)
    whole = means + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet(one, other) == pytest.approx(whole / np.trace(c1), rel=1e-6)


def test_the_frechet_distance_of_wide_vectors_looks_at_the_dimensions_that_vary_most() -> None:
    wide = generator.normal(size=(600, FRECHET_WIDTH + 40)) * 1e-3
    wide[:, 20 : 20 + FRECHET_WIDTH] += generator.normal(size=(600, FRECHET_WIDTH))
    other = generator.normal(size=wide.shape)
    cut = slice(20, 20 + FRECHET_WIDTH)
    assert frechet(of_unit(wide), of_unit(other)) == pytest.approx(
        frechet(of_unit(wide[:, cut]), of_unit(other[:, cut]))
    )


# What is judged at all


def test_a_first_load_is_held_to_absolute_limits_alone() -> None:
    assert set(judged(TONIGHT, None)) == {("bad", "changed"), ("bad", "whole")}


@pytest.mark.parametrize("rows", [0, 199], ids=str)
def test_few_changed_rows_are_not_judged_on_their_own(rows: int) -> None:
    findings = judged(heavy(generator, rows, 16) + 9, LIVE)
    for name in MEASURES:
        finding = findings[name, "changed"]
        assert finding.passed
        assert finding.measured is None
        assert f"{rows} good rows, fewer than `gate.output.min_rows: 200`" in finding.what
        assert findings[name, "whole"].measured is not None


def test_a_small_live_version_is_no_measure() -> None:
    findings = judged(TONIGHT + 9, LIVE[:150])
    assert "150 good rows in the live version" in findings["frechet", "changed"].what
    assert all(f.passed for f in findings.values())


def test_min_rows_is_a_setting() -> None:
    findings = judged(TONIGHT[:30] + 9, LIVE, OutputGate(min_rows=20))
    assert not findings["centroid_shift", "changed"].passed


@pytest.mark.parametrize("name", [*MEASURES, "bad"])
def test_a_limit_of_none_is_not_judged(name: str) -> None:
    findings = judged(TONIGHT, LIVE, OutputGate().model_copy(update={name: None}))
    assert {limit for limit, _ in findings} == {*MEASURES, "bad"} - {name}


def test_values_within_their_limits_are_reported_with_their_numbers() -> None:
    finding = judged(TONIGHT, LIVE)["centroid_shift", "changed"]
    assert finding.allowed == 0.3
    assert finding.rows == ()
    said = f"Shift of the centroid relative to the spread: {finding.measured:.4g}"
    assert finding.what == f"{said}; at most 0.3 allowed."


def test_a_limit_that_chance_would_break_is_raised_and_says_so() -> None:
    tight = OutputGate(centroid_shift=0.001)
    finding = judged(TONIGHT, LIVE, tight)["centroid_shift", "changed"]
    assert finding.passed
    assert finding.allowed > finding.measured > 0.001
    assert "(0.001, raised to what chance gives for so few rows)" in finding.what


def test_the_same_vectors_give_the_same_findings() -> None:
    tight = OutputGate(norm_psi=0.0, centroid_shift=0.0, frechet=0.0)
    assert judged(TONIGHT, LIVE, tight) == judged(TONIGHT, LIVE, tight)


# Bad rows


def bad_findings(bad: BadCounts, limit: float | None = 0.001) -> dict[str, Finding]:
    sets = vectors_of(TONIGHT)
    return {f.scope: f for f in evaluate_output(OutputGate(bad=limit), sets, sets, None, bad)}


def test_the_share_of_bad_rows_is_limited_for_changed_rows_and_for_all() -> None:
    rows = tuple(FaultyRow({"id": n}, "null_feature") for n in range(7))
    findings = bad_findings(BadCounts(2_000, 3, 100_000, 100, rows))
    assert not findings["changed"].passed
    assert findings["changed"].measured == 0.0015
    assert findings["changed"].rows == rows[:5]
    assert findings["changed"].what == ("3 bad of 2,000 rows (0.1500 %); at most 0.1000 % allowed.")
    assert findings["whole"].passed
    assert findings["whole"].measured == 0.001
    assert findings["whole"].rows == ()


@pytest.mark.parametrize(
    ("bad", "limit", "passed"),
    [(1, 0.001, True), (2, 0.001, False), (1, 0.0, False)],
    ids=["one row", "two rows", "none allowed"],
)
def test_one_bad_row_passes_in_a_small_night(bad: int, limit: float, *, passed: bool) -> None:
    assert bad_findings(BadCounts(300, bad, 10**6, bad), limit)["changed"].passed is passed


def test_few_changed_rows_are_not_judged_by_their_bad_ones() -> None:
    findings = bad_findings(BadCounts(199, 100, 1_000, 100))
    assert findings["changed"].passed
    assert not findings["whole"].passed


def test_a_night_without_rows_has_no_bad_ones() -> None:
    assert bad_findings(BadCounts(0, 0, 0, 0))["whole"].measured == 0


# Worst rows


def worst(finding: Finding) -> list[int]:
    return [row.key["id"] for row in finding.rows]


def test_the_most_extreme_norms_are_named() -> None:
    norms = np.linalg.norm(LIVE, axis=1)
    moved = norms * 1.5
    moved[[40, 7, 99]] = [0.0, 1e6, 1e-3]
    live, tonight = of_unit(UNIT, norms), of_unit(UNIT, moved, 1000)
    found = evaluate_output(OutputGate(), tonight, tonight, live, NO_BAD)
    finding = next(f for f in found if f.limit.endswith("norm_psi"))
    assert worst(finding)[:3] == [1040, 1007, 1099]
    assert [row.value for row in finding.rows[:3]] == [0.0, 1e6, 1e-3]
    assert len(finding.rows) == 5


def test_rows_farthest_along_the_shift_of_the_centroid_are_named() -> None:
    unit = UNIT + 0.2
    unit[[12, 3]] += [[5.0], [4.0]]
    unit[50] -= 9
    finding = shifted(unit)["centroid_shift"]
    assert worst(finding)[:2] == [12, 3]
    assert 50 not in worst(finding)
    direction = unit.mean(axis=0) - UNIT.mean(axis=0)
    along = (unit[12] - UNIT.mean(axis=0)) @ direction / np.linalg.norm(direction) / SPREAD
    assert finding.rows[0].value == pytest.approx(along, rel=1e-6)


def test_rows_farthest_in_the_dimension_that_moved_are_named_with_their_values() -> None:
    unit = UNIT.copy()
    unit[:, 5] -= 3
    unit[[8, 2], 5] = [-50.0, -40.0]
    finding = shifted(unit)["dimension_shift"]
    assert worst(finding)[:2] == [8, 2]
    assert [row.value for row in finding.rows[:2]] == [-50.0, -40.0]


def test_rows_farthest_away_are_named_for_the_frechet_distance() -> None:
    unit = UNIT * 3
    unit[[4, 6]] = [[20.0] * 16, [-30.0] * 16]
    finding = shifted(unit)["frechet"]
    assert worst(finding)[:2] == [6, 4]
    distance = np.linalg.norm(unit[6] - UNIT.mean(axis=0)) / SPREAD
    assert finding.rows[0].value == pytest.approx(distance)


def test_findings_are_plain_data_for_json() -> None:
    findings = judged(heavy(generator, 500, 16) + 3, LIVE).values()
    assert [typed(Finding, plain(finding)) for finding in findings] == list(findings)
