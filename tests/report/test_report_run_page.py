from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.report.run_page import run_page
from tests.report.page_reader import HOSTILE, Reader

Make = Callable[..., Any]


def page_of(run: Any) -> Reader:
    return Reader(run_page(run.record, run.chunks))


def test_the_page_says_what_the_run_is(sample: Any) -> None:
    texts = page_of(sample).texts
    assert "digits.parquet through digits_encoder.keras" in texts
    assert "A finished run: vectors normalized by l2" in texts
    for fact in ("1,797", "1,794", "/data/samples/digits_encoder.keras", "1024", "cpu"):
        assert fact in texts
    assert sample.manifest["space"][:12] in texts
    assert "tensorflow 2.21.0, keras 3.15.1" in texts


def test_stored_predictions_need_no_model(sample: Any) -> None:
    sample.manifest["job"]["model"] = None
    texts = page_of(sample).texts
    assert "digits.parquet" in texts
    assert "none: predictions were already stored" in texts


def test_the_histogram_holds_every_vector(sample: Any) -> None:
    markup = run_page(sample.record, sample.chunks)
    wide = markup[markup.index('id="output-0-norm-wide-title"') :]
    wide = wide[: wide.index("</svg>")]
    counts = re.findall(r"<title>[^<]* to [^<]*: ([\d,]+)</title>", wide)
    assert sum(int(count.replace(",", "")) for count in counts) == 1797 - 1 - 2
    assert "not shown: 1 zero, 2 not finite" in markup


def test_every_norm_has_a_histogram_and_a_line_of_quantiles(sample: Any) -> None:
    reader = page_of(sample)
    for label in ("l1", "l2", "max"):
        assert f"Histogram of {label} norms" in reader.texts
    numbers = reader.under("Norms before normalization")
    l2 = numbers[numbers.index("l2") :]
    stats = sample.manifest["statistics"]["vector"]["norms"]["l2"]
    assert l2[1] == "1,795"
    assert float(l2[5]) == pytest.approx(stats["quantiles"]["0.5"], rel=1e-3)
    assert float(l2[8]) == pytest.approx(stats["max"], rel=1e-3)


def test_the_numbers_along_the_run_are_those_of_the_chunks(sample: Any) -> None:
    numbers = page_of(sample).under("Quantiles of the l2 norm")
    cells = numbers[8:]
    norms = np.linalg.norm(sample.predictions["vector"][:128], axis=1)
    assert cells[:2] == ["0", "128"]
    assert float(cells[4]) == pytest.approx(np.quantile(norms, 0.5), rel=0.02)
    assert cells[7:8] == ["128"]


def test_many_chunks_are_gathered_and_keep_their_extremes(make_run: Make) -> None:
    vectors = np.random.default_rng(0).normal(1, 0.01, (8000, 4))
    vectors[4000:4010] *= 100
    run = make_run({"vector": vectors}, chunk_rows=10)
    texts = page_of(run).texts
    assert any(text.startswith("Each step groups 3 chunks") for text in texts)
    # The one odd chunk of ten rows, with norms near 200, is still to be seen in the outer band.
    rows = page_of(run).under("Quantiles of the l2 norm")[8:]
    highest = max(float(text) for text in rows[6 : 267 * 7 : 7])
    assert highest > 190


def test_each_dimension_has_its_mean_and_extremes(sample: Any) -> None:
    cells = page_of(sample).under("Spread of each dimension, before normalization")
    cells = cells[cells.index("mean + std") + 2 :]
    vectors = sample.predictions["vector"]
    first = vectors[np.isfinite(vectors).all(axis=1), 0]
    shown = [float(cell.replace("\u2212", "-")) for cell in cells[1:6]]
    spread = (first.min(), first.mean() - first.std(), first.mean(), first.mean() + first.std())
    assert shown == pytest.approx([*spread, first.max()], rel=1e-3)


def test_more_than_512_dimensions_share_steps(make_run: Make, make_predictions: Make) -> None:
    texts = page_of(make_run({"vector": make_predictions(200, 1100)})).texts
    assert any(text.startswith("Each step groups 3 dimensions") for text in texts)
    assert "1,098\u20131,099" in texts


def test_bad_rows_are_listed_with_file_row_and_key(sample: Any) -> None:
    texts = page_of(sample).under("The first bad rows")
    assert texts[6:11] == ["130", "a-130", "null_feature", "digits.parquet", "130"]
    assert "3 quarantined" in page_of(sample).texts


def test_parts_are_listed_with_their_files(sample: Any) -> None:
    texts = page_of(sample).under("Parts in order")
    assert "vectors/part-000003.parquet" in texts
    assert sample.manifest["parts"][3]["files"][0]["sha256"][:12] in texts


