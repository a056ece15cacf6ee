"""Make every file of this folder anew: `make samples`, or `python data_samples/make_samples.py`.

Needs scikit-learn beside the package's own dependencies. Seeds are fixed and TensorFlow runs its
deterministic operations on one thread, so that one machine makes the same weights every time;
another CPU or TensorFlow version may differ in the last digits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent
SEED = 20
EPOCHS = 20
LARGEST_INK = 16.0
FLOAT_VECTOR = {width: pa.list_(pa.float32(), width) for width in (32, 64)}


def main() -> None:
    """Write the tables, train the encoders, store the predictions of the first one."""
    pin_arithmetic()
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    pixels = (digits.data / LARGEST_INK).astype(np.float32)
    images = pixels.reshape(-1, 8, 8, 1)
    halves = {"upper": pixels[:, :32], "lower": pixels[:, 32:]}

    write_table("digits", labels, {"pixels": vectors(pixels)})
    write_table("digits_halves", labels, {name: vectors(half) for name, half in halves.items()})
    write_table("digits_wide", labels, {f"pixel_{i:02}": pa.array(pixels[:, i]) for i in range(64)})
    np.save(FOLDER / "digits.npy", images)
    write_bad_rows(pixels, labels)

    encoder = train(flat_encoder, pixels, labels)
    train(image_encoder, images, labels)
    train(two_input_encoder, list(halves.values()), labels)
    predictions = encoder.predict(pixels, batch_size=256, verbose=0)
    write_table("digits_predictions", labels, {"prediction": vectors(predictions)})


def pin_arithmetic() -> None:
    """Fix what could make two trainings on one machine differ."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()


def vectors(array: np.ndarray) -> pa.Array:
    """Turn ``float32[n, width]`` into a FixedSizeList column of that width."""
    flat = pa.array(np.ascontiguousarray(array, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=FLOAT_VECTOR[array.shape[1]])


def write_table(name: str, labels: np.ndarray, columns: dict[str, pa.Array]) -> None:
    """Write ``id``, ``label`` and the given columns as one Parquet file."""
    ids = np.arange(len(labels), dtype=np.int64)
    table = pa.table({"id": ids, "label": labels, **columns})
    path = FOLDER / f"{name}.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_page_checksum=True)


def write_bad_rows(pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write one row of every kind of fault, each after a good row, and a good one at the end."""
    nan, inf = float("nan"), float("inf")
    faults = {
        "null_list": lambda row: None,  # noqa: ARG005
        "null_element": lambda row: [*row[:10], None, *row[11:]],
        "ragged_short": lambda row: row[:-1],
        "ragged_long": lambda row: [*row, 0.5],
        "nan": lambda row: [nan, *row[1:]],
        "positive_infinity": lambda row: [inf, *row[1:]],
        "negative_infinity": lambda row: [*row[:-1], -inf],
        "all_zeros": lambda row: [0.0] * len(row),
        "overflowing_prediction": lambda row: [1.5e38 * pixel for pixel in row],
    }
    kinds = [kind for fault in faults for kind in ("good", fault)] + ["good"]
    rows = [faults.get(kind, list)(row) for kind, row in zip(kinds, pixels.tolist(), strict=False)]
    columns = {"kind": pa.array(kinds), "pixels": pa.array(rows, pa.list_(pa.float32()))}
    write_table("bad_rows", labels[: len(kinds)], columns)


def dense(width: int, name: str, activation: str | None = None) -> layers.Dense:
    """Make a layer without bias: more ink, longer vectors; a blank image, the zero vector."""
    return layers.Dense(width, activation=activation, use_bias=False, name=name)


def flat_encoder() -> keras.Model:
    """`pixels` [64] -> `embedding` [32]."""
    pixels = keras.Input((64,), name="pixels")
    embedding = dense(32, "embedding")(dense(64, "hidden", "relu")(pixels))
    return keras.Model(pixels, embedding, name="digits_encoder")


def image_encoder() -> keras.Model:
    """`image` [8, 8, 1] -> `embedding` [32]."""
    image = keras.Input((8, 8, 1), name="image")
    edges = layers.Conv2D(8, 3, activation="relu", use_bias=False, name="edges")(image)
    embedding = dense(32, "embedding")(layers.Flatten(name="flat")(edges))
    return keras.Model(image, embedding, name="digits_image_encoder")


def two_input_encoder() -> keras.Model:
    """`upper` [32], `lower` [32] -> `embedding` [32], and `halves` [2, 16], one vector for each."""
    inputs = [keras.Input((32,), name=name) for name in ("upper", "lower")]
    codes = [dense(16, f"{half.name}_code")(half) for half in inputs]
    joined = layers.Concatenate(name="joined")(codes)
    halves = layers.Reshape((2, 16), name="halves")(joined)
    hidden = layers.Activation("relu", name="hidden")(joined)
    outputs = [dense(32, "embedding")(hidden), halves]
    return keras.Model(inputs, outputs, name="digits_two_inputs")


def train(
    build: Callable[[], keras.Model], features: np.ndarray | list[np.ndarray], labels: np.ndarray
) -> keras.Model:
    """Train under a classification head on the embedding, then save without the head."""
    keras.utils.set_random_seed(SEED)
    encoder = build()
    embedding = encoder.get_layer("embedding").output
    scores = layers.Dense(10, activation="softmax", name="digit")(embedding)
    classifier = keras.Model(encoder.inputs, scores)
    classifier.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = classifier.fit(features, labels, batch_size=32, epochs=EPOCHS, verbose=0)
    print(f"{encoder.name}: accuracy on its training rows {history.history['accuracy'][-1]:.3f}")
    encoder.save(FOLDER / f"{encoder.name}.keras")
    return encoder


if __name__ == "__main__":
    main()
