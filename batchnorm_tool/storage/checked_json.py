"""Plain data as bytes that are the same every time, and their hash: what identities are made of."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from batchnorm_tool.errors import Damaged

_P = ParamSpec("_P")
_R = TypeVar("_R")
# What Python says of records in which something else stands than was written.
UNREADABLE_RECORD_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)

_SEAL = b'{"checksum":"%s",%s'
_DIGEST = slice(13, 13 + 64)


def canonical_json(data: Any) -> bytes:
    """Return ``data`` as JSON with sorted keys and no spare space; NaN and infinity are refused.

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
    """Return SHA-256 of the canonical JSON of ``data``, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(data)).hexdigest()


def dump_checked_json(data: dict[str, Any]) -> bytes:
    """Dump ``data``, not empty, as canonical JSON with a ``checksum`` of the rest in front.

    Read back by `load_checked_json` without encoding it again, which matters where there are many.

    Example:
        >>> dump_checked_json({"part": 7})[:20], dump_checked_json({"part": 7})[-11:]
        (b'{"checksum":"ea5e8d5', b'","part":7}')
    """
    body = canonical_json(data)
    return _SEAL % (hashlib.sha256(body).hexdigest().encode(), body[1:])


def load_checked_json(text: bytes) -> dict[str, Any] | None:
    """Read back what `dump_checked_json` wrote.

    Returns:
        The data, or ``None`` where the checksum disagrees or there is none.
    """
    digest, body = text[_DIGEST], b"{" + text[_DIGEST.stop + 2 :]
    if text != _SEAL % (digest, body[1:]) or hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    data: dict[str, Any] = json.loads(body)
    return data


def with_checksum(data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with a ``checksum`` over the rest of it, as in documents for readers."""
    return {**data, "checksum": sha256(data)}


def verified_json(text: bytes) -> dict[str, Any] | None:
    """Return the data without its checksum, or ``None`` where the checksum disagrees."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    checksum = data.pop("checksum", None)
    return data if checksum == sha256(data) else None


def explain_unreadable_records(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Tell of records in a run or store that hold something else than this version writes.

    Their checksums agree: another version or program wrote them. What goes wrong with them is
    mapped here, once, because they are looked at in so many places.

    Returns:
        The function, which raises `Damaged` instead of what Python says of the records.
    """

    @functools.wraps(function)
    def wrapper(*arguments: _P.args, **named: _P.kwargs) -> _R:
        try:
            return function(*arguments, **named)
        except UNREADABLE_RECORD_ERRORS as error:
            said = " ".join(str(error).split())[:200]
            path = arguments[0] if arguments else named["path"]
            msg = (
                f"`{path}`: what it keeps of itself is not as this version writes it "
                f"({type(error).__name__}: {said}). Read it with the version that wrote it, "
                "restore it from a copy, or make it again."
            )
            raise Damaged(msg) from error

    return wrapper
