"""What usual normalizers make of hard rows: ``python -m benchmarks.normalizers [--update]``.

Prints the table of docs/normalizing-in-training.md, or puts it there. The lines of a library that
is not installed stay as the page has them, so that one in an environment of its own (PyTorch) can
be measured by that environment's Python.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "normalizing-in-training.md"
BEGIN, END = "<!-- normalizers -->\n", "<!-- end -->\n"

# Four equal numbers each, so that every component of the unit vector is 0.5.
ROWS: Mapping[str, np.ndarray] = {
    "zeros": np.zeros((1, 4), np.float32),
    "1e-30": np.full((1, 4), 1e-30, np.float32),
    "1e-8": np.full((1, 4), 1e-8, np.float32),
    "1e20": np.full((1, 4), 1e20, np.float32),
    "3e38": np.full((1, 4), 3e38, np.float32),
    "float16 300": np.full((1, 4), 300, np.float16),
}


@dataclass(frozen=True)
class Normalizer:
    """A way to normalize.

    Attributes:
        code: As people write it.
        package: The distribution whose version is told.
        apply: Rows ``[n, d]`` to what it makes of them.
    """

    code: str
    package: str
    apply: Callable[[np.ndarray], Any]


def _numpy(x: np.ndarray) -> Any:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _unit_normalization(x: np.ndarray) -> Any:
    import keras

    return keras.layers.UnitNormalization(dtype=_policy(x))(x)


def _policy(x: np.ndarray) -> str:
    """Name what a model computes in whose rows are of this dtype."""
    return "mixed_float16" if x.dtype == np.float16 else "float32"


def _keras_utils(x: np.ndarray) -> Any:
    import keras

    return keras.utils.normalize(x)


def _keras_ops(x: np.ndarray) -> Any:
    import keras

    return keras.ops.normalize(x)


def _tensorflow(x: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.math.l2_normalize(x, axis=-1)


def _torch(x: np.ndarray) -> Any:
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(x)).numpy()


def _sklearn(x: np.ndarray) -> Any:
    from sklearn.preprocessing import normalize

    return normalize(x)


def _faiss(x: np.ndarray) -> Any:
    import faiss

    faiss.normalize_L2(x)
    return x


def _ours(x: np.ndarray) -> Any:
    from batchnorm_tool import normalize

    return normalize(x)


def _layer(x: np.ndarray) -> Any:
    from batchnorm_tool.layers import VectorNormalization

    return VectorNormalization(dtype=_policy(x))(x)


def _baked(x: np.ndarray) -> Any:
    return _baked_model(x.dtype.name, _policy(x))(x)


@functools.cache
def _baked_model(dtype: str, policy: str) -> Any:
    """Bake a model that gives what it gets."""
    import keras

    from batchnorm_tool import bake

    same = keras.layers.Identity(dtype=policy)
    with tempfile.TemporaryDirectory() as directory:
        raw, copy = f"{directory}/raw.keras", f"{directory}/baked.keras"
        keras.Sequential([keras.Input((4,), dtype=dtype), same]).save(raw)
        bake(raw, copy, "l2")
        return keras.saving.load_model(copy)


NORMALIZERS = (
    Normalizer("x / np.linalg.norm(x, axis=-1, keepdims=True)", "numpy", _numpy),
    Normalizer("keras.layers.UnitNormalization()(x)", "keras", _unit_normalization),
    Normalizer("keras.utils.normalize(x)", "keras", _keras_utils),
    Normalizer("keras.ops.normalize(x)", "keras", _keras_ops),
    Normalizer("tf.math.l2_normalize(x, axis=-1)", "tensorflow", _tensorflow),
    Normalizer("torch.nn.functional.normalize(x)", "torch", _torch),
    Normalizer("sklearn.preprocessing.normalize(x)", "scikit-learn", _sklearn),
    Normalizer("faiss.normalize_L2(x)", "faiss-cpu", _faiss),
    Normalizer("batchnorm_tool.normalize(x)", "batchnorm-tool", _ours),
    Normalizer("batchnorm_tool.layers.VectorNormalization()(x)", "batchnorm-tool", _layer),
    Normalizer("batchnorm_tool.bake(model, out)", "batchnorm-tool", _baked),
)


def word(vector: np.ndarray) -> str:
    """Say what became of a row.

    Example:
        >>> [word(np.array(row)) for row in ([0.6, 0.8], [0, 0], [3e-9, 4e-9], [np.inf, 1])]
        ['right', 'zeros', 'length 5e-09', 'inf']
    """
    found = np.asarray(vector, np.float64)
    if np.isnan(found).any():
        return "NaN"
    if not np.isfinite(found).all():
        return "inf"
    length = float(np.linalg.norm(found))
    near = abs(length - 1) < 1e-3  # float16 has three digits
    return "right" if near else "zeros" if length == 0 else f"length {length:.1g}"


def words(normalizer: Normalizer) -> list[str]:
    """Say what it makes of each of `ROWS`."""
    found = []
    for rows in ROWS.values():
        try:
            with np.errstate(all="ignore"):
                found.append(word(np.asarray(normalizer.apply(rows.copy()))))
        except TypeError:
            found.append("refused")
    return found


def table(shown: str = "") -> str:
    """Make the Markdown table.

    Args:
        shown: The table as the page has it, whose lines stand in for libraries that are missing.
    """
    lines = [f"| | {' | '.join(ROWS)} | version |", "|---" * (len(ROWS) + 2) + "|"]
    known = {line.split("|")[1].strip(): line for line in shown.splitlines()}
    for one in NORMALIZERS:
        code = f"`{one.code}`"
        try:
            version = importlib.metadata.version(one.package)
        except importlib.metadata.PackageNotFoundError:
            lines.append(known.get(code, f"| {code} | not installed |"))
            continue
        lines.append(f"| {code} | {' | '.join(words(one))} | {one.package} {version} |")
    return "\n".join(lines) + "\n"


def on_the_page() -> tuple[str, str, str]:
    """Take the page apart: what is before the table, the table, what is after it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    return before, shown, after


def main() -> None:
    """Print the table, or put it into the page."""
    before, shown, after = on_the_page()
    made = table(shown)
    if "--update" in sys.argv[1:]:
        PAGE.write_text(f"{before}{BEGIN}{made}{END}{after}")
    else:
        sys.stdout.write(made)


if __name__ == "__main__":
    main()
