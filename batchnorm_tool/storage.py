"""The only durable code: files that appear whole, synced and checksummed, and one lock an output.

`Storage` is what an output is written through; `LocalStorage` is a directory. Its rules, which
everything else relies on:

- a file becomes visible under its name only by `OutputFile.commit`: written aside, synced, renamed,
  and the directory synced after it;
- a failed write or sync is never retried on the same file (a second ``fsync`` may report success
  for data that was lost): the file is thrown away, and the work fails;
- what is published appears directory by directory, each in one rename.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from batchnorm_tool.errors import Busy, OutputError, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STATE = "_state"
TEMPORARY = f"{STATE}/tmp"
_PUBLISHING = f"{STATE}/publishing.json"
_LOCK_POLL_SECONDS = 0.05
# `show` looks whether an output is locked by locking it for a moment.
_LOCK_PATIENCE_SECONDS = 0.2
# What may be gone the next time, where other errors say that the path is no good.
_PASSING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h


@dataclass(frozen=True)
class FileRecord:
    """A committed file: path below the output, size in bytes, SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)


@contextlib.contextmanager
def _write_errors(path: object) -> Iterator[None]:
    """Map what the operating system says while writing to one error of ours."""
    try:
        yield
    except OSError as error:
        message = f"Writing `{path}` failed: {_words(error)}."
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message += " Free some space, then run the same command again: it resumes."
        elif error.errno in {errno.EMFILE, errno.ENFILE}:
            message += " Raise the limit on open files (`ulimit -n`), then run it again."
        else:
            message += " What is finished is kept; mend the cause and run the same command again."
        raise WorkFailed(message) from error


@contextlib.contextmanager
def _read_errors(path: object) -> Iterator[None]:
    """Map what the operating system says while reading to one error of ours."""
    try:
        yield
    except OSError as error:
        msg = (
            f"Reading `{path}` failed: {_words(error)}. What is finished is kept; mend the cause "
            "and run the same command again."
        )
        raise WorkFailed(msg) from error


def _words(error: OSError) -> str:
    return error.strerror or str(error)


