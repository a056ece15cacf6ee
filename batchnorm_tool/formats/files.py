"""Local files as input: which may be read, and what those are that no format reads."""

import codecs
import hashlib
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from batchnorm_tool.display import near_matches
from batchnorm_tool.errors import RECREATE, BatchnormToolError, Damaged, InputError, WorkFailed
from batchnorm_tool.registry import FORMATS

# pyarrow raises every one of these for damaged files; an OSError does not mean "try again".
FOREIGN_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError, OverflowError)
EDGE_BYTES = 16
SAMPLE_BYTES = 64 * 1024
_ARRAY = 'numpy.save("rows.npy", {})'
_TABLE = 'pyarrow.parquet.write_table({}, "rows.parquet")'
_FRAME = '{}.to_parquet("rows.parquet")'
_UNPACKED = 'open("unpacked", "wb").write({}.open(PATH).read())'
_SELECTED = _FRAME.format('pandas.read_sql("select * from NAME", sqlite3.connect(PATH))')
_COPIED = 'duckdb.connect(PATH).sql("from NAME").write_parquet("rows.parquet")'
_PICKLE = "a pickle, which can run code when loaded and is never read"
_UNPICKLED = _FRAME.format("pandas.read_pickle(PATH)")
# Bytes at a place, what the file is, and what converts it; PATH stands for its path in quotes.
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _ARRAY.format('h5py.File(PATH)["NAME"][:]')),
    (0, b"FEA1", "a Feather version 1 file", _FRAME.format("pandas.read_feather(PATH)")),
    (0, b"ORC", "an ORC file", _TABLE.format("pyarrow.orc.read_table(PATH)")),
    (0, b"Obj\x01", "an Avro file", 'polars.read_avro(PATH).write_parquet("rows.parquet")'),
    (0, b"MATLAB 5.0", "a MATLAB file", _ARRAY.format('scipy.io.loadmat(PATH)["NAME"]')),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACKED.format("gzip")),
    (0, b"BZh", "compressed with bzip2", _UNPACKED.format("bz2")),
    (0, b"\xfd7zXZ\0", "compressed with xz", _UNPACKED.format("lzma")),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACKED.format("zstandard")),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACKED.format("lz4.frame")),
    (0, b"SQLite format 3\0", "an SQLite database", _SELECTED),
    (8, b"DUCK", "a DuckDB database", _COPIED),
    *((0, bytes([0x80, protocol]), _PICKLE, _UNPICKLED) for protocol in range(2, 6)),
)
# What a member's name ends in, and so on.
_MEMBERS: tuple[tuple[str, str, str], ...] = (
    ("data.pkl", "a PyTorch file", _ARRAY.format("torch.load(PATH).numpy()")),
    ("model.weights.h5", "a Keras model", ""),
    ("xl/workbook.xml", "an Excel file", _FRAME.format("pandas.read_excel(PATH)")),
    (".npy", "a NumPy archive (`.npz`)", _ARRAY.format('numpy.load(PATH)["NAME"]')),
    ("", "a ZIP archive", "zipfile.ZipFile(PATH).extractall()"),
)


def regular_file(path: str) -> os.stat_result:
    """Stat a path that must be a regular file."""
    with refusing(path):
        status = os.stat(path)  # noqa: PTH116  (a Path would only be turned back into a string)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            f"{path}: is not a regular file. Expected a file with rows. "
            f"Received: {_kind(status.st_mode)}. Write its content to a file first."
        )
    if status.st_size == 0:
        raise InputError(
            f"{path}: the file is empty. Expected rows. Received: 0 bytes. Write or copy it again."
        )
    return status


def edges(path: str) -> tuple[bytes, bytes]:
    """Return the first and last 64 bytes of a regular file, as far as it has them."""
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
    """Return SHA-256 of a header or footer together with the first and last 64 KiB of the data."""
    # A format whose footer holds neither statistics nor compressed sizes would otherwise have the
    # same fingerprint for any data of the same shape. Data between the samples is not read.
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
        raise InputError(
            f"{path}: file not found. Received: {error.strerror}. Check the path."
        ) from error
    except PermissionError as error:
        raise InputError(
            f"{path}: permission denied. Received: {error.strerror}. Change its permissions."
        ) from error
    except FOREIGN_ERRORS as error:
        raise InputError(_unreadable(path, error)) from error


@contextmanager
def working(path: str, row: Callable[[], int]) -> Iterator[None]:
    """Turn whatever a library raises while rows are read into an error that names the row."""
    try:
        yield
    except BatchnormToolError:
        raise
    except FOREIGN_ERRORS as error:
        message = _unreadable(f"{path}, at or soon after row {row()}", error)
        kind = WorkFailed if _is_transient(error) else Damaged
        raise kind(f"{message} Finished work is kept.") from error


