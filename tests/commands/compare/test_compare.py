"""Which norm serves predictions, against brute force, SciPy and the manifests of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from batchnorm_tool.commands.compare import compare as module
from batchnorm_tool.commands.compare.compare import Comparison, compare
from batchnorm_tool.comparison import neighbours as neighbours_module
from batchnorm_tool.errors import InputError
from batchnorm_tool.readers import source as readers_source
from tests.commands.compare.compared import (
    EVERYONE,
    NORMS,
    ORDERS,
    ROWS,
    assert_close,
    classes,
    divided,
    draw,
    figures,
    labelled_rows,
    nearest,
    precision,
    shared,
    store,
    values,
    with_nulls,
)
from tests.commands.workshop import Workshop, lists
from tests.merging import unsplit


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return labelled_rows(tmp_path)


# The figures


@pytest.fixture(scope="module")
def digits(samples: Path) -> Comparison:
    source = samples / "digits.parquet"
    return compare(source, column="pixels", key="id", label="label", k=[10], sample=None)


def test_the_digits_have_the_precision_that_is_known(digits: Comparison) -> None:
    expected = {"none": 0.7021, "l1": 0.8900, "l2": 0.9628, "max": 0.7021}
    document = digits.to_dict()
    assert values(document["quality"], "precision@10") == pytest.approx(expected, abs=0.002)
    assert document["headline"] == "precision@10"
    assert document["relevance"] == {
        "kind": "labels",
        "column": "label",
        "classes": 10,
        "clicks": False,
    }
    assert document["queries"] == {
        "rows": 1797,
        "used": 1797,
        "nonfinite": 0,
        "judged": 1797,
        "without_relevant": 0,
    }


def test_the_digits_are_best_normalized_by_l2(digits: Comparison) -> None:
    verdict = digits.to_dict()["verdict"]
    assert (verdict["norm"], verdict["kind"]) == ("l2", "better")
    assert digits.verdict.startswith("Normalize by l2: precision@10 is 0.963")
    assert "Next best is l1, 0.073 lower." in verdict["reason"]
    assert repr(digits) == "Comparison(none, l1, l2, max; better)"


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_neighbours_agree_with_brute_force(labelled: Path, metric: str) -> None:
    x, label = draw(), classes(draw())
    found = figures(compare(labelled, label="label", k=[1, 7], metric=metric, **EVERYONE))
    rows = {norm: nearest(x, x, norm, k=7, metric=metric) for norm in NORMS}
    for one in NORMS:
        for other in NORMS:
            assert found["overlap"][one][other] == pytest.approx(
                {str(k): shared(rows[one][:, :k], rows[other][:, :k]) for k in (1, 7)}
            )
        counts = np.bincount(rows[one].ravel(), minlength=ROWS)
        hubness = found["hubness"][one]
        assert (hubness["k"], hubness["largest"]) == (7, counts.max())
        assert hubness["skewness"] == pytest.approx(stats.skew(counts), rel=1e-12)
        assert hubness["antihubs"] == np.mean(counts == 0)
    expected = {norm: precision(of, label, label) for norm, of in rows.items()}
    assert values(found["quality"], "precision@7") == pytest.approx(expected, rel=1e-12)
    assert len(set(expected.values())) > 2


def test_any_norm_can_be_compared(labelled: Path) -> None:
    found = figures(compare(labelled, norms=["lp:3", "cosine"], k=5, **EVERYONE))
    assert found["compared"] == ["lp:3", "l2"]
    assert list(found["norms"]) == ["l1", "l2", "max", "lp:3"]
    rows = [nearest(draw(), draw(), norm, k=5) for norm in ("lp:3", "l2")]
    assert found["overlap"]["lp:3"]["l2"]["5"] == pytest.approx(shared(*rows))
    assert found["rbo_p"] == 0.9


@pytest.mark.parametrize("norm", ["l2", "lp:3"])
def test_norms_are_those_of_a_run(workshop: Workshop, norm: str) -> None:
    x = draw()
    x[[3, 4]], x[5, 1] = 0, np.inf
    name, _, p = norm.partition(":")
    policy = {"nonfinite": "nullify", "max_bad_fraction": 1}
    out = workshop.run(
        {"raw": with_nulls(x, [9])},
        input={"invalid": "drop"},
        normalize={"norm": name, "p": float(p) if p else None, **policy},
    )
    manifest = json.loads((out / "_manifest.json").read_text())["statistics"]["vector"]
    found = figures(compare(workshop.path / "input.parquet", norms=["l1", norm], k=3, sample=5))
    assert found["source"]["zero"] == manifest["zero"] == 2
    assert found["source"]["nonfinite"] == manifest["nonfinite"] == 1
    assert found["source"]["missing"] == 1
    for label, of_run in manifest["norms"].items():
        ours = found["norms"][label]
        # A run never sees the vector that is null.
        assert ours.pop("nonfinite") == of_run.pop("nonfinite") + 1
        assert unsplit(ours) == unsplit(of_run)
        for moment in ("mean", "m2", "std"):
            assert ours[moment] == pytest.approx(of_run[moment], rel=1e-12)
    assert set(found["norms"]) == set(manifest["norms"])


def test_rank_correlations_are_scipys(labelled: Path) -> None:
    found = figures(compare(labelled, norms=["none", "lp:3"], k=3, sample=5))
    lengths = {norm: np.linalg.norm(draw().astype(float), p, axis=1) for norm, p in ORDERS.items()}
    assert list(found["rank_correlation"]) == list(lengths)
    for one, of_one in lengths.items():
        for other, of_other in lengths.items():
            expected = stats.spearmanr(of_one, of_other).statistic
            assert found["rank_correlation"][one][other] == pytest.approx(expected, rel=1e-12)
    assert found["ranked_rows"] == ROWS


@pytest.mark.parametrize("judged", [True, False], ids=["relevance", "no relevance"])
def test_ranks_of_many_rows_are_those_of_some(
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    judged: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(module, "RANKED_ROWS", 50)
    monkeypatch.setattr(module, "RANKED_ROWS", 50)
    monkeypatch.setattr(readers_source, "_BATCH_ROWS", 30)
    (tmp_path / "clicks.csv").write_text("query,item\n1,2\n1,150\n3,2\n")
    relevance = tmp_path / "clicks.csv" if judged else None
    found = figures(compare(labelled, key="id", relevance=relevance, k=3, sample=5))
    lengths = [np.linalg.norm(draw()[::4].astype(float), p, axis=1) for p in (1, 2)]
    expected = stats.spearmanr(*lengths).statistic
    assert found["rank_correlation"]["l1"]["l2"] == pytest.approx(expected, rel=1e-12)
    assert found["ranked_rows"] == 50
    if judged:  # by no sample: nearly all rows of one are nobody's
        counts = np.bincount([2, 150, 2], minlength=ROWS)
        lengths = [np.linalg.norm(draw().astype(float), axis=1), counts]
        expected = stats.spearmanr(*lengths).statistic
        assert found["popularity"]["l2"] == pytest.approx(expected, rel=1e-12)
    assert found["norms"]["l2"]["count"] == ROWS


def test_unit_rows_are_counted(tmp_path: Path) -> None:
    x = draw()
    x[::2] = divided(x[::2], "l2")
    found = figures(compare(store(tmp_path / "x", x), k=3, sample=5))
    assert found["unit_share"]["l2"] == 0.5
    assert found["unit_share"]["l1"] == found["unit_share"]["max"] == 0


# Where predictions come from


def test_a_finished_run_compares_as_the_predictions_that_it_was_made_of(workshop: Workshop) -> None:
    x = draw()
    columns = {"id": pa.array(np.arange(ROWS)), "label": pa.array(classes(x)), "raw": lists(x)}
    section = {"key": "id", "features": "raw", "passthrough": ["label"]}
    out = workshop.run(columns, input=section)
    of_run, of_data = (
        figures(compare(path, label="label", by="label", k=[1, 5], **EVERYONE))
        for path in (out, workshop.path / "input.parquet")
    )
    assert (of_run["source"]["kind"], of_data["source"]["kind"]) == ("run", "data")
    assert of_run["source"]["provenance"]["norm"] == "l2"
    for document in (of_run, of_data):
        del document["source"], document["verdict"]  # a run stores its norm
        for stats_of in document["norms"].values():
            del stats_of["histogram"]  # a norm may move to the next bucket
    assert_close(of_run, of_data, 1e-3)
    for name in ("overlap", "quality", "by"):
        assert of_run[name] == of_data[name]


def test_files_and_blocks_change_nothing(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    table = pq.read_table(labelled)
    for first, length in ((0, 90), (90, 1), (91, 109)):
        pq.write_table(table.slice(first, length), tmp_path / "parts" / f"{first:03}.parquet")
    whole = figures(compare(labelled, label="label", sample=70))
    monkeypatch.setattr(readers_source, "_BATCH_ROWS", 16)
    parts = figures(compare(tmp_path / "parts", label="label", sample=70))
    assert whole.pop("source")["rows"] == parts.pop("source")["rows"] == ROWS
    assert_close(parts, whole, 1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64"])
def test_an_array_compares_as_the_file_that_holds_it(tmp_path: Path, dtype: str) -> None:
    x = (draw() * 1000).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    of_array, of_file = (figures(compare(x, k=5)), figures(compare(tmp_path / "x.npy", k=5)))
    assert of_array.pop("source")["path"] == "array"
    assert of_file.pop("source")["dtype"] == ("float64" if dtype == "int64" else dtype)
    assert of_array == of_file


def test_a_part_of_a_run_is_told_to_hold_unit_vectors(workshop: Workshop) -> None:
    out = workshop.run({"raw": lists(draw())})
    (part, *_) = sorted((out / "vectors").glob("*.parquet"))
    comparison = compare(part, column="vector", k=3, sample=5)
    assert any("contains unit vectors" in words for words in comparison.to_dict()["warnings"])


# Sampling


def test_a_sample_is_drawn_by_its_seed_from_a_base_that_stays_whole(labelled: Path) -> None:
    first = figures(compare(labelled, label="label", k=5, sample=20, seed=1))
    assert first == figures(compare(labelled, label="label", k=5, sample=20, seed=1))
    other = figures(compare(labelled, label="label", k=5, sample=20, seed=2))
    assert first["overlap"] != other["overlap"]
    assert first["norms"] == other["norms"]
    assert (first["seed"], first["queries"]["rows"], first["source"]["rows"]) == (1, 20, ROWS)
    assert first["norms"]["l2"]["count"] == ROWS
    drawn = np.sort(np.random.default_rng(1).choice(ROWS, 20, replace=False))
    x, label = draw(), classes(draw())
    rows = nearest(x[drawn], x, "l1", k=5)
    expected = precision(rows, label[drawn], label)
    assert values(first["quality"], "precision@5")["l1"] == pytest.approx(expected)


def test_the_seed_moves_intervals_and_tests_too(labelled: Path) -> None:
    one, other = (
        figures(compare(labelled, label="label", k=5, seed=seed, **EVERYONE)) for seed in (1, 2)
    )
    assert one["overlap"] == other["overlap"]
    assert values(one["quality"], "map@5") == values(other["quality"], "map@5")
    assert one["quality"] != other["quality"]
    assert one["tests"]["l2"]["map@5"]["low"] != other["tests"]["l2"]["map@5"]["low"]


@pytest.mark.parametrize(
    ("rows", "ks"), [(2, [1]), (11, [1, 5, 10]), (101, [1, 5, 10, 100])], ids=str
)
def test_depths_are_those_that_the_base_has(rows: int, ks: list[int]) -> None:
    assert compare(draw(rows)).to_dict()["k"] == ks


@pytest.mark.parametrize(
    ("k", "ks"),
    [(3, [3]), (np.int64(3), [3]), (np.array([5, 1]), [1, 5]), ((5, 1, 5), [1, 5])],
    ids=["number", "numpy", "array", "repeated"],
)
def test_depths_may_be_given_as_any_whole_numbers(k: Any, ks: list[int]) -> None:
    document = compare(draw(20), k=k).to_dict()
    assert document["k"] == ks
    json.dumps(document)


# Rows of every kind


def test_rows_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    x = draw()
    x[3, 1], x[5, 0] = np.nan, np.inf
    label = classes(draw())
    source = store(tmp_path / "x", with_nulls(x, [7]), label=label)
    found = figures(compare(source, label="label", k=5, **EVERYONE))
    assert {name: found["source"][name] for name in ("rows", "nonfinite", "missing", "zero")} == {
        "rows": ROWS,
        "nonfinite": 2,
        "missing": 1,
        "zero": 0,
    }
    assert found["queries"]["rows"] == ROWS
    assert found["queries"]["used"] == found["queries"]["judged"] == ROWS - 3
    assert found["queries"]["nonfinite"] == 3
    assert found["warnings"] == ["Queries with null, NaN or infinity, ignored: 3 of 200."]
    kept = np.delete(np.arange(ROWS), [3, 5, 7])
    rows = {norm: nearest(x[kept], x[kept], norm, k=5) for norm in NORMS}
    assert found["overlap"]["none"]["l2"]["5"] == pytest.approx(shared(rows["none"], rows["l2"]))
    expected = {norm: precision(of, label[kept], label[kept]) for norm, of in rows.items()}
    assert values(found["quality"], "precision@5") == pytest.approx(expected)
    assert found["ranked_rows"] == ROWS - 3


def test_more_neighbours_than_finite_rows_are_refused() -> None:
    x = draw(12)
    x[4:] = np.nan
    with pytest.raises(InputError, match=r"4 of 12.*`k` of at most 3"):
        compare(x, k=[10])
    assert figures(compare(x, k=[3]))["queries"]["used"] == 4
    x[1:] = np.nan
    with pytest.raises(InputError, match=r"Expected: finite vectors to compare.*Fix them"):
        compare(x, k=[1])


def test_lengths_may_be_farther_apart_than_a_float64_tells() -> None:
    x = np.array([[1e150, 1e150], [1e-160, 0.0], [1.0, 2.0]])
    assert figures(compare(x, k=[1]))["overlap"]["none"]["l2"] == {"1": 1.0}


def test_many_queries_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw()
    expected = figures(compare(x, k=5, **EVERYONE))
    monkeypatch.setattr(neighbours_module, "_KEPT_BYTES", 1)
    monkeypatch.setattr(neighbours_module, "_FEWEST_QUERIES", 7)
    found = figures(compare(x, k=5, **EVERYONE))
    for name in ("overlap", "rbo", "hubness"):
        assert found[name] == expected[name]


def test_where_nothing_is_relevant_it_is_refused(tmp_path: Path) -> None:
    source = store(tmp_path / "x", draw(), label=np.arange(ROWS))
    with pytest.raises(InputError, match=r"no row is relevant to any query of 200"):
        compare(source, label="label", k=[3])


def test_rows_of_zeros_are_counted_and_score_nothing(tmp_path: Path) -> None:
    x = draw()
    x[[0, 50]] = 0
    found = figures(compare(x, k=5, **EVERYONE))
    assert (found["source"]["zero"], found["norms"]["l2"]["zero"]) == (2, 2)
    assert (found["queries"]["used"], found["warnings"]) == (ROWS, [])
    asked = np.delete(np.arange(ROWS), [0, 50])
    rows = {norm: nearest(x[asked], x, norm, k=5) for norm in NORMS}
    means = {norm: shared(rows["none"], of) for norm, of in rows.items()}
    # Under every norm, a query of zeros finds the rows with the lowest numbers.
    for norm, mean in means.items():
        expected = (mean * len(asked) + 2) / ROWS
        assert found["overlap"]["none"][norm]["5"] == pytest.approx(expected)


def test_queries_of_a_file_without_names_need_none(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    table = pa.table({"id": range(40), "v": list(rows), "w": list(rows)})
    pq.write_table(table, tmp_path / "base.parquet")
    np.save(tmp_path / "queries.npy", rows[:5])
    found = compare(
        tmp_path / "base.parquet",
        column="v",
        key="id",
        queries=tmp_path / "queries.npy",
        metric="cosine",
        k=[1],
    )
    assert found.to_dict()["queries"]["used"] == 5
