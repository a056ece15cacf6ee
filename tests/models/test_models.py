from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from batchnorm_tool.chunk import Field
from batchnorm_tool.errors import InputError, JobError, ModelError, ModelFailed, WorkFailed
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import describe_model, load_predictor, placement, wrap_model
from batchnorm_tool.models.backends import _cause, run_errors
from batchnorm_tool.models.backends.keras import named_parts
from batchnorm_tool.models.batching import IdentityPredictor, ModelPredictor, Predictor
from batchnorm_tool.models.placement import choose_batch_size, remembered_batch_size
from batchnorm_tool.models.security import admit
from tests.bits import same_bits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402  quiet only after the variable above

sys.path.insert(0, str(Path(__file__).parent))
import custom_layers  # type: ignore[import-not-found]  # noqa: E402

pytestmark = pytest.mark.usefixtures("tensorflow")

RNG = np.random.default_rng(0)


def load(path: Path, **settings: Any) -> Predictor:
    """The model through the gate, as a run loads it."""
    model = Model(path=str(path), **settings)
    with admit(model) as admitted:
        return load_predictor(model, admitted.path, Engine())


def encoder(*, batch_size: int | None = None) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16,), batch_size=batch_size, name="features"),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.BatchNormalization(name="scaled"),
            keras.layers.Dropout(0.5, name="dropped"),
            keras.layers.Dense(8, name="embedding"),
        ]
    )


def towers() -> Any:
    keras.utils.set_random_seed(0)
    user, item = keras.Input((4,), name="user"), keras.Input((6,), name="item")
    user_tower = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, name="user_dense")], name="user_tower"
    )
    item_vector = keras.layers.Dense(5, name="item_tower")(item)
    score = keras.layers.Dot(1, name="score")([user_tower(user), item_vector])
    return keras.Model([user, item], score)


def two_outputs() -> Any:
    features = keras.Input((4,), name="features")
    left = keras.layers.Dense(2, name="left")(features)
    right = keras.layers.Dense(3, name="right")(features)
    return keras.Model(features, [left, right])


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("batch_size", [1, 32, 100])
def test_full_batches_have_the_bits_of_model_predict(
    tmp_path: Path, suffix: str, batch_size: int
) -> None:
    model = encoder()
    model.save(tmp_path / f"model.{suffix}")
    predictor = load(tmp_path / f"model.{suffix}").with_batch_size(batch_size)
    features = RNG.normal(size=(3 * batch_size, 16)).astype("float32")
    expected = model.predict(features, batch_size=batch_size, verbose=0)
    got = predictor.predict({"features": features})
    assert list(got) == ["embedding"]
    assert same_bits(got["embedding"], expected)


def test_an_overridden_predict_step_is_what_runs() -> None:
    model = custom_layers.Doubling()
    features = RNG.normal(size=(64, 7)).astype("float32")
    model(features[:1])
    got = wrap_model(model).with_batch_size(32).predict({"input": features})
    assert same_bits(got["doubled"], model.predict(features, batch_size=32, verbose=0)["doubled"])
    assert np.allclose(got["doubled"], 2 * model(features).numpy(), atol=1e-6)


def test_a_trusted_class_is_imported_and_its_predict_step_runs(tmp_path: Path) -> None:
    model = custom_layers.Doubling(5)
    features = RNG.normal(size=(32, 7)).astype("float32")
    model(features[:1])
    model.save(tmp_path / "model.keras")
    predictor = load(tmp_path / "model.keras", trust={"classes": ["custom_layers.Doubling"]})
    got = predictor.with_batch_size(16).predict({predictor.inputs[0].name: features})
    assert same_bits(got["doubled"], model.predict(features, batch_size=16, verbose=0)["doubled"])


def test_a_trusted_class_that_is_not_installed_is_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((2,)), custom_layers.Times()]).save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match=r"no_such_package\.Times, which cannot be imported"):
        load(tmp_path / "model.keras", trust={"classes": ["no_such_package.Times"]})