def _is_transient(error: BaseException) -> bool:
    """Tell whether the system gave a reason, or memory was short: damage has no number."""
    if isinstance(error, MemoryError):
        return not _wants_too_much(error)
    return isinstance(error, OSError) and error.errno is not None


def _wants_too_much(error: MemoryError) -> bool:
    """Tell whether more was wanted than the machine has: garbled sizes are read as such."""
    wanted = max(map(int, re.findall(r"\d+", str(error))), default=0)
    return wanted > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def validate(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch if its values are what their types say: UTF-8, offsets within bounds."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            # Arrow trusts a file's offsets: damaged ones would have it read beyond its buffers.
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"column `{name}`: {error}") from error
    return batch


def check_columns(path: str, columns: Sequence[str], present: Sequence[str]) -> None:
    """Refuse columns that a file does not have, with near matches."""
    missing = [column for column in columns if column not in present]
    if not missing:
        return
    hints = (near_matches(column, present) for column in missing)
    names = ", ".join(f"`{name}`{hint}" for name, hint in zip(missing, hints, strict=True))
    message = f"{path}: has no column {names}. Received: columns {sorted(present)}."
    raise InputError(f"{message} Correct the name in the job.")


def check_range(path: str, start: int, stop: int, rows: int) -> None:
    """Refuse to read rows that a file does not have."""
    if not 0 <= start <= stop <= rows:
        raise WorkFailed(
            f"{path}: has no rows {start} to {stop}. Expected: a range within its {rows} rows. "
            f"Received: {start} to {stop}. The file was replaced; {RECREATE}."
        )


def check_schema(path: str, schema: pa.Schema) -> None:
    """Refuse a schema whose names cannot be used to ask for its columns."""
    if not len(schema):
        raise InputError(f"{path}: has no columns. Expected a table. Received: an empty schema.")
    with refusing(path):
        names = schema.names
        str(schema)  # decodes the names of nested fields too
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(
            f"{path}: several columns have the same name. Expected unique names. "
            f"Received: {twice} more than once. Rename them."
        )


def _unreadable(where: str, error: BaseException) -> str:
    words = " ".join(str(error).split())
    if "encrypt" in words.lower() or "decrypt" in words.lower():
        return f"{where}: is encrypted. Expected a plain file. Received: {words}. Decrypt it first."
    if isinstance(error, MemoryError) and not _wants_too_much(error):
        return (
            f"{where}: not enough memory to read it. Received: {words}. Use fewer workers, or "
            "write the file again if it is damaged."
        )
    return (
        f"{where}: cannot be read; the file is damaged or truncated. "
        f"Received: {type(error).__name__}: {words}. Write or copy it again."
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def unrecognised(path: str, head: bytes, tail: bytes) -> InputError:
    """Return the refusal of a file that no format recognises, with the way on where it is known."""
    if head.startswith(b"version https://git-lfs"):
        return InputError(
            f"{path}: is a Git LFS pointer, not the data. Fetch the data with `git lfs pull`. "
            f"Received: {head[:24]!r}."
        )
    what, convert = _known(path, head, tail)
    advice = f", with `{convert.replace('PATH', repr(path))}` in Python" if convert else ""
    return InputError(
        f"{path}: is none of {', '.join(FORMATS)}{what and ', but ' + what}. Expected one of "
        "these formats; the file name does not matter. Received: a file that begins "
        f"with {head[:24]!r}. Convert it{advice}, or exclude it with a glob such as "
        "`DIR/*.parquet`."
    )


def _known(path: str, head: bytes, tail: bytes) -> tuple[str, str]:
    """Say what a file is, and the line that converts it; empty where that is not known."""
    for place, magic, what, convert in _MAGICS:
        if head[place:].startswith(magic):
            return what, convert
    if tail.endswith(b"LANC"):
        return "a file of a Lance dataset", _TABLE.format("lance.dataset(DIRECTORY).to_table()")
    if head.startswith(b"PK"):
        return _archive(path)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < regular_file(path).st_size:
        return "a safetensors file", _ARRAY.format('safetensors.numpy.load_file(PATH)["NAME"]')
    return _text(head)


def _archive(path: str) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = ["", *archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged ZIP archive", ""
    found = (kind for kind in _MEMBERS if any(name.endswith(kind[0]) for name in names))
    _, what, convert = next(found)
    return what, convert


def _text(head: bytes) -> tuple[str, str]:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its end may be half a letter
    except UnicodeDecodeError:
        return "", ""
    if not all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        return "", ""
    if text.lstrip()[:1] in ("{", "["):
        return "JSON", _FRAME.format("pandas.read_json(PATH, lines=True)")
    return "text, such as CSV", _TABLE.format("pyarrow.csv.read_csv(PATH)")
