"""Sets of vectors for the gate, drawn from populations with known troubles."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from batchnorm_tool.gate.findings import Finding
from batchnorm_tool.gate.output_limits import BadCounts, Vectors, evaluate_output
from batchnorm_tool.job.refresh_sections import OutputGate

NO_BAD = BadCounts(changed_rows=1000, changed_bad=0, whole_rows=10_000, whole_bad=0)


def vectors_of(predictions: np.ndarray, first_key: int = 0) -> Vectors:
    norms = np.linalg.norm(predictions, axis=1)
    unit = predictions / np.where(norms > 0, norms, 1)[:, None]
    keys = pa.table({"id": np.arange(first_key, first_key + len(norms))})
    return Vectors(unit.astype(np.float32), norms, norms, keys)


def gaussian(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Dimensions of different spread around a centre that is not zero."""
    return generator.normal(size=(rows, width)) * np.linspace(0.2, 1.5, width) + 0.5


def sparse(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Rectified dimensions, of which the last are hardly ever alive, and norms near zero."""
    x = np.maximum(generator.normal(size=(rows, width)) - np.linspace(0, 3.2, width), 0)
    x[:, 0] += 1e-3
    return x


def heavy(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Outliers in every dimension, and norms over several orders of magnitude."""
    x = generator.standard_t(2.5, size=(rows, width))
    return x * generator.lognormal(0, 1, (rows, 1))


def one_direction(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """All variance in a single dimension, the others all but constant."""
    x = generator.normal(size=(rows, width)) * 1e-3
    x[:, 0] = 1
    x[:, 1] = 2 * generator.normal(size=rows)
    return x


POPULATIONS = {f.__name__: f for f in (gaussian, sparse, heavy, one_direction)}


def judged(
    changed: np.ndarray, live: np.ndarray | None, limits: OutputGate | None = None
) -> dict[tuple[str, str], Finding]:
    """Judge changed rows, the whole being the live set, and give findings by limit and scope."""
    old = None if live is None else vectors_of(live)
    whole = vectors_of(changed) if old is None else old
    limits = limits or OutputGate()
    findings = evaluate_output(limits, vectors_of(changed, 10**6), whole, old, NO_BAD)
    return {(f.limit.rpartition(".")[2], f.scope): f for f in findings}