def test_a_model_that_overrides_predict_is_called_through_it() -> None:
    model = custom_layers.OwnPredict()
    features = RNG.normal(size=(10, 7)).astype("float32")
    model(features[:1])
    predictor = wrap_model(model).with_batch_size(4)
    assert predictor.outputs == (Field("output", (3,), "float32"),)
    got = predictor.predict({"input": features})["output"]
    assert np.allclose(got, 2 * model(features).numpy() + 1, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 95])
def test_a_row_has_the_same_bits_whatever_the_other_rows_are(rows: int) -> None:
    predictor = wrap_model(encoder()).with_batch_size(32)
    features = RNG.normal(size=(96, 16)).astype("float32")
    whole = predictor.predict({"features": features})["embedding"]
    part = predictor.predict({"features": features[:rows]})["embedding"]
    assert same_bits(part, whole[:rows])
    features[:-rows] = np.nan
    among_others = predictor.predict({"features": features})["embedding"]
    assert same_bits(among_others[-rows:], whole[-rows:])


def test_no_rows_give_no_rows() -> None:
    predictor = wrap_model(encoder()).with_batch_size(4)
    got = predictor.predict({"features": np.zeros((0, 16), "float32")})["embedding"]
    assert (got.shape, got.dtype) == ((0, 8), np.float32)


def test_columns_in_fortran_order_and_another_dtype_are_converted() -> None:
    predictor = wrap_model(encoder()).with_batch_size(8)
    features = RNG.integers(0, 9, size=(8, 16))
    plain = predictor.predict({"features": features.astype("float32")})["embedding"]
    other = predictor.predict({"features": np.asfortranarray(features)})["embedding"]
    assert same_bits(plain, other)


def test_saved_model_is_called_by_its_signature(tmp_path: Path) -> None:
    model = encoder()
    model.export(str(tmp_path / "saved"), verbose=False)
    predictor = load(tmp_path / "saved").with_batch_size(16)
    features = RNG.normal(size=(40, 16)).astype("float32")
    (name,) = [field.name for field in predictor.inputs]
    got = predictor.predict({name: features})["output_0"]
    assert np.allclose(got, model(features).numpy(), atol=1e-6)


class Scorer(tf.Module):  # type: ignore[misc]
    @tf.function
    def score(self, left: Any, right: Any) -> dict[str, Any]:
        return {"sum": left + right, "difference": left - right}


def test_another_signature_with_several_inputs_and_chosen_outputs(tmp_path: Path) -> None:
    module = Scorer()
    spec = tf.TensorSpec((None, 2), tf.float32)
    score = module.score.get_concrete_function(left=spec, right=spec)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"score": score})
    predictor = load(tmp_path / "saved", signature="score", outputs=["difference", "sum"])
    assert [field.name for field in predictor.inputs] == ["left", "right"]
    left, right = np.full((3, 2), 5, "float32"), np.full((3, 2), 3, "float32")
    got = predictor.with_batch_size(2).predict({"right": right, "left": left})
    assert {name: array[2].tolist() for name, array in got.items()} == {
        "difference": [2, 2],
        "sum": [8, 8],
    }
    assert list(got) == ["difference", "sum"]
    with pytest.raises(ModelError, match=r"no signature `serving_default`\. Received: score"):
        load(tmp_path / "saved")
    with pytest.raises(ModelError, match="2 outputs: "):
        load(tmp_path / "saved", signature="score")
    with pytest.raises(ModelError, match="a SavedModel has no layers"):
        load(tmp_path / "saved", layer="dense")


def test_missing_variables_of_a_saved_model_are_explained(tmp_path: Path) -> None:
    encoder().export(str(tmp_path / "saved"), verbose=False)
    for file in (tmp_path / "saved" / "variables").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="variables are missing or damaged"):
        load(tmp_path / "saved")


def test_an_inner_layer_is_a_model_of_its_own(tmp_path: Path) -> None:
    model = encoder()
    model.save(tmp_path / "model.keras")
    predictor = load(tmp_path / "model.keras", layer="hidden").with_batch_size(8)
    features = RNG.normal(size=(8, 16)).astype("float32")
    got = predictor.predict({"features": features})
    assert list(got) == ["hidden"]
    hidden = keras.Model(model.inputs, model.get_layer("hidden").output)
    assert same_bits(got["hidden"], hidden.predict(features, batch_size=8, verbose=0))


