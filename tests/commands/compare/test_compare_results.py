"""What a comparison says: verdicts, frames and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchnorm_tool.commands.compare.compare import compare
from tests.commands.compare.compared import (
    EVERYONE,
    NORMS,
    ROWS,
    classes,
    divided,
    draw,
    figures,
    labelled_rows,
    nearest,
    precision,
    store,
    values,
)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return labelled_rows(tmp_path)


# Verdicts


def cones(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose class is told by their length alone."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 2
    x = np.abs(rng.normal(size=(rows, 16))) + 1
    return x * np.where(label, 3, 1)[:, np.newaxis], label


def test_where_lengths_tell_it_stays_with_none(tmp_path: Path) -> None:
    x, label = cones(ROWS)
    source = store(tmp_path / "x", x, label=label)
    found = figures(compare(source, label="label", k=5, metric="euclidean", **EVERYONE))
    assert (found["verdict"]["norm"], found["verdict"]["kind"]) == ("none", "better")
    assert found["verdict"]["words"].startswith("Keep none, as stored: prec")
    assert found["verdict"]["notes"] == []


def test_classes_at_random_show_no_difference(tmp_path: Path) -> None:
    label = np.random.default_rng(1).integers(0, 4, ROWS)
    source = store(tmp_path / "x", draw(), label=label)
    verdict = figures(compare(source, label="label", k=5, **EVERYONE))["verdict"]
    assert (verdict["norm"], verdict["kind"]) == (None, "no difference")
    assert verdict["words"].startswith("No significant difference in this sample")


def test_unit_rows_have_the_same_neighbours(tmp_path: Path) -> None:
    found = figures(compare(divided(draw(), "l2"), norms=["none", "l2"], k=5))
    assert found["unit_share"]["l2"] == 1
    assert found["verdict"]["kind"] == "no difference"
    assert "100.0 % of the rows already have unit length" in found["verdict"]["reason"]


def test_without_judgements_other_neighbours_are_not_judged(labelled: Path) -> None:
    found = figures(compare(labelled, k=5))
    assert (found["quality"], found["tests"], found["headline"]) == (None, None, None)
    assert (found["relevance"], found["popularity"], found["by"]) == (None, None, None)
    assert (found["queries"]["judged"], found["queries"]["without_relevant"]) == (None, None)
    assert found["verdict"]["kind"] == "not judged"
    assert "`--label`" in found["verdict"]["words"]
    assert found["verdict"]["notes"][0].startswith("Under dot product the query's own norm")


def test_one_norm_is_no_comparison(labelled: Path) -> None:
    found = figures(compare(labelled, norms="l2", label="label", k=5))
    assert found["verdict"]["words"].startswith("A single norm")
    assert found["tests"] == {"against": "l2"}


def test_under_cosine_every_norm_ranks_alike(labelled: Path) -> None:
    found = figures(compare(labelled, metric="cosine", label="label", k=5, **EVERYONE))
    assert (found["metric"], found["verdict"]["kind"]) == ("cosine", "cannot matter")
    assert all(found["overlap"]["none"][norm] == {"5": 1} for norm in NORMS)
    assert all(of["p_holm"] == 1 for of in found["tests"]["l2"].values())
    expected = precision(nearest(draw(), draw(), "l2", k=5), *[classes(draw())] * 2)
    assert values(found["quality"], "precision@5")["none"] == pytest.approx(expected)


# What it is given as


def test_a_frame_holds_every_figure_of_every_group(labelled: Path) -> None:
    comparison = compare(labelled, label="label", by="label", k=[1, 5], norms=["none", "l2"])
    document, frame = comparison.to_dict(), comparison.to_pandas()
    assert list(frame.columns) == ["group", "norm", "metric", "value", "low", "high"]
    assert frame["group"].unique().tolist() == ["all", "0", "1", "2"]
    assert len(frame) == 4 * 2 * (5 * 2 + 2 + 1 + 2)
    found = frame.set_index(["group", "norm", "metric"])
    expected = document["quality"]["l2"]["ndcg@5"]
    assert found.loc[("all", "l2", "ndcg@5")].to_dict() == expected
    group = document["by"]["groups"][1]
    assert found.loc[("1", "l2", "overlap@5"), "value"] == group["overlap"]["none"]["l2"]["5"]
    assert found.loc[("1", "l2", "rbo"), "value"] == group["rbo"]["none"]["l2"]
    for name in ("skewness", "antihubs"):
        assert found.loc[("1", "l2", name), "value"] == group["hubness"]["l2"][name]
    assert pd.isna(found.loc[("1", "l2", "rbo"), "low"])


def test_a_frame_without_judgements_has_agreement_alone(labelled: Path) -> None:
    frame = compare(labelled, k=5).to_pandas()
    assert set(frame["metric"]) == {"overlap@5", "rbo", "skewness", "antihubs"}


def test_results_are_saved(labelled: Path, tmp_path: Path) -> None:
    comparison = compare(labelled, label="label", by="label", k=5)
    comparison.save(tmp_path / "report" / "night")
    written = json.loads((tmp_path / "report" / "night" / "comparison.json").read_text())
    assert written == json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert written["seconds"] > 0
    page = (tmp_path / "report" / "night" / "comparison.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "base.parquet" in page
