"""Plain data as bytes that are the same every time, and their hash: what identities are made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(data: Any) -> bytes:
    """``data`` as JSON with sorted keys and no spare space; NaN and infinity are refused.

    Example:
        >>> canonical_json({"b": 1, "a": [1.5]})
        b'{"a":[1.5],"b":1}'
    """
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # A file name may hold bytes that are no text; `json.loads` reads them back the same way.
    return text.encode(errors="surrogatepass")


def sha256(data: Any) -> str:
    """SHA-256 of the canonical JSON of ``data``, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(data)).hexdigest()


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with a ``checksum`` over all the rest of it."""
    return {**data, "checksum": sha256(data)}


def unsealed(text: bytes) -> dict[str, Any] | None:
    """The data that was sealed, without its checksum, or ``None`` where the checksum disagrees."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    checksum = data.pop("checksum", None)
    return data if checksum == sha256(data) else None