@pytest.mark.parametrize(
    ("layer", "needed"), [("user_tower", ("user", 4)), ("item_tower", ("item", 6))]
)
def test_a_tower_takes_only_its_own_inputs(
    tmp_path: Path, layer: str, needed: tuple[str, int]
) -> None:
    model = towers()
    model.save(tmp_path / "model.keras")
    predictor = load(tmp_path / "model.keras", layer=layer).with_batch_size(4)
    name, width = needed
    assert predictor.inputs == (Field(name, (width,), "float32"),)
    features = RNG.normal(size=(4, width)).astype("float32")
    (got,) = predictor.predict({name: features}).values()
    assert np.allclose(got, model.get_layer(layer)(features).numpy(), atol=1e-6)


def test_an_unknown_layer_is_answered_with_the_layers(tmp_path: Path) -> None:
    towers().save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match=r"user_tower.*Did you mean `item_tower`\?"):
        load(tmp_path / "model.keras", layer="item_towr")


def test_several_outputs_must_be_chosen_from() -> None:
    with pytest.raises(ModelError, match="2 outputs: left, right"):
        wrap_model(two_outputs())
    with pytest.raises(ModelError, match="no output `rigth`"):
        wrap_model(two_outputs(), ["rigth"])


@pytest.mark.parametrize("name", ["model.keras", "model"])
def test_a_description_needs_no_choice_of_outputs(tmp_path: Path, name: str) -> None:
    if name == "model":
        two_outputs().export(tmp_path / name, verbose=False)
    else:
        two_outputs().save(tmp_path / name)
    model = Model(path=str(tmp_path / name))
    with admit(model) as admitted:
        inputs, outputs = describe_model(model, admitted.path, Engine())
    assert inputs == (Field("features", (4,), "float32"),)
    assert [field.shape for field in outputs] == [(2,), (3,)]


def test_chosen_outputs_come_in_the_chosen_order() -> None:
    model = two_outputs()
    predictor = wrap_model(model, ["right", "left"]).with_batch_size(4)
    assert [(field.name, field.shape) for field in predictor.outputs] == [
        ("right", (3,)),
        ("left", (2,)),
    ]
    features = RNG.normal(size=(4, 4)).astype("float32")
    got = predictor.predict({"features": features})
    left, right = model.predict(features, batch_size=4, verbose=0)
    assert same_bits(got["left"], left)
    assert same_bits(got["right"], right)


def test_outputs_in_a_dictionary_are_named_by_its_keys() -> None:
    features = keras.Input((4,), name="features")
    model = keras.Model(features, {"b": keras.layers.Dense(2)(features), "a": features})
    got = wrap_model(model, ["a", "b"]).with_batch_size(2).predict({"features": np.ones((2, 4))})
    assert got["a"].tolist() == np.ones((2, 4)).tolist()
    assert got["b"].shape == (2, 2)


def test_inputs_in_a_dictionary_keep_their_names() -> None:
    one, two = keras.Input((1,), name="zebra"), keras.Input((1,), name="ape")
    model = keras.Model({"zebra": one, "ape": two}, keras.ops.subtract(one, two))
    predictor = wrap_model(model).with_batch_size(2)
    got = predictor.predict({"ape": np.ones((2, 1)), "zebra": np.full((2, 1), 5.0)})
    assert next(iter(got.values())).tolist() == [[4.0], [4.0]]


def test_one_number_for_a_row_becomes_a_vector_of_one() -> None:
    features = keras.Input((4,), name="features")
    model = keras.Model(features, keras.ops.sum(features, axis=1))
    predictor = wrap_model(model).with_batch_size(2)
    assert predictor.outputs[0].shape == (1,)
    (got,) = predictor.predict({"features": np.ones((3, 4))}).values()
    assert got.tolist() == [[4.0]] * 3


