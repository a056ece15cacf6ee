"""File formats: one module each, one line each in `batchnorm_tool.registry.FORMATS`."""

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import files
from batchnorm_tool.formats.base import Format, Inspected, Layout, Sink
from batchnorm_tool.formats.files import unrecognised
from batchnorm_tool.formats.parquet import close_cached_files
from batchnorm_tool.registry import FORMATS, load

__all__ = [
    "Format",
    "Inspected",
    "Layout",
    "Sink",
    "close_cached_files",
    "format_named",
    "recognise",
]


def format_named(name: str, dtype: str | None = None) -> Format:
    """Return the format of that name.

    Example:
        >>> format_named("npy", "bfloat16")
        Npy(dtype='bfloat16')
    """
    if name not in FORMATS:
        hint = near_matches(name, FORMATS)
        raise InputError(
            f"`input.format`: expected one of {sorted(FORMATS)}. Received: {name!r}{hint}."
        )
    form: Format = load(FORMATS, name)(dtype) if name == "npy" else load(FORMATS, name)()
    return form


def recognise(path: str, expected: str | None = None) -> str:
    """Tell a file's format from its first and last bytes, whatever its name ends in.

    Returns:
        A key of `FORMATS`.
    """
    head, tail = files.edges(path)
    found = next((name for name in FORMATS if format_named(name).recognises(head, tail)), None)
    if found is None:
        raise unrecognised(path, head, tail)
    if expected is not None and found != expected:
        raise InputError(
            f"{path}: is not in the format given by `input.format`. Expected: {expected}. "
            f"Received: {found}. Remove `input.format`, or correct it."
        )
    return found
