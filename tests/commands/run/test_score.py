from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from batchnorm_tool import read, score
from batchnorm_tool.commands.run.run import RunResult
from batchnorm_tool.errors import BadRows, InputError, JobError, ModelError
from tests.command_line import ENCODER
from tests.commands.plain_script import (
    BATCH,
    NORMS,
    ROWS,
    assert_same_bits,
    normalized,
    predict,
    vector_column,
)

pytestmark = pytest.mark.usefixtures("tensorflow")

DATA: dict[str, Callable[[np.ndarray], Any]] = {
    "array": np.asarray,
    "float16": lambda x: x.astype(np.float16),  # sixteenths: exact
    "big-endian float64": lambda x: x.astype(">f8"),
    "Fortran order": np.asfortranarray,
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "lists": lambda x: x.tolist(),
    "mapping": lambda x: {"pixels": x},
    "pandas": lambda x: pd.DataFrame({"anything": list(x)}, index=np.arange(len(x)) + 7),
    "wide pandas": lambda x: pd.DataFrame(x, columns=[f"p{i}" for i in range(64)]),
    "Polars": lambda x: pl.DataFrame({"anything": x}),
    "Arrow": lambda x: pa.table({"anything": vector_column(x)}),
    "Arrow in pieces": lambda x: pa.concat_tables(
        [pa.table({"x": vector_column(half)}) for half in (x[:1000], x[1000:])]
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_each_kind_of_data(
    encoder: keras.Model, pixels: np.ndarray, raw: np.ndarray, kind: str
) -> None:
    result = score(encoder, DATA[kind](pixels), batch_size=BATCH)
    expected, lengths = normalized(raw, "l2")
    assert_same_bits(result.vectors, expected)
    assert_same_bits(result.norms, lengths)
    assert_same_bits(result.keys, np.arange(ROWS))


@pytest.mark.parametrize("norm", ["none", "l1", "max", "lp"])
def test_each_norm(encoder: keras.Model, pixels: np.ndarray, raw: np.ndarray, norm: str) -> None:
    result = score(encoder, pixels, **NORMS[norm], batch_size=BATCH)
    expected, lengths = normalized(raw, norm)
    assert_same_bits(result.vectors, expected)
    np.testing.assert_allclose(result.norms, lengths, rtol=1e-15)


def test_lp_may_be_one_word(encoder: keras.Model, pixels: np.ndarray) -> None:
    one, other = (score(encoder, pixels[:9], **norm) for norm in ({"norm": "lp:3"}, NORMS["lp"]))
    assert_same_bits(one.norms, other.norms)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_each_dtype(encoder: keras.Model, pixels: np.ndarray, raw: np.ndarray, dtype: str) -> None:
    result = score(encoder, pixels, batch_size=BATCH, dtype=dtype)
    assert_same_bits(result.vectors, normalized(raw, "l2", dtype)[0])


def test_a_path_gives_what_the_loaded_model_gives(
    samples: Path, encoder: keras.Model, pixels: np.ndarray
) -> None:
    by_path = score(samples / "digits_encoder.keras", pixels)
    assert_same_bits(by_path.vectors, score(encoder, pixels).vectors)


def test_a_run_gives_the_same(
    samples: Path, encode: Callable[..., RunResult], encoder: keras.Model, pixels: np.ndarray
) -> None:
    result = score(encoder, pixels, batch_size=BATCH)
    done = encode(str(samples / "digits.parquet"))
    assert_same_bits(read(done.path).to_numpy()[1], result.vectors)
    norms = done.manifest["statistics"]["embedding"]["norms"]["l2"]
    found = result.statistics["embedding"].norms["l2"].to_dict()
    assert {k: found[k] for k in ("count", "min", "max", "quantiles", "histogram")} == {
        k: norms[k] for k in ("count", "min", "max", "quantiles", "histogram")
    }


def test_keys_and_frames(encoder: keras.Model, pixels: np.ndarray) -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c"], "pixels": list(pixels[:3])})
    result = score(encoder, frame, key="id")
    assert result.keys.tolist() == ["a", "b", "c"]
    back = result.to_pandas()
    assert list(back) == ["key", "vector", "norm"]
    assert back["key"].tolist() == ["a", "b", "c"]
    assert_same_bits(np.stack(back["vector"].to_list()), result.vectors)
    assert back["norm"].tolist() == result.norms.tolist()


def test_several_inputs_and_outputs(samples: Path, pixels: np.ndarray) -> None:
    model = keras.models.load_model(samples / "digits_two_inputs.keras", compile=False)
    halves = {"upper": pixels[:, :32], "lower": pixels[:, 32:]}
    result = score(model, halves, outputs=["embedding", "halves"], batch_size=BATCH)
    embedding, both = predict(model, *halves.values())
    for name, raw in (("embedding", embedding), ("halves", both)):
        expected, lengths = normalized(raw, "l2")
        assert_same_bits(result.results[name][0], expected)
        assert_same_bits(result.results[name][1], lengths)
    with pytest.raises(JobError, match="several outputs: embedding, halves"):
        _ = result.vectors
    assert list(result.to_pandas()) == [
        "key",
        "embedding",
        "embedding_norm",
        "halves",
        "halves_norm",
    ]


def test_no_rows(encoder: keras.Model) -> None:
    result = score(encoder, np.empty((0, 64), np.float32))
    assert (result.vectors.shape, result.norms.shape) == ((0, 32), (0,))
    assert result.statistics["embedding"].rows == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39], ids=str)
