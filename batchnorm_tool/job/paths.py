"""Where things lie: local paths made absolute, URIs left alone, secrets in URIs found.

Everything here looks at the text only, never at the disk, so that a job can be read anywhere.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase

from batchnorm_tool.display import mask_secrets

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(path: str) -> bool:
    """Whether ``path`` begins with a scheme, such as ``s3://``.

    Example:
        >>> is_uri("s3://bucket/key"), is_uri("a/b.parquet")
        (True, False)
    """
    return _SCHEME.match(path) is not None


def holds_secrets(uri: str) -> bool:
    """Whether a URI carries credentials: those belong in the environment, not in a job.

    Example:
        >>> holds_secrets("s3://AKIA:secret@bucket/key"), holds_secrets("abfss://box@host/key")
        (True, False)
    """
    return mask_secrets(uri) != uri


def absolute(path: str, base: str) -> str:
    """A local path made absolute and free of ``.`` and ``..``; a URI as it is.

    Args:
        path: A path or URI; ``~`` stands for the home directory.
        base: The directory that a relative path starts from.

    Returns:
        The path; whether anything lies there is not looked at, nor are links followed.

    Example:
        >>> absolute("../data/x.parquet", "/jobs/nightly")
        '/jobs/data/x.parquet'
    """
    if is_uri(path):
        return path
    return os.path.abspath(os.path.join(base, os.path.expanduser(path)))  # noqa: PTH100, PTH111, PTH118


def lies_within(inner: str, outer: str) -> bool:
    """Whether one absolute path is another or lies below it, as far as the text tells.

    Args:
        inner: The path in question.
        outer: A file, a directory or a glob pattern; ``**`` matches any number of directories.

    Returns:
        True where reading ``outer`` whole would read ``inner`` too.

    Example:
        >>> lies_within("/data/out", "/data"), lies_within("/data/out", "/data/*.parquet")
        (True, False)
    """
    parts = outer.rstrip("/").split("/")
    if "**" in parts:
        parts = parts[: parts.index("**")]
    start = inner.rstrip("/").split("/")[: len(parts)]
    return len(start) == len(parts) and all(map(_matches, start, parts))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
