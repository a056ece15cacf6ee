"""Models converted to ONNX: what they predict, what refuses them, and what their bits depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers

from batchnorm_tool import models, score
from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import ModelError, ModelFailed
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import proof, security
from batchnorm_tool.models.backends import conversion_process, onnx_conversion
from batchnorm_tool.models.backends.onnx_graph import converted_predictor
from batchnorm_tool.models.batching import ModelPredictor

pytestmark = pytest.mark.usefixtures("tensorflow")


def sequential(*parts: Any) -> keras.Model:
    return keras.Sequential(parts)


def transformer() -> keras.Model:
    ids = keras.Input((12,), dtype="int32")
    x = layers.Embedding(50, 16)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = layers.Dense(16)(keras.ops.gelu(layers.Dense(32)(x), approximate=False))
    return keras.Model(ids, layers.GlobalAveragePooling1D()(x))


def words() -> keras.Model:
    text = keras.Input((1,), dtype="string")
    ids = layers.StringLookup(vocabulary=["a", "b", "c"])(text)
    return keras.Model(text, layers.Flatten()(layers.Embedding(4, 8)(ids)))


def numbers() -> keras.Model:
    number = keras.Input((1,), dtype="int64")
    ids = layers.IntegerLookup(vocabulary=[5, 7, 9])(number)
    return keras.Model(number, layers.Flatten()(layers.Embedding(4, 8)(ids)))


def two_sides() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="right")
    both = layers.Concatenate()([layers.Dense(5)(left), right])
    return keras.Model([left, right], [layers.Dense(3, name="one")(both), layers.Dense(2)(both)])


FAMILIES: dict[str, Callable[[], keras.Model]] = {
    "dense": lambda: sequential(keras.Input((16,)), layers.Dense(64, "relu"), layers.Dense(8)),
    "one number": lambda: sequential(keras.Input((5,)), layers.Dense(1), layers.Flatten()),
    "lstm": lambda: sequential(keras.Input((7, 4)), layers.LSTM(16)),
    "gru": lambda: sequential(keras.Input((7, 4)), layers.Bidirectional(layers.GRU(8))),
    "convolution": lambda: sequential(
        keras.Input((12, 12, 3)),
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPool2D(),
        layers.GlobalAveragePooling2D(),
    ),
    "transformer": transformer,
    "words": words,
    "numbers": numbers,
    "two inputs and outputs": two_sides,
}


def loaded(model: Any, place: Path, **choices: Any) -> ModelPredictor:
    """The model as a run loads it with TensorFlow."""
    path = str(place / "model.keras")
    if isinstance(model, keras.Model):
        model.save(path)
    else:
        path = str(model)
    wanted = Model(path=path, **choices)
    with security.admit(wanted) as admitted:
        predictor = models.load_predictor(wanted, admitted.path, Engine())
    assert isinstance(predictor, ModelPredictor)
    return predictor


def rows_for(fields: tuple[Field, ...], count: int = 100) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    made: dict[str, np.ndarray] = {}
    for field in fields:
        shape = (count, *(size or 3 for size in field.shape))
        if field.dtype == "string":
            made[field.name] = random.choice(np.array(["a", "b", "zz", ""], object), shape)
        elif field.dtype.startswith("int"):
            made[field.name] = random.integers(0, 10, shape).astype(field.dtype)
        else:
            made[field.name] = random.normal(size=shape).astype(field.dtype)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_predicts_what_the_original_does(family: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    outputs = ["one", "dense_1"] if family == "two inputs and outputs" else None
    model = FAMILIES[family]()
    if outputs:
        outputs = [layer.name for layer in model.layers[-2:]][::-1]
    reference = loaded(model, tmp_path, outputs=outputs)
    rows = rows_for(reference.inputs)
    content, facts = onnx_conversion.convert(reference, rows)
    assert facts.backend is not None
    assert facts.backend.largest_difference is not None
    assert facts.backend.largest_difference < 1e-5
    assert facts.backend.independent
    expected = reference.with_batch_size(32).predict(rows)
    found = converted_predictor(content, facts, 1).with_batch_size(7).predict(rows)
    assert [*found] == [*expected]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    # Other places in batches of other sizes: the same bits.
    turned = {name: np.roll(array, 3, axis=0) for name, array in rows.items()}
    again = converted_predictor(content, facts, 1).with_batch_size(64).predict(turned)
    for name, array in found.items():
        assert np.roll(again[name], -3, axis=0).tobytes() == array.tobytes()


def test_a_graph_with_one_changed_weight_is_refused(tmp_path: Path) -> None:
    reference = loaded(FAMILIES["dense"](), tmp_path)
    rows = rows_for(reference.inputs)
    content, _ = onnx_conversion.convert(reference, rows)
    graph = onnx.load_from_string(content)
    weights = max(graph.graph.initializer, key=lambda each: len(each.raw_data))
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed.flat[0] *= 1.01
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx_conversion.prove(reference, content, rows)
    with pytest.raises(
        ModelError, match=r"predicts otherwise: a row differs by .* more than 1e-05"
    ):
        onnx_conversion.prove(reference, graph.SerializeToString(), rows)


def test_a_model_without_a_translation_is_refused_by_the_operation(tmp_path: Path) -> None:
    vectorize = layers.TextVectorization(output_sequence_length=4, vocabulary=["cat", "dog"])
    text = keras.Input((1,), dtype="string")
    model = keras.Model(
        text, layers.GlobalAveragePooling1D()(layers.Embedding(4, 3)(vectorize(text)))
    )
    reference = loaded(model, tmp_path)
    with pytest.raises(ModelError, match="no operation for StaticRegexReplace, StringSplitV2"):
        onnx_conversion.convert(reference, rows_for(reference.inputs))


def test_half_precision_is_too_far_from_the_original(tmp_path: Path) -> None:
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = sequential(
        keras.Input((32,)), layers.Dense(64, "gelu", dtype=policy), layers.Dense(8, dtype=policy)
    )
    reference = loaded(model, tmp_path)
    with pytest.raises(ModelError, match="predicts otherwise"):
        onnx_conversion.convert(reference, rows_for(reference.inputs))


@pytest.mark.parametrize("name", ["serving_default", "second"])
def test_a_signature_of_a_saved_model_is_converted(name: str, tmp_path: Path) -> None:
    module = tf.Module()
    module.table = tf.Variable(np.random.default_rng(2).normal(size=(10, 4)).astype("float32"))
    spec = tf.TensorSpec((None,), tf.int64, name="id")

    def taking(factor: int) -> Any:
        def take(row: Any) -> Any:
            return {"row": factor * tf.gather(module.table, row)}

        return tf.function(take, input_signature=[spec])

    signatures = {"serving_default": taking(1), "second": taking(2)}
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
    reference = loaded(tmp_path / "saved", tmp_path, signature=name)
    rows = {"id": np.arange(10)}
    content, facts = onnx_conversion.convert(reference, rows)
    found = converted_predictor(content, facts, 1).with_batch_size(4)
    factor = 1 if name == "serving_default" else 2
    assert found.predict(rows)["row"].tobytes() == (factor * module.table.numpy()).tobytes()
    # What TensorFlow fails at, this fails at as well: numbers below 0 do not count from the end.
    wrong = {"id": np.array([3, -1, 10, 4])}
    with pytest.raises(ModelFailed):
        found.predict(wrong)
    assert (
        [*found.failing_rows(wrong)]
        == [*reference.with_batch_size(4).failing_rows(wrong)]
        == [1, 2]
    )


def test_ids_outside_an_embedding_fail_as_in_tensorflow(tmp_path: Path) -> None:
    reference = loaded(transformer(), tmp_path)
    content, facts = onnx_conversion.convert(reference, rows_for(reference.inputs))
    found = converted_predictor(content, facts, 1).with_batch_size(8)
    (name,) = (field.name for field in reference.inputs)
    rows = {name: np.array([[3] * 12, [-50] * 12, [50] * 12, [-51] * 12], np.int32)}
    assert [*found.failing_rows(rows)] == [2, 3]
    assert [*reference.with_batch_size(8).failing_rows(rows)] == [2, 3]


def test_an_inner_layer_is_converted(tmp_path: Path) -> None:
    model = sequential(keras.Input((6,)), layers.Dense(5, name="inner"), layers.Dense(2))
    reference = loaded(model, tmp_path, layer="inner")
    content, facts = onnx_conversion.convert(reference, rows_for(reference.inputs))
    rows = rows_for(reference.inputs, 9)
    (found,) = converted_predictor(content, facts, 1).with_batch_size(4).predict(rows).values()
    again, _ = onnx_conversion.convert(reference, rows)
    assert again == content  # its hash is part of the bits
    kernel, bias = model.get_layer("inner").get_weights()
    np.testing.assert_allclose(found, next(iter(rows.values())) @ kernel + bias, atol=1e-5)


def test_lacking_memory_or_disk_is_no_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = loaded(FAMILIES["dense"](), tmp_path)
    full = tf.errors.ResourceExhaustedError(None, None, "No space left on device")
    for raised, seen in (
        (OSError(28, "full"), OSError),
        (full, MemoryError),
        (RuntimeError("std::bad_alloc"), MemoryError),
    ):
        monkeypatch.setattr(onnx_conversion, "to_onnx", mock.Mock(side_effect=raised))
        with pytest.raises(seen):
            onnx_conversion.convert(reference, rows_for(reference.inputs))


def test_rows_that_the_model_fails_on_prove_nothing(tmp_path: Path) -> None:
    reference = loaded(transformer(), tmp_path)
    (name,) = (field.name for field in reference.inputs)
    rows = {name: np.array([[3] * 12, [50] * 12, [7] * 12], np.int32)}
    good = conversion_process._good_rows(reference, rows)
    assert good[name][:, 0].tolist() == [3, 7]
    none = conversion_process._good_rows(reference, {name: rows[name][1:2]})
    assert none[name].tolist() == [[0] * 12]


def test_independence_is_tried_on_many_rows_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = loaded(FAMILIES["dense"](), tmp_path)
    tried = mock.Mock(return_value=True)
    monkeypatch.setattr(proof, "is_independent", tried)
    onnx_conversion.convert(reference, rows_for(reference.inputs, 1))
    assert [len(array) for array in tried.call_args.args[1]] == [1024]


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "int8"])
def test_rows_are_made_up_of_every_integer(dtype: str) -> None:
    model: Any = SimpleNamespace(inputs=(Field("x", (3,), dtype),), embedding_sizes={})
    assert proof.made_up_rows(model)["x"].dtype == dtype


def test_inputs_of_several_kinds_are_proved_on_equal_numbers_of_rows(tmp_path: Path) -> None:
    ids, x = keras.Input((3,), dtype="int32", name="ids"), keras.Input((5,), name="x")
    parts = layers.Flatten()(layers.Embedding(50, 4)(ids)), x
    keras.Model([ids, x], layers.Dense(6)(layers.Concatenate()(parts))).save(tmp_path / "m.keras")
    given = {"ids": np.ones((4, 3), np.int32), "x": np.ones((4, 5), np.float32)}
    found = score(tmp_path / "m.keras", given, backend="onnxruntime").vectors
    np.testing.assert_allclose(found, score(tmp_path / "m.keras", given).vectors, atol=1e-6)
