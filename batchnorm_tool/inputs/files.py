"""Which files an input path names: files, directories, globs, hive partitions, no other tables."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from batchnorm_tool.errors import InputError, OutputError, warn
from batchnorm_tool.formats import files as formats_files
from batchnorm_tool.storage import checked_json
from batchnorm_tool.storage.checked_json import ArrowSchema, Count, FileName, Record

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Listed:
    """One file of an input: its absolute path, symbolic links as they are, and its partitions.

    Those are name and value of each ``name=value`` directory below the input's root.
    """

    path: str
    partitions: tuple[tuple[str, str], ...] = ()


def list_files(path: str | Sequence[str]) -> list[Listed]:
    """Find the files that an input path names, in lexicographic order of their paths.

    A path is a file, a directory or a glob pattern. In directories, names that begin with ``.`` or
    ``_`` are left out, except partitions such as ``_day=1``.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise InputError("`input.path`: expected at least one path. Received: an empty list.")
    listed = sorted((item for one in paths for item in _expand(one)), key=lambda item: item.path)
    for before, after in itertools.pairwise(listed):
        if before.path == after.path:
            raise InputError(
                f"{after.path}: occurs twice in `input.path`. Expected each file once. "
                f"Received: {paths}. Remove one of the paths."
            )
    refuse_files_of_tables([item.path for item in listed])
    return listed


def _expand(path: str) -> Iterator[Listed]:
    local = _local(path)
    if os.path.isdir(local):  # noqa: PTH112  (Path would normalise what the user wrote)
        yield from _in_directory(local, local)
    elif _WILDCARD.search(local) and not os.path.lexists(local):
        yield from _in_glob(local)
    else:
        formats_files.regular_file(local)
        yield Listed(local)


def _local(path: str) -> str:
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    elif _SCHEME.match(path):
        raise InputError(
            "`input.path`: this version cannot read object stores. Expected a local path. "
            f"Received: a path that begins with {_SCHEME.findall(path)[0]!r}. Copy the files to a "
            "local disk, or mount the store."
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"`input.path`: expected a UTF-8 name. Received: {path!r}. Rename the file."
        ) from error
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
        raise InputError(
            f"{pattern}: matches no file. Expected at least one. Received: none. Check the "
            "pattern, and quote it in the shell."
        )
    yield from found


def _in_directory(directory: str, root: str) -> Iterator[Listed]:
    files = [_listed(path, root) for path in _walk(directory, root, ())]
    if not files:
        raise InputError(
            f"{directory}: contains no files. Expected at least one; names that begin with `.` or "
            "`_` are ignored. Received: none. Check the path."
        )
    yield from files