def test_higher_ranks_keep_their_shape() -> None:
    features = keras.Input((4, 3), name="features")
    predictor = wrap_model(keras.Model(features, keras.layers.Dense(2)(features)))
    assert predictor.outputs[0].shape == (4, 2)
    (got,) = predictor.with_batch_size(2).predict({"features": np.ones((3, 4, 3))}).values()
    assert got.shape == (3, 4, 2)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_narrow_floats_are_widened_exactly(policy: str) -> None:
    features = keras.Input((4,), name="features")
    model = keras.Model(features, keras.layers.Dense(2, dtype=policy)(features))
    predictor = wrap_model(model).with_batch_size(4)
    assert predictor.outputs[0].dtype == "float32"
    data = RNG.normal(size=(4, 4)).astype("float32")
    (got,) = predictor.predict({"features": data}).values()
    assert got.dtype == np.float32
    assert np.array_equal(got, model.predict(data, verbose=0).astype("float32"))


def test_strings_go_in_as_text() -> None:
    words = keras.Input((1,), dtype="string", name="words")
    numbers = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    model = keras.Model(words, keras.ops.cast(numbers, "float32"))
    predictor = wrap_model(model).with_batch_size(2)
    assert predictor.inputs == (Field("words", (1,), "string"),)
    features = np.array([["b"], ["ü"], ["a"]], dtype=object)
    (got,) = predictor.predict({"words": features}).values()
    assert got.tolist() == [[2.0], [0.0], [1.0]]


def test_a_batch_size_that_is_built_in_is_the_only_one() -> None:
    predictor = wrap_model(encoder(batch_size=12))
    assert predictor.batch_size == 12
    features = RNG.normal(size=(20, 16)).astype("float32")
    assert predictor.predict({"features": features})["embedding"].shape == (20, 8)
    assert choose_batch_size(predictor, {"features": features}, 10**6) == 12
    with pytest.raises(ModelError, match="exactly 12 rows"):
        predictor.with_batch_size(32)


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda x: keras.ops.reshape(x, (-1, 2)), "8 rows"),
        (lambda x: keras.ops.sum(x, axis=0), "4 rows"),
        (keras.ops.sum, "one value for all rows|not a dense tensor"),
    ],
    ids=["more rows", "columns for rows", "one value"],
)
def test_a_model_that_changes_the_rows_is_refused(change: Any, received: str) -> None:
    features = keras.Input((4,), name="features")
    model = keras.Model(features, change(features))
    batch_size = 4 if "8" in received else 3
    with pytest.raises(ModelError, match=received):
        wrap_model(model).with_batch_size(batch_size)


def test_a_model_that_was_never_built_is_refused() -> None:
    with pytest.raises(ModelError, match="is not built"):
        wrap_model(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"features": np.zeros((2, 5))}, r"shape \('rows', 16\). Received: an array of \(2, 5\)"),
        ({"other": np.zeros((2, 16))}, "`features` is missing. Received: other"),
    ],
    ids=["width", "name"],
)
def test_features_that_do_not_fit_are_refused(features: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        wrap_model(encoder()).with_batch_size(2).predict(features)


def embedder() -> Any:
    numbers = keras.Input((1,), dtype="int32", name="numbers")
    return keras.Model(numbers, keras.layers.Flatten()(keras.layers.Embedding(3, 2)(numbers)))


def test_a_failure_while_predicting_is_explained() -> None:
    predictor = wrap_model(embedder()).with_batch_size(2)
    with pytest.raises(ModelFailed, match=r"indices\[1,0\] = 7 is not in \[0, 3\)") as told:
        predictor.predict({"numbers": np.array([[1], [7]])})
    assert "the features match the model's training data" in told.value.message


@pytest.mark.parametrize("size", [None, 1, 8, 64])
def test_rows_on_which_the_model_fails_are_found_one_by_one(size: int | None) -> None:
    model = wrap_model(embedder())
    numbers = np.arange(100).reshape(100, 1) % 3
    bad = {0: 3, 31: 9, 32: 5, 33: 77, 99: 4}
    numbers[list(bad), 0] = list(bad.values())
    found = (model if size is None else model.with_batch_size(size)).failing_rows(
        {"numbers": numbers}
    )
    assert found == {
        row: f"indices[0,0] = {number} is not in [0, 3)" for row, number in bad.items()
    }


def test_a_failure_of_rows_together_is_none_of_a_row() -> None:
    class Apart(tf.Module):  # type: ignore[misc]
        """Takes rows only where all are equal, or else one is."""

        inputs = (Field("x", (1,), "float32"),)
        outputs = inputs
        own_batch_size = backend = None

        def compile(self, batch_size: int) -> Any:
            def step(arrays: Any) -> Any:
                if len(np.unique(arrays[0])) > 1:
                    msg = "rows differ"
                    raise ModelFailed(msg)
                return arrays

            return step

    apart: Any = Apart()
    with pytest.raises(ModelFailed, match="rows differ"):
        ModelPredictor(apart, "cpu", 1).failing_rows({"x": np.arange(5.0).reshape(5, 1)})


def test_parts_of_a_result_are_named_by_their_keys() -> None:
    parts = named_parts({"user": 1, "item": [2, 3]})
    assert parts == [("user", 1), ("item_0", 2), ("item_1", 3)]


def test_of_a_failure_the_line_is_told_that_says_what_is_wrong() -> None:
    lines = ["Graph execution error:", "indices[0] = 9", "[[{{node x}}]]"]
    assert _cause("\n".join(lines)) == "indices[0] = 9"


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (tf.errors.InvalidArgumentError, ModelFailed),
        (tf.errors.ResourceExhaustedError, MemoryError),
        (tf.errors.InternalError, WorkFailed),
        (tf.errors.UnavailableError, WorkFailed),
    ],
)
def test_only_what_rows_can_cause_is_laid_to_them(error: Any, becomes: type[Exception]) -> None:
    with pytest.raises(becomes) as told, run_errors():
        raise error(None, None, "device lost")
    assert type(told.value) is becomes


