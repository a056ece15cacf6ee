"""Files of formats that are not read: what they are, and the line of Python that converts them."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Callable

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import local_file

_ARRAY = 'numpy.save("rows.npy", {})'
_TABLE = 'pyarrow.parquet.write_table({}, "rows.parquet")'
_FRAME = '{}.to_parquet("rows.parquet")'

# What a file begins with, what it is, and how it is converted; `PATH` is its path in quotes.
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _ARRAY.format('h5py.File(PATH)["NAME"][:]')),
    (b"FEA1", "a Feather version 1 file", _FRAME.format("pandas.read_feather(PATH)")),
    (b"ORC", "an ORC file", _TABLE.format("pyarrow.orc.read_table(PATH)")),
    (b"Obj\x01", "an Avro file", 'polars.read_avro(PATH).write_parquet("rows.parquet")'),
    (b"MATLAB 5.0", "a MATLAB file", _ARRAY.format('scipy.io.loadmat(PATH)["NAME"]')),
    (
        b"SQLite format 3\0",
        "an SQLite database",
        _FRAME.format('pandas.read_sql("select * from NAME", sqlite3.connect(PATH))'),
    ),
)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}


def unrecognised(path: str, head: bytes, tail: bytes) -> InputError:
    """The refusal of a file that no format recognises, with the way on where it is known."""
    if head.startswith(b"version https://git-lfs"):
        return InputError(
            f"{path}: is a Git LFS pointer, not the data itself. Fetch the data with "
            f"`git lfs pull`. Received: {head[:24]!r}."
        )
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return InputError(
                f"{path}: is {name}-compressed. Unpack it first. Received: {magic!r}."
            )
    found = next((known for test in _TESTS if (known := test(path, head, tail))), None)
    what, convert = found or ("", "")
    convert = convert.replace("PATH", repr(path))
    advice = f"Convert it, with `{convert}` in Python" if convert else "Convert it"
    message = (
        f"{path}: is neither Parquet nor Arrow nor NPY{what and ', but ' + what}. Expected content "
        f"of one of these, whatever its name ends in. Received: a file that begins with "
        f"{head[:24]!r}. {advice}, or leave it out with a glob such as `DIR/*.parquet`."
    )
    return InputError(message)


_Known = tuple[str, str]


def _by_magic(path: str, head: bytes, tail: bytes) -> _Known | None:
    del path, tail
    return next(((what, way) for magic, what, way in _MAGICS if head.startswith(magic)), None)


def _database(path: str, head: bytes, tail: bytes) -> _Known | None:
    del path
    if head[8:12] == b"DUCK":
        way = 'duckdb.connect(PATH).sql("from NAME").write_parquet("rows.parquet")'
        return "a DuckDB database", way
    if tail.endswith(b"LANC"):
        return "a file of a Lance dataset", _TABLE.format("lance.dataset(DIRECTORY).to_table()")
    return None


def _archive(path: str, head: bytes, tail: bytes) -> _Known | None:
    del tail
    if not head.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged ZIP archive", ""
    array = next((name.removesuffix(".npy") for name in names if name.endswith(".npy")), "")
    kinds = (
        ("data.pkl", "a PyTorch file", _ARRAY.format("torch.load(PATH).numpy()")),
        ("model.weights.h5", "a Keras model", ""),
        ("xl/workbook.xml", "an Excel file", _FRAME.format("pandas.read_excel(PATH)")),
        (".npy", "a NumPy archive (`.npz`)", _ARRAY.format(f"numpy.load(PATH)[{array!r}]")),
        ("", "a ZIP archive", "zipfile.ZipFile(PATH).extractall()"),
    )
    found = (kind for kind in kinds if any(name.endswith(kind[0]) for name in [*names, ""]))
    return next(((what, convert) for end, what, convert in found), None)


def _pickle(path: str, head: bytes, tail: bytes) -> _Known | None:
    del path, tail
    if head[:1] != b"\x80" or head[1] not in range(2, 6):
        return None
    what = "a pickle, which can run code when it is loaded and is never read"
    return what, _FRAME.format("pandas.read_pickle(PATH)")


def _safetensors(path: str, head: bytes, tail: bytes) -> _Known | None:
    del tail
    if (
        head[8:9] != b"{"
        or int.from_bytes(head[:8], "little") > local_file.regular_file(path).st_size
    ):
        return None
    return "a safetensors file", _ARRAY.format('safetensors.numpy.load_file(PATH)["NAME"]')


def _text(path: str, head: bytes, tail: bytes) -> _Known | None:
    del path, tail
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its end may be half a letter
    except UnicodeDecodeError:
        return None
    if not all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        return None
    if text.lstrip()[:1] in ("{", "["):
        return "JSON", _FRAME.format("pandas.read_json(PATH, lines=True)")
    return "text, such as CSV", _TABLE.format("pyarrow.csv.read_csv(PATH)")


_TESTS: tuple[Callable[[str, bytes, bytes], _Known | None], ...] = (
    _by_magic,
    _database,
    _archive,
    _pickle,
    _safetensors,
    _text,
)
