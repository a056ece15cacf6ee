"""Tries every hostile and every honest model, and prints how many there were.

`python tests/models/security/corpus.py`; the exit code is 1 if a hostile one loaded, or an
honest one was refused or gave other vectors than `model.predict` and NumPy.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchnorm_tool import score
from batchnorm_tool.errors import BatchnormToolError
from batchnorm_tool.models.backends import start_tensorflow
from tests.command_line import invoke
from tests.models.security import corpus_benign, corpus_keras, corpus_saved_model

Trial = Iterator[tuple[str, str | None]]


def try_hostile(models: Iterator[tuple[str, Path]], folder: Path, marker: Path) -> Trial:
    """Show and run each; gives its name, and what went wrong."""
    rows = folder / "rows.npy"
    np.save(rows, np.ones((2, 2), np.float32))
    for name, path in models:
        fault = None
        for command in (("show", path), ("run", path, rows, folder / "out")):
            done = invoke(*command)
            if done.exit_code != 2 or marker.exists() or "unforeseen" in done.output:
                fault = f"{command[0]}: exit {done.exit_code}, {done.output[-300:]}"
            marker.unlink(missing_ok=True)
        yield name, fault


def hostile_keras(folder: Path) -> Trial:
    """The `.keras` and `.h5` files, of which one would load a SavedModel that writes a file."""
    marker = folder / "marker"
    saved_model = dict(corpus_saved_model.hostile(folder, marker))["write a file"]
    return try_hostile(corpus_keras.hostile(folder, marker, saved_model), folder, marker)


def hostile_saved_models(folder: Path) -> Trial:
    """The directories."""
    marker = folder / "marker"
    return try_hostile(corpus_saved_model.hostile(folder, marker), folder, marker)


def benign_keras(folder: Path) -> Trial:
    """Score rows with each honest model; gives its name, and what went wrong."""
    for name, make, suffix in corpus_benign.benign():
        try:
            apart = corpus_benign.difference(make(), folder / f"model.{suffix}")
        except BatchnormToolError as error:
            yield name, error.message
        else:
            yield name, None if apart <= 1e-6 else f"{apart} away from `predict`"


def benign_saved_models(folder: Path) -> Trial:
    """The exports, likewise."""
    for export in corpus_saved_model.benign(folder):
        try:
            found = score(str(export.path), export.features).vectors
        except BatchnormToolError as error:
            yield export.name, error.message
        else:
            apart = np.abs(found.ravel() - corpus_benign.normalized(export.expected).ravel()).max()
            yield export.name, None if apart <= 1e-6 else f"{apart} away"


TRIALS = {
    ("hostile .keras and .h5 files", "loaded"): hostile_keras,
    ("hostile SavedModels", "loaded"): hostile_saved_models,
    ("benign .keras and .h5 files", "refused or different"): benign_keras,
    ("benign SavedModels", "refused or different"): benign_saved_models,
}


def main() -> int:
    """Try them all, and print the counts."""
    start_tensorflow("cpu", 1)
    warnings.simplefilter("ignore")
    faults = 0
    for (kind, outcome), trial in TRIALS.items():
        with tempfile.TemporaryDirectory() as folder:
            tried = dict(trial(Path(folder)))
        found = {name: fault for name, fault in tried.items() if fault}
        faults += len(found)
        print(f"{kind}: {len(tried)} tried, {len(found)} {outcome}")
        for name, fault in found.items():
            print(f"  {name}: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
