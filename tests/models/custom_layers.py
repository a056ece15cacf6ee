"""Custom classes as a user's package would define them."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("mine")
class Doubling(keras.Model):  # type: ignore[misc]
    """Overrides ``predict_step``."""

    def __init__(self, units: int = 3, **settings: Any) -> None:
        super().__init__(**settings)
        self.units = units
        self.dense = keras.layers.Dense(units)

    def call(self, features: Any) -> Any:
        return self.dense(features)

    def predict_step(self, data: Any) -> Any:
        return {"doubled": 2 * super().predict_step(data)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class OwnPredict(Doubling):
    """Overrides ``predict`` itself."""

    def predict(self, features: Any, verbose: int = 1) -> Any:
        return super().predict(features, verbose=verbose)["doubled"] + 1


@keras.saving.register_keras_serializable("mine")
class Times(keras.layers.Layer):  # type: ignore[misc]
    """A layer with a setting."""

    def __init__(self, factor: float = 2.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.factor = factor

    def call(self, features: Any) -> Any:
        return features * self.factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("mine")
class Reading(keras.Model):  # type: ignore[misc]
    """Takes words."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.lookup = keras.layers.StringLookup(vocabulary=["red", "green"])
        self.vectors = keras.layers.Embedding(3, 4)

    def call(self, words: Any) -> Any:
        return keras.ops.mean(self.vectors(self.lookup(words)), axis=1)


@keras.saving.register_keras_serializable("mine")
class Looking(keras.Model):  # type: ignore[misc]
    """Takes ids, one of which float32 cannot hold."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.vectors = keras.layers.Embedding(2**24 + 2, 1)

    def call(self, ids: Any) -> Any:
        return keras.ops.mean(self.vectors(ids), axis=1)


@keras.saving.register_keras_serializable("mine")
class Hashing(keras.Model):  # type: ignore[misc]
    """Would take integers as well as words, and says which."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bins = keras.layers.Hashing(5)
        self.vectors = keras.layers.Embedding(5, 4)
        self.input_spec = keras.layers.InputSpec(dtype="string", ndim=2)

    def call(self, words: Any) -> Any:
        return keras.ops.mean(self.vectors(self.bins(words)), axis=1)


@keras.saving.register_keras_serializable("mine")
class Both(Reading):
    """Takes words and numbers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.dense = keras.layers.Dense(4)

    def call(self, features: Any) -> Any:
        return super().call(features["word"]) + self.dense(features["size"])
