"""Which files an input path names: files, directories, globs and hive partitions."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import local_file
from batchnorm_tool.input_warnings import warn
from batchnorm_tool.sources.table_formats import refuse_files_of_tables, refuse_table

# What Hive, Spark and pyarrow write for a null partition value.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Listed:
    """One file of an input.

    Attributes:
        path: Absolute, symbolic links as they are.
        partitions: Name and value of each ``name=value`` directory below the input's root;
            a null value is `NULL_PARTITION`.
    """

    path: str
    partitions: tuple[tuple[str, str], ...] = ()


def list_files(path: str | Sequence[str]) -> list[Listed]:
    """Find the files that an input path names, in lexicographic order of their paths.

    Args:
        path: A file, a directory, a glob pattern, or several of these. In directories, names that
            begin with ``.`` or ``_`` are left out, except partitions such as ``_day=1``.

    Returns:
        At least one file.

    Raises:
        InputError: If there is none, one is named twice, they belong to a table of another program,
            or a partition value is not a plain name.

    Example:
        >>> list_files("no/such/file.npy")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        batchnorm_tool.errors.InputError: no/such/file.npy: there is no such file.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise InputError("`input.path`: expected at least one path. Received: an empty list.")
    listed = sorted((item for one in paths for item in _expand(one)), key=lambda item: item.path)
    for before, after in itertools.pairwise(listed):
        if before.path == after.path:
            message = (
                f"{after.path}: is named twice in `input.path`. Expected each file once. "
                f"Received: {paths}. Remove one of the paths."
            )
            raise InputError(message)
    refuse_files_of_tables([item.path for item in listed])
    return listed


def _expand(path: str) -> Iterator[Listed]:
    local = _local(path)
    if os.path.isdir(local):  # noqa: PTH112  (Path would normalise what the user wrote)
        yield from _in_directory(local, local)
    elif _WILDCARD.search(local) and not os.path.lexists(local):
        yield from _in_glob(local)
    else:
        local_file.regular_file(local)
        yield Listed(local)


def _local(path: str) -> str:
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    elif _SCHEME.match(path):
        message = (
            f"`input.path`: object stores are not read by this version. Expected a local path. "
            f"Received: a path that begins with {_SCHEME.findall(path)[0]!r}. "
            "Copy the files to a local disk, or mount the store."
        )
        raise InputError(message)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        message = f"`input.path`: expected a name in UTF-8. Received: {path!r}. Rename the file."
        raise InputError(message) from error
    return os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps `..`)


def _in_glob(pattern: str) -> Iterator[Listed]:
    fixed = pattern[: _WILDCARD.search(pattern).start()]  # type: ignore[union-attr]
    root = os.path.dirname(fixed)  # noqa: PTH120
    # Without those below a directory that matches as well: `**` names both.
    matches = [m for m in glob.glob(pattern, recursive=True) if not _is_hidden(m, root)]  # noqa: PTH207
    found: set[Listed] = set()
    for match in matches:
        is_directory = os.path.isdir(match)  # noqa: PTH112
        found.update(_in_directory(match, root) if is_directory else [_listed(match, root)])
    if not found:
        message = (
            f"{pattern}: matches no file. Expected at least one. Received: none. "
            "Check the pattern, and quote it in a shell."
        )
        raise InputError(message)
    yield from found


def _in_directory(directory: str, root: str) -> Iterator[Listed]:
    files = [_listed(path, root) for path in _walk(directory, root, ())]
    if not files:
        message = (
            f"{directory}: holds no files. Expected at least one; names that begin with `.` or "
            "`_` are left out. Received: none. Check `input.path`."
        )
        raise InputError(message)
    yield from files


def _walk(directory: str, root: str, above: tuple[str, ...]) -> Iterator[str]:
    """Paths of files below a directory; links to directories are followed, loops are refused."""
    real = os.path.realpath(directory)
    if real in above:
        message = (
            f"{directory}: is a symbolic link to a directory above it. Expected a tree. "
            f"Received: a loop to {real}. Remove the link."
        )
        raise InputError(message)
    refuse_table(directory)
    with local_file.refusing(directory), os.scandir(directory) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if _is_hidden_name(entry.name):
            continue
        if entry.is_symlink():
            _warn_if_outside(entry.path, root)
        if entry.is_dir():
            yield from _walk(entry.path, root, (*above, real))
        else:
            yield entry.path


def _warn_if_outside(path: str, root: str) -> None:
    target, inside = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([target, inside]) != inside:
        message = f"{path}: is a symbolic link out of {root}, to {target}; it is read all the same."
        warn(message)


def _listed(path: str, root: str) -> Listed:
    local_file.regular_file(_local(path))
    directories = Path(os.path.relpath(path, root)).parent.parts
    pairs = tuple(_partition(path, part) for part in directories if "=" in part)
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        message = (
            f"{path}: a partition occurs twice in the path. Expected each name once. "
            f"Received: {names}. Rename the directory."
        )
        raise InputError(message)
    return Listed(path, pairs)


def _partition(path: str, directory: str) -> tuple[str, str]:
    name, _, value = (unquote(part) for part in directory.partition("="))
    # A slash can only have been escaped; steps upwards stay refused, whoever makes paths of values.
    is_step = value in ("", ".") or ".." in value.split("/")
    if is_step or not name or not value.isprintable():
        message = (
            f"{path}: a partition's value is not a plain name. Expected `name=value` without "
            f"a step `..`. Received: {directory!r}. Rename the directory."
        )
        raise InputError(message)
    return name, value


def _is_hidden(path: str, root: str) -> bool:
    return any(_is_hidden_name(part) for part in Path(os.path.relpath(path, root)).parts)


def _is_hidden_name(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)
