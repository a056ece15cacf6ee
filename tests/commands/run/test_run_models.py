from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm_tool import read, verify
from batchnorm_tool.commands.run.run import RunResult
from tests.commands.plain_script import ROWS, assert_same_bits, normalized, predict

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture(scope="module")
def two_inputs(samples: Path) -> keras.Model:
    return keras.models.load_model(samples / "digits_two_inputs.keras", compile=False)


@pytest.mark.parametrize("axis", [-1, "all"])
def test_several_outputs_each_have_their_own_norm(
    samples: Path,
    encode: Callable[..., RunResult],
    two_inputs: keras.Model,
    pixels: np.ndarray,
    axis: int | str,
) -> None:
    model = {"path": str(samples / "digits_two_inputs.keras"), "outputs": ["halves", "embedding"]}
    normalize = {"norm": "max", "outputs": {"halves": {"norm": "l1", "axis": axis}}}
    source = str(samples / "digits_halves.parquet")
    result = encode(source, input={"key": "id"}, model=model, normalize=normalize)
    embedding, halves = predict(two_inputs, pixels[:, :32], pixels[:, 32:])
    flat = halves.reshape(ROWS, 32) if axis == "all" else halves
    units, lengths = normalized(flat, "l1")
    assert read(result.path).outputs == ("halves", "embedding")
    _, vectors, norms = read(result.path).to_numpy("halves")
    assert_same_bits(vectors, units.reshape(ROWS, 2, 16))
    assert_same_bits(norms, lengths)
    _, vectors, norms = read(result.path).to_numpy("embedding")
    assert_same_bits(vectors, normalized(embedding, "max")[0])
    assert_same_bits(norms, normalized(embedding, "max")[1])
    schema = pq.read_schema(Path(result.path) / "vectors" / "part-000000.parquet")
    assert schema.names == ["id", "halves", "halves_norm", "embedding", "embedding_norm"]
    assert json.loads(schema.field("halves").metadata[b"shape"]) == [2, 16]
    assert result.manifest["statistics"]["halves"]["vectors"] == ROWS * (2 if axis == -1 else 1)
    assert verify(result.path).rows == ROWS


def test_inner_layers_can_be_taken(
    samples: Path, encode: Callable[..., RunResult], encoder: keras.Model, pixels: np.ndarray
) -> None:
    inner = keras.Model(encoder.inputs, encoder.get_layer("hidden").output)
    result = encode(str(samples / "digits.parquet"), model={"layer": "hidden"})
    assert result.manifest["outputs"][0]["shape"] == [64]
    expected, norms = normalized(predict(inner, pixels), "l2")
    assert_same_bits(read(result.path).to_numpy()[1], expected)
    assert_same_bits(read(result.path).to_numpy()[2], norms)


def test_a_number_for_each_row_is_a_vector_of_one(
    tmp_path: Path, encode: Callable[..., RunResult]
) -> None:
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    score = keras.layers.Dot(axes=1, name="score")([left, right])
    model = keras.Model([left, right], keras.layers.Reshape((), name="number")(score))
    model.save(tmp_path / "score.keras")
    arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) - 1 for name in ("left", "right")}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    paths = {name: f"{name}.npy" for name in arrays}
    result = encode(paths, model={"path": "score.keras", "batch_size": 2})
    _, vectors, norms = read(result.path).to_numpy()
    assert vectors.tolist() == [[1.0], [1.0]]
    assert norms.tolist() == [2.0, 29.0]


def test_models_of_strings(tmp_path: Path, encode: Callable[..., RunResult]) -> None:
    words = keras.Input((), dtype="string", name="word")
    lookup = keras.layers.StringLookup(vocabulary=["red", "green"], name="lookup")(words)
    initial = keras.initializers.Constant(2.0)
    vectors = keras.layers.Embedding(3, 4, embeddings_initializer=initial, name="e")(lookup)
    keras.Model(words, vectors).save(tmp_path / "words.keras")
    pq.write_table(pa.table({"word": ["red", None, "blue"]}), tmp_path / "a.parquet")
    spec = {"fill": {"word": "green"}}
    result = encode("a.parquet", input=spec, model={"path": "words.keras", "batch_size": 2})
    assert read(result.path).to_numpy()[1].tolist() == [[0.5] * 4] * 3
    assert read(result.path).to_numpy()[2].tolist() == [4.0] * 3


def test_models_that_normalize_themselves_are_pointed_out(
    tmp_path: Path, encode: Callable[..., RunResult]
) -> None:
    inputs = keras.Input((4,), name="x")
    outputs = keras.layers.UnitNormalization(name="unit")(keras.layers.Dense(3, name="d")(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "unit.keras")
    np.save(tmp_path / "a.npy", np.ones((5, 4), np.float32))
    result = encode("a.npy", model={"path": "unit.keras", "batch_size": 4})
    assert [warning for warning in result.warnings if "already have unit length" in warning]