def test_a_gpu_fails_on_an_unknown_id_as_a_cpu_does() -> None:
    """On a GPU the operation gives zeros; here the CPU only passes for one."""
    model: Any = wrap_model(embedder())
    gpu = replace(model, device="gpu").with_batch_size(2)
    with pytest.raises(ModelFailed, match=r"7 is not in \[0, 3\)"):
        gpu.predict({"numbers": np.array([[1], [7]])})
    assert gpu.predict({"numbers": np.array([[1], [-3]])})


def test_embeddings_that_inputs_go_straight_into_are_known() -> None:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((2,)), layers.Embedding(7, 2), layers.Flatten()])
    first, other, last = (keras.Input((2,), name=name) for name in ("first", "other", "last"))
    vectors = [layers.Embedding(5, 2)(last + 1), layers.Embedding(9, 2)(first)]
    flat = [inner(other), *map(layers.Flatten(), vectors)]
    model: Any = wrap_model(keras.Model([first, other, last], layers.Concatenate()(flat)))
    assert model.embedding_sizes == {"first": 9, "other": 7}


@pytest.mark.parametrize(
    ("make", "rows", "dtypes"),
    [
        ("Reading", {"input": np.array([["red", "x"], ["green", ""]], object)}, ["string"]),
        ("Looking", {"input": np.array([[16777217, 3], [2, 1]])}, ["int32"]),
        ("Hashing", {"input": np.array([["red", "x"], ["green", ""]], object)}, ["string"]),
        ("Both", {"word": np.array([["red"], [""]], object), "size": np.ones((2, 3), "f4")},
         ["string", "float32"]),
        ("Doubling", {"input": np.ones((2, 3), "f4")}, ["float32"]),
    ],
    ids=["text", "ids", "declared", "text and numbers", "numbers"],
)  # fmt: skip
def test_a_model_in_python_code_gets_the_dtypes_that_it_takes(
    tmp_path: Path, make: str, rows: dict[str, np.ndarray], dtypes: list[str]
) -> None:
    model = getattr(custom_layers, make)()
    tensors = {name: tf.constant(array) for name, array in rows.items()}
    expected = model(tensors if len(rows) > 1 else tensors["input"])
    model.save(tmp_path / "model.keras")
    predictor = load(tmp_path / "model.keras", trust={"classes": [f"custom_layers.{make}"]})
    assert [field.dtype for field in predictor.inputs] == dtypes
    (got,) = predictor.with_batch_size(2).predict(rows).values()
    factor = 2 if make == "Doubling" else 1
    assert np.allclose(got, factor * expected.numpy(), atol=1e-6)


