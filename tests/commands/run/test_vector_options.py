"""Truncated, projected and quantized results: `normalize.truncate`, `project_mean`, `dtype`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool.commands.run import prepare
from batchnorm_tool.commands.run.run import RunResult, plan_run, run
from batchnorm_tool.commands.run.score import score
from batchnorm_tool.commands.show import show
from batchnorm_tool.commands.verify.verify import verify
from batchnorm_tool.contract import Contract
from batchnorm_tool.errors import BadRows, InputError, JobError, OutputError
from batchnorm_tool.job import Job
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.normalization import Normalization, unit_direction
from batchnorm_tool.readers.vectors import read
from batchnorm_tool.report.text_run import norm_lines
from tests.bits import same_bits

FORMATS = ["parquet", "arrow", "npy"]
ROWS, WIDTH = 300, 12
L2 = Norm("l2")


def raw_rows(rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    generator = np.random.default_rng(7)
    scales = 10.0 ** generator.integers(-4, 5, size=(rows, 1))
    return ((generator.normal(size=(rows, width)) + 0.5) * scales).astype(np.float32)


def mean_of(raw: np.ndarray) -> np.ndarray:
    raw = raw.astype(np.float64)
    total = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).sum(axis=0)
    return np.asarray(total / np.linalg.norm(total))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Make jobs over an array, or arrays by name, whose sections are given."""

    def make(raw: np.ndarray | dict[str, np.ndarray], /, **sections: Any) -> Job:
        arrays = raw if isinstance(raw, dict) else {"raw": raw}
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        paths = {name: str(tmp_path / f"{name}.npy") for name in arrays}
        given = {"path": paths if isinstance(raw, dict) else paths["raw"]}
        output = {"path": str(tmp_path / "out"), "part_rows": 64, **sections.pop("output", {})}
        given |= sections.pop("input", {})
        return Job.from_dict({"input": given, "output": output, **sections})

    return make


