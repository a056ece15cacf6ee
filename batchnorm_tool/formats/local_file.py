"""Local files as input: which may be read, what they are, and foreign errors turned into ours."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import BatchnormToolError, Damaged, InputError, WorkFailed

# pyarrow raises every one of these for damaged files; an OSError does not mean "try again".
FOREIGN_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError, OverflowError)

EDGE_BYTES = 16
SAMPLE_BYTES = 64 * 1024


def regular_file(path: str) -> os.stat_result:
    """Stat a path that must be a regular file.

    Args:
        path: A local path; symbolic links are followed.

    Returns:
        Its status.

    Raises:
        InputError: If it is missing, unreadable, empty, a directory, a FIFO or a device.
    """
    with refusing(path):
        status = os.stat(path)  # noqa: PTH116  (a Path would only be turned back into a string)
    if not stat.S_ISREG(status.st_mode):
        message = (
            f"{path}: is not a regular file. Expected a file with rows. "
            f"Received: {_kind(status.st_mode)}. Write its content to a file first."
        )
        raise InputError(message)
    if status.st_size == 0:
        message = (
            f"{path}: the file is empty. Expected Parquet, Arrow or NPY content. "
            "Received: 0 bytes. Write or copy it again."
        )
        raise InputError(message)
    return status


def edges(path: str) -> tuple[bytes, bytes]:
    """First and last 64 bytes of a regular file, as far as it has them.

    Raises:
        InputError: As `regular_file`.
    """
    size = regular_file(path).st_size
    with refusing(path), Path(path).open("rb") as file:
        head = file.read(4 * EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return head, file.read(EDGE_BYTES)


def read_exactly(file: BinaryIO, offset: int, length: int) -> bytes:
    """Read bytes at a place, all of them or `OSError`."""
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise OSError(f"{length} bytes expected at byte {offset}, {len(data)} found")
    return data


def sampled_sha256(file: BinaryIO, description: bytes, start: int, stop: int) -> str:
    """SHA-256 of a header or footer together with the first and last 64 KiB of the data.

    A format whose footer holds neither statistics nor compressed sizes would otherwise have the
    same fingerprint for any data of the same shape. Data between the samples is not looked at.
    """
    digest = hashlib.sha256(description)
    length = min(SAMPLE_BYTES, stop - start)
    digest.update(read_exactly(file, start, length))
    digest.update(read_exactly(file, stop - length, length))
    return digest.hexdigest()


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Turn whatever a library raises about a file into `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"{path}: there is no such file. Received: {error.strerror}. Check `input.path`."
        raise InputError(message) from error
    except PermissionError as error:
        message = f"{path}: may not be read. Received: {error.strerror}. Change its permissions."
        raise InputError(message) from error
    except FOREIGN_ERRORS as error:
        raise InputError(_unreadable(path, error)) from error


@contextmanager
def working(path: str, row: Callable[[], int]) -> Iterator[None]:
    """Turn whatever a library raises while rows are read into an error that names the row.

    Raises:
        WorkFailed: The system failed, which running it again can heal.
        Damaged: The file is, which nothing heals but another file.
    """
    try:
        yield
    except BatchnormToolError:
        raise
    except FOREIGN_ERRORS as error:
        message = _unreadable(f"{path}, at or soon after row {row()}", error)
        kind = WorkFailed if _may_heal(error) else Damaged
        raise kind(f"{message} What is finished is kept.") from error


def _may_heal(error: BaseException) -> bool:
    """Whether the system gave a reason, or there was not memory enough: damage has no number."""
    if isinstance(error, MemoryError):
        return not _wants_too_much(error)
    return isinstance(error, OSError) and error.errno is not None


def _wants_too_much(error: MemoryError) -> bool:
    """Tell whether more was wanted than the machine has: garbled sizes are read as such."""
    wanted = max(map(int, re.findall(r"\d+", str(error))), default=0)
    return wanted > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def validate(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if its values are what their types say: text in UTF-8, offsets within bounds.

    Raises:
        ArrowInvalid: They are not; the message names the column.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"column `{name}`: {error}") from error
    return batch


def check_columns(path: str, columns: Sequence[str], present: Sequence[str]) -> None:
    """Refuse columns that a file does not have, with near matches.

    Raises:
        InputError: Naming every missing column.
    """
    missing = [column for column in columns if column not in present]
    if not missing:
        return
    hints = (near_matches(column, present) for column in missing)
    names = ", ".join(f"`{name}`{hint}" for name, hint in zip(missing, hints, strict=True))
    message = f"{path}: has no column {names}. Received: columns {sorted(present)}."
    raise InputError(f"{message} Correct the name in the job.")


def check_range(path: str, start: int, stop: int, rows: int) -> None:
    """Refuse to read rows that a file does not have.

    Raises:
        WorkFailed: If the rows asked for go beyond the file's.
    """
    if not 0 <= start <= stop <= rows:
        message = (
            f"{path}: has no rows {start} to {stop}. Expected: a range within its {rows} rows. "
            f"Received: {start} to {stop}. The file was replaced; plan the run anew with `--fresh`."
        )
        raise WorkFailed(message)


def check_schema(path: str, schema: pa.Schema) -> None:
    """Refuse a schema whose names cannot be used to ask for its columns.

    Raises:
        InputError: If there is no column, a name, however deep, is not in UTF-8, or several columns
            have the same one.
    """
    if not len(schema):
        raise InputError(f"{path}: has no columns. Expected a table. Received: an empty schema.")
    with refusing(path):
        names = schema.names
        str(schema)  # decodes the names of nested fields too
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        message = (
            f"{path}: several columns have the same name. Expected unique names. "
            f"Received: {twice} more than once. Rename them where the file is written."
        )
        raise InputError(message)


def _unreadable(where: str, error: BaseException) -> str:
    words = " ".join(str(error).split())
    if "encrypt" in words.lower() or "decrypt" in words.lower():
        return f"{where}: is encrypted. Expected a plain file. Received: {words}. Decrypt it first."
    if isinstance(error, MemoryError) and not _wants_too_much(error):
        return (
            f"{where}: reading needs more memory than there is. Received: {words}. "
            "Give fewer workers, or write the file anew if it is damaged."
        )
    return (
        f"{where}: cannot be read; the file is damaged or truncated. "
        f"Received: {type(error).__name__}: {words}. Write or copy it again."
    )


def _kind(mode: int) -> str:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")
