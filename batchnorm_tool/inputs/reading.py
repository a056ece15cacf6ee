"""Rows of planned input files: where they lie, and what they hold, partition values included."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import numbered, overlaps, python_values
from batchnorm_tool.errors import RECREATE, Damaged, InputError, WorkFailed
from batchnorm_tool.formats import format_named, parquet
from batchnorm_tool.formats.arrow_columns import fixed_bytes, is_list
from batchnorm_tool.inputs.files import InputFile, Member, Table

_CHECKED_ROWS = 16_384
_FEW_ROWS = 16


@dataclass(frozen=True)
class Slice:
    """Rows ``start`` to ``stop`` (exclusive) of the input file with number ``file``."""

    file: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """Consecutive rows of the input: the unit of work, commit, retry and distribution.

    Parts and rows are numbered from 0, rows over all input files.
    """

    number: int
    first_row: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        """Number of rows that go in."""
        return sum(some.rows for some in self.slices)

    @property
    def stem(self) -> str:
        """The name of its files without a suffix, such as ``part-000007``."""
        return f"part-{self.number:06d}"

    def locate(self, row: int) -> tuple[int, int]:
        """Return the file number, and row in that file, of the global ``row``."""
        offset = row - self.first_row
        for some in self.slices:
            if offset < some.rows:
                return some.file, some.start + offset
            offset -= some.rows
        raise IndexError(f"row {row} is not in part {self.number}")


def locate(files: Sequence[InputFile], row: int) -> tuple[InputFile, int]:
    """Find the file that holds a global row, and the row in that file."""
    starts = [0, *itertools.accumulate(file.rows for file in files)]
    number, place, _ = next(overlaps(starts, row, row + 1))
    return files[number], place


def describe_key(keys: pa.Table, row: int) -> str:
    """Describe the key of one row as messages show it, such as "`shop` 'a', `item` 17"."""
    values = {name: python_values(keys[name].slice(row, 1)) for name in keys.column_names}
    return ", ".join(f"`{name}` {value!r}" for name, (value,) in values.items())


def read_slices(
    files: Sequence[InputFile], slices: Iterable[Slice], columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of several slices, in their order; see `read_rows`."""
    for some in slices:
        yield from read_rows(files[some.file], columns, some.start, some.stop, batch_rows)


