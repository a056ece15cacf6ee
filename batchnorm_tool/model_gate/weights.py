"""A hash over stored weights that is the same each time the same weights are saved.

HDF5 files may point outside of themselves, and claim any size: both is noticed, nothing followed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

MAX_GROUP_DEPTH = 100
BOMB_FLOOR_BYTES = 256 << 20
BOMB_RATIO = 100  # Keras stores without compression; trained weights hardly compress at all
BLOCK_BYTES = 64 << 20
_TRAINING_GROUPS = frozenset({"optimizer", "optimizer_weights"})
# What says when or with what a file was written, or how the model was trained.
_UNHASHED_ATTRIBUTES = frozenset({"backend", "keras_version", "model_config", "training_config"})


@dataclass
class Weights:
    """The running hash over stored weights.

    Attributes:
        digest: SHA-256 over names, dtypes, shapes, attributes and bytes.
        bytes: Size of the weights so far.
        dangers: (what, where) of everything that must not be followed.
        seen: Addresses of the HDF5 objects so far: a loop would never end.
    """

    digest: Any = field(default_factory=hashlib.sha256)
    bytes: int = 0
    dangers: list[tuple[str, str]] = field(default_factory=list)
    seen: set[object] = field(default_factory=set)

    def add(self, *words: object) -> None:
        """Add words to the hash, each ended, so that no two lists of words collide."""
        for word in words:
            encoded = str(word).encode()
            self.digest.update(len(encoded).to_bytes(8, "little") + encoded)

    def add_hdf5(self, file: h5py.File) -> None:
        """Add everything in an HDF5 file but the state of training."""
        _walk_hdf5(file, "", self)


def _walk_hdf5(group: h5py.Group, path: str, weights: Weights) -> None:
    """Hash a group and all below it, in sorted order, following nothing that leads elsewhere."""
    import h5py

    if path.count("/") > MAX_GROUP_DEPTH:
        raise ValueError(f"groups nested more than {MAX_GROUP_DEPTH} deep")
    _add_attributes(group.attrs, path, weights)
    for name in sorted(group):
        inner = f"{path}/{name}"
        if inner[1:] in _TRAINING_GROUPS:
            continue
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "external" if isinstance(link, h5py.ExternalLink) else "symbolic"
            weights.dangers.append((f"HDF5 {kind} link", inner))
            continue
        _add_object(group[name], inner, weights)


def _add_object(item: Any, path: str, weights: Weights) -> None:
    import h5py

    info = h5py.h5o.get_info(item.id)
    if (info.fileno, info.addr) in weights.seen:
        raise ValueError(f"{path} appears under two names, as Keras writes nothing")
    weights.seen.add((info.fileno, info.addr))
    if isinstance(item, h5py.Group):
        _walk_hdf5(item, path, weights)
    elif isinstance(item, h5py.Dataset):
        _add_dataset(item, path, weights)


def _add_dataset(dataset: h5py.Dataset, path: str, weights: Weights) -> None:
    danger = _dataset_danger(dataset)
    if danger is not None:
        weights.dangers.append((danger, path))
        return
    weights.add("dataset", path, dataset.dtype.str, dataset.shape)
    _add_attributes(dataset.attrs, path, weights)
    weights.bytes += dataset.nbytes
    for block in _blocks(dataset):
        if block.dtype.hasobject:
            weights.add(*block.reshape(-1).tolist())
        else:
            weights.digest.update(block.tobytes())


def _dataset_danger(dataset: h5py.Dataset) -> str | None:
    import h5py

    if dataset.id.get_create_plist().get_external_count() > 0:
        return "HDF5 external storage"
    if dataset.is_virtual:
        return "HDF5 virtual dataset"
    if dataset.dtype.hasobject and h5py.check_string_dtype(dataset.dtype) is None:
        return "HDF5 references"
    size, stored = dataset.nbytes, dataset.id.get_storage_size()
    if size > BOMB_FLOOR_BYTES and size > BOMB_RATIO * stored:
        return f"weights that grow from {stored:,} to {size:,} bytes"
    return None


def _blocks(dataset: h5py.Dataset) -> Iterator[Any]:
    """The dataset in blocks of rows of about 64 MiB."""
    if not dataset.shape:
        yield np.array([dataset[()]], dtype=dataset.dtype)
        return
    row_bytes = max(1, dataset.dtype.itemsize * math.prod(dataset.shape[1:]))
    rows = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, dataset.shape[0], rows):
        yield dataset[start : start + rows]


def _add_attributes(attributes: Mapping[str, Any], path: str, weights: Weights) -> None:
    for name in sorted(attributes):
        if name not in _UNHASHED_ATTRIBUTES:
            value = attributes[name]
            plain = value.tolist() if hasattr(value, "tolist") else value
            weights.add("attribute", path, name, repr(plain))
