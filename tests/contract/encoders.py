"""Three small models, their rows, and encoders that are right or err in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool import Job, run
from batchnorm_tool.contract import Contract

ROWS = 16
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Encoder:
    """A Keras model with rows for it, and two of its features."""

    model: Any
    features: Arrays
    columns: Mapping[str, tuple[str, ...]]
    swap: tuple[str, str]

    def predict(self, features: Arrays) -> np.ndarray:
        """Raw predictions."""
        import tensorflow as tf

        given = {
            name: tf.constant(a.tolist() if a.dtype == object else a)
            for name, a in features.items()
        }
        return self._call(given if len(given) > 1 else next(iter(given.values()))).numpy()

    @cached_property
    def _call(self) -> Any:
        import tensorflow as tf

        return tf.function(self.model)

    @property
    def raw(self) -> np.ndarray:
        """Raw predictions of its rows."""
        return self.predict(self.features)

    def run(self, folder: Path) -> Path:
        """A finished run of the model over its rows, many times, each with noise."""
        columns = {
            column: _many(array[:, at])
            for name, array in self.features.items()
            for at, column in enumerate(self.columns[name])
        }
        pq.write_table(pa.table(columns), folder / "rows.parquet")
        self.model.save(folder / "model.keras")
        features = {name: [*columns] for name, columns in self.columns.items()}
        job = {
            "input": {"path": "rows.parquet", "features": features},
            "model": {"path": "model.keras", "batch_size": 64},
            "output": {"path": "out"},
        }
        run(Job.from_dict(job, folder))
        return folder / "out"

    def swapped(self, features: Arrays) -> Arrays:
        """The rows with two features in each other's place."""
        (one, i), (other, j) = (self._place(name) for name in self.swap)
        copies = {name: array.copy() for name, array in features.items()}
        copies[one][:, i], copies[other][:, j] = features[other][:, j], features[one][:, i]
        return copies

    def _place(self, column: str) -> tuple[str, Any]:
        for name, columns in self.columns.items():
            if column in columns:
                return name, columns.index(column)
        raise KeyError(column)


def _many(values: np.ndarray) -> np.ndarray:
    rows = np.resize(values, 12 * len(values))
    if rows.dtype == object:
        return rows
    return rows + np.random.default_rng(len(rows)).normal(size=len(rows)).astype(rows.dtype)


def dense() -> Encoder:
    """Four columns through two Dense layers."""
    import keras

    keras.utils.set_random_seed(1)
    x = keras.Input((4,), name="x")
    y = keras.layers.Dense(12, name="y")(keras.layers.Dense(16, activation="tanh")(x))
    rows = {"x": np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)}
    return Encoder(
        keras.Model(x, y), rows, {"x": ("age", "price", "size", "stock")}, ("price", "stock")
    )


def two_inputs() -> Encoder:
    """Two inputs of columns, of which one of each can be taken for the other."""
    import keras

    keras.utils.set_random_seed(2)
    user, item = keras.Input((2,), name="user"), keras.Input((3,), name="item")
    both = keras.layers.Concatenate()([user, keras.layers.Dense(5, activation="gelu")(item)])
    rng = np.random.default_rng(2)
    rows = {
        "user": rng.normal(size=(ROWS, 2)).astype(np.float32),
        "item": rng.normal(size=(ROWS, 3)).astype(np.float32),
    }
    columns = {"user": ("age", "visits"), "item": ("price", "size", "weight")}
    model = keras.Model([user, item], keras.layers.Dense(10, name="y")(both))
    return Encoder(model, rows, columns, ("visits", "weight"))


def lookups() -> Encoder:
    """Two columns of words, looked up and embedded."""
    import keras

    keras.utils.set_random_seed(3)
    words = ["red", "green", "blue", "shoe", "shirt", "hat"]
    x = keras.Input((2,), name="words", dtype="string")
    ids = keras.layers.StringLookup(vocabulary=words)(x)
    embedded = keras.layers.Flatten()(keras.layers.Embedding(7, 5)(ids))
    rng = np.random.default_rng(3)
    rows = {"words": rng.permutation([[a, b] for a in words[:4] for b in words[2:]]).astype(object)}
    model = keras.Model(x, keras.layers.Dense(9, name="y")(embedded))
    return Encoder(model, rows, {"words": ("color", "kind")}, ("color", "kind"))


ENCODERS: Mapping[str, Callable[[], Encoder]] = {
    "dense": dense,
    "two inputs": two_inputs,
    "lookups": lookups,
}


def encode_with(
    encoder: Encoder, contract: Contract, after: Callable[[np.ndarray], np.ndarray] | None = None
) -> Callable[[Any], np.ndarray]:
    """The right encoder, or one that does something else ``after`` predicting."""

    def encode(given: Any) -> np.ndarray:
        features = given if isinstance(given, Mapping) else {next(iter(encoder.features)): given}
        return (after or contract.apply)(encoder.predict(features))

    return encode