def read_rows(
    file: InputFile, columns: Sequence[str], start: int, stop: int, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield rows ``start`` to ``stop`` of one input file, in order, in batches with rows."""
    check_unchanged(file)
    rows = 0
    try:
        for batch in _joined(file, columns, (start, stop), batch_rows):
            rows += batch.num_rows
            yield batch
    except InputError:
        check_unchanged(file)  # it may have gone, or been replaced, since it was checked
        raise
    if rows != stop - start:
        raise Damaged(
            f"{file.path}, rows {start} to {stop}: has fewer rows than its footer says. "
            f"Expected: {stop - start}. Received: {rows}. The file is damaged: copy it again."
        )


def check_unchanged(file: InputFile) -> None:
    """Check that a file still has the size and fingerprint that were planned."""
    parts = file.members or (Member("", file.path, file.bytes, file.fingerprint, file.format),)
    for part in parts:
        try:
            now = format_named(part.format, file.dtype).fingerprint(part.path)
        except InputError as error:
            raise WorkFailed(
                f"file replaced during the run: {error.message} Finished work is kept."
            ) from error
        if now != (part.bytes, part.fingerprint):
            raise WorkFailed(
                f"{part.path}: file replaced during the run. Expected: {part.bytes:,} bytes with "
                f"fingerprint {part.fingerprint[:16]}. Received: {now[0]:,} bytes, {now[1][:16]}. "
                f"Restore the former file, or {RECREATE}."
            )


def _joined(
    file: InputFile, columns: Sequence[str], rows: tuple[int, int], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    partitions = {each.name: each for each in file.partitions if each.name in columns}
    stored = [name for name in columns if name not in partitions]
    for row, arrived in numbered(_stored(file, stored, rows, batch_rows), rows[0]):
        batch = _read_as(file, arrived, row)
        for name, each in partitions.items():
            value = pa.scalar(each.value, pa.type_for_alias(each.dtype))
            batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        yield batch.select(columns).replace_schema_metadata()


def _read_as(file: InputFile, batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
    """Return the batch with the types as which all files are read."""
    if file.read_as is None:
        return batch
    for wanted in file.read_as:
        if wanted.name not in batch.schema.names:
            continue
        try:
            column = batch.column(wanted.name).cast(wanted.type)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{file.path}, row {row} or one of the {batch.num_rows - 1} after it, column "
                f"`{wanted.name}`: a value does not fit the column type of the other files. "
                f"Expected: {wanted.type}. Received: {error}. Write all files with the same type."
            ) from error
        batch = batch.set_column(batch.schema.names.index(wanted.name), wanted, column)
    return batch


def _stored(
    file: InputFile, columns: Sequence[str], rows: tuple[int, int], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    if not file.members:
        form = format_named(file.format, file.dtype)
        # Partition columns alone still need the rows counted: read one stored column.
        wanted = columns or form.inspect(file.path).schema.names[:1]
        yield from form.read(file.path, wanted, *rows, batch_rows)
        return
    sides = [_member_rows(file, member, columns, rows, batch_rows) for member in file.members]
    yield from _side_by_side(sides)


def _member_rows(
    file: InputFile, member: Member, columns: Sequence[str], rows: tuple[int, int], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield rows of one member under the names that the group gives them."""
    start, stop = (row + member.first_row for row in rows)
    form = format_named(member.format, file.dtype)
    names = form.inspect(member.path).schema.names
    wanted = [name for name in names if name in columns] if not member.column else names
    for batch in form.read(member.path, wanted or names[:1], start, stop, batch_rows):
        yield batch.rename_columns([member.column]) if member.column else batch


def _side_by_side(sides: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Join batches column by column; each yielded one ends where the first of them ends."""
    waiting = [next(side, None) for side in sides]
    while None not in waiting:
        batches = [batch for batch in waiting if batch is not None]
        # Each side cuts its batches by its own row groups; none is copied to make them agree.
        rows = min(batch.num_rows for batch in batches)
        fields = [field for batch in batches for field in batch.schema]
        columns = [column.slice(0, rows) for batch in batches for column in batch.columns]
        yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
        waiting = [
            batch.slice(rows) if batch.num_rows > rows else next(side, None)
            for batch, side in zip(batches, sides, strict=True)
        ]


def head(table: Table, columns: Sequence[str], rows: int) -> pa.Table:
    """Return the first rows of ``table``, over as many of its files as that takes."""
    table.check(columns)
    schema = pa.schema([table.schema.field(name) for name in columns])
    try:
        return pa.Table.from_batches(_first(table, columns, rows), schema)
    except Damaged as error:
        raise InputError(error.message) from error
    finally:
        parquet.close_cached_files()


def head_within(table: Table, rows: int, most_bytes: int) -> pa.Table:
    """Return the first rows of every column, as many as fit about ``most_bytes`` of memory."""
    sizes = {field.name: fixed_bytes(field.type) or 0 for field in table.schema}
    if table.files[0].format == "parquet" and not all(sizes.values()):
        sizes |= parquet.value_bytes(table.files[0].path)
    columns = [name for name in table.columns if _FEW_ROWS * sizes.get(name, 0) <= most_bytes]
    if not columns:
        return pa.table({})
    taken, wanted = 0, _FEW_ROWS
    while True:
        found = head(table, columns, min(wanted, rows))
        fitting = most_bytes * found.num_rows // max(1, found.nbytes)
        # Few rows first: how large one is, where lists are open, only they tell.
        taken, wanted = found.num_rows, min(8 * wanted, fitting)
        if wanted <= taken or taken in (rows, table.rows):
            return found


def head_with_lists(table: Table, columns: Sequence[str], rows: int) -> pa.Table:
    """Return the first rows; of list columns without a value in them, the first that have one.

    The usual length of a column's lists cannot be told from nulls and empty lists.
    """
    found = [head(table, columns, rows)]
    open_lists = [name for name in columns if _is_open(table.schema.field(name).type)]
    missing = {name for name in open_lists if first_list(found[0][name]) is None}
    unread = _first(table, columns, table.rows) if missing else ()
    for batch in unread:
        window = pa.Table.from_batches([batch])
        for name in sorted(missing):
            row = first_list(window[name])
            if row is not None:
                found.append(window.slice(row, rows))
                missing.remove(name)
        if not missing:
            break
    return pa.concat_tables(found)


def first_list(column: pa.ChunkedArray) -> int | None:
    """Return the first row whose lists hold at least one value, or null, at every level."""
    # As in `formats.arrow_columns`: a run with nothing to do need not import it.
    import pyarrow.compute as pc

    lists, rows = column, np.arange(len(column))
    while is_list(lists.type):
        rows = rows[pc.list_parent_indices(lists).to_numpy()]
        lists = pc.list_flatten(lists)
    return int(rows[0]) if len(rows) else None


def _is_open(dtype: pa.DataType) -> bool:
    """Tell whether the rows decide how long a list of some level is."""
    while pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return is_list(dtype)


def _first(table: Table, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    for file in table.files:
        stop = min(rows, file.rows)
        if stop:
            yield from read_rows(file, columns, 0, stop, min(stop, _CHECKED_ROWS))
        rows -= stop
        if not rows:
            return


def check_all_rows(table: Table) -> None:
    """Read every row of every column once, and keep none."""
    for file in table.files:
        try:
            for _ in read_rows(file, table.columns, 0, file.rows, _CHECKED_ROWS):
                pass
        except Damaged as error:
            raise InputError(error.message) from error
