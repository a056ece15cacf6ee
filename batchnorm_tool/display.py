"""Text for a person or a log: without secrets and control characters, and with hints."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters and lone surrogates cannot stand in HTML; direction overrides would let a
# column's name reorder the words around it; line separators would break a terminal's line.
INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# `//` then everything up to the last `@`: secret keys may themselves hold `/` and `@`, but then
# a `:` comes before the first `/`.
# What cannot be a port is a password, which may then hold `?` and `#` as well.
_PASSWORD = re.compile(r"(?s)(?<=://)[^/?#@]*:(?:(?!\d*(?:[/?#]|$)).*|[^?#]*)(?=@)")
_USER = re.compile(r"(?<=://)([^/?#@:]+)(?=@)")
_NO_PORT = re.compile(r"(?<=://)[^/?#@:]*:(?!\d+(?=[/?#]|$)|(?=[/?#]|$))[^?#]*")
_SECRET = re.compile(
    r"(?i)(?<=[?&])([^=&#]*(?:secret|passw|token|signature|credential|access_?key|account_?key|"
    r"key_?id)[^=&#]*|sig|sas|key)=([^&#]*)"
)
# A whole text, a quotation in a message, or a word.
_URI = re.compile(
    r"(?s)(?:\A{0}.*|(?<=`){0}[^`]*|(?<='){0}[^']*|(?<=\"){0}[^\"]*|{0}[^\s`]*)".format(
        "[A-Za-z][A-Za-z0-9+.-]*://"
    )
)
# As in libpq's connection strings.
_ASSIGNED = re.compile(
    r"(?i)\b(\w*(?:password|passwd|pwd|secret_?key))\s*=\s*(?:'(?:[^'\\]|\\.)*'?|[^\s&`*][^\s&`]*)"
)
# There a bare name before the `@` is an account, a container or "anonymous", not a credential.
_NAMED_BEFORE_AT = ("abfs", "wasb", "gs", "gcs", "hdfs", "sftp", "ssh")


def printable(text: str) -> str:
    """Return one line with secrets masked, and no control character of data in it."""
    return visible(mask_secrets(text))


def visible(text: str) -> str:
    r"""Return ``text`` with every control character shown as U+FFFD.

    Args:
        text: Any text, also from a hostile file.

    Returns:
        Text of the same length that is safe on a terminal's line and encodes as UTF-8.

    Example:
        >>> visible("a\x1b[31m") == "a\ufffd[31m"
        True
    """
    return INVISIBLE.sub("\ufffd", text)


def mask_secrets(text: str) -> str:
    """Replace passwords, user names and secret parameters of URIs by ``***``.

    Args:
        text: Any text; what is neither a URI nor a password comes back as it is.

    Returns:
        The text, fit to be printed.

    Example:
        >>> mask_secrets("s3://AKIA:secret@bucket/key?region=eu&session_token=abc")
        's3://***@bucket/key?region=eu&session_token=***'
    """
    return _ASSIGNED.sub(r"\1=***", _URI.sub(lambda found: _masked_uri(found[0]), text))


def _masked_uri(uri: str) -> str:
    masked = _PASSWORD.sub("***", uri)
    scheme = uri.partition("://")[0].lower()
    if not scheme.endswith(_NAMED_BEFORE_AT) and not scheme.startswith(_NAMED_BEFORE_AT):
        masked = _USER.sub("***", masked)
    return _SECRET.sub(r"\1=***", _NO_PORT.sub("***", masked))


def did_you_mean(name: object, choices: Iterable[str], likeness: float = 0.6) -> str:
    """Ask for the nearest of several names; "" where none is near.

    Example:
        >>> did_you_mean("featurs", ["format", "features"])
        ' Did you mean `features`?'
    """
    near = _nearest(str(name), choices, likeness)
    return f" Did you mean `{near}`?" if near else ""


def near_matches(name: str, present: Iterable[str]) -> str:
    """Ask for the nearest of several names within a sentence; "" where none is near.

    Example:
        >>> near_matches("pixel", ["pixels", "label"])
        ' (did you mean `pixels`?)'
        >>> near_matches("zzz", ["pixels"])
        ''
    """
    near = _nearest(name, present)
    return f" (did you mean `{near}`?)" if near else ""


def _nearest(name: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    spelled = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(name.casefold(), spelled, n=1, cutoff=likeness)
    return spelled[near[0]] if near else None
