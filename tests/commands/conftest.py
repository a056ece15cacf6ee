"""Fixtures for runs over the sample data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.job import Job
from tests.commands.plain_script import BATCH, predict
from tests.commands.workshop import Workshop


@pytest.fixture(scope="session")
def encoder(samples: Path, tensorflow: None) -> keras.Model:
    return keras.models.load_model(samples / "digits_encoder.keras", compile=False)


@pytest.fixture(scope="session")
def raw(encoder: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """What the model itself says about all digits: float32 [1797, 32]."""
    return predict(encoder, pixels)


@pytest.fixture
def encode(samples: Path, tmp_path: Path) -> Callable[..., RunResult]:
    """Runs the encoder over an input, sections of the job as keywords."""

    def start(source: object, limit: int | None = None, **sections: dict[str, Any]) -> RunResult:
        data = {
            "input": {"path": source, **sections.get("input", {})},
            "model": {
                "path": str(samples / "digits_encoder.keras"),
                "batch_size": BATCH,
                **sections.get("model", {}),
            },
            "normalize": sections.get("normalize", {}),
            "output": {"path": "out", **sections.get("output", {})},
        }
        return run(Job.from_dict(data, tmp_path), limit=limit)

    return start


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Makes finished runs over stored predictions."""
    return Workshop(tmp_path)
