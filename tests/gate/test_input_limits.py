"""Limits on tonight's input: shares of rows, nulls, constancy, moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.features.statistics import InputSummary
from batchnorm_tool.gate.findings import Finding
from batchnorm_tool.gate.input_limits import evaluate_input
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.job.refresh_sections import InputGate
from tests.refresh_records import typed

COUNTS = RefreshRows(live=1_000, new=10, changed=50, vanished=5)
FEATURES = ("null_shift", "constant_feature", "mean_shift", "deviation_ratio")


def moments(values: np.ndarray) -> dict[str, Any]:
    names = ("min", "max", "mean", "std")
    return {"rows": len(values), "count": len(values)} | {
        n: getattr(values, n)(axis=0).tolist() for n in names
    }


def statistics(
    values: np.ndarray | None = None, nulls: int = 0, rows: int = 1000
) -> dict[str, Any]:
    inputs = {} if values is None else {"x": moments(values)}
    return {"columns": {"price": {"rows": rows, "nulls": nulls}}, "inputs": inputs}


def drawn(seed: int = 0, rows: int = 1_000, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)) * 3 + 7


def judged(  # noqa: PLR0913
    tonight: dict[str, Any] | None,
    last: dict[str, Any] | None,
    limits: InputGate | None = None,
    counts: RefreshRows = COUNTS,
    mode: str = "full",
    *,
    new_space: bool = False,
) -> dict[str, Finding]:
    sides = (side and typed(InputSummary, side | {"sampled_every": 8}) for side in (tonight, last))
    found = evaluate_input(
        limits or InputGate(new=0.5), counts, *sides, mode=mode, new_space=new_space
    )
    assert all(f.limit.startswith("gate.input.") and f.scope == "input" for f in found)
    return {f.limit.removeprefix("gate.input."): f for f in found}


def of_counts(**changes: Any) -> dict[str, Finding]:
    return judged(None, None, counts=replace(COUNTS, **changes))


# Shares of rows


@pytest.mark.parametrize(
    ("kind", "most"), [("new", 500), ("changed", 200), ("vanished", 20)], ids=str
)
def test_a_share_of_the_live_rows_is_limited(kind: str, most: int) -> None:
    assert of_counts(**{kind: most})[kind].passed
    finding = of_counts(**{kind: most + 1})[kind]
    assert not finding.passed
    assert finding.measured == (most + 1) / 1_000
    assert finding.allowed == most / 1_000


def test_the_numbers_are_said() -> None:
    said = of_counts(changed=412)["changed"].what
    assert said == "412 changed rows, 41.20 % of 1,000 live rows; at most 20.00 % allowed."


def test_any_number_of_new_rows_is_allowed_by_default() -> None:
    assert set(judged(None, None, InputGate())) == {"changed", "vanished", *FEATURES}


def test_a_delta_is_held_to_shares_of_the_live_rows_too() -> None:
    counts = RefreshRows(live=1_000, changed=300)
    assert not judged(None, None, counts=counts, mode="delta")["changed"].passed


def test_a_first_load_has_nothing_to_be_compared_with() -> None:
    counts = RefreshRows(live=0, new=1_000)
    findings = judged(statistics(drawn()), statistics(drawn() + 100), counts=counts)
    assert set(findings) == {"new", "changed", "vanished", *FEATURES}
    for finding in findings.values():
        assert finding.passed
        assert finding.measured is None
        assert finding.what == "Not checked: there are no live rows to compare with."


def test_in_a_new_space_vanished_rows_alone_are_judged() -> None:
    counts = replace(COUNTS, vanished=500, changed=1_000, new=1_000)
    tonight, last = statistics(drawn() + 100, 900), statistics(drawn())
    findings = judged(tonight, last, counts=counts, new_space=True)
    assert not findings.pop("vanished").passed
    assert set(findings) == {"new", "changed", *FEATURES}
    assert {f.what for f in findings.values()} == {
        "Not checked: in a new space every row is recomputed."
    }


@pytest.mark.parametrize("name", ["new", "changed", "vanished", *FEATURES])
def test_a_limit_of_none_is_not_judged(name: str) -> None:
    off = "ignore" if name == "constant_feature" else None
    limits = InputGate(new=0.5).model_copy(update={name: off})
    for last in (None, statistics(drawn())):
        findings = judged(statistics(drawn()), last, limits)
        assert set(findings) == {"new", "changed", "vanished", *FEATURES} - {name}


@pytest.mark.parametrize("side", ["tonight", "last"])
def test_without_statistics_features_are_not_judged(side: str) -> None:
    known = statistics(drawn())
    findings = judged(*((None, known) if side == "tonight" else (known, None)))
    for name in FEATURES:
        assert "there are no statistics of an earlier input" in findings[name].what
    assert findings["mean_shift"].allowed == 1.0


# Nulls


def test_the_share_of_nulls_may_move_a_little_either_way() -> None:
    last = statistics(nulls=100)
    assert judged(statistics(nulls=110), last)["null_shift"].passed
    for nulls in (111, 89):
        finding = judged(statistics(nulls=nulls), last)["null_shift"]
        assert not finding.passed
        assert finding.measured == pytest.approx(0.011)
    assert finding.what == (
        "Column `price`: 8.90 % nulls, 10.00 % in the previous version; a difference of at most "
        "1.00 % allowed."
    )


def test_the_worst_column_is_named_and_the_others_counted() -> None:
    names = ("a", "b", "c", "d")
    last = {"columns": {n: {"rows": 100, "nulls": 0} for n in names}, "inputs": {}}
    tonight = {
        "columns": {n: {"rows": 100, "nulls": k} for n, k in zip(names, (1, 5, 9, 3), strict=True)},
        "inputs": {},
    }
    said = judged(tonight, last)["null_shift"].what
    assert said.startswith("Column `c`: 9.00 % nulls")
    assert said.endswith(" 2 more exceed their limit.")


def test_columns_that_a_night_lacks_are_left_out() -> None:
    tonight = {"columns": {"new": {"rows": 10, "nulls": 10}}, "inputs": {}}
    finding = judged(tonight, statistics())["null_shift"]
    assert finding.passed
    assert finding.what == "Not checked: no feature can be compared with the previous version."


def test_an_input_without_rows_is_left_out() -> None:
    findings = judged(statistics(rows=0), statistics())
    assert all(findings[name].measured is None for name in FEATURES)


@pytest.mark.parametrize(("rows", "is_judged"), [(199, False), (200, True)], ids=str)
def test_a_delta_of_few_rows_says_nothing_about_features(rows: int, *, is_judged: bool) -> None:
    tonight = statistics(np.full((rows, 4), 50.0), nulls=rows, rows=rows)
    findings = judged(tonight, statistics(drawn()), mode="delta")
    broken = {name for name in FEATURES if not findings[name].passed}
    expected = {"null_shift", "constant_feature", "mean_shift"} if is_judged else set()
    assert broken == expected


def test_a_small_input_in_full_mode_is_judged() -> None:
    findings = judged(statistics(np.full((20, 4), 50.0), 20, 20), statistics(drawn()))
    broken = {name for name in FEATURES if not findings[name].passed}
    assert broken == {"null_shift", "constant_feature", "mean_shift"}


def test_in_a_delta_chance_explains_some_nulls() -> None:
    last = statistics(nulls=1_000, rows=20_000)
    some, many = (statistics(nulls=n, rows=400) for n in (32, 45))
    assert not judged(some, last)["null_shift"].passed
    finding = judged(some, last, mode="delta")["null_shift"]
    assert finding.passed
    share = 1_032 / 20_400
    chance = 4.9 * (share * (1 - share) * (1 / 400 + 1 / 20_000)) ** 0.5
    assert finding.allowed == pytest.approx(chance)
    assert not judged(many, last, mode="delta")["null_shift"].passed


# Constant components


def test_a_component_that_became_constant_is_named_with_its_value() -> None:
    tonight = drawn(1)
    tonight[:, 2] = 0
    finding = judged(statistics(tonight), statistics(drawn()))["constant_feature"]
    assert not finding.passed
    assert finding.what == (
        "Component 2 of input `x` varied in the previous version and is 0 in every row of this "
        "refresh."
    )


def test_a_scalar_input_has_no_components() -> None:
    tonight = statistics(np.zeros((9, 1)))
    said = judged(tonight, statistics(drawn(width=1)))["constant_feature"].what
    assert said.startswith("Input `x` varied in the previous version")


def test_what_never_varied_may_be_constant() -> None:
    last = drawn()
    last[:, 1] = 3
    for value in (3, 5):
        tonight = drawn(1)
        tonight[:, 1] = value
        findings = judged(statistics(tonight), statistics(last))
        assert all(finding.passed for finding in findings.values())
    said = findings["constant_feature"].what
    assert said == "No feature that varied in the previous version is constant in this refresh."


def test_a_single_row_is_constant_by_nature() -> None:
    finding = judged(statistics(drawn(1, rows=1)), statistics(drawn()))["constant_feature"]
    assert finding.passed


@pytest.mark.parametrize(("rows", "broken"), [(2, False), (3, True)], ids=str)
def test_a_category_of_very_few_rows_may_disappear(rows: int, *, broken: bool) -> None:
    last = np.zeros((10_000, 1))
    last[:rows] = 1
    findings = judged(statistics(np.zeros((10_000, 1))), statistics(last))
    assert findings["constant_feature"].passed is not broken


@pytest.mark.parametrize(("share", "broken"), [(0.05, False), (0.06, True)], ids=str)
def test_in_a_delta_a_rare_category_may_be_missing(share: float, *, broken: bool) -> None:
    last = np.zeros((10_000, 1))
    last[: int(10_000 * share)] = 1
    tonight = statistics(np.zeros((250, 1)), rows=250)
    finding = judged(tonight, statistics(last), mode="delta")["constant_feature"]
    assert finding.passed is not broken
    assert not judged(tonight, statistics(last))["constant_feature"].passed


def test_in_a_delta_a_constant_that_was_never_usual_is_seen() -> None:
    tonight = statistics(np.full((250, 1), 7.0), rows=250)
    last = statistics(drawn(rows=100_000, width=1))
    assert not judged(tonight, last, mode="delta")["constant_feature"].passed


@pytest.mark.parametrize("rows", [20, 60, 1_000], ids=str)
@pytest.mark.parametrize("kind", ["normal", "exponential", "lognormal"])
def test_a_constant_is_seen_whatever_the_distribution_was(kind: str, rows: int) -> None:
    last = getattr(np.random.default_rng(2), kind)(size=(rows, 1))
    finding = judged(statistics(np.zeros((rows, 1))), statistics(last))["constant_feature"]
    assert not finding.passed


# Moments


@pytest.mark.parametrize(("shift", "broken"), [(0.95, False), (1.05, True)], ids=str)
def test_a_mean_may_move_by_one_deviation(shift: float, *, broken: bool) -> None:
    last = drawn()
    tonight = last.copy()
    tonight[:, 3] -= shift * last[:, 3].std()
    finding = judged(statistics(tonight), statistics(last))["mean_shift"]
    assert finding.passed is not broken
    assert finding.measured == pytest.approx(shift)
    before, now = last[:, 3].mean(), tonight[:, 3].mean()
    assert finding.what.startswith(
        f"Component 3 of input `x`: the mean moved from {before:.4g} to {now:.4g}, by {shift:.4g} "
        "of the previous version's standard deviations; at most 1 allowed"
    )


@pytest.mark.parametrize("factor", [4.2, 1 / 4.2], ids=["grown", "shrunk"])
@pytest.mark.parametrize("rows", [250, 1_000, 100_000], ids=str)
def test_a_deviation_may_grow_or_shrink_by_a_factor_of_four(factor: float, rows: int) -> None:
    last = drawn(rows=rows, width=2)
    for beyond, scale in ((False, factor**0.9), (True, factor)):
        tonight = last.copy()
        tonight[:, 1] = 7 + (last[:, 1] - 7) * scale
        finding = judged(statistics(tonight), statistics(last))["deviation_ratio"]
        assert finding.passed is not beyond
        assert finding.measured == pytest.approx(max(scale, 1 / scale), rel=1e-6)
    assert finding.what.startswith("Component 1 of input `x`: the standard deviation went from")


@pytest.mark.parametrize("seed", range(20))
def test_samples_of_a_small_store_pass(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.exp(generator.normal(size=(100, 3)) * [0.1, 0.5, 1.0])
    last, tonight = statistics(values), statistics(values)
    for side in (last, tonight):
        sample = moments(generator.permutation(values)[::8])
        side["inputs"]["x"] |= {name: sample[name] for name in ("count", "mean", "std")}
    assert all(finding.passed for finding in judged(tonight, last).values())


def test_a_mean_of_few_rows_may_move_by_what_chance_makes() -> None:
    last, tonight = statistics(drawn(rows=20)), statistics(drawn(rows=20))
    tonight["inputs"]["x"]["mean"] = [m + 4 for m in tonight["inputs"]["x"]["mean"]]
    finding = judged(tonight, last)["mean_shift"]
    assert finding.allowed == pytest.approx(4.9 * 0.1**0.5)
    assert f"at most {finding.allowed:.4g} allowed" in finding.what


@pytest.mark.parametrize(("name", "rows"), [("mean_shift", 20), ("deviation_ratio", 100)], ids=str)
def test_moments_of_few_rows_are_not_judged(name: str, rows: int) -> None:
    few, enough, many = (statistics(drawn(rows=n)) for n in (rows - 1, rows, 1_000))
    assert judged(few, many)[name].measured is None
    assert judged(many, few)[name].measured is None
    assert judged(enough, many)[name].measured is not None


def test_a_delta_is_judged_by_its_extremes_where_moments_are_of_too_few_rows() -> None:
    tonight = statistics(np.full((1_600, 4), 50.0), rows=1_600)
    tonight["inputs"]["x"]["count"] = 199
    findings = judged(tonight, statistics(drawn()), mode="delta")
    assert not findings["constant_feature"].passed
    assert findings["mean_shift"].measured is None


def test_a_rare_category_may_come_and_go() -> None:
    sets = []
    for rows in (1, 18):
        values = np.zeros((100_000, 1))
        values[:rows] = 1
        sets.append(statistics(values))
    assert all(f.passed for f in judged(sets[1], sets[0]).values())
    assert all(f.passed for f in judged(sets[0], sets[1]).values())


def test_a_category_that_becomes_common_is_seen() -> None:
    values = [np.zeros((10_000, 1)) for _ in range(2)]
    values[0][:100] = 1
    values[1][:5_000] = 1
    findings = judged(statistics(values[1]), statistics(values[0]))
    assert not findings["mean_shift"].passed
    assert not findings["deviation_ratio"].passed


def test_inputs_of_another_width_or_kind_are_left_out() -> None:
    tonight = statistics(drawn(width=3) + 100)
    tonight["inputs"]["title"] = moments(drawn(width=1))
    findings = judged(tonight, statistics(drawn(width=4)))
    assert findings["mean_shift"].measured is None


def test_moments_beyond_float64_break_nothing() -> None:
    tonight = statistics(drawn())
    tonight["inputs"]["x"]["std"][0] = tonight["inputs"]["x"]["mean"][0] = None
    assert all(f.passed for f in judged(tonight, statistics(drawn())).values())


def test_the_worst_of_several_inputs_is_named() -> None:
    last, tonight = statistics(drawn()), statistics(drawn() + 4)
    last["inputs"]["y"], tonight["inputs"]["y"] = moments(drawn()), moments(drawn() - 9)
    finding = judged(tonight, last)["mean_shift"]
    assert "of input `y`: the mean moved" in finding.what
    assert finding.what.endswith(" 7 more exceed their limit.")


def test_the_same_input_passes_with_its_values() -> None:
    values = statistics(drawn(), nulls=3)
    findings = judged(values, values)
    assert {name: findings[name].measured for name in FEATURES} == {
        "null_shift": 0,
        "constant_feature": 0,
        "mean_shift": 0,
        "deviation_ratio": 1,
    }


@pytest.mark.parametrize("seed", range(20))
def test_another_sample_of_the_same_features_passes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    nights = []
    for rows in (5_000, 250):
        columns = [
            generator.normal(size=rows),
            generator.lognormal(0, 1, rows),
            (generator.random(rows) < 0.003).astype(float),
            generator.integers(0, 3, rows).astype(float),
        ]
        nulls = int(generator.binomial(rows, 0.07))
        nights.append(statistics(np.stack(columns, axis=1), nulls, rows))
    assert all(f.passed for f in judged(nights[1], nights[0], mode="delta").values())
