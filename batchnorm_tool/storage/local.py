"""An output in a local directory, and the lock by which one run at a time holds it."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from batchnorm_tool.errors import Busy, OutputError, is_transient
from batchnorm_tool.storage import files
from batchnorm_tool.storage.files import FileRecord, OutputFile, read_errors, write_errors

STATE = "_state"
TEMPORARY = f"{STATE}/tmp"  # noqa: S108  (a folder inside the output, not the system's)
_PUBLISHING = f"{STATE}/publishing.json"
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h
_LOCK_POLL_SECONDS = 0.05
# `show` looks whether an output is locked by locking it for a moment.
_LOCK_PATIENCE_SECONDS = 0.2
_COPIED_BYTES = 2**20
# Holders that each took the directory back between two steps of one who waits.
_OFTEN_GONE = 100
_Found = TypeVar("_Found")


class Storage:
    """Where an output lives. Paths are relative to it, with ``/`` between their parts."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._numbers = itertools.count()
        # Not the process number alone: in a container every attempt may have the same one.
        self._token = secrets.token_hex(8)

    def create(self, path: str) -> OutputFile:
        """Begin a file that appears under ``path`` when it is committed."""
        target = self.root / path
        # Within the output, so that the rename at the end stays on one file system: a move to
        # another one would be a copy, and could be seen half done.
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{self._token}-{next(self._numbers)}"
        with write_errors(target):
            files.make_directories(target.parent)
            files.make_directories(temporary.parent)
        return OutputFile(target, temporary, path)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> FileRecord:
        """Write a small file whole; see `OutputFile.commit`."""
        with self.create(path) as file:
            file.write(data)
            return file.commit(durable=durable)

    def sync(self, directory: str) -> None:
        """Make durable what lies in a directory; harmless where there is none."""
        names = self.names(directory)
        for path in [f"{directory}/{name}" for name in names] + [directory] * bool(names):
            with write_errors(self.root / path):
                files.sync_path(self.root / path)

    def get(self, path: str) -> bytes | None:
        """Return the content of a small file, or ``None`` where there is none."""
        return self._look_at(path, Path.read_bytes, None)

    def size(self, path: str) -> int | None:
        """Return the size of a committed file in bytes, or ``None`` where there is none."""
        return self._look_at(path, lambda target: target.stat().st_size, None)

    def names(self, directory: str = "") -> list[str]:
        """Return sorted names of what lies in ``directory``; empty where it does not exist."""
        return self._look_at(directory, lambda target: sorted(os.listdir(target)), [])

    def _look_at(self, path: str, look: Callable[[Path], _Found], missing: _Found) -> _Found:
        target = self.root / path
        with read_errors(target):
            try:
                return look(target)
            except (FileNotFoundError, NotADirectoryError):
                return missing

    def link(self, path: str, target: str) -> bool:
        """Give a committed file a second name; false where there is no such file."""
        second = self.root / target
        with write_errors(second):
            files.make_directories(second.parent)
            try:
                os.link(self.root / path, second)
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError as error:
                if is_transient(error):
                    raise
                # A file system without hard links, or that allows this file no more of them.
                self._copy(path, target)
            else:
                files.sync_directory(second.parent)
        return True

    def _copy(self, path: str, target: str) -> None:
        with self.open(path) as opened, self.create(target) as copy:
            shutil.copyfileobj(opened, copy, _COPIED_BYTES)
            copy.commit()

    def open(self, path: str) -> BinaryIO:
        """Open a committed file to read it."""
        target = self.root / path
        with read_errors(target):
            return target.open("rb")

    def remove(self, path: str) -> None:
        """Remove a file or a whole directory; harmless where there is none."""
        target = self.root / path
        with write_errors(target):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            elif not os.path.lexists(target):
                return
            else:
                target.unlink()
            files.sync_directory(target.parent)

    def staged(self, path: str) -> str:
        """Return where a file is written that publishing will make visible as ``path``."""
        return f"{STATE}/{path}"

    def publishing(self) -> bool:
        """Tell whether a publication has begun and not ended: it must be finished first."""
        return self.get(_PUBLISHING) is not None

    def begin_publish(self, directories: Sequence[str], obsolete: Sequence[str]) -> None:
        """Decide that staged ``directories`` become visible and ``obsolete`` ones vanish."""
        # An inode keeps its number when it is renamed: by the numbers noted here, a repeated
        # `finish_publish` knows which directories are in their place already.
        with read_errors(self.root / STATE):
            inodes = {name: (self.root / self.staged(name)).stat().st_ino for name in directories}
        note = {"inodes": inodes, "obsolete": list(obsolete)}
        # From here on there is no way back: a run that finds the note after a kill finishes the
        # rest.
        self.put(_PUBLISHING, json.dumps(note, sort_keys=True).encode())

    def finish_publish(self) -> None:
        """Do what `begin_publish` decided, each directory in one rename."""
        note = json.loads(self.get(_PUBLISHING) or b"{}")
        for name, inode in note["inodes"].items():
            with write_errors(self.root / name):
                self._move_into_place(name, inode)
        for name in note["obsolete"]:
            self.remove(name)
        # A kill may have come between making the output directory and syncing its own entry.
        with write_errors(self.root), contextlib.suppress(PermissionError):
            files.sync_directory(self.root.parent)

    def end_publish(self) -> None:
        """Forget what `begin_publish` decided: all of it is done."""
        self.remove(_PUBLISHING)

    def _move_into_place(self, name: str, inode: int) -> None:
        staged, final = self.root / self.staged(name), self.root / name
        in_place = not staged.exists() or (final.exists() and final.stat().st_ino == inode)
        if not in_place and final.exists():
            exchange(staged, final)
        elif not in_place:
            staged.rename(final)
        # Also where it is in its place: a kill may have come before these.
        files.sync_directory(staged.parent)
        files.sync_directory(self.root)

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the output alone; `Busy` if another run still holds it after ``wait_seconds``.

        The lock ends with its process, or a reboot.
        """
        deadline = time.monotonic() + max(wait_seconds, _LOCK_PATIENCE_SECONDS)
        # `flock` on the directory, not a lock file: after a kill it would stay, and no later run
        # could tell it from one in use.
        descriptor, made = _lock_root(self.root, deadline)
        try:
            yield
        finally:
            # While it is still held: later, it may be another run's.
            _remove_if_empty(made)
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Tell whether another process holds the output at this moment."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def open_storage(path: str) -> Storage:
    """Return the storage for an ``output.path``."""
    if "://" in path:
        raise OutputError(
            f"`output.path` must be a local directory in this version. Received: `{path}`. "
            "Write to a local directory and copy it when `_SUCCESS` is there."
        )
    if Path(path).exists() and not Path(path).is_dir():
        raise OutputError(
            f"`output.path` must be a directory, and `{path}` is a file. Choose another path."
        )
    return Storage(path)


def exchange(first: Path, second: Path) -> None:
    """Swap two directories in one step, so that no reader finds either name missing."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        names = (os.fsencode(first), os.fsencode(second))
        if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        # What else it says is a failure, not a lack: two renames would only fail half way.
        if code not in {errno.ENOSYS, errno.EINVAL}:
            raise OSError(code, os.strerror(code), str(first), None, str(second))
    # Without an atomic exchange (another system, or a file system that has none) the name is
    # missing between the two renames.
    aside = first.with_name(first.name + ".old")
    second.rename(aside)
    first.rename(second)


