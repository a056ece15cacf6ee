"""The figures of a comparison, against the functions that they are made of and plain loops."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.comparison.judgements import LabelJudgements
from batchnorm_tool.comparison.metrics import Rankings, overlap, quality, rank_biased_overlap
from batchnorm_tool.comparison.verdict import bootstrap, headline_k, holm, paired_randomization
from tests.comparison.judged import graded, random_grades, random_rows

NORMS = ("none", "l1", "l2")
QUERIES, BASE, KS = 60, 40, (1, 5, 20)
GROUP = np.arange(3, QUERIES, 2)


@pytest.fixture(scope="module")
def rankings() -> Rankings:
    rng = np.random.default_rng(0)
    rows = {norm: random_rows(rng, QUERIES, BASE, max(KS)) for norm in NORMS}
    # A norm that differs from the first one in a few queries alone.
    rows["l2"] = np.where(np.arange(QUERIES)[:, np.newaxis] < 12, rows["l2"], rows["none"])
    return Rankings(rows, KS, BASE, graded(random_grades(rng, QUERIES, BASE)), seed=7)


def taken(rankings: Rankings, queries: np.ndarray) -> Rankings:
    """The same rankings of some queries alone."""
    assert rankings.judgements is not None
    return dataclasses.replace(
        rankings,
        rows={norm: rows[queries] for norm, rows in rankings.rows.items()},
        judgements=rankings.judgements.take(queries),
    )


def test_agreement_is_the_mean_over_queries(rankings: Rankings) -> None:
    found = rankings.figures()
    for one in NORMS:
        for other in NORMS:
            rows = rankings.rows[one], rankings.rows[other]
            expected = dict(zip(map(str, KS), overlap(*rows, KS).mean(axis=0), strict=True))
            assert found["overlap"][one][other] == pytest.approx(expected, rel=1e-14)
            mean = rank_biased_overlap(*rows).mean()
            assert found["rbo"][one][other] == pytest.approx(mean, rel=1e-14)
    assert found["overlap"]["l1"]["l2"] == found["overlap"]["l2"]["l1"]
    assert found["overlap"]["l1"]["l1"] == {"1": 1, "5": 1, "20": 1}


def test_quality_is_the_mean_over_judged_queries(rankings: Rankings) -> None:
    assert rankings.judgements is not None
    judged = rankings.judgements.judged
    found = rankings.figures()["quality"]
    for norm in NORMS:
        values = quality(rankings.judgements, rankings.rows[norm], KS)
        assert list(found[norm]) == list(values)
        table = np.column_stack(list(values.values()))[judged]
        low, high = bootstrap(table, 7)
        expected = dict(zip(values, zip(table.mean(axis=0), low, high, strict=True), strict=True))
        for metric, (value, *ends) in expected.items():
            assert found[norm][metric] == pytest.approx(
                {"value": value, "low": ends[0], "high": ends[1]}, rel=1e-12
            )


def test_every_norm_is_tested_against_the_first(rankings: Rankings) -> None:
    assert rankings.judgements is not None
    judged = rankings.judgements.judged
    values = {
        norm: np.column_stack(list(quality(rankings.judgements, rows, KS).values()))[judged]
        for norm, rows in rankings.rows.items()
    }
    found = rankings.figures()["tests"]
    assert found.pop("against") == "none"
    assert list(found) == ["l1", "l2"]
    metrics = list(found["l1"])
    p = {norm: paired_randomization(values[norm] - values["none"], 7) for norm in found}
    for place, metric in enumerate(metrics):
        corrected = holm([p["l1"][place], p["l2"][place]])
        for norm, p_holm in zip(found, corrected, strict=True):
            differences = values[norm] - values["none"]
            low, high = bootstrap(differences, 7)
            assert found[norm][metric] == pytest.approx(
                {
                    "difference": differences.mean(axis=0)[place],
                    "low": low[place],
                    "high": high[place],
                    "p": p[norm][place],
                    "p_holm": p_holm,
                },
                rel=1e-12,
            )
    assert found["l1"] != found["l2"]
    assert any(of["p"] < of["p_holm"] for of in found["l1"].values())


def test_hubness_is_that_of_the_headline(rankings: Rankings) -> None:
    assert headline_k(rankings.ks) == 5
    for norm, of in rankings.figures()["hubness"].items():
        near = rankings.rows[norm][:, :5]
        counts = np.bincount(near[near >= 0], minlength=BASE)
        assert (of["k"], of["largest"], of["antihubs"]) == (5, counts.max(), np.mean(counts == 0))


@pytest.mark.parametrize(
    ("ks", "headline"),
    [((1, 5, 10, 100), 10), ((1, 5, 9), 9), ((20, 11), 11), ((10,), 10)],
    ids=str,
)
def test_the_headline_is_the_largest_up_to_ten(ks: tuple[int, ...], headline: int) -> None:
    assert headline_k(ks) == headline


def test_figures_of_a_group_are_those_of_its_queries_alone(rankings: Rankings) -> None:
    assert rankings.figures(GROUP) == taken(rankings, GROUP).figures()
    assert rankings.figures(GROUP) != rankings.figures()


def test_without_judgements_there_is_no_quality(rankings: Rankings) -> None:
    found = dataclasses.replace(rankings, judgements=None).figures()
    assert (found["quality"], found["tests"]) == (None, None)
    assert found["overlap"] == rankings.figures()["overlap"]


@pytest.fixture
def unknown(rankings: Rankings) -> dict[str, Any]:
    """Figures of queries of which nothing is judged."""
    assert rankings.judgements is not None
    return rankings.figures(np.flatnonzero(~rankings.judgements.judged))


def test_what_is_not_judged_has_no_value(unknown: dict[str, Any]) -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert set(unknown["quality"]["l1"]) == set(unknown["tests"]["l1"])
    assert all(value == nothing for value in unknown["quality"]["l1"].values())
    assert unknown["tests"]["l1"]["map@5"] == dict.fromkeys(
        ("difference", "low", "high", "p", "p_holm")
    )
    json.dumps(unknown, allow_nan=False)


def test_one_norm_has_nothing_to_be_tested_against() -> None:
    labels = LabelJudgements(np.array([0, 1]), np.array([0, 0, 1, 1]), np.array([0, 2]))
    found = Rankings({"l2": np.array([[1], [3]])}, (1,), 4, labels, 0).figures()
    assert found["tests"] == {"against": "l2"}
    assert found["overlap"] == {"l2": {"l2": {"1": 1}}}
    assert found["quality"]["l2"]["precision@1"] == {"value": 1, "low": 1, "high": 1}