def test_bad_rows_raise_or_become_nan(
    encoder: keras.Model, pixels: np.ndarray, value: float
) -> None:
    array = pixels[:5].astype(np.float64)
    array[3, 3] = value
    with pytest.raises(BadRows, match=r"1 bad of 5 rows, .*: 3 \(nonfinite_feature\)"):
        score(encoder, array)
    result = score(encoder, array, bad="nan")
    good = score(encoder, pixels[:5])
    assert np.isnan(result.norms).tolist() == [False, False, False, True, False]
    assert np.isnan(result.vectors).all(axis=1).tolist() == [False, False, False, True, False]
    assert_same_bits(result.vectors[[0, 1, 2, 4]], good.vectors[[0, 1, 2, 4]])
    assert result.statistics["embedding"].rows == 4


def test_null_and_ragged_rows_are_bad(encoder: keras.Model, pixels: np.ndarray) -> None:
    rows = [pixels[0].tolist(), None, pixels[2].tolist()[:-1], pixels[3].tolist()]
    table = pa.table({"pixels": pa.array(rows, pa.list_(pa.float32()))})
    with pytest.raises(BadRows, match=r"1 \(null_feature\), 2 \(ragged_feature\)"):
        score(encoder, table)
    assert np.isnan(score(encoder, table, bad="nan").norms).tolist() == [False, True, True, False]


def test_zero_vectors_stay_zero(encoder: keras.Model) -> None:
    result = score(encoder, np.zeros((2, 64), np.float32))
    assert not result.vectors.any()
    assert result.norms.tolist() == [0.0, 0.0]


def test_a_batch_size_that_is_built_in_is_used(pixels: np.ndarray) -> None:
    inputs = keras.Input(batch_shape=(3, 64), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="d")(inputs))
    assert score(model, pixels[:7]).vectors.shape == (7, 2)
    with pytest.raises(ModelError, match="exactly 3 rows"):
        score(model, pixels[:7], batch_size=4)


@pytest.mark.parametrize(
    ("data", "arguments", "error", "words"),
    [
        (np.zeros((2, 3)), {}, InputError, "Expected 64 values"),
        ({"pixel": np.zeros((2, 64))}, {}, JobError, "Did you mean `pixels`?"),
        ({}, {}, InputError, "no array"),
        ({"pixels": [[1.0, 2.0], [3.0]]}, {}, InputError, "Received: dict (setting an array"),
        ({"pixels": 3.0}, {}, InputError, ""),
        (np.zeros((2, 64)).astype(str), {}, InputError, "Expected numbers"),
        (np.zeros((2, 64), np.complex64), {}, InputError, "Received: ndarray"),
        ("digits.parquet", {}, InputError, ""),
        (np.zeros((2, 64)), {"norm": "l3"}, JobError, "l3"),
        (np.zeros((2, 64)), {"norm": "lp"}, JobError, "p"),
        (np.zeros((2, 64)), {"dtype": "int8"}, JobError, "int8"),
        (np.zeros((2, 64)), {"bad": "drop"}, JobError, "`bad` must be"),
        (np.zeros((2, 64)), {"key": "id"}, InputError, "`input.key`"),
        (np.zeros((2, 64)), {"outputs": ["x"]}, ModelError, "no output `x`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(
    encoder: keras.Model, data: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    for model in (encoder, ENCODER):
        with pytest.raises(error) as caught:
            score(model, data, **arguments)
        assert words in str(caught.value)


def test_arrays_must_be_of_equal_length(samples: Path) -> None:
    halves = {"upper": np.zeros((2, 32)), "lower": np.zeros((3, 32))}
    path = samples / "digits_two_inputs.keras"
    with pytest.raises(InputError, match="Received: `upper` 2, `lower` 3"):
        score(path, halves, outputs=["embedding"])
    with pytest.raises(InputError, match="several inputs: `upper`, `lower`"):
        score(path, np.zeros((2, 64)), outputs=["embedding"])