class OutputFile(io.RawIOBase):
    """A file that is written aside and appears under its name only when committed.

    After a failed write or sync every further call fails likewise: what the system kept of the
    data is not known. What is written after `discard` goes nowhere, because the writers of some
    formats write a footer when they are dropped half way.
    """

    def __init__(self, path: Path, temporary: Path, name: str) -> None:
        self._path, self._temporary, self._name = path, temporary, name
        self._hash = hashlib.sha256()
        self._size = 0
        self._patched = self._committed = self._discarded = False
        self._failure: WorkFailed | None = None
        self._descriptor: int | None = None
        with _write_errors(path):
            self._descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)

    def writable(self) -> bool:
        """Always: it is there to be written."""
        return True

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._size

    def write(self, data: Any) -> int:
        """Append ``data`` whole, however few bytes the system takes at a time."""
        view = memoryview(data).cast("B")
        if self._discarded:
            return len(view)
        with self._whole_or_failed() as descriptor:
            _write_all(descriptor, view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def patch(self, offset: int, data: bytes) -> None:
        """Rewrite ``data`` at ``offset``, within what is written already (a header, say)."""
        if offset + len(data) > self._size:
            msg = f"patch of {len(data)} bytes at {offset} reaches beyond {self._size} bytes"
            raise ValueError(msg)
        if self._discarded:
            return
        with self._whole_or_failed() as descriptor:
            _write_all(descriptor, memoryview(data), offset)
        self._patched = True

    def close(self) -> None:
        """Do nothing: writers close what they get, but only `commit` makes the file count."""

    def commit(self) -> FileRecord:
        """Sync the content, let the file appear under its name, sync the directory."""
        with self._whole_or_failed() as descriptor:
            digest = self._digest(descriptor)
            os.fsync(descriptor)
            self._close()
            self._temporary.replace(self._path)
            # A name that may be lost with the next power cut must not stay: `discard` removes it.
            self._temporary = self._path
            _sync_directory(self._path.parent)
        self._committed = True
        return FileRecord(self._name, self._size, digest)

    def discard(self) -> None:
        """Throw the file away; harmless after `commit`."""
        if self._committed or self._discarded:
            return
        self._discarded = True
        # This follows a failure that is being told, which another one must not hide; the next run
        # removes what stays here.
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _whole_or_failed(self) -> Iterator[int]:
        """The open descriptor; a failure while it is used is final."""
        if self._failure is not None:
            raise self._failure
        if self._descriptor is None:
            msg = f"`{self._path}` is committed or discarded already"
            raise ValueError(msg)
        try:
            with _write_errors(self._path):
                yield self._descriptor
        except WorkFailed as error:
            self._failure = error
            raise

    def _close(self) -> None:
        """Close once, even if that fails: the number may be another file's a moment later."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _digest(self, descriptor: int) -> str:
        if not self._patched:
            return self._hash.hexdigest()
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(descriptor: int, view: memoryview, offset: int | None = None) -> None:
    """Write all of ``view``: the system may take less than it is given."""
    while view:
        if offset is None:
            taken = os.write(descriptor, view)
        else:
            taken = os.pwrite(descriptor, view, offset)
            offset += taken
        view = view[taken:]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Storage(ABC):
    """Where an output lives. Paths are relative to it, with ``/`` between their parts."""

    @abstractmethod
    def create(self, path: str) -> OutputFile:
        """Begin a file that appears under ``path`` when it is committed."""

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """The content of a small file, or ``None`` where there is none."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a committed file to read it."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a committed file in bytes, or ``None`` where there is none."""

    @abstractmethod
    def names(self, directory: str = "") -> list[str]:
        """Sorted names of what lies in ``directory``; empty where it does not exist."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file or a whole directory; harmless where there is none."""

    @abstractmethod
    def staged(self, path: str) -> str:
        """Where a file is written that publishing will make visible as ``path``."""

    @abstractmethod
    def begin_publish(self, directories: Sequence[str], obsolete: Sequence[str]) -> None:
        """Decide that staged ``directories`` become visible and ``obsolete`` ones vanish."""

    @abstractmethod
    def finish_publish(self) -> None:
        """Do what `begin_publish` decided; may be repeated after a kill."""

    @abstractmethod
    def end_publish(self) -> None:
        """Forget what `begin_publish` decided: all of it is done."""

    @abstractmethod
    def publishing(self) -> bool:
        """Whether a publication has begun and not ended: it must be finished before all else."""

    @abstractmethod
    def lock(self, wait_seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Hold the output alone; `Busy` if another run still holds it after ``wait_seconds``."""

    def put(self, path: str, data: bytes) -> FileRecord:
        """Write a small file whole."""
        file = self.create(path)
        try:
            file.write(data)
            return file.commit()
        finally:
            file.discard()


class LocalStorage(Storage):
    """An output in a local directory."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._numbers = itertools.count()
        # Not the process number alone: in a container every attempt may have the same one.
        self._token = secrets.token_hex(8)

    def create(self, path: str) -> OutputFile:
        """Begin a file that appears under ``path`` when it is committed."""
        target = self.root / path
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{self._token}-{next(self._numbers)}"
        with _write_errors(target):
            _make_directories(target.parent)
            _make_directories(temporary.parent)
        return OutputFile(target, temporary, path)

    def get(self, path: str) -> bytes | None:
        """The content of a small file, or ``None`` where there is none."""
        target = self.root / path
        with _read_errors(target):
            try:
                return target.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, path: str) -> BinaryIO:
        """Open a committed file to read it."""
        target = self.root / path
        with _read_errors(target):
            return target.open("rb")

    def size(self, path: str) -> int | None:
        """Size of a committed file in bytes, or ``None`` where there is none."""
        target = self.root / path
        with _read_errors(target):
            try:
                return target.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def names(self, directory: str = "") -> list[str]:
        """Sorted names of what lies in ``directory``; empty where it does not exist."""
        target = self.root / directory
        with _read_errors(target):
            try:
                return sorted(os.listdir(target))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def remove(self, path: str) -> None:
        """Remove a file or a whole directory; harmless where there is none."""
        target = self.root / path
        with _write_errors(target):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            elif not os.path.lexists(target):
                return
            else:
                target.unlink()
            _sync_directory(target.parent)

    def staged(self, path: str) -> str:
        """Where a file is written that publishing will make visible as ``path``."""
        return f"{STATE}/{path}"

    def publishing(self) -> bool:
        """Whether a publication has begun and not ended: it must be finished before all else."""
        return self.get(_PUBLISHING) is not None

    def begin_publish(self, directories: Sequence[str], obsolete: Sequence[str]) -> None:
        """Decide that staged ``directories`` become visible and ``obsolete`` ones vanish.

        An inode keeps its number when it is renamed: by the numbers noted here, a repeated
        `finish_publish` knows which directories are in their place already.
        """
        with _read_errors(self.root / STATE):
            inodes = {name: (self.root / self.staged(name)).stat().st_ino for name in directories}
        note = {"inodes": inodes, "obsolete": list(obsolete)}
        self.put(_PUBLISHING, json.dumps(note, sort_keys=True).encode())

    def finish_publish(self) -> None:
        """Do what `begin_publish` decided, each directory in one rename."""
        note = json.loads(self.get(_PUBLISHING) or b"{}")
        for name, inode in note["inodes"].items():
            with _write_errors(self.root / name):
                self._move_into_place(name, inode)
        for name in note["obsolete"]:
            self.remove(name)
        # A kill may have come between making the output directory and syncing its own entry.
        with _write_errors(self.root), contextlib.suppress(PermissionError):
            _sync_directory(self.root.parent)

    def end_publish(self) -> None:
        """Forget what `begin_publish` decided: all of it is done."""
        self.remove(_PUBLISHING)

    def _move_into_place(self, name: str, inode: int) -> None:
        staged, final = self.root / self.staged(name), self.root / name
        in_place = not staged.exists() or (final.exists() and final.stat().st_ino == inode)
        if not in_place and final.exists():
            _exchange(staged, final)
        elif not in_place:
            staged.rename(final)
        # Also where it is in its place: a kill may have come before these.
        _sync_directory(staged.parent)
        _sync_directory(self.root)

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the output alone: ``flock`` on the directory, which dies with its process."""
        descriptor, made = self._hold(time.monotonic() + max(wait_seconds, _LOCK_PATIENCE_SECONDS))
        try:
            yield
        finally:
            # While it is still held: later, it may be another run's.
            _remove_if_empty(made)
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether another process holds the output at this moment."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _hold(self, deadline: float) -> tuple[int, list[Path]]:
        """Lock the root; returns its descriptor and the directories that were made for it."""
        while True:
            made = self._make_root()
            try:
                descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # its last holder took the directory back
                continue
            try:
                self._acquire(descriptor, deadline)
                if self._is_root(descriptor):
                    return descriptor, made
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is_root(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.root.stat())
        except FileNotFoundError:
            return False

    def _make_root(self) -> list[Path]:
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        with _write_errors(self.root):
            try:
                _make_directories(self.root)
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                msg = (
                    f"The output directory `{self.root}` cannot be made: {_words(error)}. "
                    "Choose an `output.path` that this user may write."
                )
                raise OutputError(msg) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            msg = f"The output directory `{self.root}` is read-only. Choose another `output.path`."
            raise OutputError(msg)
        return missing

    def _acquire(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    msg = (
                        f"Another run holds `{self.root}`. Let it finish, or wait for it "
                        "with `--wait 10m`."
                    )
                    raise Busy(msg) from None
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError as error:
                msg = (
                    f"The output directory `{self.root}` cannot be locked: {_words(error)}. "
                    "Choose an `output.path` on a file system that knows `flock`."
                )
                raise OutputError(msg) from error
            else:
                return


def open_storage(path: str) -> Storage:
    """The storage for an ``output.path``.

    Raises:
        OutputError: The path is on an object store, or is a file.
    """
    if "://" in path:
        msg = (
            f"`output.path` must be a local directory in this version. Received: `{path}`. "
            "Write to a local directory and copy it when `_SUCCESS` is there."
        )
        raise OutputError(msg)
    if Path(path).exists() and not Path(path).is_dir():
        msg = f"`output.path` must be a directory, and `{path}` is a file. Choose another path."
        raise OutputError(msg)
    return LocalStorage(path)


def _make_directories(directory: Path) -> None:
    """Make ``directory`` and its parents, each entry synced in the directory above it."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _remove_if_empty(directories: Sequence[Path]) -> None:
    """Take back directories that were made for a run which then wrote nothing."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:
            return


def _exchange(first: Path, second: Path) -> None:
    """Swap two directories in one step, so that no reader finds either name missing."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        names = (os.fsencode(first), os.fsencode(second))
        if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in {errno.ENOSYS, errno.EINVAL}:
            raise OSError(code, os.strerror(code), str(first), None, str(second))
    # Without an atomic exchange (another system, or a file system that has none) the name is
    # missing between the two renames.
    aside = first.with_name(first.name + ".old")
    second.rename(aside)
    first.rename(second)