def _walk(directory: str, root: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield paths of files below a directory; follow links to directories, refuse loops."""
    real = os.path.realpath(directory)
    if real in above:
        raise InputError(
            f"{directory}: is a symbolic link to a parent directory. Expected a tree. Received: a "
            f"loop to {real}. Remove the link."
        )
    refuse_table(directory)
    with formats_files.refusing(directory), os.scandir(directory) as scan:
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
        warn(f"{path}: is a symbolic link out of {root}, to {target}; it is read anyway.")


def _listed(path: str, root: str) -> Listed:
    formats_files.regular_file(_local(path))
    directories = Path(os.path.relpath(path, root)).parent.parts
    pairs = tuple(_partition(path, part) for part in directories if "=" in part)
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise InputError(
            f"{path}: a partition occurs twice in the path. Expected each name once. "
            f"Received: {names}. Rename the directory."
        )
    return Listed(path, pairs)


def _partition(path: str, directory: str) -> tuple[str, str]:
    try:
        name, _, value = (unquote(part, errors="strict") for part in directory.partition("="))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: the value of a partition is not UTF-8. Received: {directory!r}. Rename the "
            "directory."
        ) from error
    # A slash can only have been escaped; steps upwards stay refused, whoever makes paths of values.
    is_step = value in ("", ".") or ".." in value.split("/")
    if is_step or not name or not value.isprintable():
        raise InputError(
            f"{path}: the value of a partition is not a plain name. Expected `name=value` without "
            f"`..`. Received: {directory!r}. Rename the directory."
        )
    return name, value


def _is_hidden(path: str, root: str) -> bool:
    return any(_is_hidden_name(part) for part in Path(os.path.relpath(path, root)).parts)


def _is_hidden_name(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


@dataclass(frozen=True)
class Member(Record):
    """One of several row-aligned files that make one input file together.

    ``column`` is the name of an NPY file's column, and "" for a Parquet keys file, which has names
    of its own; row ``first_row`` is beside the input file's first one.
    """

    column: str
    path: FileName
    bytes: Count
    fingerprint: str
    format: str = "npy"
    first_row: Count = 0


@dataclass(frozen=True)
class Partition(Record):
    """A column that has one value in all rows of a file, from a ``name=value`` directory.

    Its ``dtype`` is ``"int64"`` or ``"string"``.
    """

    name: FileName
    value: FileName | int | None
    dtype: str = "string"


@dataclass(frozen=True)
class InputFile(Record):
    """One input file as it was planned; for NPY groups, several files side by side.

    Attributes:
        path: Absolute path; of a group its first member's.
        format: A key of `batchnorm_tool.registry.FORMATS`.
        bytes: Size, of all members together.
        fingerprint: SHA-256 of footer or header; of a group, of its members' fingerprints.
        members: The files of a group; empty for a single file.
        dtype: How ``|V2`` in NPY is read.
        read_as: Fields of the columns that are read as another type than this file's own, where
            the files of a table differ.
    """

    path: FileName
    format: str
    bytes: Count
    rows: Count
    fingerprint: str
    partitions: tuple[Partition, ...] = ()
    members: tuple[Member, ...] = ()
    dtype: str | None = None
    # Written only where there is one: it is in identities, which stay what they are.
    read_as: Annotated[ArrowSchema | None, checked_json.LEFT_OUT_IF_NONE] = None


@dataclass(frozen=True)
class Table:
    """All input files as one table, in lexicographic order of their paths.

    Attributes:
        schema: Of the rows that `read_rows` yields, partition columns included.
        keys: Names of the columns that came from a keys file.
        unreadable: Why a column cannot be read, such as one in which the files differ too much.
        spaces: The vector spaces that the footers name, each with the first file that does so.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    keys: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    spaces: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that can be read."""
        return [name for name in self.schema.names if name not in self.unreadable]

    def check(self, columns: Iterable[str]) -> None:
        """Refuse columns that cannot be read, such as those in which the files differ too much."""
        for name in columns:
            if name in self.unreadable:
                raise InputError(self.unreadable[name])

    def check_apart(self, output: str) -> None:
        """Refuse an output directory inside the input, which the next run would read."""
        place = Path(os.path.realpath(output))
        for file in self.files:
            if place in Path(os.path.realpath(file.path)).parents:
                raise OutputError(
                    f"`output.path` is `{output}`, and the input file `{file.path}` is "
                    "inside it. Choose an output directory outside the input."
                )


class _ForeignTable(NamedTuple):
    """How a directory of one kind is known, and how its rows become a file.

    Attributes:
        name: What it is.
        marks: Patterns below the directory; one of them matches.
        convert: Python that writes the rows; ``{0}`` is the directory, ``{1}`` the newest mark.
        beside: Another path that is there too.
    """

    name: str
    marks: tuple[str, ...]
    convert: str
    beside: str = ""


_ICEBERG = ("metadata/v[0-9]*.metadata.json", "metadata/[0-9][0-9][0-9]*-*.metadata.json")
_LANCE = ("_versions/*.manifest", "_latest.manifest")
_BY_LANCE = 'pyarrow.parquet.write_table(lance.dataset("{0}").to_table(), "rows.parquet")'
_BY_POLARS = 'polars.scan_{}("{}").sink_parquet("rows.parquet")'
_BY_SPARK = 'spark.read.{}("{{0}}").write.parquet("rows")'
_BY_DATASETS = 'datasets.load_from_disk("{{0}}"){}.to_parquet("rows.parquet")'
_SAVED = "that Hugging Face's `save_to_disk` wrote"
# Their files, named one by one, may also hold rows that do not count.
_VERSIONED_TABLES = (
    _ForeignTable("a Delta table", ("_delta_log",), _BY_POLARS.format("delta", "{0}")),
    _ForeignTable("an Iceberg table", _ICEBERG, _BY_POLARS.format("iceberg", "{1}")),
    _ForeignTable("a Spark stream's output", ("_spark_metadata",), _BY_SPARK.format("parquet")),
    _ForeignTable("a Hudi table", (".hoodie",), _BY_SPARK.format('format("hudi").load')),
    _ForeignTable("a Lance dataset", _LANCE, _BY_LANCE),
    _ForeignTable(
        "a Paimon table",
        ("snapshot/snapshot-[0-9]*",),
        _BY_SPARK.format('format("paimon").load'),
        "schema",
    ),
)
_SAVED_DATASETS = (
    _ForeignTable(
        f"a dataset {_SAVED}", ("state.json",), _BY_DATASETS.format(""), "dataset_info.json"
    ),
    _ForeignTable(
        f"several datasets {_SAVED}", ("dataset_dict.json",), _BY_DATASETS.format('["train"]')
    ),
)


def refuse_table(directory: str, *, named: bool = True) -> None:
    """Refuse a directory that is a table of another program."""
    forms = (*_VERSIONED_TABLES, *_SAVED_DATASETS) if named else _VERSIONED_TABLES
    for form in forms:
        # Looked for before it is matched: an input may have thousands of directories.
        near = [m for m in form.marks if os.path.lexists(f"{directory}/{m.partition('/')[0]}")]
        marks = [found for mark in near for found in Path(directory).glob(mark)]
        if marks and Path(directory, form.beside).exists():
            newest = max(marks, key=os.path.getmtime)
            hidden = "; its files may also contain deleted or replaced rows"
            raise InputError(
                f"{directory}: is {form.name}{hidden if form in _VERSIONED_TABLES else ''}. "
                f"Expected plain files. Received: {os.path.relpath(newest, directory)}. Export its "
                f"rows to a file first, with `{form.convert.format(directory, newest)}` in Python."
            )


def refuse_files_of_tables(paths: list[str]) -> None:
    """Refuse files that lie anywhere inside a table of another program."""
    seen: set[Path] = set()
    for path in paths:
        for place in (Path(path), Path(os.path.realpath(path))):
            for directory in place.parents:
                if directory in seen:
                    break
                seen.add(directory)
                refuse_table(str(directory), named=False)
