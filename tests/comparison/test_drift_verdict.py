"""The verdict on two sets says what the figures say."""

from __future__ import annotations

from typing import Any

import pytest

from batchnorm_tool.comparison.drift import verdict_of


def document(**given: Any) -> dict[str, Any]:
    """Two sets of 90 common rows whose vectors differ, where nothing else is ``given``."""
    rows = {"common": 90, "compared": 90, "identical": 0, "zero": 0, "added": 0, "removed": 0}
    return {
        "same_space": None,
        "rows": rows | given.get("rows", {}),
        "cosine": {
            "count": 90,
            "min": given.get("cosine", 0.5),
            "quantiles": {"0.5": given.get("cosine", 0.5) + 0.0},
        },
        "norm_ratio": {
            "count": 90,
            "min": given.get("ratio", 1.0),
            "max": given.get("ratio", 1.0),
            "quantiles": {"0.5": given.get("ratio", 1.0)},
        },
        "norms": {"psi": 0.25},
        "overlap": given.get("overlap", {"5": {"value": 0.4}, "10": {"value": 0.625}}),
    }


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"rows": {"identical": 90}}, "same", "Identical vectors, bit for bit, in 90 common rows."),
        (
            {"rows": {"identical": 90, "added": 1, "removed": 12}},
            "same",
            "Identical vectors, bit for bit, in 90 common rows. 1 row only in B; 12 rows only",
        ),
        (
            {"cosine": 1 - 1e-7, "ratio": 1.0005},
            "same",
            "Identical vectors, up to rounding, in 90 common rows.",
        ),
        (
            {"cosine": 1 - 1e-5},
            "moved",
            "The vectors moved. 62.5 % of a row's 10 nearest neighbours",
        ),
        (
            {"cosine": 1.0, "ratio": 1.01},
            "moved",
            "The vectors kept their directions, but not their",
        ),
        (
            {"cosine": 1.0, "ratio": 0.99},
            "moved",
            "The vectors kept their directions, but not their",
        ),
        (
            {"overlap": {"50": {"value": 0.5}}},
            "moved",
            "The vectors moved. 50.0 % of a row's 50 near",
        ),
        ({"overlap": None}, "moved", "The vectors moved."),
        (
            {"rows": {"common": 93, "compared": 93, "zero": 3}, "cosine": 1.0},
            "same",
            "Identical vectors, up to rounding, in 93 common rows.",
        ),
        (
            {"rows": {"common": 93, "compared": 93, "zero": 2}, "cosine": 1.0},
            "moved",
            "The vectors moved.",
        ),
        ({"rows": {"compared": 0}}, "moved", "No row can be compared"),
    ],
    ids=[
        "bits",
        "rows",
        "rounding",
        "turned",
        "longer",
        "shorter",
        "large k",
        "no neighbours",
        "zero on both sides",
        "zero on one side",
        "nothing",
    ],
)
def test_verdict(given: dict[str, Any], kind: str, words: str) -> None:
    verdict = verdict_of(document(**given), "")
    assert verdict["kind"] == kind
    assert verdict["words"].startswith(words)


def test_the_reason_holds_the_figures() -> None:
    assert verdict_of(document(), "")["reason"] == (
        "Cosine per pair: median 0.500000, lowest 0.500000; length ratio of B to A: median 1; PSI "
        "of the norms 0.250."
    )


def test_another_space_is_said_first() -> None:
    verdict = verdict_of(document() | {"same_space": False}, "They differ in the model.")
    assert verdict["kind"] == "other space"
    assert verdict["words"].startswith(
        "The sets are in two vector spaces. 62.5 % of a row's 10 nearest neighbours"
    )
    assert verdict["reason"] == "They differ in the model."