def test_long_tables_say_what_they_leave_out(make_run: Make) -> None:
    run = make_run({"vector": np.ones((512 * 700, 2))}, chunk_rows=50_000)
    assert "… and 200 more rows." in page_of(run).texts


def test_warnings_come_with_their_names_marked(sample: Any) -> None:
    sample.manifest["warnings"] = ["The output of `encoder` is normalized already."]
    reader = page_of(sample)
    assert reader.under("Warnings")[1:4] == ["The output of ", "encoder", " is normalized already."]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_only_text(name: str, make_run: Make, make_predictions: Make) -> None:
    run = make_run({name: make_predictions(300)})
    run.manifest["first_bad_rows"][0] |= {"key": name, "file": name, "reason": name}
    run.manifest["reasons"] = {name: 1}
    run.manifest["warnings"] = [name, f"`{name}`"]
    run.manifest["inputs"][0]["path"] = name
    run.manifest["parts"][0]["files"][0]["path"] = name
    path = name.replace("\0", "")  # which a job refuses
    run.manifest["job"] |= {"input": {"path": [path]}, "model": {"path": path}}
    plain = make_run({"vector": make_predictions(300)})
    plain.manifest["warnings"] = ["a", "`a`"]

    markup = run_page(run.record, run.chunks)
    reader = Reader(markup)
    assert set(reader.elements) == set(page_of(plain).elements)
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", markup)
    shown = re.sub("[\x00-\x1f\u202e]", "\ufffd", name)
    assert reader.texts.count(shown) >= 5


def test_a_path_that_is_not_utf8_does_not_stop_the_page(sample: Any) -> None:
    sample.manifest["inputs"][0]["path"] = b"a\xff.npy".decode(errors="surrogateescape")
    markup = run_page(sample.record, sample.chunks)
    assert "a\ufffd.npy".encode() in markup.encode()


def test_the_page_asks_for_nothing_and_runs_nothing(sample: Any) -> None:
    reader = page_of(sample)
    links = [value for key, value in reader.attributes if key in {"src", "href", "srcset"}]
    assert links == ["data:,"]
    assert "script" not in reader.elements
    assert "url(" not in run_page(sample.record, sample.chunks)


def test_identifiers_are_unique(make_run: Make, make_predictions: Make) -> None:
    run = make_run({"image": make_predictions(300), "text": make_predictions(300)})
    ids = [value for key, value in page_of(run).attributes if key == "id"]
    assert len(ids) > 10
    assert len(set(ids)) == len(ids)


def test_a_run_without_rows_has_a_page(sample: Any) -> None:
    sample.manifest["statistics"] = {}
    sample.manifest["parts"] = []
    sample.manifest["rows"] = dict.fromkeys(sample.manifest["rows"], 0)
    sample.manifest["reasons"] = {}
    sample.chunks = sample.chunks.slice(0, 0)
    assert "No rows, so there are no norms." in page_of(sample).texts


EXTREME = {
    "all zero": np.zeros((20, 3)),
    "all bad": np.full((20, 3), np.nan),
    "all equal": np.ones((20, 3)),
    "one row": np.array([[3.0, 4.0]]),
    "greatest": np.full((20, 3), 1.7e308) * np.array([1, -1, 1e-300]),
    "equal and greatest": np.full((20, 3), 1.7e308),
    "smallest": np.full((20, 3), 5e-324),
    "many magnitudes": np.logspace(-300, 300, 40)[:, None] * np.ones(3),
}


@pytest.mark.parametrize("vectors", EXTREME.values(), ids=EXTREME)
def test_extreme_predictions_have_a_page_of_finite_numbers(
    vectors: np.ndarray, make_run: Make
) -> None:
    run = make_run({"vector": vectors}, chunk_rows=7)
    markup = run_page(run.record, run.chunks)
    drawings = re.findall(r"<svg.*?</svg>", markup)
    assert not re.search(r'(?<=[",MHV])-?(nan|inf)', "".join(drawings))
    assert ">nan<" not in markup


@pytest.mark.parametrize(("norm", "shown"), [("lp:3", "lp:3"), ("none", "l2"), ("max", "max")])
def test_the_norm_in_use_comes_first(
    norm: str, shown: str, make_run: Make, make_predictions: Make
) -> None:
    vectors = make_predictions(300)
    run = make_run({"vector": vectors}, norm=norm)
    in_use = Norm.parse(norm)
    stats = VectorStats.of(np.ascontiguousarray(vectors), rows=300, in_use=in_use)
    run.manifest["statistics"]["vector"] = stats.to_dict()
    titles = [text for text in page_of(run).texts if text.startswith("Histogram of")]
    assert titles[0] == f"Histogram of {shown} norms"
    assert len(set(titles)) == len(stats.norms)
