"""Which kind of model a path is, or of which other program; and a private copy of a directory."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal, Self

from batchnorm_tool.errors import ModelError, WorkFailed

ModelKind = Literal["keras", "h5", "saved_model", "onnx"]
_BLOCK_BYTES = 1 << 20
_MAX_ENTRIES = 10_000
_MAX_BYTES = 64 << 30
MAX_GRAPH_BYTES = 2 << 30  # protobuf's own limit
GRAPH = "saved_model.pb"
_ELSEWHERE = (
    "predict with the framework that it is made for, and normalize the stored predictions with "
    "`batchnorm-tool normalize`."
)
_TFLITE = f"a TFLite (LiteRT) model. Use the original Keras model. Or {_ELSEWHERE}"
_PYTORCH = f"a PyTorch model. Use a Keras model, or {_ELSEWHERE}"
_TENSORFLOW_JS = (
    "a TensorFlow.js model. Convert it back: `tensorflowjs_converter "
    "--input_format=tfjs_layers_model --output_format=keras model.json model.h5`."
)
_ARCHITECTURE = (
    "an architecture without weights, as model.to_json() writes it. Save the whole model with "
    "model.save('model.keras')."
)
_SAFETENSORS = (
    "a safetensors file: weights only, without the architecture. Save the whole model with Keras, "
    f"or {_ELSEWHERE}"
)
_GRAPH_JS = (
    "a TensorFlow.js model of the format graph-model, which cannot be converted back. Use the "
    f"original model, or {_ELSEWHERE}"
)
# By what the first bytes hold; the first pattern that is found counts.
_HEADS = {
    rb'^\s*\{\s*"format"\s*:\s*"graph-model"': _GRAPH_JS,
    rb"^.{4}TFL3": _TFLITE,
    rb'^\s*\{\s*"(format|modelTopology|generatedBy)"\s*:\s*("layers-model"|\{|"keras)': (
        _TENSORFLOW_JS
    ),
    rb'^\s*\{.{0,80}"class_name"': _ARCHITECTURE,
    rb'^.{7}\x00\{"': _SAFETENSORS,
}
_SUFFIXES = {
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".tflite": _TFLITE,
    ".pb": (
        "one file of a TensorFlow model. Use the SavedModel's directory, which contains "
        "saved_model.pb and the folder variables."
    ),
}
_HEAD_BYTES = 256
# The version of its format, then one of the fields that come next: who wrote it, or the graph. A
# SavedModel's graph, which begins alike, has version 1.
_ONNX = re.compile(rb"\x08[\x02-\x3f][\x12\x1a\x22\x28\x32\x3a\x42]")
_SUFFIXES_OF_OURS = (".keras", ".h5", ".onnx")
_LOOKED_AT = 1000  # names in a folder: no model has more, and data may
_DATA_SUFFIXES = {".arrow", ".feather", ".npy", ".parquet"}


def model_kind(path: str, shown: str) -> ModelKind:
    """Return what a path is, by its content."""
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return _directory_kind(path, shown)
        if not stat.S_ISREG(mode):
            raise ModelError(f"{shown}: not a file or directory. Use a saved model.")
        head = _head(Path(path))
    except OSError as error:
        raise ModelError(unreadable(shown, error)) from error
    if head.startswith(b"PK\x03\x04"):
        return "keras"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if _ONNX.match(head):
        return "onnx"
    raise ModelError(f"{shown}: {foreign_file(Path(shown), head) or _unknown_words(head)}")


def is_model(path: str) -> bool:
    """Tell whether a path is a model, or what another program takes for one, rather than data."""
    place = Path(path)
    if place.is_dir():
        return (place / GRAPH).is_file() or _foreign_folder(place) is not None
    if not place.is_file():
        return place.suffix in _SUFFIXES_OF_OURS
    head = b""
    with contextlib.suppress(OSError):  # whoever reads it says why not
        head = _head(place)
    is_archive = head.startswith((b"\x89HDF", b"PK")) and place.suffix != ".npz"
    is_ours = is_archive or _ONNX.match(head) or place.suffix == ".onnx"
    is_empty = not head and place.suffix in _SUFFIXES_OF_OURS
    return bool(is_ours) or is_empty or foreign_file(place, head) is not None


def _directory_kind(path: str, shown: str) -> ModelKind:
    if Path(path, GRAPH).is_file():
        return "saved_model"
    words = _foreign_folder(Path(path))
    if words is not None:
        raise ModelError(f"{shown}: {words}")
    names = sorted(item.name for item in Path(path).iterdir())
    raise ModelError(
        f"{shown}: a directory without {GRAPH}. Expected a SavedModel, as model.export() writes "
        f"it. Received: {', '.join(names[:5]) or 'an empty directory'}."
    )


def _unknown_words(head: bytes) -> str:
    if not head:
        return "an empty file. Copy the model again from its source."
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the model. Fetch the model with `git lfs pull`, and try again."
        )
    return (
        "not a Keras model. Expected a .keras archive, an .h5 file, a SavedModel directory or an "
        ".onnx file. "
        f"Received: a file that begins with {head[:8]!r}. Save the model with "
        "model.save('model.keras')."
    )


def unreadable(shown: str, error: OSError) -> str:
    """Say that a model cannot be read, and why."""
    return (
        f"{shown}: the model cannot be read ({error.strerror or error}). Check `model.path` and "
        "the file's permissions."
    )


def foreign_file(path: Path, head: bytes) -> str | None:
    """Say what a file with this beginning is that another program's model is in, and what to do."""
    for pattern, words in _HEADS.items():
        if re.search(pattern, head, re.DOTALL):
            return words
    return _SUFFIXES.get(path.suffix.lower())


