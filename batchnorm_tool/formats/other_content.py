"""Files of formats that are not read: what they are, and the line of Python that converts them."""

from __future__ import annotations

import codecs
import zipfile

from batchnorm_tool.errors import InputError
from batchnorm_tool.formats import local_file

_ARRAY = 'numpy.save("rows.npy", {})'
_TABLE = 'pyarrow.parquet.write_table({}, "rows.parquet")'
_FRAME = '{}.to_parquet("rows.parquet")'
_UNPACKED = 'open("unpacked", "wb").write({}.open(PATH).read())'
_PICKLE = "a pickle, which can run code when it is loaded and is never read"

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
    (
        *(0, b"SQLite format 3\0", "an SQLite database"),
        _FRAME.format('pandas.read_sql("select * from NAME", sqlite3.connect(PATH))'),
    ),
    (
        *(8, b"DUCK", "a DuckDB database"),
        'duckdb.connect(PATH).sql("from NAME").write_parquet("rows.parquet")',
    ),
    *(
        (0, bytes([0x80, protocol]), _PICKLE, _FRAME.format("pandas.read_pickle(PATH)"))
        for protocol in range(2, 6)
    ),
)

# What a member's name ends in, and so on.
_MEMBERS: tuple[tuple[str, str, str], ...] = (
    ("data.pkl", "a PyTorch file", _ARRAY.format("torch.load(PATH).numpy()")),
    ("model.weights.h5", "a Keras model", ""),
    ("xl/workbook.xml", "an Excel file", _FRAME.format("pandas.read_excel(PATH)")),
    (".npy", "a NumPy archive (`.npz`)", _ARRAY.format('numpy.load(PATH)["NAME"]')),
    ("", "a ZIP archive", "zipfile.ZipFile(PATH).extractall()"),
)


def unrecognised(path: str, head: bytes, tail: bytes) -> InputError:
    """Return the refusal of a file that no format recognises, with the way on where it is known."""
    if head.startswith(b"version https://git-lfs"):
        return InputError(
            f"{path}: is a Git LFS pointer, not the data itself. Fetch the data with "
            f"`git lfs pull`. Received: {head[:24]!r}."
        )
    what, convert = _known(path, head, tail)
    advice = f", with `{convert.replace('PATH', repr(path))}` in Python" if convert else ""
    message = (
        f"{path}: is neither Parquet nor Arrow nor NPY{what and ', but ' + what}. Expected content "
        f"of one of these, whatever its name ends in. Received: a file that begins with "
        f"{head[:24]!r}. Convert it{advice}, or leave it out with a glob such as `DIR/*.parquet`."
    )
    return InputError(message)


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
    if head[8:9] == b"{" and length < local_file.regular_file(path).st_size:
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
