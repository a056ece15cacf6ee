"""What options of a norm cost, on the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.compare.compare import Comparison, compare
from batchnorm_tool.comparison.verdict import bootstrap
from batchnorm_tool.errors import JobError
from batchnorm_tool.readers import source as readers_source
from batchnorm_tool.report.compare_page import comparison_page
from batchnorm_tool.report.text_compare import comparison_lines
from tests.commands.compare.compared import assert_close, draw, figures, labelled_rows, values
from tests.report.page_reader import Reader

NORMS = ("none", "l2", "l2:16", "l2+mean", "power:0.5", "l2+int8", "none+int8", "l2:16+mean+int8")


@pytest.fixture(scope="module")
def digits(samples: Path) -> Comparison:
    source = samples / "digits_predictions.parquet"
    return compare(source, key="id", label="label", norms=NORMS, k=[10], sample=None)


@pytest.fixture(scope="module")
def oracle(samples: Path) -> dict[str, np.ndarray]:
    """The precision@10 of each query: plain NumPy over what would be stored."""
    table = pq.read_table(samples / "digits_predictions.parquet", columns=["label", "prediction"])
    label = table["label"].to_numpy()
    x = np.stack(table["prediction"].to_numpy()).astype(np.float64)
    units = x / size(x)
    off = x[:, :16] - x[:, :16] @ (mean := direction(x[:, :16]))[:, np.newaxis] * mean
    stored = {
        "none": x,
        "l2": units,
        "l2:16": x[:, :16] / size(x[:, :16]),
        "l2+mean": projected(x),
        "power:0.5": x / np.sqrt(size(x)),
        "l2+int8": steps(units),
        "none+int8": steps(x),
        "l2:16+mean+int8": steps(off / size(off)),
    }
    return {norm: precisions(vectors, label) for norm, vectors in stored.items()}


def size(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=1, keepdims=True)


def direction(x: np.ndarray) -> np.ndarray:
    total = (x / size(x)).sum(axis=0)
    return total / np.linalg.norm(total)


def projected(x: np.ndarray) -> np.ndarray:
    off = x - (x @ direction(x))[:, np.newaxis] * direction(x)
    return off / size(off)


def steps(x: np.ndarray) -> np.ndarray:
    return np.rint(x / (np.abs(x).max() / 127))


def precisions(stored: np.ndarray, label: np.ndarray) -> np.ndarray:
    scores = stored @ stored.T
    np.fill_diagonal(scores, -np.inf)
    near = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return (label[near] == label[:, np.newaxis]).mean(axis=1)


def test_precision_is_that_of_the_vectors_that_would_be_stored(
    digits: Comparison, oracle: dict[str, np.ndarray]
) -> None:
    expected = {norm: each.mean() for norm, each in oracle.items()}
    found = values(digits.to_dict()["quality"], "precision@10")
    assert found == pytest.approx(expected, abs=1e-4)  # products of another order, where they tie
    assert len({round(value, 3) for value in found.values()}) >= 6


def test_int8_keeps_the_precision_of_the_sample(digits: Comparison) -> None:
    found = values(digits.to_dict()["quality"], "precision@10")
    assert abs(found["l2+int8"] - found["l2"]) < 0.005


def test_each_option_is_tested_against_its_own_norm(
    digits: Comparison, oracle: dict[str, np.ndarray]
) -> None:
    of_l2, of_none = digits.to_dict()["option_tests"]
    assert [*of_l2] == ["against", "l2:16", "l2+mean", "l2+int8", "l2:16+mean+int8"]
    assert (of_l2["against"], of_none["against"], *of_none) == (
        "l2",
        "none",
        "against",
        "none+int8",
    )
    for norm in [*of_l2][1:]:
        difference = oracle[norm] - oracle["l2"]
        low, high = bootstrap(difference[:, np.newaxis], 0)
        test = of_l2[norm]["precision@10"]
        assert test["difference"] == pytest.approx(difference.mean(), abs=1e-4)
        assert (test["low"], test["high"]) == pytest.approx((low[0], high[0]), abs=2e-4)
    assert of_l2["l2:16"]["precision@10"]["p_holm"] < 0.001
    assert of_l2["l2+int8"]["precision@10"]["p_holm"] > 0.05


def test_each_group_has_its_own_tests_of_options(tmp_path: Path) -> None:
    source, norms = labelled_rows(tmp_path), ["none", "l2", "l2:2"]
    document = compare(source, label="label", by="label", norms=norms, k=3).to_dict()
    assert len(document["by"]["groups"]) == 3
    for group in document["by"]["groups"]:
        quality = values(group["quality"], "precision@3")
        (tests,) = group["option_tests"]
        difference = tests["l2:2"]["precision@3"]["difference"]
        assert difference == pytest.approx(quality["l2:2"] - quality["l2"], abs=1e-12)


def test_the_summary_and_the_page_show_what_options_cost(digits: Comparison) -> None:
    document: Any = digits.to_dict()
    lines = comparison_lines(document)
    start = next(n for n, line in enumerate(lines) if line.startswith("with options"))
    assert lines[start].split("  ")[-1].strip() == "p (Holm)"
    shown = [line.split() for line in lines[start + 1 : lines.index("", start)]]
    assert [row[:2] for row in shown] == [
        *([norm, "l2"] for norm in ("l2:16", "l2+mean", "l2+int8", "l2:16+mean+int8")),
        ["none+int8", "none"],
    ]
    table = Reader(comparison_page(document)).tables["Cost of options, precision@10"]
    assert table[0] == ["with options", "without", "difference", "95 % interval", "p (Holm)"]
    assert [" ".join(row).split() for row in table[1:]] == shown
    test = document["option_tests"][0]["l2:16"]["precision@10"]
    assert table[1][2] == f"{test['difference']:+.4f}".replace("-", "\N{MINUS SIGN}")


def test_norms_without_options_have_no_such_figures(tmp_path: Path) -> None:
    source = labelled_rows(tmp_path)
    document: Any = compare(source, label="label", norms=["none", "power:0.5"], k=3).to_dict()
    assert "option_tests" not in document
    assert not [line for line in comparison_lines(document) if "with options" in line]
    assert "Cost of options" not in comparison_page(document)
    # Without the norm alone there is nothing that they could be tested against.
    document = compare(source, label="label", norms=["none", "l2:3"], k=3).to_dict()
    assert "option_tests" not in document
    assert document["tests"]["l2:3"]["precision@3"]["p"] > 0


def test_blocks_and_null_vectors_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = ["l2", "l2:4+mean+int8", "max+mean", "l2+binary"]
    source = labelled_rows(tmp_path)
    whole = figures(compare(source, label="label", norms=norms, k=5, metric="euclidean"))
    monkeypatch.setattr(readers_source, "_BATCH_ROWS", 16)
    assert_close(
        figures(compare(source, label="label", norms=norms, k=5, metric="euclidean")), whole, 1e-12
    )
    table = pq.read_table(source)
    null = pa.table({"id": [999], "label": [0], "raw": [None]}).cast(table.schema)
    pq.write_table(pa.concat_tables([table, null]), tmp_path / "more.parquet")
    more = figures(
        compare(tmp_path / "more.parquet", label="label", norms=norms, k=5, metric="euclidean")
    )
    assert more["source"]["missing"] == 1
    assert_close(more["overlap"], whole["overlap"], 1e-12)


def test_queries_of_another_file_become_what_rows_become() -> None:
    rows = draw()
    asked = compare(rows, queries=rows[:40] * np.float32(3), norms=["l2:3+mean+int8", "l2"], k=1)
    alone = compare(rows, queries=rows[:40], norms=["l2:3+mean+int8", "l2"], k=1)
    assert asked.to_dict()["hubness"] == alone.to_dict()["hubness"]


def test_more_components_than_there_are_are_refused(tmp_path: Path) -> None:
    words = r"'l2:7'\. Expected: at most 6 components, as .*base\.parquet has\. Received: '7'"
    with pytest.raises(JobError, match=words):
        compare(labelled_rows(tmp_path), norms=["l2:7"])
