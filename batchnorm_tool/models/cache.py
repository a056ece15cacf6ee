"""The model cache: converted models and what was found out about models, each under its key.

An entry is a directory below ``$XDG_CACHE_HOME/batchnorm-tool/models``, named by the SHA-256 of its
key, which appears whole in one rename. It is used only where this user alone may write to it, and
not everyone to a directory above, its record's checksum is right, and each of its files has the
size and the SHA-256 that the record says; whatever else lies there is removed, and made anew. Who
can write as this user can do so anyway: no signature would keep them out, so that there is none.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import pydantic

from batchnorm_tool.models.batching import BackendRecord, ModelFacts
from batchnorm_tool.storage import checked_json
from batchnorm_tool.storage.checked_json import LEFT_OUT_IF_NONE, Count, FileName, SealedRecord
from batchnorm_tool.storage.files import FileRecord, record_of

# A plain name and value for whatever a result depends on.
Key = dict[str, object]
_R = TypeVar("_R", bound=checked_json.Record)
_RECORD = "entry.json"
_DOCUMENTS = "documents"
_TEMPORARY = "tmp-"
# Of all entries together, and of the small documents; the least recently used go first.
_MOST_BYTES = 4 * 2**30
_MOST_DOCUMENTS = 1000
# Names the directory of this process tree where the user's own cannot be written to.
_INSTEAD = "BATCHNORM_TOOL_CACHE_INSTEAD"
_MADE: list[Path] = []  # that directory, once this process has made it
_MAKING = threading.Lock()


@dataclass(frozen=True)
class CacheEntry(SealedRecord):
    """What lies in an entry of the model cache.

    Attributes:
        kind: An ONNX graph, a SavedModel, or that there is none, because it does not convert.
        key: Of what it was made; its SHA-256 is the entry's name.
        model: The path of the model when it was converted.
        files: All of its files, by their paths below it.
        facts: The converted model, and how it proved itself.
        speeds: Rows per second of processor time of each back end, at its fastest batch size.
        cause: Why there is no converted model.
        rows: How many rows of the user's there were to prove it on, 1,024 at most.
    """

    kind: Literal["onnx", "saved_model", "none"]
    key: Annotated[Key, pydantic.Field(repr=False)]
    model: FileName
    files: tuple[FileRecord, ...] = ()
    facts: Annotated[ModelFacts | None, LEFT_OUT_IF_NONE] = None
    speeds: Annotated[dict[str, float] | None, LEFT_OUT_IF_NONE] = None
    cause: Annotated[str | None, LEFT_OUT_IF_NONE] = None
    rows: Count = 0

    @property
    def proof(self) -> BackendRecord | None:
        """How the converted model proved itself."""
        return self.facts.backend if self.facts else None


@dataclass(frozen=True)
class CachedModel:
    """An entry that may be used, and where it lies; ``last_used`` is a time since the epoch."""

    path: Path
    entry: CacheEntry
    size: Count
    last_used: float

    def read(self, name: str) -> bytes:
        """Return the content of one of its files, checked again: it is what will be loaded."""
        expected = next(file for file in self.entry.files if file.path == name)
        content = (self.path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected.sha256:
            _remove(self.path)
            raise FileNotFoundError(
                f"{self.path / name} has changed. Run again to convert it again."
            )
        return content


class ModelCache:
    """The entries below one directory; any number of processes may use it at once."""

    def __init__(self, root: Path, most_bytes: int = _MOST_BYTES) -> None:
        self.root, self._most_bytes = root, most_bytes

    @classmethod
    def of_user(cls) -> Self:
        """Return this user's cache; one for this process tree where that cannot be written to."""
        instead = os.environ.get(_INSTEAD)
        root = Path(instead) if instead else _users_root()
        return cls(root if _unusable(root) is None else _instead())

    def find(self, key: Key, *, whole: bool = True) -> CachedModel | None:
        """Return the entry of a key; one that is not as it was written is removed.

        Not ``whole``, its files are judged by their sizes; `CachedModel.read` judges the rest.
        """
        path = self.root / checked_json.sha256(key)
        if not os.path.lexists(path):
            return None
        found = self._opened(path, whole=whole)
        if found is None or found.entry.key != key:
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what was used last is kept longest
        return found

    def keep(self, entry: CacheEntry, fill: Callable[[Path], object] = lambda _: None) -> None:
        """Make an entry, of the files that ``fill`` writes into an empty directory.

        Where another process made one meanwhile, proved on as many rows, that one stays.
        """
        place = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.root))
        try:
            fill(place)
            names = sorted(path.relative_to(place).as_posix() for path in _files(place))
            files = tuple(record_of(place, name) for name in names)
            (place / _RECORD).write_bytes(replace(entry, files=files).to_json())
            self._move(place, self.root / checked_json.sha256(entry.key), entry.rows)
        finally:
            _remove(place)
        self._bound()

    def entries(self) -> list[CachedModel]:
        """Return the entries, last used first, without reading their files."""
        paths = [path for path in self.root.iterdir() if len(path.name) == 64]
        found = [each for path in paths if (each := self._opened(path, whole=False))]
        return sorted(found, key=lambda each: -each.last_used)

    def remembered(self, kind: str, key: Key, record: type[_R], make: Callable[[], _R]) -> _R:
        """Return what was made under a key before; else make it, and keep it where that works."""
        path = self.root / _DOCUMENTS / f"{kind}-{checked_json.sha256(key)}"
        with contextlib.suppress(OSError):
            known = record.from_document(path.read_bytes()) if _is_ours(path.parent) else None
            if known is not None:
                os.utime(path)
                return known
        made = make()
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor, aside = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(made.to_document())
            Path(aside).replace(path)
            by_age = sorted(path.parent.iterdir(), key=lambda each: -each.stat().st_mtime)
            for old in by_age[_MOST_DOCUMENTS:]:
                old.unlink(missing_ok=True)
        return made

    def _opened(self, path: Path, *, whole: bool) -> CachedModel | None:
        """Return an entry that is as it was written; not ``whole``, only by its files' sizes."""
        try:
            if not _is_ours(path):
                return None
            entry = CacheEntry.from_json((path / _RECORD).read_bytes())
            names = {each.relative_to(path).as_posix() for each in _files(path)} - {_RECORD}
            if entry is None or names != {file.path for file in entry.files}:
                return None
            if whole and any(record_of(path, file.path) != file for file in entry.files):
                return None
            size = sum(each.lstat().st_size for each in _files(path))
            return CachedModel(path, entry, size, path.stat().st_mtime)
        except OSError:
            return None

    def _move(self, place: Path, path: Path, rows: int, *, again: bool = True) -> None:
        try:
            place.rename(path)
        except OSError:
            # It is there already: made by another process, or damaged since it was looked for.
            there = self._opened(path, whole=True)
            if there is None or there.entry.rows < rows:
                if not again:
                    raise
                _remove(path)
                self._move(place, path, rows, again=False)

    def _bound(self) -> None:
        """Remove the entries that were not used for longest, and what a kill left half-written."""
        kept = 0
        for number, each in enumerate(self.entries()):
            kept += each.size
            if number and kept > self._most_bytes:
                _remove(each.path)
        for path in self.root.glob(f"{_TEMPORARY}*"):
            # A day: no conversion takes so long.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < self.root.stat().st_mtime - 86400:
                    _remove(path)


