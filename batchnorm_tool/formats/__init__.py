"""File formats: one module each, one line each in the registry."""

from __future__ import annotations

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import files
from batchnorm_tool.formats.arrow import Arrow
from batchnorm_tool.formats.base import Format, Inspected, Layout, Sink
from batchnorm_tool.formats.files import unrecognised
from batchnorm_tool.formats.npy import Npy
from batchnorm_tool.formats.parquet import Parquet, close_cached_files

__all__ = [
    "FORMATS",
    "Format",
    "Inspected",
    "Layout",
    "Sink",
    "close_cached_files",
    "format_named",
    "recognise",
]

FORMATS: dict[str, Format] = {
    "parquet": Parquet(),
    "arrow": Arrow(),
    "npy": Npy(),
}


def format_named(name: str, dtype: str | None = None) -> Format:
    """Return the format of that name.

    Example:
        >>> format_named("npy", "bfloat16").name
        'npy'
    """
    if name not in FORMATS:
        hint = near_matches(name, FORMATS)
        message = f"`input.format`: expected one of {sorted(FORMATS)}. Received: {name!r}{hint}."
        raise InputError(message)
    return Npy(dtype=dtype) if name == "npy" else FORMATS[name]


def recognise(path: str, expected: str | None = None) -> str:
    """Tell a file's format from its first and last bytes, whatever its name ends in.

    Returns:
        A key of `FORMATS`.
    """
    head, tail = files.edges(path)
    found = next((name for name, form in FORMATS.items() if form.recognises(head, tail)), None)
    if found is None:
        raise unrecognised(path, head, tail)
    if expected is not None and found != expected:
        message = (
            f"{path}: is not of the format that `input.format` names. Expected: {expected}. "
            f"Received: {found}. Leave `input.format` out, or correct it."
        )
        raise InputError(message)
    return found