def test_an_h5_file_without_some_of_its_weights_is_refused_by_name(tmp_path: Path) -> None:
    import h5py

    encoder().save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file["model_weights/hidden"]
    with pytest.raises(ModelError, match="does not load") as caught:
        load(tmp_path / "model.h5")
    assert str(tmp_path / "model.h5") in caught.value.message


def test_settings_of_keras_2_are_explained(tmp_path: Path) -> None:
    import h5py

    model = keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(2)])
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"unroll":', '"time_major": false, "unroll":')
    with pytest.raises(ModelError, match="written by Keras 2"):
        load(tmp_path / "model.h5")


def test_threads_share_one_predictor_and_get_the_same_bits() -> None:
    predictor = wrap_model(encoder()).with_batch_size(32)
    features = RNG.normal(size=(640, 16)).astype("float32")
    expected = predictor.predict({"features": features})["embedding"]
    results: list[bool] = []

    def work() -> None:
        got = predictor.predict({"features": features})["embedding"]
        results.append(same_bits(got, expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_the_step_is_not_compiled_by_xla() -> None:
    model = encoder()
    model.compile("adam", "mse", jit_compile=True)
    predictor: Any = wrap_model(model).with_batch_size(4)
    features = RNG.normal(size=(4, 16)).astype("float32")
    plain = wrap_model(keras.models.clone_model(model))
    plain.model.model.set_weights(model.get_weights())  # type: ignore[attr-defined]
    got = predictor.predict({"features": features})["embedding"]
    expected = plain.with_batch_size(4).predict({"features": features})["embedding"]
    assert same_bits(got, expected)


@pytest.mark.parametrize(("rows", "largest"), [(1, 1), (5, 8), (40, 64), (10**9, 8192)])
def test_a_measured_batch_size_is_a_power_of_two_that_the_rows_fill(
    rows: int, largest: int
) -> None:
    sample = {"features": RNG.normal(size=(10, 16)).astype("float32")}
    chosen = choose_batch_size(wrap_model(encoder()), sample, rows)
    assert chosen & (chosen - 1) == 0
    assert min(32, largest) <= chosen <= largest


class Slow:
    """A predictor whose calls take a given time, whatever their size."""

    inputs = outputs = ()
    device, threads, batch_size, backend = "cpu", 1, None, None

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls, self.sizes = seconds, 0, []

    def with_batch_size(self, batch_size: int) -> Slow:
        self.sizes.append(batch_size)
        return self

    def predict(self, features: Any) -> Any:
        self.calls += 1
        time.sleep(self.seconds)
        return {}


def test_a_slow_model_is_measured_with_three_calls() -> None:
    slow: Any = Slow(2.1)
    assert choose_batch_size(slow, {"x": np.zeros((1, 1))}, 10**6) == 128
    assert (slow.calls, slow.sizes) == (3, [32, 64, 128])


def test_a_choice_is_made_once_for_a_model_on_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = iter([128, 512, 64, 256])
    monkeypatch.setattr(placement, "choose_batch_size", lambda *_: next(measured))

    def choose(content: str, rows: int = 10**6) -> int:
        sample, model = {"x": np.zeros((1, 1))}, {"content": content}
        return remembered_batch_size(cast("Any", Slow(0)), sample, rows, model)

    assert [choose("a"), choose("a")] == [128, 128]
    assert [choose("b"), choose("a")] == [512, 128]
    assert [choose("a", 40), choose("a", 40), choose("a")] == [64, 64, 128]
    (kept,) = (path for path in tmp_path.rglob("batch-size-*") if b":128}" in path.read_bytes())
    kept.write_bytes(kept.read_bytes().replace(b"128", b"129"))  # damaged
    assert [choose("a"), choose("a")] == [256, 256]


def test_without_rows_there_is_nothing_to_measure() -> None:
    assert choose_batch_size(wrap_model(encoder()), {"features": np.zeros((0, 16))}, 0) == 32


def test_the_identity_returns_what_it_gets() -> None:
    field = Field("vector", (3,), "float16")
    predictor = IdentityPredictor((field, Field("score", (), "float64"))).with_batch_size(8)
    vector, score = np.ones((2, 3), "float16"), np.ones(2)
    got = predictor.predict({"vector": vector, "score": score})
    assert got["vector"] is vector
    assert got["score"].shape == (2, 1)
    assert [output.shape for output in predictor.outputs] == [(3,), (1,)]
    assert predictor.batch_size == 8


def run_python(program: str, *arguments: str, **variables: str) -> Any:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **variables},
    )


