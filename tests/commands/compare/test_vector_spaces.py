"""Whether two sets lie in one space follows from what made them, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.commands.compare.diff import compare_spaces
from batchnorm_tool.readers.opening import open_predictions
from batchnorm_tool.readers.predictions import Predictions


@pytest.fixture
def plain(samples: Path) -> Predictions:
    return open_predictions(samples / "digits_predictions.parquet")


def run(predictions: Predictions, model: str | None = "m1", **made_of: Any) -> Predictions:
    parts = {
        "model": model and model * 32,
        "norms": {"out": {"norm": "l2"}},
        "outputs": ["out"],
        "features": {"x": ["pixels"]},
        **made_of,
    }
    provenance = {
        "space": repr(parts),
        "model": model and f"{model}.keras",
        "model_sha256": parts["model"],
        "output": "out",
        "norm": "l2",
        "made_of": parts,
    }
    return replace(predictions, provenance=provenance)


def part(predictions: Predictions, space: str) -> Predictions:
    return replace(predictions, provenance={"space": space, "output": "out", "norm": "l2"})


def test_two_models_are_two_spaces_and_named(plain: Predictions) -> None:
    found = compare_spaces(run(plain, "m1"), run(plain, "m2"))
    assert found.same is False
    assert found.words == (
        "These are two vector spaces, which differ in the model's content. "
        "A: model `m1.keras` (m1m1m1m1m1m1), output `out`, norm l2. "
        "B: model `m2.keras` (m2m2m2m2m2m2), output `out`, norm l2."
    )


def test_columns_of_another_name_are_no_other_space(plain: Predictions) -> None:
    assert compare_spaces(run(plain), run(plain, features={"x": ["edges"]})).same is True


@pytest.mark.parametrize(
    "other",
    [{}, {"norms": {"out": {"norm": "l1"}}}, {"outputs": ["out", "more"]}],
    ids=["all equal", "another norm", "further outputs"],
)
def test_raw_predictions_of_one_model_are_one_space(
    plain: Predictions, other: dict[str, Any]
) -> None:
    found = compare_spaces(run(plain), run(plain, **other))
    assert (found.same, found.words) == (True, "")


def test_nobody_knows_the_space_of_plain_files(plain: Predictions) -> None:
    assert compare_spaces(plain, plain).same is None
    assert compare_spaces(run(plain), plain).same is None


def test_nobody_knows_the_model_of_predictions_that_were_stored_already(
    plain: Predictions,
) -> None:
    assert compare_spaces(run(plain, None), run(plain, None)).same is None
    renamed = run(plain, None, features={"vector": ["other"]})
    assert compare_spaces(run(plain, None), renamed).same is None
    found = compare_spaces(run(plain, None), run(plain))
    assert found.same is False
    assert "A: predictions that were stored already, output `out`" in found.words


def test_lone_parts_are_told_apart_by_the_id_of_their_space(plain: Predictions) -> None:
    assert compare_spaces(part(plain, "s1"), part(plain, "s1")).same is None
    found = compare_spaces(part(plain, "s1" * 20), part(plain, "s2" * 20))
    assert found.same is False
    assert "A: space s1s1s1s1s1s1, norm l2" in found.words