def _foreign_folder(path: Path) -> str | None:
    """Say what a folder is that holds models, but is none that can be loaded, and what to do."""
    names = sorted(item.name for item in path.iterdir())[:_LOOKED_AT]
    if "config.json" in names and "model.weights.h5" in names:
        return "an unpacked .keras archive. Pack it: zip -0 -r ../model.keras . (inside it)."
    versions = [name for name in names if (path / name / "saved_model.pb").is_file()]
    if versions:
        latest = max(versions, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
        listed = ", ".join(versions[:5])
        return f"a folder of SavedModels: {listed}. Use one of them, such as {path / latest}."
    if "checkpoint" in names and any(name.endswith(".index") for name in names):
        return (
            "a checkpoint: weights only, without the architecture. Load it in Python with "
            "model.load_weights(), and save the whole model with model.save('model.keras')."
        )
    return None if _DATA_SUFFIXES & {Path(name).suffix for name in names} else _held(path, names)


def _held(path: Path, names: list[str]) -> str | None:
    """Return what a folder without data is, by the model file in it."""
    for name in names:
        if name.endswith((".keras", ".h5", ".hdf5", ".onnx")):
            return f"a folder with the model {name} in it. Use {path / name}."
    for name in names:
        words = _SUFFIXES.get(Path(name).suffix.lower())
        if name == "model.json" and any(other.endswith(".bin") for other in names):
            words = foreign_file(path / name, _head(path / name))
        if words is not None:
            return f"a folder with {name} in it, {words}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


@dataclass(frozen=True)
class _Entry:
    """A regular file: where it really lies below the root, free of links, and its size."""

    parts: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class ModelDirectory:
    """A directory as it was when it was listed: its files, by their path within it.

    ``root`` is free of links, and ``shown`` is how messages call it.
    """

    root: str
    shown: str
    entries: dict[str, _Entry]

    @classmethod
    def of(cls, path: str, shown: str) -> Self:
        """List a directory. Links within it are followed."""
        root = os.path.realpath(path)
        entries = dict(sorted(_entries(root, shown)))
        if GRAPH in entries and entries[GRAPH].size > MAX_GRAPH_BYTES:
            raise ModelError(f"{shown}: its {GRAPH} is larger than 2 GiB. Use another file.")
        return cls(root, shown, entries)

    def open(self, name: str) -> BufferedReader:
        """Open a file, by the directories that it was found in: no link is followed any more."""
        *folders, last = self.entries[name].parts
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in folders:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            # A pipe that took the file's place must not hold the program.
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
        opened = os.fdopen(file, "rb")
        if not stat.S_ISREG(os.fstat(file).st_mode):
            opened.close()
            raise OSError(f"`{name}` is no longer a file")
        return opened

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's bytes."""
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def copy(self, target: Path) -> None:
        """Copy what was listed, and no byte more, into a new directory."""
        target.mkdir()
        check_room(self.shown, sum(entry.size for entry in self.entries.values()), target)
        for name, entry in self.entries.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with self.open(name) as source, (target / name).open("xb") as copied:
                left = entry.size
                while left and (block := source.read(min(left, _BLOCK_BYTES))):
                    left -= copied.write(block)
                if left or source.read(1):
                    raise ModelError(
                        f"{self.shown}: `{name}` in it changed while it was copied. Wait until "
                        "the model is complete, and try again."
                    )


def check_room(shown: str, size: int, target: Path) -> None:
    """Refuse a copy for which there is no room."""
    free = shutil.disk_usage(target.parent).free
    if size > min(free, _MAX_BYTES):
        kind = ModelError if size > _MAX_BYTES else WorkFailed
        raise kind(
            f"{shown}: holds {size:,} bytes, of which a private copy is made in {target.parent}. "
            f"Expected at most {min(free, _MAX_BYTES):,} bytes "
            f"({'the free space there' if free < _MAX_BYTES else 'the limit for a model'}). "
            "Remove files that do not belong to the model, or set TMPDIR to a larger disk."
        )


def check_space_left(shown: str, error: Exception) -> None:
    """Raise where temporary files of ours found no room, which is no fault of the model."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise WorkFailed(
            f"{shown}: no space is left in {tempfile.gettempdir()} for a private copy of the model "
            f"({error.strerror}). Free some there, or set TMPDIR to a larger disk, and run again."
        ) from error


def _entries(root: str, shown: str) -> Iterator[tuple[str, _Entry]]:
    seen = 0
    # The name of each directory, where it really is, and the directories above it.
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", root, (root,))]
    while waiting:
        prefix, folder, above = waiting.pop()
        with os.scandir(folder) as items:
            for item in items:
                seen += 1
                if seen > _MAX_ENTRIES:
                    raise ModelError(
                        f"{shown}: holds more than {_MAX_ENTRIES:,} files. Is it a model?"
                    )
                name = f"{prefix}{item.name}"
                place = _inside(root, item, f"{shown}: the link `{name}`")
                found = os.lstat(place)
                if stat.S_ISDIR(found.st_mode) and place not in above:
                    waiting.append((f"{name}/", place, (*above, place)))
                elif stat.S_ISREG(found.st_mode):
                    yield name, _Entry(Path(place).relative_to(root).parts, found.st_size)
                else:
                    what = "a circular link" if item.is_symlink() else "neither a file nor a link"
                    raise ModelError(f"{shown}: `{name}` in it is {what}. Export the model again.")


def _inside(root: str, item: os.DirEntry[str], words: str) -> str:
    """Say where an entry really lies, which must be below the root."""
    if not item.is_symlink():
        return item.path
    place = os.path.realpath(item.path)
    if os.path.commonpath([root, place]) != root:
        raise ModelError(
            f"{words} in it points outside it, to {place}. Copy the model with its links resolved "
            "(cp -rL), and use the copy."
        )
    return place
