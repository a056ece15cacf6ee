"""Stores and models for tests of refresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool.models import placement
from batchnorm_tool.models.batching import IdentityPredictor, ModelPredictor
from tests.commands.refresh.nightly import WIDTH, Nightly


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    """A store without a model: its predictions are stored already."""
    return Nightly(tmp_path)


@pytest.fixture(scope="session")
def encoders(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three files: models `a` and `b`, and `again`, which is `a` saved a second time."""
    import keras

    folder = tmp_path_factory.mktemp("encoders")
    for name, seed in (("a", 1), ("b", 2)):
        keras.utils.set_random_seed(seed)
        source = keras.Input((WIDTH,), name="x")
        model = keras.Model(source, keras.layers.Dense(4, name="embedding")(source))
        model.save(folder / f"{name}.keras")
    again = keras.models.load_model(folder / "a.keras")
    again.compile(optimizer="adam", loss="mse")
    again.save(folder / "again.keras")
    return {name: str(folder / f"{name}.keras") for name in ("a", "b", "again")}


@pytest.fixture
def encoded(nightly: Nightly, encoders: dict[str, str]) -> Nightly:
    """A store whose vectors model `a` makes."""
    nightly.sections = {"model": {"path": encoders["a"]}}
    return nightly


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[float]:
    """The first features of all rows that meet a predictor, probes included.

    What is made up beside them, to see whether the model keeps rows apart, is left out.
    """
    values: set[float] = set()
    examining: list[bool] = []

    def examine(model: Any, sized: Any, sample: Mapping[str, np.ndarray], **settings: Any) -> Any:
        values.update(sample["x"][:, 0].astype(float).tolist())
        examining.append(True)
        try:
            return real_examine(model, sized, sample, **settings)
        finally:
            examining.pop()

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def predict(self: Any, arrays: Mapping[str, np.ndarray]) -> Any:
            if not examining:
                values.update(arrays["x"][:, 0].astype(float).tolist())
            return real(self, arrays)

        return predict

    real_examine = placement.examine
    monkeypatch.setattr(placement, "examine", examine)
    for kind in (IdentityPredictor, ModelPredictor):
        monkeypatch.setattr(kind, "predict", wrapped(kind.predict))
    return values
