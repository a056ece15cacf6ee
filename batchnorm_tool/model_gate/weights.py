"""A hash over stored weights that is the same each time the same weights are saved.

HDF5 files may point outside of themselves, and claim any size: both is noticed, nothing followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

MAX_GROUP_DEPTH = 100
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


class ImplausibleError(ValueError):
    """What a file holds or claims is more than any real model has."""


def may_grow_to(file_bytes: int) -> int:
    """Say how much a file of this size may hold once everything in it is unpacked."""
    return max(_BOMB_FLOOR_BYTES, _BOMB_RATIO * file_bytes)


@dataclass
class Weights:
    """The running hash over stored weights.

    Attributes:
        file_bytes: Size of the file that holds them.
        digest: SHA-256 over names, dtypes, shapes, attributes and bytes.
        bytes: Size of the weights so far.
        dangers: (what, where) of everything that must not be followed.
        seen: Addresses of the HDF5 objects so far: a loop would never end.
        pieces: Groups, data sets, attributes and chunks so far.
        claimed: What the data sets so far claim to hold, in bytes.
        attribute_bytes: What the attributes so far hold.
    """

    file_bytes: int
    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    dangers: list[tuple[str, str]] = field(default_factory=list)
    seen: set[object] = field(default_factory=set)
    pieces: int = 0
    claimed: int = 0
    attribute_bytes: int = 0

    def add(self, *words: object) -> None:
        """Add words to the hash, each ended, so that no two lists of words collide."""
        for word in words:
            encoded = str(word).encode()
            self.digest.update(len(encoded).to_bytes(8, "little") + encoded)

    def add_hdf5(self, file: h5py.File) -> None:
        """Add everything in an HDF5 file but the state of training."""
        _walk_hdf5(file, "", self)

    def count(self, pieces: int) -> None:
        """Count what takes time, whatever its size.

        Raises:
            ImplausibleError: There are too many.
        """
        self.pieces += pieces
        if self.pieces > _MAX_PIECES:
            raise ImplausibleError(f"holds more than {_MAX_PIECES:,} groups, data and attributes")

    def warn_of(self, what: str, where: str) -> None:
        """Note a danger.

        Raises:
            ImplausibleError: There are too many.
        """
        self.dangers.append((what, where))
        if len(self.dangers) > _MAX_DANGERS:
            raise ImplausibleError(f"holds {what} and more of its kind")


def _walk_hdf5(group: h5py.Group, path: str, weights: Weights) -> None:
    """Hash a group and all below it, in sorted order, following nothing that leads elsewhere."""
    import h5py

    if path.count("/") > MAX_GROUP_DEPTH or len(path) > _MAX_PATH_LENGTH:
        raise ImplausibleError(f"groups nested more than {MAX_GROUP_DEPTH} deep, or long names")
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
    each = _file_bytes(dataset.id) if dataset.dtype.hasobject else dataset.dtype.itemsize
    weights.claimed += dataset.size * each * _readings(dataset)
    if weights.claimed > may_grow_to(weights.file_bytes):
        return f"weights that grow from {weights.file_bytes:,} to {weights.claimed:,} bytes"
    if dataset.chunks:
        chunks = zip(dataset.shape, dataset.chunks, strict=True)
        count = math.prod(-(-length // chunk) for length, chunk in chunks)
        weights.count(count // _CHUNKS_IN_A_PIECE)
    return None


def _readings(dataset: h5py.Dataset) -> int:
    """Say how often a chunk is unpacked when the dataset is read in `_blocks`."""
    return -(-dataset.chunks[0] // _rows_at_once(dataset)) if dataset.chunks else 1


def _rows_at_once(dataset: h5py.Dataset) -> int:
    row_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    return max(1, BLOCK_BYTES // row_bytes)


def _blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """The dataset in blocks of rows of about 64 MiB."""
    if not dataset.shape:
        yield np.array([dataset[()]], dtype=dataset.dtype)
        return
    rows = _rows_at_once(dataset)
    for start in range(0, dataset.shape[0] if dataset.size else 0, rows):
        yield dataset[start : start + rows]


def _file_bytes(item: h5py.h5.ObjectID) -> int:
    """Size of the HDF5 file that an object lies in: no text of any length is longer."""
    import h5py

    return h5py.h5i.get_file_id(item).get_filesize()


def _add_attributes(attributes: h5py.AttributeManager, path: str, weights: Weights) -> None:
    weights.count(len(attributes))
    for name in sorted(attributes):
        if name in _UNHASHED_ATTRIBUTES:
            continue
        value = read_attribute(attributes, name)
        text = repr(value.tolist() if hasattr(value, "tolist") else value)
        weights.attribute_bytes += len(text) + _attribute_bytes(attributes, name)
        if weights.attribute_bytes > _MAX_ATTRIBUTE_BYTES:
            raise ImplausibleError(f"its attributes take more than {_MAX_ATTRIBUTE_BYTES:,} bytes")
        weights.add("attribute", path, name, text)


def read_attribute(
    attributes: h5py.AttributeManager, name: str, limit: int = _MAX_ATTRIBUTE_BYTES
) -> Any:
    """Return an attribute of an HDF5 object, of which it is known that it is not too large.

    Raises:
        ImplausibleError: It takes more bytes than the limit.
    """
    claimed = _attribute_bytes(attributes, name)
    if claimed > limit:
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
