"""Manifests of finished runs, made of what a test says of one."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa

from batchnorm_tool.pipeline.manifest import Manifest

_EMPTY = base64.b64encode(pa.schema([]).serialize()).decode()
_RESOLVED = {"batch_size": 1, "chunk_rows": 1, "part_rows": 1, "inputs": [], "outputs": []} | {
    "features": {},
    "carried": _EMPTY,
    "device": "cpu",
    "threads": 1,
    "model_content": None,
    "transform": None,
}
_PART = {"part": 0, "first_row": 0, "rows_in": 0, "rows_out": 0, "bits": ""}
_OUTPUT = {"name": "vector", "shape": [4], "norm": "l2", "axis": -1, "dtype": "float32"} | {
    "vector_column": "vector",
    "norm_column": "norm",
}


def manifest_of(**given: Any) -> Manifest:
    """Complete a manifest, as plain data, with what goes without saying; of no rows by default."""
    job = {"input": {"path": "/in"}, "output": {"path": "/out"}}
    identity = {"space": {}, "bits": {}, "policies": {}, "result": {}}
    plain: dict[str, Any] = {"format": 1, "tool": "batchnorm_tool", "version": "0.1.0"} | {
        "limit": None,
        "request": "",
        **dict.fromkeys(("space", "bits", "result"), "0" * 64),
        "rows": {},
        "reasons": {},
        "first_bad_rows": [],
        "statistics": {},
        "files": [],
        "warnings": [],
        **given,
        "job": job | given.get("job", {}),
        "identity": identity | given.get("identity", {}),
        "resolved": _RESOLVED | given.get("resolved", {}),
        "outputs": [_OUTPUT | each for each in given.get("outputs", [{}])],
        "inputs": [
            {"format": "parquet", "bytes": 0, "rows": 0, "fingerprint": ""} | each
            for each in given.get("inputs", [])
        ],
        "parts": [
            _PART | each | {"files": [{"bytes": 0, "sha256": ""} | file for file in each["files"]]}
            for each in given.get("parts", [])
        ],
    }
    return Manifest.from_dict(plain)
