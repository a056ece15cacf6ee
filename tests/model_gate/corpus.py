"""Tries every hostile and every honest model, and prints how many there were.

Run it from the top of the repository: `python -m tests.model_gate.corpus`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_tool.errors import BatchnormToolError
from tests.command_line import invoke
from tests.model_gate.corpus_benign import benign, difference
from tests.model_gate.corpus_keras import hostile


def evil_saved_model(path: Path, marker: Path) -> None:
    """A SavedModel that writes a file when it is called."""
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32)])
        def __call__(self, x: Any) -> Any:
            tf.io.write_file(str(marker), "x")
            return x

    module = Module()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.__call__})


def try_hostile(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Show and run each hostile file; gives its name, and what went wrong."""
    marker, rows = folder / "marker", folder / "rows.npy"
    np.save(rows, np.ones((2, 2), np.float32))
    evil_saved_model(folder / "saved", marker)
    for name, path in hostile(folder, marker, folder / "saved"):
        fault = None
        for command in (("show", path), ("run", path, rows, folder / "out")):
            done = invoke(*command)
            if done.exit_code != 2 or marker.exists() or "unforeseen" in done.output:
                fault = f"{command[0]}: exit {done.exit_code}, {done.output[-300:]}"
            marker.unlink(missing_ok=True)
        yield name, fault


def try_benign(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Score rows with each honest model; gives its name, and what went wrong."""
    for name, make, suffix in benign():
        try:
            apart = difference(make(), folder / f"model.{suffix}")
        except BatchnormToolError as error:
            yield name, error.message
        else:
            yield name, None if apart <= 1e-6 else f"{apart} away from `predict`"


def main() -> int:
    """Try them all; returns 1 if a hostile one loaded or an honest one did not."""
    from batchnorm_tool.predictor.tensorflow_setup import start_tensorflow

    start_tensorflow("cpu", 1)
    warnings.simplefilter("ignore")
    faults = 0
    for kind, fate, trial in (
        ("hostile", "loaded", try_hostile),
        ("benign", "refused or different", try_benign),
    ):
        with tempfile.TemporaryDirectory() as folder:
            tried = dict(trial(Path(folder)))
        found = {name: fault for name, fault in tried.items() if fault}
        faults += len(found)
        print(f"{kind}: {len(tried)} tried, {len(found)} {fate}")  # noqa: T201  a script
        for name, fault in found.items():
            print(f"  {name}: {fault}")  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
