"""A manifest and its chunk table, made from random predictions in the formats of a finished run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.norms.stats import NormStats, VectorStats
from batchnorm_tool.pipeline.manifest import Manifest
from batchnorm_tool.pipeline.part_output import CHUNK_SCHEMA
from tests.manifests import manifest_of
from tests.report.browser import Browser, opened

QUANTILES = ("q01", "q05", "q25", "q50", "q75", "q95", "q99")
L2 = Norm.parse("l2")


def norm_stats(norms: np.ndarray) -> NormStats:
    return NormStats.of(norms.astype(np.float64))


def chunk_table(outputs: dict[str, np.ndarray], chunk_rows: int) -> pa.Table:
    rows = [
        {"part": chunk // 4, "chunk": chunk % 4, "output": name, "norm": label, "first_row": first}
        | _distribution(stats, vectors[first : first + chunk_rows])
        for name, vectors in outputs.items()
        for chunk, first in enumerate(range(0, len(vectors), chunk_rows))
        for label, stats in _measure(vectors[first : first + chunk_rows]).norms.items()
    ]
    return pa.Table.from_pylist(rows, schema=CHUNK_SCHEMA)


def _measure(vectors: np.ndarray) -> VectorStats:
    return VectorStats.of(np.ascontiguousarray(vectors), rows=len(vectors), in_use=L2)


def _distribution(stats: NormStats, piece: np.ndarray) -> dict[str, Any]:
    counts = {"rows": len(piece), "vectors": len(piece)}
    counts |= {"zero": stats.zero, "nonfinite": stats.nonfinite, "histogram": []}
    if not stats.count:
        return counts
    extremes = {"min": stats.min, "max": stats.max, "mean": stats.mean, "std": stats.std}
    return counts | extremes | {name: stats.quantile(int(name[1:]) / 100) for name in QUANTILES}


@dataclass
class Run:
    """What a page is made from; `build` fills it from raw predictions."""

    manifest: dict[str, Any]
    chunks: pa.Table
    predictions: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def record(self) -> Manifest:
        """The manifest as a page takes it."""
        return manifest_of(**self.manifest)


def build_run(predictions: dict[str, np.ndarray], chunk_rows: int = 128, norm: str = "l2") -> Run:
    rows = len(next(iter(predictions.values())))
    outputs = [
        {"name": name, "norm": norm, "shape": [vectors.shape[1]], "dtype": "float32"}
        | {"vector_column": name, "norm_column": f"{name}_norm"}
        for name, vectors in predictions.items()
    ]
    manifest = {
        "format": 1,
        "tool": "batchnorm_tool",
        "version": "0.1.0",
        "job": {
            "input": {"path": "/data/samples/digits.parquet", "key": "id"},
            "model": {"path": "/data/samples/digits_encoder.keras"},
            "output": {"path": "/data/runs/digits", "format": "parquet"},
        },
        "resolved": {"batch_size": 1024, "device": "cpu", "threads": 1, "chunk_rows": chunk_rows},
        **{name: hashlib.sha256(name.encode()).hexdigest() for name in ("space", "bits", "result")},
        "identity": {"bits": {"versions": {"tensorflow": "2.21.0", "keras": "3.15.1"}}},
        "inputs": [{"path": "digits.parquet", "format": "parquet", "rows": rows, "bytes": 460123}],
        "rows": {"in": rows, "out": max(0, rows - 3), "bad": 3, "zero": 1, "quarantined": 3}
        | {"dropped": 0, "nullified": 0},
        "reasons": {"null_feature": 1, "nonfinite_prediction": 2, "zero_vector": 0},
        "first_bad_rows": [
            {"row": 130, "file": "digits.parquet", "file_row": 130, "key": "a-130"}
            | {"reason": "null_feature"},
            {"row": 700, "file": "digits.parquet", "file_row": 700, "key": "a-700"}
            | {"reason": "nonfinite_prediction"},
        ],
        "outputs": outputs,
        "parts": _parts(rows),
        "statistics": {name: _measure(vectors).to_dict() for name, vectors in predictions.items()},
        "warnings": [],
        "checksum": "0" * 64,
    }
    return Run(manifest, chunk_table(predictions, chunk_rows), predictions)


def _parts(rows: int) -> list[dict[str, Any]]:
    return [
        {
            "part": number,
            "first_row": first,
            "rows_in": min(512, rows - first),
            "rows_out": min(512, rows - first),
            "bits": "0" * 64,
            "files": [
                {"path": f"vectors/part-{number:06d}.parquet", "bytes": 71234 + number}
                | {"sha256": hashlib.sha256(bytes([number % 256])).hexdigest()}
            ],
        }
        for number, first in enumerate(range(0, rows, 512))
    ]


def encoder_like(rows: int = 1797, width: int = 32, seed: int = 0) -> np.ndarray:
    """Return float64[rows, width] whose norms vary and drift, with one zero and two bad vectors."""
    generator = np.random.default_rng(seed)
    scale = generator.lognormal(0.4, 0.3, (rows, 1)) * np.linspace(1, 1.4, rows)[:, None]
    centre = generator.normal(0, 0.6, width)
    spread = generator.uniform(0.2, 1.2, width)
    vectors = scale * (centre + generator.normal(size=(rows, width)) * spread)
    vectors[rows // 3] = 0
    vectors[rows // 2 : rows // 2 + 2, 0] = [np.nan, np.inf]
    return vectors


@pytest.fixture(name="make_run")
def _make_run() -> Callable[..., Run]:
    return build_run


@pytest.fixture(name="make_stats")
def _make_stats() -> Callable[[np.ndarray], NormStats]:
    return norm_stats


@pytest.fixture(name="make_predictions")
def _make_predictions() -> Callable[..., np.ndarray]:
    return encoder_like


@pytest.fixture(name="sample")
def _sample() -> Run:
    """A run over 1,797 rows with one output of 32 dimensions."""
    return build_run({"vector": encoder_like()})


@pytest.fixture(scope="session", name="browser")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from opened(tmp_path_factory.mktemp("profile"))
