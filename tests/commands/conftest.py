"""Fixtures for runs over the sample data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchnorm_tool.commands.run.run import RunResult, run
from batchnorm_tool.job import Job
from batchnorm_tool.models.backends import bare_runner
from batchnorm_tool.models.backends.loading import quiet_libraries
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


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Baked files run in this process, which has imported TensorFlow, not in bare ones."""

    def run_here(*calls: Any) -> list[dict[str, Any]]:
        with quiet_libraries():
            return bare_runner.run(calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchnorm_tool.commands.bake.parity.run_bare", run_here)
        yield
