"""Predictions that a store's live version was made of: its unit vectors times their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchnorm_tool.predictions.checks import check_key, check_rank
from batchnorm_tool.predictions.contract import Predictions
from batchnorm_tool.predictions.restored import RestoredStream, chosen_output

if TYPE_CHECKING:
    from batchnorm_tool.layout import OutputLayout
    from batchnorm_tool.store.snapshot import Snapshot


def predictions_of_store(
    snapshot: Snapshot, path: str, column: tuple[str, ...], key: tuple[str, ...]
) -> Predictions:
    """Take the vectors of a version; see `batchnorm_tool.predictions.open_predictions`."""
    output = chosen_output(snapshot.layouts, path, column)
    check_rank(path, output.name, output.shape)
    check_key(path, key, snapshot.schema)
    return Predictions(
        path=path,
        kind="store",
        rows=snapshot.rows,
        width=output.width,
        dtype=snapshot.dtype,
        column=(output.name,),
        key=key or snapshot.keys,
        columns=tuple(name for name in snapshot.schema.names if name != output.vector_column),
        provenance=_provenance(snapshot, output),
        _stream=RestoredStream(snapshot, output),
    )


def _provenance(snapshot: Snapshot, output: OutputLayout) -> Mapping[str, Any]:
    identity = snapshot.facts.identity or {"space": {}, "bits": {}}
    record = snapshot.document
    return {
        "space": record["space"],
        "model": (record["model"] or {}).get("path"),
        "model_sha256": identity["space"].get("model"),
        "output": output.name,
        "norm": output.norm.label,
        "versions": dict(identity["bits"].get("versions", {})),
        "made_of": dict(identity["space"]),
    }
