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
import tempfile
import zipfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from batchnorm_tool.errors import ModelError
from batchnorm_tool.model_gate.architecture import short
from batchnorm_tool.model_gate.foreign import foreign_file
from batchnorm_tool.model_gate.weights import (
    BLOCK_BYTES,
    ImplausibleError,
    Weights,
    may_grow_to,
    read_attribute,
)

MAX_CONFIG_BYTES = 64 << 20
MAX_DEPTH = 100  # levels of JSON; a model within a model within a model takes about thirty
# Several times those of the largest of keras.applications: whatever 64 MiB hold, they are read and
# judged within two seconds. Counted as bytes, before JSON makes Python's objects of them.
_MAX_CONTAINERS, _MAX_KEYS, _MAX_VALUES = 100_000, 300_000, 1_000_000
_MOST = {(b"{", b"["): _MAX_CONTAINERS, (b":",): _MAX_KEYS, (b",",): _MAX_VALUES}
_TOO_LARGE = (
    f"its architecture is nested more than {MAX_DEPTH} levels deep, or holds more than "
    f"{_MAX_CONTAINERS:,} lists and dictionaries, {_MAX_KEYS:,} keys or {_MAX_VALUES:,} values"
)
_MAX_DIGITS = 100
_MAX_MEMBERS = 10_000
_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class StoredModel:
    """A Keras model as stored.

    Attributes:
        config: Its architecture, as Keras serialized it.
        keras_version: What wrote it, ``"unknown"`` where it does not say.
        weights_sha256: SHA-256 over names, dtypes, shapes and bytes of the weights and assets.
        weights_bytes: Size of the weights.
        dangers: (what, where) of everything in the container that must not be followed.
    """

    config: Any
    keras_version: str
    weights_sha256: str
    weights_bytes: int
    dangers: tuple[tuple[str, str], ...]


def read_keras_archive(path: str, shown: str) -> StoredModel:
    """Read a ``.keras`` archive.

    Args:
        path: The file.
        shown: How messages call it.

    Raises:
        ModelError: Truncated, hostile, or no Keras model.
    """
    with _errors(shown), zipfile.ZipFile(path) as archive:
        file_bytes = Path(path).stat().st_size
        names = _safe_names(archive, file_bytes, shown)
        if "config.json" not in names:
            raise ModelError(_no_config(shown, names))
        config = parse_config(_member(archive, "config.json"), shown)
        metadata = parse_config(_member(archive, "metadata.json", b"{}"), shown)
        weights = Weights(file_bytes)
        _add_members(archive, names, weights)
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return _stored(config, version, weights)


def read_hdf5(path: str, shown: str) -> StoredModel:
    """Read an ``.h5`` file that holds a whole model.

    Args:
        path: The file.
        shown: How messages call it.

    Raises:
        ModelError: Damaged, hostile, weights only, or no Keras model.
    """
    import h5py

    with _errors(shown), h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelError(_weights_only(shown, file, file.attrs))
        config = parse_config(read_attribute(file.attrs, "model_config"), shown)
        weights = Weights(Path(path).stat().st_size)
        weights.add_hdf5(file)
        version = None
        if "keras_version" in file.attrs:
            version = read_attribute(file.attrs, "keras_version")
    return _stored(config, version, weights)


def parse_config(text: object, shown: str) -> Any:
    """JSON of bounded size and depth as Python data.

    Example:
        >>> parse_config('{"a": [1]}', "model.keras")
        {'a': [1]}
    """
    if not isinstance(text, str | bytes):
        raise ModelError(
            f"{shown}: its architecture is {short(text)}, where text belongs. Use another file."
        )
    if len(text) > MAX_CONFIG_BYTES:
        raise ModelError(
            f"{shown}: its architecture takes {len(text):,} bytes, more than the "
            f"{MAX_CONFIG_BYTES:,} that any real model needs. Use another file."
        )
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
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
    if _deeper_than(config, MAX_DEPTH):
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


def _stored(config: Any, version: object, weights: Weights) -> StoredModel:
    text = version.decode(errors="replace") if isinstance(version, bytes) else version
    return StoredModel(
        config=config,
        keras_version=short(text) if isinstance(text, str) else "unknown",
        weights_sha256=weights.digest.hexdigest(),
        weights_bytes=weights.bytes,
        dangers=tuple(weights.dangers),
    )


@contextlib.contextmanager
def _errors(shown: str) -> Iterator[None]:
    """Map what zipfile and h5py say about damaged files to one error of ours."""
    try:
        yield
    except ImplausibleError as error:
        raise ModelError(f"{shown}: {error}, as no real model does. Use another file.") from error
    except (
        *(EOFError, LookupError, NotImplementedError, OSError, RuntimeError),
        *(TypeError, ValueError, zipfile.BadZipFile, zipfile.LargeZipFile),
    ) as error:
        raise ModelError(
            f"{shown}: damaged or cut short ({type(error).__name__}: {error}). Expected a whole "
            "Keras model. Copy it again from where it comes from, or save it again with "
            "model.save()."
        ) from error


def _safe_names(archive: zipfile.ZipFile, file_bytes: int, shown: str) -> set[str]:
    """The names in the archive, once all of them are known to be harmless."""
    members = archive.infolist()
    names = [member.filename for member in members]
    distinct = {name.casefold() for name in names}
    if len(names) > _MAX_MEMBERS or len(distinct) < len(names):
        raise ModelError(
            f"{shown}: its archive holds {len(names):,} members, {len(distinct):,} of them "
            "different; Keras writes few, each once. Use another file."
        )
    for member in members:
        fault = _member_fault(member)
        if fault is not None:
            raise ModelError(
                f"{shown}: its archive member `{short(member.filename)}` {fault}; Keras writes "
                "none like it. Use another file."
            )
    size = sum(member.file_size for member in members)
    if size > may_grow_to(file_bytes):
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
        return "is an archive of its own"
    return None


def _member(archive: zipfile.ZipFile, name: str, default: bytes | None = None) -> bytes:
    if default is not None and name not in archive.namelist():
        return default
    with archive.open(name) as member:
        return member.read(MAX_CONFIG_BYTES + 1)


def _add_members(archive: zipfile.ZipFile, names: set[str], weights: Weights) -> None:
    """Hash the weights and assets (vocabularies, for instance) of a ``.keras`` archive."""
    if _WEIGHTS not in names:
        raise ValueError(f"no {_WEIGHTS} in the archive")
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
            weights.add_hdf5(file)


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
        f"{shown}: a zip archive, but no Keras model: `config.json` is missing. Received: "
        f"{', '.join(map(short, sorted(names)[:5])) or 'an empty archive'}. Give a file written by "
        "model.save('….keras')."
    )


def _weights_only(shown: str, groups: Iterable[str], attributes: Container[str]) -> str:
    marks = ("layers", "vars", "layer_names", "_layer_checkpoint_dependencies", _WEIGHTS)
    names = list(itertools.islice(groups, 1000))
    if any(mark in names or mark in attributes for mark in marks):
        return (
            f"{shown}: holds weights only, without the architecture. Expected a whole model. "
            "Build the model in Python, call model.load_weights() with this file, and save it "
            "whole with model.save('model.keras')."
        )
    return (
        f"{shown}: an HDF5 file, but no Keras model: `model_config` is missing. Received: "
        f"{', '.join(map(short, names[:5])) or 'an empty file'}. Give a file written by "
        "model.save()."
    )
