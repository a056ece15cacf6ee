"""The layer and `normalized`, which train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchnorm_tool import Job, run
from batchnorm_tool.errors import JobError, ModelError, capture_warnings
from batchnorm_tool.layers import VectorNormalization, normalized
from batchnorm_tool.models import security

pytestmark = pytest.mark.usefixtures("tensorflow")


def tower(*last: Any) -> keras.Model:
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8, name="embedding"), *last]
    return keras.Sequential([keras.Input((4,), name="x"), *layers])


@pytest.mark.parametrize("norm", [{}, {"norm": "l1"}, {"norm": "lp:3"}, {"norm": "lp", "p": 4}])
def test_a_layer_is_made_again_of_its_config(norm: dict[str, Any]) -> None:
    layer = VectorNormalization(**norm, axis="all", name="unit")
    again = VectorNormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = np.float32(np.random.default_rng(0).standard_normal((3, 2, 2)))
    assert np.array_equal(again(x), layer(x))


def test_a_layer_takes_any_shape_and_keeps_masks() -> None:
    layer = VectorNormalization()
    for shape in ((4,), (2, 4), (2, 3, 4)):
        found = np.asarray(layer(np.ones(shape, np.float32)))
        assert np.array_equal(found, np.full(shape, 0.5))
    assert layer.compute_output_shape((None, 3, 4)) == (None, 3, 4)
    assert layer.supports_masking


def test_under_mixed_precision_a_layer_returns_float16() -> None:
    found = VectorNormalization(dtype="mixed_float16")(np.float16([[300] * 4, [0] * 4]))
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    assert np.asarray(found).tolist() == [[0.5] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"norm": "l7"}, "'l7'"), ({"p": 3}, "p=3"), ({"axis": 1}, "-1 or 'all'. Received: 1")],
    ids=str,
)
def test_a_layer_refuses_what_is_no_norm(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        VectorNormalization(**arguments)


def test_a_model_with_the_layer_passes_the_gate_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "unit.keras"
    tower(VectorNormalization()).save(path)
    findings = security.examine(str(path)).findings
    assert [found.what for found in findings] == ["an output that is already normalized"]
    x = np.random.default_rng(0).standard_normal((50, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    places = {"input": {"path": "x.npy"}, "output": {"path": "out"}}
    result = run(Job.from_dict({**places, "model": {"path": "unit.keras"}}, tmp_path))
    statistics = result.manifest["statistics"]
    assert statistics[next(iter(statistics))]["norms"]["l2"]["mean"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["VectorNormalization", "OtherLayer"])
def test_another_class_that_says_it_is_ours_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.keras"
    kind = type(name, (keras.layers.Layer,), {"__module__": "batchnorm_tool.layers"})
    keras.saving.register_keras_serializable(package="other")(kind)
    tower(kind()).save(path)
    assert [found.what for found in security.examine(str(path)).dangers] == [
        f"the custom class `other>{name}` of batchnorm_tool.layers"
    ]


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_two_towers_learn_with_the_layer(jit: bool) -> None:  # noqa: FBT001
    random = np.random.default_rng(1)
    queries = random.standard_normal((256, 4), np.float32)
    items = queries @ random.standard_normal((4, 4)).astype(np.float32)
    unit = {"query": tower(VectorNormalization()), "item": tower(VectorNormalization())}
    inputs = {name: keras.Input((4,), name=name) for name in unit}
    vectors = [unit[name](inputs[name]) for name in unit]
    temperature = 0.1
    scores = keras.ops.matmul(vectors[0], keras.ops.transpose(vectors[1])) / temperature
    model = keras.Model(inputs, scores)

    def loss(_: Any, found: Any) -> Any:
        own = keras.ops.diagonal(found)
        return keras.ops.logsumexp(found, axis=-1) - own

    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=jit)
    given = {"query": queries, "item": items}
    losses = model.fit(given, queries, batch_size=32, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    for name, of in unit.items():
        lengths = np.linalg.norm(of.predict(given[name], verbose=0), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_a_normalized_model_shares_weights_and_trains_them() -> None:
    plain = tower()
    unit = normalized(plain, "l1")
    x = np.random.default_rng(2).standard_normal((64, 4), np.float32)
    before = plain.predict(x, verbose=0)
    unit.compile(keras.optimizers.Adam(0.05), "mse")
    unit.fit(x, np.zeros((64, 8), np.float32) + 0.125, epochs=3, verbose=0)
    assert not np.allclose(plain.predict(x, verbose=0), before)
    raw = plain.predict(x, verbose=0)
    expected = raw / np.abs(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(unit.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-7)
    assert unit.output_names == ["embedding"]


ENDS: dict[str, tuple[list[Any], str | None]] = {
    "UnitNormalization": ([keras.layers.UnitNormalization()], "UnitNormalization"),
    "ours": ([VectorNormalization("l1")], "VectorNormalization"),
    "softmax": ([keras.layers.Dense(3, "softmax")], "softmax"),
    "Softmax": ([keras.layers.Softmax(), keras.layers.Reshape((2, 4))], "Softmax"),
    "within": ([keras.Sequential([keras.layers.UnitNormalization()])], "UnitNormalization"),
    "behind": ([keras.layers.UnitNormalization(), keras.layers.Dense(3)], None),
    "nothing": ([], None),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_normalizes_already_is_named(end: str) -> None:
    last, word = ENDS[end]
    warned: list[str] = []
    with capture_warnings(warned.append):
        normalized(tower(*last))
    assert [text.partition("by ")[2].partition(",")[0] for text in warned] == [word] * bool(word)


def test_an_operation_that_normalizes_is_named() -> None:
    inputs = keras.Input((2,))
    with pytest.warns(UserWarning, match="`normalize` is normalized already, by Normalize,"):
        normalized(keras.Model(inputs, keras.ops.normalize(inputs)))


def test_an_output_that_an_operation_is_called_as_gets_another_name() -> None:
    model = keras.Sequential([keras.Input((2,), name="max"), keras.layers.Identity(name="encoder")])
    model.name = "encoder"
    assert normalized(model).output_names == ["encoder_normalized"]


def test_several_outputs_and_norms_come_by_name() -> None:
    inputs = keras.Input((2,))
    ends = {"a": inputs * 2.0, "b": keras.ops.sum(inputs, axis=-1)}
    unit = normalized(keras.Model(inputs, ends), keep_norm=True)
    found = unit.predict(np.float32([[3, 4], [0, 0]]), verbose=0)
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [[np.float32(0.6), np.float32(0.8)], [0, 0]],
        "a_norm": [[10], [0]],
        "b": [[1], [0]],
        "b_norm": [[7], [0]],
    }


def test_norms_take_no_name_of_an_output() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"a": inputs * 2.0, "a_norm": inputs * 3.0})
    with pytest.raises(JobError, match="Received: a, a_norm"):
        normalized(model, keep_norm=True)


def test_a_model_of_python_code_is_refused() -> None:
    class Own(keras.Sequential):
        def predict_step(self, data: Any) -> Any:
            return super().predict_step(data) * 2

    model = Own([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="predict_step"):
        normalized(model)
