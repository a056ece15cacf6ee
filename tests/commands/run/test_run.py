"""A run from end to end: what goes in, what comes out, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnorm_tool import read, verify
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.commands.run.run import RunResult, plan_run, run
from batchnorm_tool.errors import InputError, JobError, ModelError, OutputError
from batchnorm_tool.job import Job
from batchnorm_tool.models.backends.keras import KerasModel
from tests.commands.plain_script import NORMS, ROWS, SAMPLES, assert_same_bits, normalized, stored

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.mark.parametrize("norm", NORMS)
def test_bits_are_those_of_predict_and_a_float64_norm(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray, norm: str
) -> None:
    digits = samples / "digits.parquet"
    result = encode(str(digits), input={"key": "id"}, normalize=NORMS[norm])
    keys, vectors, norms = read(result.path).to_numpy()
    expected, lengths = normalized(raw, norm)
    assert_same_bits(keys, np.arange(ROWS))
    assert_same_bits(vectors, expected)
    # The p-norm scales by a power of two first, which NumPy does not: the last bit may differ.
    np.testing.assert_array_max_ulp(norms, lengths, maxulp=2 if norm == "lp" else 0)
    assert result.rows == {"in": ROWS, "out": ROWS} | dict.fromkeys(
        ("bad", "zero", "nullified", "dropped", "quarantined", "failed"), 0
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "npy"])
def test_each_format_and_dtype_out(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray, form: str, dtype: str
) -> None:
    output = {"format": form, "dtype": dtype, "part_rows": 1024}
    result = encode(str(samples / "digits.parquet"), input={"key": "id"}, output=output)
    keys, vectors, norms = read(result.path).to_numpy()
    expected, lengths = normalized(raw, "l2", dtype)
    assert_same_bits(keys, np.arange(ROWS))
    assert_same_bits(vectors, expected)
    assert_same_bits(norms, lengths)
    assert len(result.manifest["parts"]) == 2
    assert verify(result.path).rows == ROWS


@pytest.mark.parametrize("norm", ["l1", "l2", "max", "lp"])
def test_vector_times_norm_is_the_prediction(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray, norm: str
) -> None:
    result = encode(str(samples / "digits.parquet"), normalize=NORMS[norm])
    _, vectors, norms = read(result.path).to_numpy()
    restored = (vectors.astype(np.float64) * norms[:, np.newaxis]).astype(np.float32)
    assert np.all(np.abs(restored - raw) <= np.spacing(np.abs(raw)))
    assert_same_bits(read(result.path, raw=True).to_numpy()[1], restored)


@pytest.mark.parametrize("part_rows", [100, 256, 1024, 4096])
def test_parts_change_no_bit(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray, part_rows: int
) -> None:
    output = {"part_rows": part_rows}
    result = encode(str(samples / "digits.parquet"), output=output)
    assert_same_bits(read(result.path).to_numpy()[1], normalized(raw, "l2")[0])
    assert [part["rows_in"] for part in result.manifest["parts"]] == [
        min(part_rows, ROWS - start) for start in range(0, ROWS, part_rows)
    ]


def counts_and_order(statistics: dict[str, Any]) -> dict[str, Any]:
    """What is the same for every split: all but the moments."""
    norms = {
        label: {name: norm[name] for name in norm if name not in ("mean", "m2", "std")}
        for label, norm in statistics["norms"].items()
    }
    ends = {name: statistics["dimensions"][name] for name in ("count", "min", "max")}
    counts = {name: statistics[name] for name in ("rows", "vectors", "zero", "nonfinite")}
    return {**counts, "norms": norms, "dimensions": ends}


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 200),
    cuts=st.lists(st.integers(0, 200), max_size=3),
    part_rows=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_splitting_changes_neither_vectors_nor_counts(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cuts: list[int], part_rows: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    generator = np.random.default_rng(seed)
    array = generator.normal(size=(rows, 3)).astype(np.float32) * 10.0 ** generator.integers(
        -30, 30, size=(rows, 1)
    ).astype(np.float32)
    array[generator.random(rows) < 0.1] = 0
    array[generator.random(rows) < 0.1, 1] = np.nan
    (folder / "split").mkdir()
    for number, block in enumerate(np.array_split(array, sorted(min(cut, rows) for cut in cuts))):
        np.save(folder / "split" / f"{number}.npy", block)
    np.save(folder / "whole.npy", array)
    fate = {"nonfinite": "nullify", "max_bad_fraction": 1}
    whole = run(stored(folder / "whole.npy", folder / "a", normalize=fate))
    output = {"part_rows": part_rows}
    split = run(stored(folder / "split", folder / "b", normalize=fate, output=output))
    for one, other in zip(read(whole.path).to_numpy(), read(split.path).to_numpy(), strict=True):
        assert_same_bits(other, one)
    assert whole.rows == split.rows
    one, other = (counts_and_order(r.manifest["statistics"]["vector"]) for r in (whole, split))
    assert one == other


def test_statistics_are_those_of_the_raw_predictions(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray
) -> None:
    result = encode(str(samples / "digits.parquet"), normalize=NORMS["lp"])
    statistics = result.manifest["statistics"]["embedding"]
    wide = raw.astype(np.float64)
    for label, order in (("l1", 1), ("l2", 2), ("max", np.inf), ("lp:3", 3)):
        norms = np.linalg.norm(wide, order, axis=1)
        found = statistics["norms"][label]
        ends = (norms.min(), norms.max())
        assert (found["min"], found["max"]) == pytest.approx(ends, rel=1e-15)
        assert found["mean"] == pytest.approx(norms.mean(), rel=1e-12)
        assert found["std"] == pytest.approx(norms.std(), rel=1e-9)
        assert found["quantiles"]["0.5"] == pytest.approx(np.median(norms), rel=2**-8)
    np.testing.assert_allclose(statistics["dimensions"]["mean"], wide.mean(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(statistics["dimensions"]["max"], wide.max(axis=0))


def test_every_chunk_has_its_statistics(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray
) -> None:
    result = encode(str(samples / "digits.parquet"), output={"part_rows": 512})
    chunks = pq.read_table(Path(result.path) / "_stats" / "chunks.parquet").to_pandas()
    chunks = chunks[chunks["norm"] == "l2"]
    norms = np.linalg.norm(raw.astype(np.float64), axis=1)
    assert chunks["rows"].sum() == ROWS
    assert list(chunks["part"]) == [0, 1, 2, 3]
    for chunk in chunks.itertuples():
        own = norms[chunk.first_row : chunk.first_row + chunk.rows]
        assert (chunk.min, chunk.max) == (own.min(), own.max())
        assert sum(bucket["count"] for bucket in chunk.histogram) == len(own)


def test_limit_takes_the_first_rows(
    samples: Path, encode: Callable[..., RunResult], raw: np.ndarray
) -> None:
    source = str(samples / "digits.parquet")
    result = encode(source, limit=300)
    assert result.rows["in"] == 300
    assert_same_bits(read(result.path).to_numpy()[1], normalized(raw[:300], "l2")[0])
    with pytest.raises(OutputError, match=r"limit 300 → 301"):
        encode(source, limit=301)
    assert encode(source, limit=300).nothing_to_do


def test_a_dry_run_plans_and_writes_nothing(samples: Path, tmp_path: Path) -> None:
    data = {
        "input": {"path": str(samples / "digits.parquet"), "key": "id"},
        "model": {"path": str(samples / "digits_encoder.keras"), "batch_size": 128},
        "output": {"path": "out", "part_rows": 512},
    }
    plan = plan_run(Job.from_dict(data, tmp_path))
    assert (plan.rows, plan.part_count, plan.resolved.batch_size) == (ROWS, 4, 128)
    assert plan.resolved.features == {"pixels": ("pixels",)}
    assert plan.bytes_expected == ROWS * (32 * 4 + 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"input": {"key": "idd"}}, InputError, "(did you mean `id`?)"),
        ({"input": {"passthrough": ["labl"]}}, InputError, "(did you mean `label`?)"),
        ({"input": {"features": "pixls"}}, InputError, "Did you mean `pixels`?"),
        ({"input": {"key": "id", "features": "label"}}, InputError, "64 values"),
        (
            {"input": {"passthrough": ["label"]}, "output": {"columns": {"vector": "label"}}},
            JobError,
            "would be named `label`",
        ),
        ({"normalize": {"outputs": {"embeding": {"norm": "l1"}}}}, JobError, "embeding"),
        ({"model": {"outputs": ["embeding"]}}, ModelError, "Did you mean `embedding`?"),
        ({"model": {"layer": "hiden"}}, ModelError, "hidden"),
        ({"model": {"sha256": "0" * 64}}, ModelError, "`model.sha256`"),
    ],
    ids=["key", "passthrough", "features", "width", "clash", "norms", "outputs", "layer", "sha256"],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path,
    encode: Callable[..., RunResult],
    sections: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error) as caught:
        encode(str(SAMPLES / "digits.parquet"), **sections)
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "_state" / "plan.json").exists()


def test_a_model_that_changes_under_the_plan_is_refused(samples: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    model.write_bytes((samples / "digits_encoder.keras").read_bytes())
    data = {
        "input": {"path": str(samples / "digits.parquet")},
        "model": {"path": str(model)},
        "output": {"path": "out"},
    }
    preparation = Preparation(Job.from_dict(data, tmp_path))
    model.write_bytes((samples / "digits_image_encoder.keras").read_bytes())
    with pytest.raises(ModelError, match="changed since the run was planned"):
        preparation.plan()


def test_warnings_are_the_same_whether_choices_are_made_or_kept(
    samples: Path, tmp_path: Path
) -> None:
    numbers = pa.array(np.full((5, 64), 2**24 + 1).reshape(-1))
    table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(numbers, 64)})
    pq.write_table(table, tmp_path / "a.parquet")
    data = {
        "input": {"path": "a.parquet"},
        "model": {"path": str(samples / "digits_encoder.keras"), "batch_size": 8},
        "output": {"path": "out"},
    }
    job = Job.from_dict(data, tmp_path)
    plan = Preparation(job).plan()
    assert len(plan.warnings) == 1
    assert "`pixels`" in plan.warnings[0]
    assert Preparation(job).plan(plan.resolved).to_json() == plan.to_json()


def test_auto_choices_are_recorded_and_kept(samples: Path, tmp_path: Path) -> None:
    data = {
        "input": {"path": str(samples / "digits.parquet")},
        "model": {"path": str(samples / "digits_encoder.keras")},
        "output": {"path": "out"},
    }
    result = run(Job.from_dict(data, tmp_path))
    resolved = result.manifest["resolved"]
    assert resolved["batch_size"] in [2**power for power in range(5, 14)]
    assert resolved["part_rows"] % resolved["batch_size"] == 0
    assert resolved["chunk_rows"] % resolved["batch_size"] == 0
    assert run(Job.from_dict(data, tmp_path)).nothing_to_do


def test_the_model_is_compiled_once_for_its_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = KerasModel.compile

    def counted(self: KerasModel, batch_size: int) -> Any:
        sizes.append(batch_size)
        return real(self, batch_size)

    monkeypatch.setattr(KerasModel, "compile", counted)
    data = {
        "input": {"path": str(SAMPLES / "digits.parquet"), "key": "id", "features": "pixels"},
        "model": {"path": str(SAMPLES / "digits_encoder.keras"), "batch_size": 256},
        "output": {"path": str(tmp_path / "out")},
    }
    run(Job.from_dict(data))
    assert sizes.count(256) == 1
