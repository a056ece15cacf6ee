"""What changed between two sets of predictions, against SciPy and plain loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import linalg, spatial, stats

from batchnorm_tool.commands.compare.diff import Difference, diff
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.errors import InputError, JobError, OutputError
from tests.commands.workshop import Workshop, lists, predictions

ROWS, WIDTH = 300, 6


def draw(rows: int = ROWS, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(rows, WIDTH)) @ generator.normal(size=(WIDTH, WIDTH))
    return np.ascontiguousarray(mixed + 1, dtype=dtype)


def store(path: Path, raw: np.ndarray | pa.Array, **columns: Any) -> Path:
    column = lists(raw) if isinstance(raw, np.ndarray) else raw
    pq.write_table(pa.table({**columns, "raw": column}), path, row_group_size=77)
    return path


def figures(difference: Difference) -> dict[str, Any]:
    """What must not depend on how long it took."""
    document = difference.to_dict()
    del document["seconds"]
    return document


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray, np.ndarray]:
    """Two nights of 300 rows: rows 0 to 279 of the first are rows of the second, shuffled.

    The vectors of the second night are in the order of the keys, as those of the first.
    """
    a = draw()
    b = np.concatenate([a[:280] * 1.5 + draw(280, seed=1) * 0.2, draw(20, seed=2)])
    keys = np.concatenate([np.arange(280), np.arange(1000, 1020)])
    order = np.random.default_rng(3).permutation(ROWS)
    one = store(tmp_path / "a.parquet", a, id=np.arange(ROWS))
    other = store(tmp_path / "b.parquet", b[order], id=keys[order])
    return one, other, a.astype(np.float64), b.astype(np.float64), keys


def test_a_set_is_the_same_as_itself(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", draw())
    found = figures(diff(path, path))
    assert found["rows"] == {
        "a": ROWS,
        "b": ROWS,
        "common": ROWS,
        "added": 0,
        "removed": 0,
        "compared": ROWS,
        "identical": ROWS,
        "zero": 0,
    }
    assert found["verdict"]["kind"] == "same"
    assert found["cosine"]["min"] == found["cosine"]["max"] == 1
    assert found["worst"] == []
    assert found["norms"]["psi"] == found["norms"]["ks"] == 0
    assert found["frechet"] == pytest.approx(0, abs=1e-12)  # a difference of eigenvalues
    assert found["overlap"]["10"] == {"value": 1, "low": 1, "high": 1}
    assert (found["same_space"], found["warnings"]) == (None, [])


def test_rows_are_joined_by_key_and_not_by_place(tmp_path: Path) -> None:
    x, order = draw(), np.random.default_rng(0).permutation(ROWS)
    one = store(tmp_path / "a.parquet", x, id=np.arange(ROWS))
    other = store(tmp_path / "b.parquet", x[order], id=order)
    assert diff(one, other, key="id").to_dict()["rows"]["identical"] == ROWS
    assert diff(one, other).to_dict()["rows"]["identical"] < ROWS / 10


def test_rows_are_counted(moved: tuple[Any, ...]) -> None:
    one, other, *_ = moved
    found = figures(diff(one, other, key="id"))
    assert {name: found["rows"][name] for name in ("common", "added", "removed", "compared")} == {
        "common": 280,
        "added": 20,
        "removed": 20,
        "compared": 280,
    }
    assert found["examples"]["removed"] == [280, 281, 282, 283, 284]
    assert len(found["examples"]["added"]) == 5
    assert set(found["examples"]["added"]) <= set(range(1000, 1020))
    assert found["verdict"]["kind"] == "moved"
    assert "20 rows only in B; 20 rows only in A." in found["verdict"]["words"]


def test_pairs_agree_with_scipy(moved: tuple[Any, ...]) -> None:
    one, other, a, b, _ = moved
    difference = diff(one, other, key="id")
    cosines = np.array([1 - spatial.distance.cosine(a[row], b[row]) for row in range(280)])
    lengths = [np.linalg.norm(each[:280], axis=1) for each in (a, b)]
    frame = difference.to_pandas()
    assert list(frame.columns) == ["id", "cosine", "norm_a", "norm_b"]
    assert frame["id"].tolist() == list(range(280))
    np.testing.assert_allclose(frame["cosine"], cosines, atol=1e-12)
    np.testing.assert_allclose(frame[["norm_a", "norm_b"]], np.column_stack(lengths), rtol=1e-12)
    found = figures(difference)
    assert [row["key"] for row in found["worst"]] == np.argsort(cosines)[:10].tolist()
    assert found["worst"][0]["cosine"] == pytest.approx(cosines.min(), abs=1e-12)
    assert found["cosine"]["mean"] == pytest.approx(cosines.mean(), rel=1e-12)
    ratios = lengths[1] / lengths[0]
    assert found["norm_ratio"]["quantiles"]["0.5"] == pytest.approx(np.sort(ratios)[139], rel=1e-12)
    assert sum(count for _, _, count in found["norm_ratio"]["histogram"]) == 280


def test_sets_agree_with_scipy(moved: tuple[Any, ...]) -> None:
    one, other, a, b, _ = moved
    found = figures(diff(one, other, key="id"))
    lengths = [np.linalg.norm(each, axis=1) for each in (a, b)]
    assert found["norms"]["ks"] == pytest.approx(stats.ks_2samp(*lengths).statistic, rel=1e-12)
    assert found["norms"]["psi"] > 0.25
    assert found["norms"]["b"]["max"] == pytest.approx(lengths[1].max(), rel=1e-12)
    covariances = [np.cov(each, rowvar=False) for each in (a, b)]
    root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    means = [each.mean(axis=0) for each in (a, b)]
    squared = np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert found["frechet"] == pytest.approx(squared, rel=1e-9)
    assert found["centroid"]["shift"] == pytest.approx(np.linalg.norm(means[0] - means[1]))
    shift = (means[1] - means[0]) / a.std(axis=0, ddof=1)
    np.testing.assert_allclose(found["dimensions"]["shift"], shift, rtol=1e-9)
    largest = [entry["dimension"] for entry in found["dimensions"]["largest"]]
    assert largest == np.argsort(-np.abs(shift)).tolist()


def nearest(x: np.ndarray, row: int, k: int) -> list[int]:
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = units @ units[row]
    scores[row] = -np.inf
    return np.argsort(-scores, kind="stable")[:k].tolist()


@pytest.mark.parametrize("k", [1, 5, 25])
def test_overlap_agrees_with_a_loop(moved: tuple[Any, ...], k: int) -> None:
    one, other, a, b, keys = moved
    found = figures(diff(one, other, key="id", k=(k,)))
    shares = [
        len(set(nearest(a, row, k)) & set(keys[nearest(b, row, k)].tolist())) / k
        for row in range(280)
    ]
    overlap = found["overlap"][str(k)]
    assert found["sample"] == 280
    assert overlap["value"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert overlap["low"] < overlap["value"] < overlap["high"]


def test_a_sample_is_drawn_by_its_seed(moved: tuple[Any, ...]) -> None:
    one, other, *_ = moved
    first = figures(diff(one, other, key="id", sample=40, seed=1))
    assert first == figures(diff(one, other, key="id", sample=40, seed=1))
    assert first["sample"] == 40
    assert first["overlap"] != figures(diff(one, other, key="id", sample=40, seed=2))["overlap"]


def test_no_sample_asks_for_no_neighbours(tmp_path: Path) -> None:
    path = store(tmp_path / "a.parquet", draw(3))
    found = figures(diff(path, path, sample=0))
    assert (found["overlap"], found["sample"]) == (None, 0)


def test_rows_that_are_not_finite_are_counted_and_not_compared(tmp_path: Path) -> None:
    a, b = draw(), draw()
    a[3, 1], b[5, 0] = np.nan, np.inf
    nulls = pa.array(np.arange(ROWS) == 7)
    column = pa.FixedSizeListArray.from_arrays(pa.array(b.ravel()), WIDTH, mask=nulls)
    one, other = store(tmp_path / "a.parquet", a), store(tmp_path / "b.parquet", column)
    difference = diff(one, other)
    found = figures(difference)
    assert found["rows"]["common"] == ROWS
    assert found["rows"]["compared"] == found["rows"]["identical"] == ROWS - 3
    counts = {name: (found["a"][name], found["b"][name]) for name in ("nonfinite", "missing")}
    assert counts == {"nonfinite": (1, 1), "missing": (0, 1)}
    assert any("Not compared: 3 common rows" in words for words in found["warnings"])
    assert not {3, 5, 7} & set(difference.to_pandas()["row"])
    assert found["sample"] == ROWS - 3
    assert found["verdict"]["kind"] == "moved"
    assert found["verdict"]["words"] == (
        "Identical vectors, bit for bit, in 300 common rows except 3, where a vector is missing "
        "or not finite."
    )


def test_zero_vectors_have_no_cosine(tmp_path: Path) -> None:
    a, b = draw(), draw()
    a[3], b[5] = 0, 0
    one, other = store(tmp_path / "a.parquet", a), store(tmp_path / "b.parquet", b)
    found = figures(diff(one, other))
    assert found["rows"]["compared"] == ROWS
    assert found["cosine"]["count"] == ROWS - 2
    assert found["norm_ratio"]["count"] == ROWS - 1
    assert (found["a"]["zero"], found["b"]["zero"]) == (1, 1)
    assert any("Without a cosine: 2 compared rows" in words for words in found["warnings"])
    assert [(row["key"], row["cosine"]) for row in found["worst"]] == [(3, None), (5, None)]


def test_a_row_that_is_zero_on_both_sides_did_not_move(tmp_path: Path) -> None:
    a, b = draw(), np.nextafter(draw(), np.float32(np.inf))
    a[3] = b[3] = 0
    one, other = store(tmp_path / "a.parquet", a), store(tmp_path / "b.parquet", b)
    found = figures(diff(one, other))
    assert (found["rows"]["zero"], found["cosine"]["count"]) == (1, ROWS - 1)
    assert found["verdict"]["words"].startswith("Identical vectors, up to rounding")


def test_nothing_finite_leaves_no_figures(tmp_path: Path) -> None:
    one = store(tmp_path / "a.parquet", draw())
    other = store(tmp_path / "b.parquet", np.full((ROWS, WIDTH), np.nan, np.float32))
    found = figures(diff(one, other))
    assert found["rows"]["compared"] == found["cosine"]["count"] == found["sample"] == 0
    assert found["norms"]["psi"] is found["frechet"] is found["overlap"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_rounding_is_told_from_movement(tmp_path: Path, dtype: str) -> None:
    one = store(tmp_path / "a.parquet", draw())
    other = store(tmp_path / "b.parquet", draw().astype(dtype) * np.dtype(dtype).type(1.00001))
    found = figures(diff(one, other))
    assert found["verdict"]["kind"] == "same"
    assert found["verdict"]["words"].startswith("Identical vectors, up to rounding")
    assert found["rows"]["identical"] == 0


# Runs


def test_a_run_is_compared_with_the_predictions_that_it_was_made_of(workshop: Workshop) -> None:
    raw = predictions()
    columns = {"id": pa.array([f"item {row}" for row in range(len(raw))]), "raw": lists(raw)}
    out = workshop.run(columns, input={"key": "id", "features": "raw"})
    found = figures(diff(out, workshop.path / "input.parquet"))  # finds the key `id` by itself
    assert found["a"]["key"] == found["b"]["key"] == ["id"]
    assert found["rows"]["common"] == len(raw)
    assert found["verdict"]["kind"] == "same"
    assert figures(diff(workshop.path / "input.parquet", out))["b"]["kind"] == "run"


def test_rows_that_a_run_dropped_leave_the_numbers_of_others(workshop: Workshop) -> None:
    raw = predictions()
    raw[3] = np.nan
    fate = {"nonfinite": "drop", "max_bad_fraction": 1}
    out = workshop.run({"raw": lists(raw)}, normalize=fate)
    found = figures(diff(workshop.path / "input.parquet", out))
    assert (found["rows"]["common"], found["rows"]["removed"]) == (len(raw) - 1, 1)
    assert found["examples"]["removed"] == [3]
    assert found["cosine"]["min"] == pytest.approx(1, abs=1e-9)


def test_rows_named_in_different_ways_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    out = workshop.run_keys(pa.array([f"item {row}" for row in range(9)]))
    other = store(tmp_path / "b.parquet", predictions(9))
    with pytest.raises(InputError, match=r"`id` in .* and row numbers in .*b\.parquet.*`key`"):
        diff(out, other)


@pytest.fixture
def other_model(tmp_path: Path, tensorflow: None) -> Path:
    inputs = keras.Input((64,), name="pixels")
    outputs = keras.layers.Dense(32, name="embedding")(inputs)
    path = tmp_path / "other.keras"
    keras.Model(inputs, outputs).save(path)
    return path


def test_two_models_of_equal_width_are_named(
    samples: Path, encode: Callable[..., RunResult], other_model: Path
) -> None:
    source, key = str(samples / "digits.parquet"), {"key": "id"}
    encode(source, input=key, output={"path": "a"})
    encode(source, input=key, output={"path": "l1"}, normalize={"norm": "l1"})
    encode(source, input=key, output={"path": "b"}, model={"path": str(other_model)})
    a, norm_alone, b = (other_model.parent / name for name in ("a", "l1", "b"))
    with pytest.raises(InputError, match=r"another model: \w{6} → \w{6}\. A: .*--mixed-spaces"):
        diff(a, b)
    found = figures(diff(a, b, mixed_spaces=True))
    assert found["same_space"] is False
    assert found["verdict"]["kind"] == "other space"
    assert "digits_encoder.keras" in found["verdict"]["reason"]
    assert "other.keras" in found["verdict"]["reason"]
    assert any("mean little" in words for words in found["warnings"])
    same = figures(diff(a, norm_alone))
    assert same["same_space"] is True
    assert same["verdict"]["kind"] == "same"
    assert any("A was normalized by l2 and B by l1" in words for words in same["warnings"])


# What is written, and what is refused


def test_results_are_saved(moved: tuple[Any, ...], tmp_path: Path) -> None:
    one, other, *_ = moved
    difference = diff(one, other, key="id")
    difference.save(tmp_path / "report" / "night")
    written = json.loads((tmp_path / "report" / "night" / "diff.json").read_text())
    assert written == json.loads(json.dumps(difference.to_dict()))
    page = (tmp_path / "report" / "night" / "diff.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "a.parquet" in page
    with pytest.raises(OutputError, match="cannot be written"):
        difference.save(one)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": (0,)}, r"`k` must be numbers of neighbours, 1 or more each\. Received: \(0,\)"),
        ({"k": ()}, "`k` must be"),
        ({"sample": -1}, r"`sample` must be an integer, 0 or more\. Received: -1"),
        ({"sample": 1.5}, "`sample` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"k": 1.5}, "`k` must be"),
        ({"k": (True,)}, "`k` must be"),
        ({"sample": True}, "`sample` must be"),
        ({"column": 3}, "`column` must be the name of a column"),
        ({"key": ["id", "id"]}, "`key` must be"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        diff(tmp_path / "gone", tmp_path / "gone", **arguments)


def test_what_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="`b` must be a path"):
        diff(tmp_path, None)  # type: ignore[arg-type]


def test_more_neighbours_than_rows_are_refused(tmp_path: Path) -> None:
    one = store(tmp_path / "a.parquet", draw())
    other = store(tmp_path / "b.parquet", draw(10))
    with pytest.raises(InputError, match=r"b\.parquet: has 10 rows.*`k` of at most 9"):
        diff(one, other, k=(10,))
    assert diff(one, other).to_dict()["k"] == [1, 5]
    assert diff(one, other, k=(9,)).to_dict()["sample"] == 10


def test_different_widths_are_refused(tmp_path: Path) -> None:
    one = store(tmp_path / "a.parquet", draw())
    other = store(tmp_path / "b.parquet", draw()[:, :4].copy())
    with pytest.raises(InputError, match=r"differ in width.*6 in .*a\.parquet and 4 in .*b\.par"):
        diff(one, other)


def test_a_key_that_only_one_has_is_refused(tmp_path: Path) -> None:
    one = store(tmp_path / "a.parquet", draw(), id=np.arange(ROWS))
    other = store(tmp_path / "b.parquet", draw(), sku=np.arange(ROWS))
    with pytest.raises(InputError, match=r"b\.parquet: has no column `id`, which `key` names"):
        diff(one, other, key="id")


def test_warnings_are_collected(workshop: Workshop) -> None:
    raw = predictions()
    out = workshop.run({"raw": lists(raw)})
    found = figures(diff(out / "vectors" / "part-000000.parquet", out, sample=0))
    assert any("contains unit vectors" in words for words in found["warnings"])
    assert math.isclose(found["norms"]["a"]["mean"], 1, rel_tol=1e-6)
