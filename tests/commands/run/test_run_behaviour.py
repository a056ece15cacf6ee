"""What a model does besides computing each row alone: state, batches, rows on which it fails."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from keras import layers, ops

from batchnorm_tool import read, score
from batchnorm_tool.errors import BadRows, ModelError
from tests.command_line import invoke
from tests.commands.plain_script import assert_same_bits, normalized, vector_column
from tests.kill_points import tree

pytestmark = pytest.mark.usefixtures("tensorflow")

RNG = np.random.default_rng(3)
ROWS = 50
NUMBERS = RNG.normal(size=(ROWS, 4)).astype(np.float32)
IDS = RNG.integers(0, 10, size=(ROWS, 3))
Make = Callable[[Any], Any]


class Counted(layers.Layer):  # type: ignore[misc]
    """Gives another answer at each call."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, features: Any) -> Any:
        self.calls.assign_add(1.0)
        return features * self.calls


class Always(layers.Layer):  # type: ignore[misc]
    """A layer that believes itself in training."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, features: Any) -> Any:
        return self.inner(features, training=True)


def model_of(make: Make, shape: tuple[int, ...] = (4,), **settings: Any) -> Any:
    keras.utils.set_random_seed(0)
    features = keras.Input(shape, name="x", **settings)
    return keras.Model(features, make(features))


def embedding(features: Any) -> Any:
    return layers.Flatten()(layers.Embedding(10, 4)(features))


def write(path: Path, array: np.ndarray) -> Path:
    columns = {"id": np.arange(len(array)) * 2, "x": vector_column(array)}
    pq.write_table(pa.table(columns), path / "in.parquet")
    return path / "in.parquet"


def run(tmp_path: Path, model: Any, array: np.ndarray, *flags: object, out: str = "out") -> Any:
    """The command over a model, kept in a file or exported to a directory if it is no path yet."""
    if not isinstance(model, Path):
        model.save(tmp_path / "model.keras")
        model = tmp_path / "model.keras"
    source = write(tmp_path, array)
    return invoke("run", model, source, tmp_path / out, "--key", "id", "--quiet", *flags)


def exported(tmp_path: Path, model: Any) -> Path:
    model.export(str(tmp_path / "saved"), verbose=False)
    return tmp_path / "saved"


# ---- state and chance


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(2, stateful=True),
        lambda: layers.Bidirectional(layers.GRU(2, stateful=True)),
        lambda: keras.Sequential([layers.SimpleRNN(2, stateful=True)]),
    ],
    ids=["layer", "wrapped", "nested"],
)
def test_a_stateful_layer_is_refused_by_name(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = model_of(lambda x: make()(ops.reshape(x, (8, 2, 2))), batch_size=8)
    done = run(tmp_path, model, NUMBERS)
    assert done.exit_code == 2
    assert "keeps state from call to call: its layer `" in done.stderr
    assert "stateful=False" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="keeps state"):
        score(model, NUMBERS)


@pytest.mark.parametrize(
    "make",
    [Counted, lambda: Always(layers.Dropout(0.5)), lambda: Always(layers.GaussianNoise(0.001))],
    ids=["counter", "dropout", "noise"],
)
def test_what_changes_from_call_to_call_is_found_on_a_sample(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    model = model_of(lambda x: make()(x + 0))
    done = run(tmp_path, exported(tmp_path, model), NUMBERS)
    assert done.exit_code == 2
    assert "differ from call to call: it keeps state, or draws random numbers" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="random numbers"):
        score(model, NUMBERS)


def test_state_that_the_chosen_output_does_not_see_is_no_matter(tmp_path: Path) -> None:
    features = keras.Input((4,), name="x")
    model = keras.Model(features, {"counted": Counted()(features), "plain": 2 * features})
    done = run(tmp_path, exported(tmp_path, model), NUMBERS, "--outputs", "plain")
    assert done.exit_code == 0, done.stderr
    assert_same_bits(read(tmp_path / "out").to_numpy()[1], normalized(2 * NUMBERS, "l2")[0])


# ---- other rows


MIXING: dict[str, Make] = {
    "a little of the mean": lambda x: x + 0.01 * ops.mean(x, axis=0, keepdims=True),
    "softmax": lambda x: ops.softmax(x, axis=0),
    "attention": lambda x: ops.matmul(ops.softmax(ops.matmul(x, ops.transpose(x))), x),
}


@pytest.mark.parametrize("make", MIXING.values(), ids=MIXING)
def test_a_model_that_mixes_rows_is_refused(tmp_path: Path, make: Make) -> None:
    done = run(tmp_path, model_of(make), NUMBERS)
    assert done.exit_code == 2
    assert "depend on the other rows of its batch" in done.stderr
    assert "`model.batch_dependent: accept`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_batch_statistics_are_found_in_a_saved_model_and_in_memory(tmp_path: Path) -> None:
    model = model_of(lambda x: Always(layers.BatchNormalization())(x + 0))
    done = run(tmp_path, exported(tmp_path, model), NUMBERS)
    assert (done.exit_code, "depend on the other rows" in done.stderr) == (2, True)
    with pytest.raises(ModelError, match="depend on the other rows"):
        score(model, NUMBERS)


def masked_mean(features: Any) -> Any:
    vectors = layers.Embedding(10, 4, mask_zero=True)(
        ops.cast(ops.tanh(ops.abs(features)) * 9, "int32")
    )
    return layers.GlobalAveragePooling1D()(vectors)


def attention(steps: Any) -> Any:
    return layers.MultiHeadAttention(2, 2)(steps, steps)


BENIGN: dict[str, Make] = {
    "ties": lambda x: ops.one_hot(ops.argmax(ops.round(x), axis=-1), 4),
    "steep": lambda x: ops.exp(20 * layers.Dense(8)(x)),
    "huge": lambda x: 1e30 * layers.Dense(8)(x),
    "tiny differences": lambda x: layers.Dense(8)(x) + 1e6 - 1e6,
    "half": lambda x: layers.Dense(8, dtype="mixed_float16")(layers.Dense(64, "tanh")(x)),
    "brain": lambda x: layers.Dense(8, dtype="bfloat16")(ops.tanh(x)),
    "integers": lambda x: ops.cast(10 * x, "int32"),
    "truth": lambda x: x > 0,
    "logarithm of nothing": lambda x: ops.log(ops.relu(x)),
    "recurrent": lambda x: layers.LSTM(3)(layers.Reshape((2, 2))(x)),
    "attention in a row": lambda x: attention(layers.Reshape((2, 2))(x)),
    "masked mean": masked_mean,
    "normalized": lambda x: layers.LayerNormalization()(layers.BatchNormalization()(x)),
    "dropped": lambda x: layers.GaussianNoise(1.0)(layers.Dropout(0.5)(x)),
}


@pytest.mark.parametrize("make", BENIGN.values(), ids=BENIGN)
def test_a_model_that_does_each_row_alone_passes(tmp_path: Path, make: Make) -> None:
    model = model_of(make)
    flags = ("--nonfinite", "keep", "--max-bad-fraction", 1, "--axis", "all")
    done = run(tmp_path, model, NUMBERS, "--batch-size", 25, *flags)
    assert done.exit_code == 0, done.stderr
    raw = np.asarray(model.predict(NUMBERS, batch_size=25, verbose=0))
    raw = raw.reshape(len(raw), -1).astype(np.float64 if raw.dtype.kind in "ib" else np.float32)
    finite = np.isfinite(raw).all(axis=1)
    _, vectors, norms = read(tmp_path / "out").to_numpy()
    expected, lengths = normalized(raw[finite], "l2")
    assert np.allclose(vectors.reshape(ROWS, -1)[finite], expected, rtol=1e-6, atol=1e-7)
    assert np.allclose(norms.reshape(ROWS)[finite], lengths, rtol=1e-6)


@pytest.mark.parametrize("rows", [48, 50], ids=["whole batches", "a short one"])
def test_an_accepted_model_gets_the_batches_of_predict(tmp_path: Path, rows: int) -> None:
    model = model_of(MIXING["softmax"])
    flags = ("--batch-size", 16, "--set", "model.batch_dependent=accept", "--part-rows", 32)
    done = run(tmp_path, model, NUMBERS[:rows], *flags)
    assert done.exit_code == 0, done.stderr
    raw = model.predict(NUMBERS[:rows], batch_size=16, verbose=0)
    assert_same_bits(read(tmp_path / "out").to_numpy()[1], normalized(raw, "l2")[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "`model.batch_size` is missing"),
        (("--batch-size", 16, "--part-rows", 40), "Set it to a multiple of 16"),
    ],
    ids=["no batch size", "parts that cut a batch"],
)
def test_an_accepted_model_needs_to_know_its_batches(
    tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    model = model_of(MIXING["softmax"])
    done = run(tmp_path, model, NUMBERS, "--set", "model.batch_dependent=accept", *flags)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_a_store_takes_no_model_that_depends_on_the_batch(tmp_path: Path) -> None:
    model_of(MIXING["softmax"]).save(tmp_path / "model.keras")
    write(tmp_path, NUMBERS)
    (tmp_path / "job.yaml").write_text(
        "input: {path: in.parquet, key: id}\nstore: {path: s.lance}\n"
        "model: {path: model.keras, batch_size: 16, batch_dependent: accept}\n"
    )
    done = invoke("refresh", tmp_path / "job.yaml")
    assert (
        done.exit_code,
        "`model.batch_dependent: accept` cannot be used with a store" in done.stderr,
    ) == (2, True)


# ---- rows on which the model fails


BAD = {7: "12", 8: "99", 31: "10"}


def with_bad_ids() -> np.ndarray:
    ids = IDS.copy()
    for row, number in BAD.items():
        ids[row, 1] = int(number)
    return ids


@pytest.fixture(scope="module", params=["keras", "saved"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = model_of(embedding, (3,), dtype="int32")
    if request.param == "saved":
        return exported(folder, model)
    model.save(folder / "model.keras")
    return folder / "model.keras"


def test_rows_on_which_the_model_fails_are_named_and_fail_the_run(
    tmp_path: Path, embedder: Path
) -> None:
    done = run(tmp_path, embedder, with_bad_ids(), "--batch-size", 16)
    assert done.exit_code == 4
    for row, number in BAD.items():
        words = f"in.parquet, row {row}, key {2 * row}: model_failure (indices[0,1] = {number} is"
        assert words in done.stderr
    assert "set `input.invalid` to" in done.stderr
    assert not (tmp_path / "out" / "vectors").exists()


@pytest.mark.parametrize("fate", ["quarantine", "drop", "nullify"])
def test_rows_on_which_the_model_fails_meet_the_policy_and_change_no_neighbour(
    tmp_path: Path, embedder: Path, fate: str
) -> None:
    flags = ("--batch-size", 16, "--part-rows", 32, "--max-bad-fraction", 1)
    assert run(tmp_path, embedder, IDS, *flags, out="good").exit_code == 0
    done = run(tmp_path, embedder, with_bad_ids(), *flags, "--invalid", fate)
    assert done.exit_code == 0, done.stderr
    manifest = read(tmp_path / "out").manifest
    assert manifest["reasons"]["model_failure"] == 3
    counted = {"drop": "dropped", "quarantine": "quarantined", "nullify": "nullified"}[fate]
    assert (manifest["rows"]["bad"], manifest["rows"][counted]) == (3, 3)
    rows = {row["id"] // 2: row for row in pq.read_table(tmp_path / "out/vectors").to_pylist()}
    for row in pq.read_table(tmp_path / "good/vectors").to_pylist():
        number = row["id"] // 2
        if number not in BAD:
            assert rows[number] == row
        elif fate == "nullify":
            assert (rows[number]["vector"], rows[number]["norm"]) == (None, None)
        else:
            assert number not in rows
    if fate == "quarantine":
        away = pq.read_table(tmp_path / "out/_quarantine").to_pylist()
        assert [(row["id"] // 2, row["reason"], row["prediction"]) for row in away] == [
            (number, "model_failure", None) for number in BAD
        ]


def test_workers_and_a_second_run_leave_the_same_bytes(tmp_path: Path, embedder: Path) -> None:
    flags = ("--batch-size", 4, "--part-rows", 8, "--max-bad-fraction", 1, "--invalid", "drop")
    trees = []
    for workers in (1, 2):
        done = run(tmp_path, embedder, with_bad_ids(), *flags, "--workers", workers)
        assert done.exit_code == 0, done.stderr
        again = run(tmp_path, embedder, with_bad_ids(), *flags, "--workers", workers)
        assert again.exit_code == 0
        trees.append(tree(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / f"out{workers}")
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    ("invalid", "code"), [("fail", 2), ("drop", 0)], ids=["refused", "all dropped"]
)
def test_a_model_that_fails_on_every_row(
    tmp_path: Path, embedder: Path, invalid: str, code: int
) -> None:
    done = run(tmp_path, embedder, IDS + 50, "--invalid", invalid, "--max-bad-fraction", 1)
    assert done.exit_code == code, done.stderr
    if invalid == "fail":
        assert "fails on each of the first 50 rows: indices[0,0] = 5" in done.stderr
        assert not (tmp_path / "out").exists()
    else:
        assert read(tmp_path / "out").manifest["rows"]["dropped"] == ROWS


class Picky(tf.Module):  # type: ignore[misc]
    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": tf.debugging.check_numerics(1 / x, "odd")}


def test_what_stands_in_for_a_bad_row_may_make_the_model_fail_itself(tmp_path: Path) -> None:
    """A null becomes zeros, which this model does not take; the row stays what it was, a null."""
    module = Picky()
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": module.serve})
    array = np.abs(NUMBERS) + 1
    array[3] = np.nan
    array[5] = 0
    flags = ("--invalid", "drop", "--max-bad-fraction", 1, "--batch-size", 8)
    done = run(tmp_path, tmp_path / "saved", array, *flags)
    assert done.exit_code == 0, done.stderr
    reasons = read(tmp_path / "out").manifest["reasons"]
    assert (reasons["nonfinite_feature"], reasons["model_failure"]) == (1, 1)
    good = np.delete(array, [3, 5], axis=0)
    assert np.allclose(read(tmp_path / "out").to_numpy()[1], normalized(1 / good, "l2")[0])


def test_rows_in_memory_fail_as_stored_ones_do() -> None:
    model = model_of(embedding, (3,), dtype="int32")
    with pytest.raises(BadRows, match=r"3 bad of 50 rows.*7 \(model_failure \(indices"):
        score(model, with_bad_ids())
    result = score(model, with_bad_ids(), bad="nan")
    expected = score(model, IDS)
    good = np.delete(np.arange(ROWS), list(BAD))
    assert_same_bits(result.vectors[good], expected.vectors[good])
    assert np.isnan(result.vectors[list(BAD)]).all()
    with pytest.raises(ModelError, match="fails on each of the first 50 rows"):
        score(model, IDS + 50)


def test_a_night_sets_rows_aside_on_which_the_model_fails(tmp_path: Path, embedder: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "input: {path: in.parquet, key: id, invalid: quarantine}\nstore: {path: s.lance}\n"
        f"model: {{path: {embedder}, batch_size: 16}}\ngate: warn\n"
    )
    for ids, rows, bad in ((IDS, ROWS, 0), (with_bad_ids(), ROWS, 3), (IDS + 50, ROWS, ROWS)):
        write(tmp_path, ids)
        done = invoke("refresh", tmp_path / "job.yaml", "--json")
        assert done.exit_code == 0, done.stderr
        stored = read(tmp_path / "s.lance").to_pandas()
        assert len(stored) == rows
        assert stored["status"].str.startswith("stale: model_failure").sum() == bad


def test_a_night_names_rows_on_which_the_model_fails_by_key(tmp_path: Path, embedder: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "input: {path: in.parquet, key: id}\nstore: {path: s.lance}\nmodel: {path: "
        f"{embedder}}}\nnormalize: {{zero: fail}}\n"
    )
    write(tmp_path, with_bad_ids())
    done = invoke("refresh", tmp_path / "job.yaml")
    assert done.exit_code == 4
    assert "3 rows broke a row policy" in done.stderr
    for row, number in BAD.items():
        assert f"\n  key {2 * row}: model_failure (indices[0,1] = {number} is" in done.stderr
    assert "set `input.invalid` to quarantine; or set `normalize.zero` to keep" in done.stderr
    assert "s.lance.state" not in done.stderr


def test_negative_ids_are_warned_of_by_column(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[40, 0] = -2
    model = model_of(embedding, (3,), dtype="int32")
    done = run(tmp_path, model, ids, "--part-rows", 16, "--batch-size", 8)
    assert done.exit_code == 0
    (warning,) = read(tmp_path / "out").manifest["warnings"]
    assert warning.startswith("The column `x` holds negative numbers, which the model's Embedding")
    with pytest.warns(UserWarning, match="The column `x` holds negative numbers"):
        score(model, {"x": ids})


def test_negative_ids_for_an_export_are_warned_of(tmp_path: Path, tensorflow: None) -> None:
    model_of(embedding, (3,), dtype="int32").export(tmp_path / "export", verbose=False)
    ids = IDS.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(str(tmp_path / "export"), {"x": ids})
    ids[40, 0] = -2
    with pytest.warns(UserWarning, match="The column `x` holds negative numbers, which the mod"):
        score(str(tmp_path / "export"), {"x": ids})


# ---- outputs that cannot be normalized, or hardly


class Odd(tf.Module):  # type: ignore[misc]
    def __init__(self, make: Make) -> None:
        super().__init__()
        signature = [tf.TensorSpec((None, 4), tf.float32, name="x")]
        self.serve = tf.function(lambda x: {"y": make(x)}, input_signature=signature)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tf.as_string, "Received: dtype object"),
        (lambda x: tf.complex(x, x), "Received: dtype complex64"),
        (lambda x: x[:, :0], r"shape ('rows', 0)"),
        (lambda x: tf.boolean_mask(x, x[:, 0] > 0), "changes the number of rows"),
        (lambda x: tf.reduce_sum(x, 0), "changes the number of rows"),
        (tf.reduce_sum, "not a dense tensor with one entry for each row"),
    ],
    ids=["text", "complex", "no width", "filtered", "columns for rows", "one value"],
)
def test_an_output_without_a_vector_for_each_row_is_refused(
    tmp_path: Path, make: Make, words: str
) -> None:
    module = Odd(make)
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": module.serve})
    done = run(tmp_path, tmp_path / "saved", NUMBERS)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "each of a row's 4 numbers becomes 1 or -1. To make one vector per row"),
        (("--axis", "all"), None),
        (("--norm", "none"), None),
    ],
    ids=["warned of", "one vector", "not divided"],
)
def test_a_last_axis_of_one_is_warned_of(
    tmp_path: Path, flags: tuple[object, ...], words: str | None
) -> None:
    model = model_of(lambda x: ops.expand_dims(x, -1))
    assert run(tmp_path, model, NUMBERS, *flags).exit_code == 0
    warnings = read(tmp_path / "out").manifest["warnings"]
    assert words in warnings[0] if words else warnings == [], warnings


def test_stored_numbers_that_become_one_are_warned_of(tmp_path: Path) -> None:
    source = write(tmp_path, NUMBERS[:, :1])
    assert invoke("normalize", source, tmp_path / "out", "--column", "x").exit_code == 0
    (warning,) = read(tmp_path / "out").manifest["warnings"]
    assert warning.startswith("`vector` is one number per row, which becomes 1 or -1.")
    done = invoke("compare", source, "--column", "x", "--key", "id", "--json")
    assert done.exit_code == 0, done.stderr
    assert "The vectors have a single component" in json.loads(done.stdout)["warnings"][0]


def test_another_batch_size_than_the_one_built_in_is_refused(tmp_path: Path) -> None:
    model = model_of(layers.Identity(), batch_size=8)
    done = run(tmp_path, model, NUMBERS, "--batch-size", 16)
    assert (done.exit_code, "takes exactly 8 rows per call" in done.stderr) == (2, True)


def test_a_shape_that_depends_on_the_rows_is_refused(tmp_path: Path) -> None:
    def long_rows(x: Any) -> Any:
        return tf.tile(x, (1, tf.cast(tf.reduce_max(x), tf.int32)))

    module = Odd(long_rows)
    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": module.serve})
    array = np.ones_like(NUMBERS)
    array[40] = 3
    flags = ("--set", "model.batch_dependent=accept", "--batch-size", 16)
    for more, words in (
        ((), "depend on the other rows"),
        (flags, "shape of the model's output `y` varies"),
    ):
        done = run(tmp_path, tmp_path / "saved", array, *more)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