def _files(directory: Path) -> Iterator[Path]:
    """Yield all that a directory holds but directories, links included."""
    return (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_ours(directory: Path) -> bool:
    """Tell whether this user alone may write to a directory, and it is no link to another."""
    status = directory.lstat()
    mine = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return mine and stat.S_ISDIR(status.st_mode)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def cache_warnings() -> Iterator[str]:
    """Say why this user's cache cannot be used, where it cannot."""
    root = _users_root()
    why = _unusable(root)
    if why:
        yield (
            f"The model cache `{root}` cannot be used ({why}): models are converted again in each "
            "run. Set XDG_CACHE_HOME to a directory that this user alone may write to."
        )


def _users_root() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # XDG says to ignore it
        home = Path(os.path.expanduser("~/.cache"))  # noqa: PTH111  (that of `Path` raises)
    return home / "batchnorm-tool" / "models"


def _unusable(root: Path) -> str | None:
    """Make the directory of a cache, or say why it cannot be one."""
    if not root.is_absolute():
        return "this user has no home directory"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(root):
            return "it is not this user's alone"
        # Who may write above could put another directory in its place, unless a sticky bit forbids.
        for above in root.resolve().parents:
            if above.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return f"everyone may write to {above}"
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(root, os.W_OK | os.X_OK) else "it is read-only"


def _instead() -> Path:
    """Return a directory for this process and those that it starts."""
    with _MAKING:
        if not _MADE:
            _MADE.append(Path(tempfile.mkdtemp(prefix="batchnorm-tool-models-")))
            atexit.register(_remove, _MADE[0])
        return _MADE[0]


def inherited() -> dict[str, str]:
    """Return the environment of a process that this one starts: it uses the same cache."""
    instead = _MADE[0] if _MADE and _unusable(_users_root()) else None
    return {**os.environ, **({_INSTEAD: str(instead)} if instead else {})}
