# ruff: noqa: INP001  (scripts, to be copied)
"""Hold an encoder behind HTTP to the contract of a run or a store.

    python check_encoder.py RUN|STORE|contract.json http://localhost:8501/v1/models/query:predict

It speaks the REST interface of TensorFlow Serving: rows go as `{"instances": [...]}`, and vectors
come back as `{"predictions": [...]}`. It prints what is wrong, and exits with 4, where the encoder
does not make the vectors of the result. It runs on the standard library, NumPy and batchnorm_tool.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np

from batchnorm_tool import Contract


def encoder_at(url: str) -> Callable[[Any], Any]:
    """Return a function from features to the vectors that a server makes of them."""

    def encode(features: Any) -> Any:
        if isinstance(features, dict):
            columns = {name: array.tolist() for name, array in features.items()}
            instances = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        else:
            instances = features.tolist()
        body = json.dumps({"instances": instances}, default=_in_base64).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  (a server of ours)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            rows = json.load(answer)["predictions"]
        if isinstance(rows[0], dict):
            return {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return np.array(rows)

    return encode


def _in_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def main() -> None:
    """Check it once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contract")
    parser.add_argument("url")
    arguments = parser.parse_args()
    report = Contract.load(arguments.contract).check(encoder_at(arguments.url))
    print(report.message)  # noqa: T201
    raise SystemExit(0 if report.agrees else 4)


if __name__ == "__main__":
    main()
