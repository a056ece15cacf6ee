"""What the tool's results are held against: `model.predict`, and NumPy in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa

from batchnorm_tool.job import Job

SAMPLES = Path(__file__).parents[2] / "data_samples"
BATCH = 256
ROWS = 1797
NORMS: dict[str, dict[str, Any]] = {
    "none": {"norm": "none"},
    "l1": {"norm": "l1"},
    "l2": {"norm": "l2"},
    "cosine": {"norm": "cosine"},
    "max": {"norm": "max"},
    "lp": {"norm": "lp", "p": 3},
}
ORDERS = {"l1": 1, "l2": 2, "cosine": 2, "max": np.inf, "lp": 3}


def predict(model: keras.Model, *arrays: np.ndarray) -> Any:
    """What `model.predict` gives on full batches: the tail padded with its last row."""
    rows = len(arrays[0])
    missing = -rows % BATCH
    padded = [np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for array in arrays]
    given = padded[0] if len(padded) == 1 else padded
    found = model.predict(given, batch_size=BATCH, verbose=0)
    return [one[:rows] for one in found] if isinstance(found, list) else found[:rows]


def normalized(raw: np.ndarray, norm: str, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The plain script: float64 norms over the last axis, one rounding."""
    wide = raw.astype(np.float64)
    if norm == "none":
        return raw.astype(dtype), np.ones(raw.shape[:-1])
    norms = np.linalg.norm(wide, ORDERS[norm], axis=-1, keepdims=True)
    return (wide / np.where(norms == 0, 1, norms)).astype(dtype), norms[..., 0]


def vector_column(array: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def stored(path: Path, out: Path, **sections: dict[str, Any]) -> Job:
    """The job that normalizes predictions that are stored already."""
    data = {
        "input": {"path": str(path), **sections.get("input", {})},
        "normalize": sections.get("normalize", {}),
        "output": {"path": str(out), **sections.get("output", {})},
    }
    return Job.from_dict(data)
