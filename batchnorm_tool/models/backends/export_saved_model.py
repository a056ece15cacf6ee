"""A normalized model as a SavedModel directory."""

from __future__ import annotations

import json
from pathlib import Path

from batchnorm_tool.models.backends.normalized_model import NormalizedModel
from batchnorm_tool.models.export import BakeFormat

# Where TensorFlow keeps what is no part of the graph.
_METADATA = "assets.extra/batchnorm_tool.json"


def write_saved_model(model: NormalizedModel, path: Path) -> None:
    """Export a model, and what is to be known of it."""
    model.export(str(path))
    if model.metadata:
        place = path / _METADATA
        place.parent.mkdir()
        place.write_text(json.dumps(model.metadata))


SAVED_MODEL = BakeFormat("saved_model", write_saved_model, is_admitted=True)