START = (
    "from batchnorm_tool.models.backends import start_tensorflow, running_tensorflow;"
    "import tensorflow as tf;"
)


def test_threads_are_fixed_before_tensorflow_starts_and_it_stays_quiet() -> None:
    done = run_python(
        START.replace("import tensorflow as tf;", "")
        + "import sys; assert 'tensorflow' not in sys.modules;"
        "setup = start_tensorflow('auto', 3); import tensorflow as tf;"
        "tf.constant(1) + 1;"
        "print(setup.threads, tf.config.threading.get_intra_op_parallelism_threads(), setup.device)"
    )
    assert (done.returncode, done.stdout.split()[:2], done.stderr) == (0, ["3", "3"], "")


def test_with_tensorflow_in_use_already_the_true_number_is_reported() -> None:
    done = run_python(
        START + "import warnings; tf.config.threading.set_intra_op_parallelism_threads(2);"
        "tf.constant(1) + 1; warnings.simplefilter('always');"
        "print(start_tensorflow('cpu', 5).threads)"
    )
    assert done.stdout == "2\n"
    assert "have no effect" in done.stderr


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="a GPU is here")
@pytest.mark.parametrize(
    ("devices", "words"),
    [("gpu", "sees no GPU"), ([1], "lists GPU 1"), ([0, 1], "lists GPU 0, but TensorFlow sees 0")],
)
def test_a_gpu_that_is_not_there_is_refused(devices: Any, words: str) -> None:
    from batchnorm_tool.models.backends import start_tensorflow

    with pytest.raises(JobError, match=words):
        start_tensorflow(devices, 1)


class Machine:
    """A stand-in for TensorFlow on a machine with GPUs."""

    def __init__(self, gpus: int) -> None:
        self.config = self.threading = self.experimental = self
        self.visible: list[str] = []
        self.growing: list[str] = []
        self._gpus = [f"GPU:{number}" for number in range(gpus)]

    def list_physical_devices(self, kind: str) -> list[str]:
        return self._gpus

    def set_visible_devices(self, devices: list[str], kind: str) -> None:
        self.visible = devices

    def set_memory_growth(self, gpu: str, *, enable: bool) -> None:
        self.growing.append(gpu)

    def set_intra_op_parallelism_threads(self, threads: int) -> None: ...

    def set_inter_op_parallelism_threads(self, threads: int) -> None: ...

    def enable_op_determinism(self) -> None: ...


@pytest.mark.parametrize(
    ("devices", "gpus", "every", "own"),
    [
        ("cpu", 2, ["cpu"], []),
        ("auto", 0, ["cpu"], []),
        ("auto", 3, [0, 1, 2], ["GPU:0"]),
        ("gpu", 2, [0, 1], ["GPU:0"]),
        ([2, 1], 3, [2, 1], ["GPU:2"]),
        (["cpu", "cpu"], 2, ["cpu", "cpu"], []),
    ],
    ids=str,
)
def test_each_device_is_for_one_process_and_the_first_for_this(
    devices: Any, gpus: int, every: list[Any], own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchnorm_tool.models import backends

    machine = Machine(gpus)
    monkeypatch.setattr(backends, "import_tensorflow", lambda: machine)
    assert backends.every_device(devices) == every
    setup = backends.start_tensorflow(devices, 1)
    assert (machine.visible, machine.growing) == (own, own)
    assert setup.device == ("gpu" if own else "cpu")


def test_importing_the_predictor_imports_no_tensorflow() -> None:
    done = run_python(
        "import batchnorm_tool.models, batchnorm_tool.models.security, sys;"
        "print([name for name in ('tensorflow', 'keras', 'h5py') if name in sys.modules])"
    )
    assert done.stdout == "[]\n"
