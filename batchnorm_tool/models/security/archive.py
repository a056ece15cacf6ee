"""What a stored Keras model holds, read without Keras: its architecture, its weights, its hash.

Two containers: ``.keras`` (a zip archive of ``config.json``, ``metadata.json`` and an HDF5 file of
weights) and ``.h5`` (one HDF5 file). Nothing here is executed, and sizes are checked before they
are believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import resource
import tempfile
import zipfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.display import plural
from batchnorm_tool.errors import ModelError
from batchnorm_tool.models.security.directory import check_space_left, foreign_file
from batchnorm_tool.models.security.keras_allowlist import ModelFinding, short

if TYPE_CHECKING:
    import h5py

_MAX_CONFIG_BYTES = 64 << 20
_MAX_DEPTH = 100  # levels of JSON; a model within a model within a model takes about thirty
# Several times those of the largest of keras.applications: whatever 64 MiB hold, they are read and
# judged within two seconds. Counted as bytes, before JSON makes Python's objects of them.
_MAX_CONTAINERS, _MAX_KEYS, _MAX_VALUES = 100_000, 300_000, 1_000_000
_MOST = {(b"{", b"["): _MAX_CONTAINERS, (b":",): _MAX_KEYS, (b",",): _MAX_VALUES}
_TOO_LARGE = (
    f"its architecture is nested more than {_MAX_DEPTH} levels deep, or holds more than "
    f"{_MAX_CONTAINERS:,} lists and dictionaries, {_MAX_KEYS:,} keys or {_MAX_VALUES:,} values"
)
_MAX_DIGITS = 100
_MAX_MEMBERS = 10_000
_WEIGHTS = "model.weights.h5"
_MAX_GROUP_DEPTH = 100
BLOCK_BYTES = 64 << 20
_BOMB_FLOOR_BYTES = 64 << 20
# Keras stores without compression; trained weights hardly compress, pruned ones ten to twenty fold.
_BOMB_RATIO = 32
# Groups, data sets and attributes: five times those of the largest of keras.applications. Each
# takes h5py some 100 microseconds, eight chunks likewise.
_MAX_PIECES = 20_000
_CHUNKS_IN_A_PIECE = 8
_MAX_ATTRIBUTE_BYTES = 8 << 20
_ATTRIBUTE_MEMORY = 256 << 20
_MAX_DANGERS = 100
_MAX_PATH_LENGTH = 4000
_TRAINING_GROUPS = frozenset({"optimizer", "optimizer_weights"})
# What says when or with what a file was written, or how the model was trained.
_UNHASHED_ATTRIBUTES = frozenset({"backend", "keras_version", "model_config", "training_config"})


@dataclass(frozen=True)
class StoredModel:
    """A Keras model as stored.

    ``config`` is its architecture as Keras serialized it; ``keras_version`` is ``"unknown"`` where
    it does not say what wrote it.
    """

    config: Any
    keras_version: str
    weights: Weights


def read_keras_archive(path: str, shown: str) -> StoredModel:
    """Read a ``.keras`` archive."""
    with _errors(shown), zipfile.ZipFile(path) as archive:
        file_bytes = Path(path).stat().st_size
        names = _safe_names(archive, file_bytes, shown)
        if "config.json" not in names:
            raise ModelError(_no_config(shown, names))
        config = _parse_config(_member(archive, "config.json"), shown)
        has_metadata = "metadata.json" in names
        metadata = _parse_config(_member(archive, "metadata.json"), shown) if has_metadata else {}
        weights = Weights(file_bytes)
        _add_members(archive, names, weights)
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return StoredModel(config, _version(version), weights)


def read_hdf5(path: str, shown: str) -> StoredModel:
    """Read an ``.h5`` file that holds a whole model."""
    import h5py

    with _errors(shown), h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelError(_weights_only(shown, file, file.attrs))
        config = _parse_config(_read_attribute(file.attrs, "model_config"), shown)
        weights = Weights(Path(path).stat().st_size)
        _walk_hdf5(file, "", weights)
        has_version = "keras_version" in file.attrs
        version = _read_attribute(file.attrs, "keras_version") if has_version else None
    return StoredModel(config, _version(version), weights)


def _parse_config(text: object, shown: str) -> Any:
    """Return JSON of bounded size and depth as Python data."""
    if not isinstance(text, str | bytes):
        raise ModelError(
            f"{shown}: its architecture is {short(text)}, where a string is expected. Use another "
            "file."
        )
    if len(text) > _MAX_CONFIG_BYTES:
        raise ModelError(
            f"{shown}: its architecture takes {len(text):,} bytes, more than "
            f"the {_MAX_CONFIG_BYTES:,} that real models need at most. Use another file."
        )
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    # Commas and brackets within strings count too: that refuses too much at worst, and costs no
    # parser, which would make objects of all of it first.
    if any(sum(map(data.count, marks)) > most for marks, most in _MOST.items()):
        raise ImplausibleError(_TOO_LARGE)
    try:
        config = json.loads(text, parse_int=_whole_number)
    except RecursionError as error:
        raise ImplausibleError(_TOO_LARGE) from error
    except ImplausibleError:
        raise
    except ValueError as error:
        raise ModelError(
            f"{shown}: its architecture is not valid JSON ({error}). The file is damaged: copy or "
            "save it again."
        ) from error
    if _deeper_than(config, _MAX_DEPTH):
        raise ImplausibleError(_TOO_LARGE)
    return config


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:  # reading and writing it would take quadratic time
        raise ImplausibleError(f"its architecture holds a number of {len(digits):,} digits")
    return int(digits)


def _deeper_than(data: Any, limit: int) -> bool:
    level: list[Any] = [data]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> Iterator[Any]:
    values = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return (value for value in values if isinstance(value, dict | list))


def _version(given: object) -> str:
    text = given.decode(errors="replace") if isinstance(given, bytes) else given
    return short(text) if isinstance(text, str) else "unknown"


@contextlib.contextmanager
def _errors(shown: str) -> Iterator[None]:
    """Map what zipfile and h5py say about damaged files to one error of ours."""
    try:
        yield
    except ImplausibleError as error:
        raise ModelError(f"{shown}: {error}, unlike any real model. Use another file.") from error
    except (
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        check_space_left(shown, error)
        raise ModelError(
            f"{shown}: damaged or cut short ({type(error).__name__}: {error}). Expected a whole "
            "Keras model. Copy it again from its source, or save it again with model.save()."
        ) from error


def _safe_names(archive: zipfile.ZipFile, file_bytes: int, shown: str) -> set[str]:
    """Return the names in the archive, once all of them are known to be harmless."""
    # Names are compared without case: on some file systems two that differ only there are one file.
    members = archive.infolist()
    names = [member.filename for member in members]
    distinct = {name.casefold() for name in names}
    if len(names) > _MAX_MEMBERS or len(distinct) < len(names):
        raise ModelError(
            f"{shown}: its archive holds {plural(len(names), 'member')}, {len(distinct):,} of "
            "them distinct; Keras writes few, each once. Use another file."
        )
    for member in members:
        fault = _member_fault(member)
        if fault is not None:
            raise ModelError(
                f"{shown}: its archive member `{short(member.filename)}` {fault}, which Keras "
                "never writes. Use another file."
            )
    size = sum(member.file_size for member in members)
    if size > _may_grow_to(file_bytes):
        raise ImplausibleError(f"its archive would grow from {file_bytes:,} to {size:,} bytes")
    return set(names)


def _member_fault(member: zipfile.ZipInfo) -> str | None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename:
        return "leads out of the archive"
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        return "is a symbolic link"
    if member.flag_bits & 1:
        return "is encrypted"
    if path.suffix == ".npz":
        return "is itself an archive"
    return None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        return member.read(_MAX_CONFIG_BYTES + 1)


def _add_members(archive: zipfile.ZipFile, names: set[str], weights: Weights) -> None:
    """Hash the weights and assets (vocabularies, for instance) of a ``.keras`` archive."""
    if _WEIGHTS not in names:
        raise ValueError(f"no {_WEIGHTS} in the archive")
    # Sorted: the hash must not depend on the order in which an archive was packed.
    for name in sorted(names - {"config.json", "metadata.json"}):
        with archive.open(name) as member:
            if name == _WEIGHTS:
                _hdf5_member(member, weights)
            else:
                _plain_member(name, member, weights)


def _hdf5_member(member: IO[bytes], weights: Weights) -> None:
    """Hash an HDF5 file inside the archive, by way of a nameless file: it may exceed memory."""
    import h5py

    with tempfile.TemporaryFile() as copy:
        while block := member.read(BLOCK_BYTES):
            copy.write(block)
        copy.seek(0)
        with h5py.File(copy, "r") as file:
            _walk_hdf5(file, "", weights)


def _plain_member(name: str, member: IO[bytes], weights: Weights) -> None:
    content = hashlib.sha256()
    while block := member.read(BLOCK_BYTES):
        content.update(block)
        weights.bytes += len(block)
    weights.add("member", name, content.hexdigest())


def _no_config(shown: str, names: set[str]) -> str:
    if any(name.endswith(".weights.h5") for name in names):
        return _weights_only(shown, sorted(names), ())
    if any(name.endswith("/data.pkl") for name in names):
        return f"{shown}: {foreign_file(Path('model.pt'), b'')}"
    return (
        f"{shown}: a ZIP archive, but not a Keras model: `config.json` is missing. "
        f"Received: {', '.join(map(short, sorted(names)[:5])) or 'an empty archive'}. Use a file "
        "written by model.save('….keras')."
    )


def _weights_only(shown: str, groups: Iterable[str], attributes: Container[str]) -> str:
    marks = ("layers", "vars", "layer_names", "_layer_checkpoint_dependencies", _WEIGHTS)
    names = list(itertools.islice(groups, 1000))
    if any(mark in names or mark in attributes for mark in marks):
        return (
            f"{shown}: contains weights only, without the architecture. Expected a whole model. "
            "Build the model in Python, call model.load_weights() with this file, and save it "
            "whole with model.save('model.keras')."
        )
    return (
        f"{shown}: an HDF5 file, but not a Keras model: `model_config` is missing. "
        f"Received: {', '.join(map(short, names[:5])) or 'an empty file'}. Use a file written by "
        "model.save()."
    )


class ImplausibleError(ValueError):
    """What a file holds or claims is more than any real model has."""


def _may_grow_to(file_bytes: int) -> int:
    """Say how much a file of this size may hold once everything in it is unpacked."""
    return max(_BOMB_FLOOR_BYTES, _BOMB_RATIO * file_bytes)


@dataclass
class Weights:
    """The running hash over stored weights.

    Attributes:
        file_bytes: Size of the file that holds them.
        digest: SHA-256 over names, dtypes, shapes, attributes and bytes of weights and assets.
        bytes: Size of the weights so far.
        dangers: Everything that must not be followed.
        seen: Addresses of the HDF5 objects so far: a loop would never end.
        pieces: Groups, data sets, attributes and chunks so far.
        claimed: What the data sets so far claim to hold, in bytes.
        attribute_bytes: What the attributes so far hold.
    """

    file_bytes: int
    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    dangers: list[ModelFinding] = field(default_factory=list)
    seen: set[object] = field(default_factory=set)
    pieces: int = 0
    claimed: int = 0
    attribute_bytes: int = 0

    def add(self, *words: object) -> None:
        """Add words to the hash, each ended, so that no two lists of words collide."""
        for word in words:
            encoded = str(word).encode()
            self.digest.update(len(encoded).to_bytes(8, "little") + encoded)

    def count(self, pieces: int) -> None:
        """Count what takes time, whatever its size."""
        self.pieces += pieces
        if self.pieces > _MAX_PIECES:
            raise ImplausibleError(f"holds more than {_MAX_PIECES:,} groups, data and attributes")

    def warn_of(self, what: str, where: str) -> None:
        """Note a danger."""
        self.dangers.append(ModelFinding("refuse", what, where))
        if len(self.dangers) > _MAX_DANGERS:
            raise ImplausibleError(f"holds {what} and more of its kind")


def _walk_hdf5(group: h5py.Group, path: str, weights: Weights) -> None:
    """Hash a group and all below it, in sorted order, following nothing that leads elsewhere."""
    import h5py

    if path.count("/") > _MAX_GROUP_DEPTH or len(path) > _MAX_PATH_LENGTH:
        raise ImplausibleError(f"groups nested more than {_MAX_GROUP_DEPTH} deep, or long names")
    _add_attributes(group.attrs, path, weights)
    weights.count(len(group))
    for name in sorted(group):
        inner = f"{path}/{name}"
        if inner[1:] in _TRAINING_GROUPS:
            continue
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "external" if isinstance(link, h5py.ExternalLink) else "symbolic"
            weights.warn_of(f"HDF5 {kind} link", inner)
            continue
        _add_object(group[name], inner, weights)


def _add_object(item: Any, path: str, weights: Weights) -> None:
    import h5py

    info = h5py.h5o.get_info(item.id)
    # A hard link may lead back up: without this the walk would never end, or hash one data set a
    # thousand times.
    if (info.fileno, info.addr) in weights.seen:
        raise ImplausibleError(f"{path} appears under two names")
    weights.seen.add((info.fileno, info.addr))
    if isinstance(item, h5py.Group):
        _walk_hdf5(item, path, weights)
    elif isinstance(item, h5py.Dataset):
        _add_dataset(item, path, weights)


def _add_dataset(dataset: h5py.Dataset, path: str, weights: Weights) -> None:
    danger = _dataset_danger(dataset, weights)
    if danger is not None:
        weights.warn_of(danger, path)
        return
    # Shape and dtype as well as bytes: the same bytes in another shape are another model.
    weights.add("dataset", path, dataset.dtype.str, dataset.shape)
    _add_attributes(dataset.attrs, path, weights)
    weights.bytes += dataset.nbytes
    for block in _blocks(dataset):
        if block.dtype.hasobject:
            weights.add(*block.reshape(-1).tolist())
        else:
            weights.digest.update(block.tobytes())


def _dataset_danger(dataset: h5py.Dataset, weights: Weights) -> str | None:
    import h5py

    if dataset.id.get_create_plist().get_external_count() > 0:
        return "HDF5 external storage"
    if dataset.is_virtual:
        return "HDF5 virtual dataset"
    if dataset.dtype.hasobject and h5py.check_string_dtype(dataset.dtype) is None:
        return "HDF5 references"
    # Of texts the length is not known before they are read; none is longer than the file.
    file = h5py.h5i.get_file_id(dataset.id)
    each = file.get_filesize() if dataset.dtype.hasobject else dataset.dtype.itemsize
    # A chunk is unpacked as often as `_blocks` reads some of it.
    readings = -(-dataset.chunks[0] // _rows_at_once(dataset)) if dataset.chunks else 1
    weights.claimed += dataset.size * each * readings
    if weights.claimed > _may_grow_to(weights.file_bytes):
        return f"weights that grow from {weights.file_bytes:,} to {weights.claimed:,} bytes"
    if dataset.chunks:
        chunks = zip(dataset.shape, dataset.chunks, strict=True)
        count = math.prod(-(-length // chunk) for length, chunk in chunks)
        weights.count(count // _CHUNKS_IN_A_PIECE)
    return None


def _rows_at_once(dataset: h5py.Dataset) -> int:
    row_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    return max(1, BLOCK_BYTES // row_bytes)


def _blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """Yield the dataset in blocks of rows of about 64 MiB."""
    if not dataset.shape:
        yield np.array([dataset[()]], dtype=dataset.dtype)
        return
    rows = _rows_at_once(dataset)
    for start in range(0, dataset.shape[0] if dataset.size else 0, rows):
        yield dataset[start : start + rows]


def _add_attributes(attributes: h5py.AttributeManager, path: str, weights: Weights) -> None:
    weights.count(len(attributes))
    for name in sorted(attributes):
        if name in _UNHASHED_ATTRIBUTES:
            continue
        value = _read_attribute(attributes, name)
        text = repr(value.tolist() if hasattr(value, "tolist") else value)
        weights.attribute_bytes += len(text) + _attribute_bytes(attributes, name)
        if weights.attribute_bytes > _MAX_ATTRIBUTE_BYTES:
            raise ImplausibleError(f"its attributes take more than {_MAX_ATTRIBUTE_BYTES:,} bytes")
        weights.add("attribute", path, name, text)


def _read_attribute(attributes: h5py.AttributeManager, name: str) -> Any:
    """Return an attribute of an HDF5 object, if it is not too large."""
    claimed = _attribute_bytes(attributes, name)
    if claimed > _MAX_ATTRIBUTE_BYTES:
        raise ImplausibleError(f"its attribute `{name}` would take {claimed:,} bytes")
    # Many texts may share one place in the file, and tell their lengths only when they are read.
    with _memory_limit(_ATTRIBUTE_MEMORY):
        try:
            return attributes[name]
        except MemoryError as error:
            raise ImplausibleError(f"its attribute `{name}` takes too much memory") from error


def _attribute_bytes(attributes: h5py.AttributeManager, name: str) -> int:
    stored = attributes.get_id(name)
    return math.prod(stored.shape) * stored.dtype.itemsize


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has, where Linux counts them."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + more if soft == resource.RLIM_INFINITY else min(soft, used + more)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