def _lock_root(root: Path, deadline: float) -> tuple[int, list[Path]]:
    """Lock ``root``; returns its descriptor and the directories that were made for it."""
    made, gone = set[Path](), 0
    while True:
        try:
            made |= _make_root(root)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:  # its last holder took it back, or a parent of it
            gone += 1
            if gone > _OFTEN_GONE:
                raise _not_made(root, error) from error
            continue
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, descriptor)
            _acquire(root, descriptor, deadline)
            # Its last holder may have removed the directory, and another made one of the same name,
            # while this one waited: a lock on what has no name any more excludes nothing.
            if _is_still(root, descriptor):
                _check_writable(root)
                opened.pop_all()
                return descriptor, sorted(made, reverse=True)


def _is_still(root: Path, descriptor: int) -> bool:
    """Tell whether the open directory is the one that has the name."""
    try:
        return os.path.samestat(os.fstat(descriptor), root.stat())
    except FileNotFoundError:
        return False


def _make_root(root: Path) -> set[Path]:
    """Make ``root``; returns what was not there before, or was made now: others make it as well."""
    try:
        missing = {path for path in (root, *root.parents) if not path.exists()}
        missing.update(files.make_directories(root))
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_transient(error):
            with write_errors(root):
                raise
        raise _not_made(root, error) from error
    return missing


def _check_writable(root: Path) -> None:
    if not os.access(root, os.W_OK | os.X_OK):
        raise OutputError(
            f"The output directory `{root}` is read-only. Choose another `output.path`."
        )


def _not_made(root: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The output directory `{root}` cannot be created: {files.describe_error(error)}. Choose "
        "an `output.path` that this user may write to."
    )


def _acquire(root: Path, descriptor: int, deadline: float) -> None:
    while not _lock(root, descriptor):
        if time.monotonic() >= deadline:
            raise Busy(
                f"Another run is using `{root}`. Let it finish, or wait for it with `--wait 10m`."
            )
        time.sleep(_LOCK_POLL_SECONDS)


def _lock(root: Path, descriptor: int) -> bool:
    """Lock the open directory, unless another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OutputError(
            f"The output directory `{root}` cannot be locked: {files.describe_error(error)}. "
            "Choose an `output.path` on a file system that supports `flock`."
        ) from error
    return True


def _remove_if_empty(directories: Sequence[Path]) -> None:
    """Take back directories that were made for a run which then wrote nothing."""
    for directory in directories:
        try:
            directory.rmdir()
        # Another program has put something into it meanwhile: then it, and all above it, are in
        # use.
        except OSError:
            return
