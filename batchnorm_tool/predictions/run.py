"""Predictions that a finished run normalized: its unit vectors times their norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchnorm_tool.predictions.checks import check_key, check_rank
from batchnorm_tool.predictions.contract import Predictions
from batchnorm_tool.predictions.restored import RestoredStream, chosen_output

if TYPE_CHECKING:
    from batchnorm_tool.jobs.stored_run import StoredRun
    from batchnorm_tool.layout import OutputLayout


def predictions_of_run(
    run: StoredRun, path: str, column: tuple[str, ...], key: tuple[str, ...]
) -> Predictions:
    """Take one output of a finished run; see `batchnorm_tool.predictions.open_predictions`."""
    output = chosen_output(run.layouts, path, column)
    check_rank(path, output.name, output.shape)
    check_key(path, key, run.schema)
    vectors = {one.vector_column for one in run.layouts}
    return Predictions(
        path=path,
        kind="run",
        rows=run.rows,
        width=output.width,
        dtype=run.job.output.dtype,
        column=(output.name,),
        key=key or run.keys,
        columns=tuple(name for name in run.schema.names if name not in vectors),
        provenance=_provenance_of_run(run, output),
        _stream=_RunStream(run, output, run),
    )


def _provenance_of_run(run: StoredRun, output: OutputLayout) -> Mapping[str, Any]:
    identity = run.manifest.identity
    return {
        "space": run.manifest.data["space"],
        "model": run.job.model.path if run.job.model else None,
        "model_sha256": identity.space["model"],
        "output": output.name,
        "norm": output.norm.label,
        "versions": dict(identity.bits["versions"]),
        "made_of": dict(identity.space),
    }


@dataclass(frozen=True)
class _RunStream(RestoredStream):
    """Rows of a finished run, its predictions restored."""

    run: StoredRun

    def locate(self, row: int) -> tuple[str, int]:
        part = next(one for one in reversed(self.run.parts) if one.first <= row)
        file = self.run.file_of(part, self.output.vector_column)
        return f"{self.run.path}/{file}", row - part.first
