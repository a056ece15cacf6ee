"""Directories that are tables of other programs, whose files alone are not their rows.

Such a table's log says which of its files count, and which rows of those are deleted. Read as plain
files, deleted rows would come back.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from batchnorm_tool.errors import InputError


class _TableFormat(NamedTuple):
    """How a directory of one kind is known, and how its rows become a file.

    Attributes:
        name: What it is.
        marks: Patterns below the directory; one of them matches.
        convert: Python that writes the rows; ``{0}`` is the directory, ``{1}`` the newest mark.
        beside: Another path that is there too.
        hides_rows: Whether its files, named one by one, also hold rows that do not count.
    """

    name: str
    marks: tuple[str, ...]
    convert: str
    beside: str = ""
    hides_rows: bool = True


_SPARK = 'spark.read.format("{}").load("{{0}}").write.parquet("rows")'
_SAVED = 'datasets.load_from_disk("{{0}}"){}.to_parquet("rows.parquet")'
_ICEBERG = ("metadata/v[0-9]*.metadata.json", "metadata/[0-9][0-9][0-9]*-*.metadata.json")
_FORMATS = (
    _TableFormat(
        *("a Delta table", ("_delta_log",)),
        'polars.scan_delta("{0}").sink_parquet("rows.parquet")',
    ),
    _TableFormat(
        "an Iceberg table", _ICEBERG, 'polars.scan_iceberg("{1}").sink_parquet("rows.parquet")'
    ),
    _TableFormat(
        *("a Spark stream's output", ("_spark_metadata",)),
        'spark.read.parquet("{0}").write.parquet("rows")',
    ),
    _TableFormat("a Hudi table", (".hoodie",), _SPARK.format("hudi")),
    _TableFormat(
        *("a Lance dataset", ("_versions/*.manifest", "_latest.manifest")),
        'pyarrow.parquet.write_table(lance.dataset("{0}").to_table(), "rows.parquet")',
    ),
    _TableFormat(
        "a Paimon table", ("snapshot/snapshot-[0-9]*",), _SPARK.format("paimon"), beside="schema"
    ),
    _TableFormat(
        *("a dataset that Hugging Face's `save_to_disk` wrote", ("state.json",)),
        *(_SAVED.format(""), "dataset_info.json"),
        hides_rows=False,
    ),
    _TableFormat(
        *("several datasets that Hugging Face's `save_to_disk` wrote", ("dataset_dict.json",)),
        _SAVED.format('["train"]'),
        hides_rows=False,
    ),
)


def refuse_table(directory: str, *, named: bool = True) -> None:
    """Refuse a directory that is a table of another program.

    Args:
        directory: Of input files.
        named: Whether it is read as a whole; otherwise single files below it are named.

    Raises:
        InputError: It is; the message says what it is, and the line that writes its rows.
    """
    for form in _FORMATS:
        if not named and not form.hides_rows:
            continue
        # Looked for before it is matched: an input may have thousands of directories.
        near = [m for m in form.marks if os.path.lexists(f"{directory}/{m.partition('/')[0]}")]
        marks = [found for mark in near for found in Path(directory).glob(mark)]
        if marks and Path(directory, form.beside).exists():
            newest = max(marks, key=os.path.getmtime)
            convert = form.convert.format(directory, newest)
            hidden = "; its files may also hold rows that it has deleted or replaced"
            message = (
                f"{directory}: is {form.name}{hidden if form.hides_rows else ''}. Expected plain "
                f"files. Received: {os.path.relpath(newest, directory)}. "
                f"Write its rows into a file first, with `{convert}` in Python."
            )
            raise InputError(message)


def refuse_files_of_tables(paths: list[str]) -> None:
    """Refuse files that lie anywhere inside a table of another program.

    Raises:
        InputError: As `refuse_table`.
    """
    seen: set[Path] = set()
    for path in paths:
        for place in (Path(path), Path(os.path.realpath(path))):
            for directory in place.parents:
                if directory in seen:
                    break
                seen.add(directory)
                refuse_table(str(directory), named=False)
