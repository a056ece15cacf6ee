"""Whether two sets lie in one space follows from what made them, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from batchnorm_tool.commands.compare.diff import compare_spaces


def run(model: str | None = "m1", **made_of: Any) -> dict[str, Any]:
    parts = {
        "model": model and model * 32,
        "norms": {"out": {"norm": "l2"}},
        "outputs": ["out"],
        "features": {"x": ["pixels"]},
        **made_of,
    }
    return {
        "space": repr(parts),
        "model": model and f"{model}.keras",
        "model_sha256": parts["model"],
        "output": "out",
        "norm": "l2",
        "made_of": parts,
    }


def part(space: str) -> dict[str, Any]:
    return {"space": space, "output": "out", "norm": "l2"}


def test_two_models_are_two_spaces_and_named() -> None:
    found = compare_spaces(run("m1"), run("m2"))
    assert found.same is False
    assert found.words == (
        "The two sets are in different vector spaces, which differ in the model's content. A: "
        "model `m1.keras` (m1m1m1m1m1m1), output `out`, norm l2. B: model `m2.keras` "
        "(m2m2m2m2m2m2), output `out`, norm l2."
    )


def test_columns_of_another_name_are_no_other_space() -> None:
    assert compare_spaces(run(), run(features={"x": ["edges"]})).same is True


@pytest.mark.parametrize(
    "other",
    [{}, {"norms": {"out": {"norm": "l1"}}}, {"outputs": ["out", "more"]}],
    ids=["all equal", "another norm", "further outputs"],
)
def test_raw_predictions_of_one_model_are_one_space(other: dict[str, Any]) -> None:
    found = compare_spaces(run(), run(**other))
    assert (found.same, found.words) == (True, "")


def test_nobody_knows_the_space_of_plain_files() -> None:
    assert compare_spaces(None, None).same is None
    assert compare_spaces(run(), None).same is None


def test_nobody_knows_the_model_of_predictions_that_were_stored_already() -> None:
    assert compare_spaces(run(None), run(None)).same is None
    renamed = run(None, features={"vector": ["other"]})
    assert compare_spaces(run(None), renamed).same is None
    found = compare_spaces(run(None), run())
    assert found.same is False
    assert "A: stored predictions, output `out`" in found.words


def test_lone_parts_are_told_apart_by_the_id_of_their_space() -> None:
    assert compare_spaces(part("s1"), part("s1")).same is None
    found = compare_spaces(part("s1" * 20), part("s2" * 20))
    assert found.same is False
    assert "A: space s1s1s1s1s1s1, norm l2" in found.words
