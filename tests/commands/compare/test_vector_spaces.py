"""Whether two sets lie in one space follows from what made them, and from nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchnorm_tool.commands.compare.compare import compare
from batchnorm_tool.commands.compare.diff import diff
from batchnorm_tool.errors import InputError
from batchnorm_tool.readers.source import compare_spaces
from batchnorm_tool.readers.vectors import read
from tests.commands.workshop import Workshop, lists, predictions


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
        "The two sets are in different vector spaces: another model: m1m1m1 → m2m2m2. A: "
        "model `m1.keras` (m1m1m1m1m1m1), output `out`, norm l2. B: model `m2.keras` "
        "(m2m2m2m2m2m2), output `out`, norm l2."
    )


@pytest.mark.parametrize("option", [{"truncate": 8}, {"mean": "5" * 64}], ids=str)
def test_stored_predictions_of_which_something_was_left_out_are_another_space(
    option: dict[str, Any],
) -> None:
    left = run(None, norms={"out": {"norm": "l2", **option}})
    assert compare_spaces(run(None), left).same is False
    assert compare_spaces(run(None), run(None, norms={"out": {"norm": "l1"}})).same is None


def test_columns_of_another_name_are_no_other_space() -> None:
    assert compare_spaces(run(), run(features={"x": ["edges"]})).same is True


def test_columns_in_another_order_are_another_space_and_so_is_another_layer() -> None:
    one = run(features={"x": ["a", "b"]}, **{"model.layer": "tower"})
    found = compare_spaces(one, run(features={"x": ["b", "a"]}))
    assert found.same is False
    assert "spaces: layer tower → none, features in another order. A: " in found.words


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"norms": {"out": {"norm": "l1"}}},
        {"norms": {"out": {"norm": "l2", "dtype": "int8", "scale": 0.1}}},
        {"outputs": ["out", "more"]},
    ],
    ids=["all equal", "another norm", "int8", "further outputs"],
)
def test_raw_predictions_of_one_model_are_one_space(other: dict[str, Any]) -> None:
    found = compare_spaces(run(), run(**other))
    assert (found.same, found.words) == (True, "")


def test_what_is_lost_of_raw_predictions_makes_another_space() -> None:
    found = compare_spaces(run(), run(norms={"out": {"truncate": 4, "mean": "abcdef0123"}}))
    assert found.same is False
    assert "spaces: truncation none → 4, projected mean none → abcdef. A: " in found.words


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


# Files of two runs, whose footers name their spaces


@pytest.fixture
def two_runs(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Make a run under L2, and one under L1."""

    def make(form: str) -> tuple[Path, Path]:
        runs = []
        for norm in ("l2", "l1"):
            (tmp_path / norm).mkdir()
            columns = {"raw": lists(predictions(300))}
            runs.append(Workshop(tmp_path / norm).run(columns, form, normalize={"norm": norm}))
        return runs[0], runs[1]

    return make


Files = Callable[[str], tuple[Path, Path]]
ASK: dict[str, Callable[..., Any]] = {
    "a directory": lambda one, other, **told: compare(mixed(one, other), k=1, **told),
    "queries": lambda one, other, **told: compare(lone(one), queries=lone(other), k=1, **told),
    "diff": lambda one, other, **told: diff(lone(one), lone(other), k=1, **told),
}


def lone(run: Path) -> Path:
    return next((run / "vectors").glob("part-000000.*"))


def mixed(one: Path, other: Path) -> Path:
    """Put a part of each run into one directory."""
    directory = one.parent / "both"
    directory.mkdir(exist_ok=True)
    for name, run in (("a", one), ("b", other)):
        shutil.copy(lone(run), directory / f"{name}{lone(run).suffix}")
    return directory


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_parts_of_two_runs_are_not_mixed_unless_told(
    two_runs: Files, ask: Callable[..., Any]
) -> None:
    runs = two_runs("parquet")
    with pytest.raises(InputError, match=r"space \w{12}.*space \w{12}.*`mixed_spaces`") as error:
        ask(*runs)
    assert "Expected: one" in error.value.message
    document = ask(*runs, mixed_spaces=True).to_dict()
    assert any("contains unit vectors" in words for words in document["warnings"])


def test_vectors_of_two_spaces_come_from_nowhere(two_runs: Files) -> None:
    runs = two_runs("parquet")
    document = ASK["a directory"](*runs, mixed_spaces=True).to_dict()
    assert document["source"]["provenance"] is None


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_part_of_another_run_is_not_read_unless_told(two_runs: Files, form: str) -> None:
    one, other = two_runs(form)
    shutil.copy(lone(other), lone(one))
    assert read(one).rows == 300
    for ask in (lambda: read(one).to_numpy(), lambda: compare(one, k=1)):
        with pytest.raises(InputError, match=r"`vectors/part-000000.* is of another run") as error:
            ask()
        assert "--mixed-spaces" in error.value.message
    vectors = read(one, mixed_spaces=True).to_numpy()[1]
    assert (abs(vectors[:128]).sum(axis=1) < 1.0001).all()
    assert (abs(vectors[128:]).sum(axis=1) > 1.0001).any()
    assert compare(one, k=1, mixed_spaces=True).to_dict()["source"]["rows"] == 300
