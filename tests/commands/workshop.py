"""Finished runs over stored predictions, made quickly and without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnorm_tool.commands.run.run import run
from batchnorm_tool.job import Input, Job, Normalize, Output

FORMATS = ["parquet", "arrow", "npy"]
ROWS = 300


@dataclass
class Workshop:
    """Makes finished runs over stored predictions in a directory of its own."""

    path: Path

    def run(self, columns: dict[str, pa.Array], form: str = "parquet", **sections: Any) -> Path:
        source = self.path / "input.parquet"
        pq.write_table(pa.table(columns), source)
        return self._run(str(source), form, sections)

    def run_array(self, array: np.ndarray, form: str = "parquet", **sections: Any) -> Path:
        source = self.path / "input.npy"
        np.save(source, array)
        return self._run(str(source), form, sections)

    def run_keys(self, keys: pa.Array, form: str = "parquet") -> Path:
        columns = {"id": keys, "raw": lists(predictions(len(keys)))}
        return self.run(columns, form, input={"key": "id", "features": "raw"})

    def _run(self, source: str, form: str, sections: dict[str, Any]) -> Path:
        output = {"path": str(self.path / form), "format": form, "part_rows": 128}
        job = Job(
            input=Input(path=source, **sections.get("input", {})),
            normalize=Normalize(**sections.get("normalize", {})),
            output=Output(**{**output, **sections.get("output", {})}),
        )
        run(job, fresh=sections.get("fresh", False))
        return Path(job.output.path)


def predictions(rows: int = ROWS, width: int = 5, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.integers(-4, 5, size=(rows, 1))
    return (generator.normal(size=(rows, width)) * scales).astype(np.float32)


def lists(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def plain(workshop: Workshop, form: str = "parquet") -> Path:
    return workshop.run_array(predictions(), form)