def fitted(done: RunResult, output: str = "vector") -> dict[str, Any]:
    found: dict[str, Any] = done.manifest["resolved"]["fitted"][output]
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {"truncate": 5},
        {"project_mean": "fit"},
        {"dtype": "int8"},
        {"dtype": "binary"},
        {"truncate": 9, "project_mean": "fit", "dtype": "int8", "norm": "l1"},
        {"truncate": 9, "project_mean": "fit", "dtype": "binary", "norm": "none"},
    ],
    ids=lambda options: "+".join(map(str, options.values())),
)
def test_a_result_is_that_of_numpy(
    job: Callable[..., Job], form: str, options: dict[str, Any]
) -> None:
    raw = raw_rows()
    done = run(job(raw, normalize=options, output={"format": form}))
    kept = raw[:, : options.get("truncate")].astype(np.float64)
    if "project_mean" in options:
        mean = mean_of(kept)
        np.testing.assert_allclose(fitted(done)["mean"], mean, atol=1e-12)
        kept = kept - (kept @ mean)[:, np.newaxis] * mean
    norm = options.get("norm", "l2")
    order = {"l1": 1, "l2": 2, "none": None}[norm]
    lengths = np.ones(ROWS) if order is None else np.linalg.norm(kept, order, axis=1)
    units = kept / lengths[:, np.newaxis]
    width, step = kept.shape[1], 1e-6

    stored = read(done.path, decode=False)
    dtype = options.get("dtype")
    _, vectors, norms = stored.to_numpy()
    np.testing.assert_allclose(norms, lengths, rtol=1e-9)
    if dtype == "int8":
        step = np.abs(units).max() / 127
        assert fitted(done)["scale"] == pytest.approx(step, rel=1e-9)
        assert vectors.dtype == np.int8
        assert np.abs(vectors - units / step).max() <= 0.5 + 1e-6
        assert stored.schema.field("vector").type == pa.list_(pa.int8(), width)
    if dtype == "binary":
        assert stored.schema.field("vector").type == pa.list_(pa.uint8(), -(-width // 8))
        assert same_bits(vectors, np.packbits(units > 0, axis=1))
        units = np.sign(units) / (1 if order is None else width ** (1 / order))

    _, decoded, _ = read(done.path).to_numpy()
    assert (decoded.dtype, decoded.shape) == (np.float32, (ROWS, width))
    np.testing.assert_allclose(decoded, units, atol=step * 0.501, rtol=1e-6)
    frame = read(done.path).to_pandas()
    assert same_bits(np.stack(list(frame["vector"])), decoded)
    _, restored, _ = read(done.path, raw=True).to_numpy()
    np.testing.assert_allclose(restored, decoded * norms[:, np.newaxis], rtol=1e-6)
    contract = Contract.load(done.path)
    assert same_bits(np.asarray(contract.apply(raw)), vectors)
    assert contract.space == done.manifest["space"]
    assert len(contract.canaries) == 16
    assert verify(done.path).rows == ROWS
    assert run(job(raw, normalize=options, output={"format": form})).nothing_to_do


def test_statistics_and_norms_are_of_what_is_kept(job: Callable[..., Job]) -> None:
    raw = np.float32([[3, 4, 1000], [6, 8, 0], [0, 0, 5]])
    done = run(job(raw, normalize={"truncate": 2}))
    (stats,) = done.record.statistics.values()
    assert (stats.norms["l2"].max, stats.zero, stats.dimensions.mean.tolist()) == (10, 1, [3, 4])
    assert read(done.path).to_numpy()[2].tolist() == [5, 10, 0]
    (output,) = done.manifest["outputs"]
    assert (output["shape"], output["truncate"], output["dtype"]) == ([2], 2, "float32")


def test_the_footer_of_a_part_tells_how_its_vectors_are_stored(job: Callable[..., Job]) -> None:
    done = run(job(raw_rows(), normalize={"dtype": "int8", "project_mean": "fit"}))
    metadata = pq.read_schema(next(Path(done.path, "vectors").glob("*"))).metadata
    (told,) = json.loads(metadata[b"batchnorm_tool"])["outputs"]
    assert told["dtype"] == "int8"
    assert {name: told[name] for name in ("mean", "scale")} == fitted(done)


@pytest.mark.parametrize(
    "sections",
    [
        {"output": {"part_rows": 300}},
        {"output": {"part_rows": 17}},
        {"engine": {"workers": 3}},
        {"output": {"format": "arrow"}},
        {"input": {"deduplicate": False}},
    ],
    ids=str,
)
def test_what_is_fitted_does_not_depend_on_how_rows_are_split(
    job: Callable[..., Job], sections: dict[str, Any], tmp_path: Path
) -> None:
    normalize = {"dtype": "int8", "project_mean": "fit"}
    one = run(job(raw_rows(), normalize=normalize))
    sections["output"] = {**sections.get("output", {}), "path": str(tmp_path / "other")}
    other = run(job(raw_rows(), normalize=normalize, **sections))
    assert fitted(one) == fitted(other)
    assert one.manifest["space"] == other.manifest["space"]
    assert same_bits(*(read(done.path, decode=False).to_numpy()[1] for done in (one, other)))


def test_bad_rows_and_zeros_have_no_part_in_what_is_fitted(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    raw = raw_rows()
    bad = np.vstack(
        [np.full((1, WIDTH), np.nan), raw, np.zeros((2, WIDTH)), np.full(WIDTH, np.inf)]
    )
    normalize = {"dtype": "int8", "project_mean": "fit", "max_bad_fraction": 1.0}
    done = run(job(bad.astype(np.float32), normalize=normalize))
    good = run(job(raw, normalize=normalize, output={"path": str(tmp_path / "good")}))
    assert fitted(done) == fitted(good)
    assert (done.rows["quarantined"], done.rows["zero"], done.rows["out"]) == (2, 2, ROWS + 2)
    quarantined = pq.read_table(Path(done.path, "_quarantine"))
    assert quarantined.schema.field("prediction").type == pa.list_(pa.float32(), WIDTH)
    assert not read(done.path).to_numpy()[1][-2:].any()
    verify(done.path)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
@pytest.mark.parametrize("norm", ["l2", "none"])
def test_rows_of_every_fate_are_told_from_one_another(
    job: Callable[..., Job], dtype: str, norm: str
) -> None:
    raw = raw_rows(6)
    raw[1], raw[2, 0], raw[3] = 0, np.nan, -np.abs(raw[3])
    normalize = {"dtype": dtype, "norm": norm, "nonfinite": "nullify", "max_bad_fraction": 1.0}
    done = run(job(raw, normalize=normalize))
    assert done.manifest["reasons"]["zero_vector"] == 1
    assert done.manifest["reasons"]["nonfinite_prediction"] == 1
    batch = next(read(done.path).batches())
    assert batch["vector"].is_null().to_pylist() == [False, False, True, False, False, False]
    assert verify(done.path).rows == 6


@pytest.mark.parametrize("axis", [-1, "all"])
def test_of_several_vectors_in_a_row_each_is_truncated_and_stored_by_itself(
    job: Callable[..., Job], axis: int | str
) -> None:
    raw = raw_rows(40, 33).reshape(40, 3, 11)
    normalize = {"axis": axis, "truncate": 9, "dtype": "binary"}
    done = run(job({"x": raw}, normalize=normalize, input={"features": {"x": "x"}}))
    kept = raw[:, :, :9] if axis == -1 else raw.reshape(40, 33)[:, :9]
    _, bits, norms = read(done.path, decode=False).to_numpy()
    assert same_bits(bits, np.packbits(kept > 0, axis=-1))
    np.testing.assert_allclose(norms, np.linalg.norm(kept.astype(np.float64), axis=-1))
    _, decoded, _ = read(done.path).to_numpy()
    np.testing.assert_allclose(decoded, np.sign(kept) / 3, rtol=1e-6)
    assert read(done.path).to_pandas()["vector"][0].shape == kept.shape[1:]
    verify(done.path)


def test_each_output_has_options_of_its_own(job: Callable[..., Job]) -> None:
    a, b = raw_rows(), raw_rows(width=20)
    outputs = {"a": {"dtype": "int8"}, "b": {"truncate": 5, "project_mean": "fit"}}
    columns = {"features": {"a": "a", "b": "b"}}
    done = run(job({"a": a, "b": b}, normalize={"outputs": outputs}, input=columns))
    assert [*done.manifest["resolved"]["fitted"]] == ["a", "b"]
    stored = read(done.path, decode=False)
    assert stored.schema.field("a").type == pa.list_(pa.int8(), WIDTH)
    assert stored.schema.field("b").type == pa.list_(pa.float32(), 5)
    mean = fitted(done, "b")["mean"]
    expected = Normalization(L2, 5, tuple(mean)).apply(b)[0]
    assert same_bits(read(done.path).to_numpy("b")[1], expected)
    assert fitted(done, "a").keys() == {"scale"}


def test_a_file_of_the_fitted_direction_gives_the_same_space(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    one = run(job(raw_rows(), normalize={"project_mean": "fit"}))
    mean = str(tmp_path / "mean.npy")
    np.save(mean, 2.0 * np.array(fitted(one)["mean"]))
    output = {"path": str(tmp_path / "other")}
    other = run(job(raw_rows(), normalize={"project_mean": mean}, output=output))
    assert one.manifest["space"] == other.manifest["space"]
    assert same_bits(*(read(done.path).to_numpy()[1] for done in (one, other)))
    np.save(mean, np.arange(WIDTH) + 1.0)
    with pytest.raises(OutputError, match=r"projected mean .{6} → .{6}"):
        run(job(raw_rows(), normalize={"project_mean": mean}, output=output))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"truncate": 5}, "truncation none → 5"),
        ({"truncate": 6}, {"truncate": 5}, "truncation 6 → 5"),
        ({"dtype": "binary"}, {"dtype": "int8"}, "vector dtype binary → int8"),
        ({"project_mean": "fit"}, {}, "projected mean .{6} → none"),
    ],
    ids=["truncated", "shorter", "int8", "not_projected"],
)
def test_another_option_is_another_space_and_named(
    job: Callable[..., Job], before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    run(job(raw_rows(), normalize=before))
    with pytest.raises(OutputError, match=words):
        run(job(raw_rows(), normalize=after))


def test_a_resumed_run_takes_what_its_plan_has(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_rows()
    raw[200, 3] = np.nan
    normalize = {"dtype": "int8", "project_mean": "fit", "max_bad_fraction": 1.0}
    with pytest.raises(BadRows):
        run(job(raw, normalize={**normalize, "nonfinite": "fail"}))
    monkeypatch.setattr(prepare.fitting, "fit", None)  # a call of it would fail
    done = run(job(raw, normalize=normalize))
    assert done.parts_kept == 4
    monkeypatch.undo()
    fresh = run(job(raw, normalize=normalize), fresh=True)
    assert fitted(fresh) == fitted(done)
    assert fresh.manifest["parts"] == done.manifest["parts"]


def test_a_dry_run_fits_nothing(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.fitting, "fit", None)
    plan = plan_run(job(raw_rows(), normalize={"dtype": "int8", "project_mean": "fit"}))
    assert plan.resolved.fitted is None
    assert "fitted when the run begins" in plan.warnings[-1]
    assert plan.bytes_expected == ROWS * (WIDTH + 8)


def test_rows_beyond_the_scale_are_clipped_counted_and_told(job: Callable[..., Job]) -> None:
    raw = raw_rows()
    raw[200] = np.nan
    made = job(raw, normalize={"dtype": "int8", "max_bad_fraction": 1.0})
    scale = fitted(run(made))["scale"]
    raw[200] = np.eye(WIDTH)[0]
    done = run(
        job(raw, normalize={"dtype": "int8", "max_bad_fraction": 1.0}), retry_quarantined=True
    )
    assert fitted(done)["scale"] == scale < 1 / 127
    assert done.rows["clipped"] == 1
    assert "1 row had components beyond the scale" in " ".join(done.warnings)
    assert verify(done.path).rows == ROWS
    assert read(done.path, decode=False).to_numpy()[1][200].tolist() == [127] + [0] * (WIDTH - 1)


def test_vectors_that_cancel_out_are_left_as_they_are(job: Callable[..., Job]) -> None:
    raw = np.vstack([raw_rows(), -raw_rows()])
    done = run(job(raw, normalize={"project_mean": "fit"}))
    assert "`vector` have no mean direction" in " ".join(done.warnings)
    assert same_bits(read(done.path).to_numpy()[1], Normalization(L2).apply(raw)[0])


def test_without_rows_a_result_is_valid_and_empty(job: Callable[..., Job]) -> None:
    normalize = {"dtype": "int8", "project_mean": "fit"}
    done = run(job(np.zeros((0, WIDTH), np.float32), normalize=normalize))
    assert read(done.path).to_numpy()[1].shape == (0, WIDTH)
    verify(done.path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(WIDTH), "Received: zeros"),
        (np.full(WIDTH, np.nan), "Received: NaN or infinity"),
        (np.ones((1, WIDTH)), r"Received: shape \[1, 12\]"),
        (np.arange(WIDTH), "of <i8"),
        (np.array(["a"] * WIDTH), "Received: shape"),
        (np.array([{}] * WIDTH, object), "Python objects"),
        (np.ones(0), r"Received: shape \[0\]"),
        (b"\x93NUMPY garbage", "cannot be read as an NPY array"),
        (None, "mean.npy"),
    ],
    ids=["zeros", "nan", "2d", "integers", "text", "pickle", "empty", "garbage", "missing"],
)
def test_a_file_that_holds_no_direction_is_refused(
    job: Callable[..., Job], tmp_path: Path, array: np.ndarray | bytes | None, words: str
) -> None:
    mean = tmp_path / "mean.npy"
    if isinstance(array, bytes):
        mean.write_bytes(array)
    elif array is not None:
        np.save(mean, array, allow_pickle=True)
    made = job(raw_rows(), normalize={"project_mean": str(mean)})
    with pytest.raises(InputError, match=words):
        run(made)
    assert not Path(made.output.path).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truncate": 13}, "`normalize.truncate` is 13, .* output `vector` has 12 components"),
        ({"project_mean": "mean.npy"}, "with 5 numbers.* output `vector`: 12"),
        ({"project_mean": "mean.npy", "truncate": 4}, "with 5 numbers.* output `vector`: 4"),
    ],
    ids=["truncate", "mean", "both"],
)
def test_other_widths_are_refused(
    job: Callable[..., Job], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    np.save(tmp_path / "mean.npy", np.ones(5))
    if "project_mean" in options:
        options["project_mean"] = str(tmp_path / "mean.npy")
    with pytest.raises(JobError, match=words):
        run(job(raw_rows(), normalize=options))


def test_rows_in_memory_are_truncated_and_projected(tmp_path: Path, samples: Path) -> None:
    pixels = np.load(samples / "digits.npy").reshape(-1, 64)
    np.save(mean := tmp_path / "mean.npy", np.arange(16.0) - 5)
    model = str(samples / "digits_encoder.keras")
    raw = score(model, pixels, "none").vectors
    found = score(model, pixels, truncate=16, project_mean=str(mean))
    expected = Normalization(L2, 16, unit_direction(np.arange(16.0) - 5)).apply(raw)
    assert same_bits(found.vectors, expected[0])
    assert same_bits(found.norms, expected[1][:, 0])
    with pytest.raises(JobError, match=r"use `run` with `normalize.project_mean: fit`"):
        score(model, pixels, project_mean="fit")
    with pytest.raises(JobError, match=r"`project_mean` must be `fit`, or the path of an .npy"):
        score(model, pixels, project_mean=np.arange(16.0))  # type: ignore[arg-type]


def test_a_run_with_a_model_fits_what_it_predicts(tmp_path: Path, samples: Path) -> None:
    sections = {
        "input": {"path": str(samples / "digits.parquet"), "key": "id", "features": "pixels"},
        "model": {"path": str(samples / "digits_encoder.keras"), "batch_size": 64},
        "normalize": {"project_mean": "fit", "dtype": "int8"},
        "output": {"path": str(tmp_path / "out"), "part_rows": 512},
    }
    done = run(Job.from_dict(sections))
    raw = {**sections, "normalize": {"norm": "none"}, "output": {"path": str(tmp_path / "raw")}}
    predictions = read(run(Job.from_dict(raw)).path).to_numpy()[1]
    np.testing.assert_allclose(fitted(done, "embedding")["mean"], mean_of(predictions), atol=1e-7)
    way = Normalization(L2, mean=tuple(fitted(done, "embedding")["mean"]))
    largest = np.abs(way.apply(predictions, np.float64)[0]).max()
    assert fitted(done, "embedding")["scale"] == pytest.approx(largest / 127, rel=1e-6)


def test_predictions_and_stored_bits_are_not_asked_for_at_once(job: Callable[..., Job]) -> None:
    done = run(job(raw_rows(), normalize={"dtype": "int8"}))
    with pytest.raises(JobError, match="Remove one of them"):
        read(done.path, raw=True, decode=False)


def test_int8_finds_the_neighbours_that_float32_finds(tmp_path: Path, samples: Path) -> None:
    found = {}
    for name, options in {"float32": {}, "int8": {"dtype": "int8"}}.items():
        given = {"path": str(samples / "digits_predictions.parquet"), "passthrough": ["label"]}
        given |= {"features": "prediction", "key": "id"}
        output = {"path": str(tmp_path / name)}
        run(Job.from_dict({"input": given, "output": output, "normalize": options}))
        stored = read(tmp_path / name)
        labels = pa.Table.from_batches(stored.batches())["label"].to_numpy()
        scores = (vectors := stored.to_numpy()[1]) @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        near = np.argpartition(-scores, 10, axis=1)[:, :10]
        found[name] = float((labels[near] == labels[:, np.newaxis]).mean())
    assert found["float32"] > 0.9
    assert abs(found["int8"] - found["float32"]) <= 0.005


def test_show_tells_the_options(job: Callable[..., Job], tmp_path: Path) -> None:
    normalize = {"truncate": 9, "project_mean": "fit", "dtype": "int8"}
    done = run(job(raw_rows(), normalize=normalize))
    words = "the first 9 components; mean direction projected off; stored as int8"
    assert any(words in line for line in norm_lines(done.record))
    page = show(done.path, html=str(tmp_path / "page.html"))
    assert page.kind == "run"
    assert words.replace(";", ",") in (tmp_path / "page.html").read_text()
