"""Records of other versions and programs: any content behind a checksum that is right."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from batchnorm_tool.storage.checked_json import canonical_json, is_sealed


def sealed(data: dict[str, Any]) -> bytes:
    """The file of a `SealedRecord` that holds ``data``, whatever it is."""
    body = canonical_json(data)
    checksum = hashlib.sha256(body).hexdigest()
    return b'{"checksum":"' + checksum.encode() + b'",' + body[1:]


def unsealed(text: bytes) -> dict[str, Any]:
    """What the file of a `SealedRecord` holds."""
    assert is_sealed(text)
    data: dict[str, Any] = json.loads(text)
    del data["checksum"]
    return data
