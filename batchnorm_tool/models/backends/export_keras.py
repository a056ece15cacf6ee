"""A normalized model as a ``.keras`` archive."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from batchnorm_tool.models.backends.normalized_model import NormalizedModel
from batchnorm_tool.models.export import BakeFormat

_METADATA = "metadata.json"


def write_keras(model: NormalizedModel, path: Path) -> None:
    """Save a model; what is to be known of it goes into the archive's metadata."""
    plain = path.with_name("plain.keras")
    model.keras.save(plain)
    with zipfile.ZipFile(plain) as saved, zipfile.ZipFile(path, "w") as written:
        for member in saved.infolist():
            content = saved.read(member)
            if member.filename == _METADATA:
                content = json.dumps({**json.loads(content), **model.metadata}).encode()
            written.writestr(member, content)
    plain.unlink()


KERAS = BakeFormat("model.keras", write_keras, is_admitted=True)
