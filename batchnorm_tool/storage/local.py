"""An output in a local directory."""

import contextlib
import ctypes
import errno
import itertools
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from batchnorm_tool.errors import OutputError
from batchnorm_tool.storage import files, lock
from batchnorm_tool.storage.files import FileRecord, OutputFile, read_errors, write_errors

STATE = "_state"
TEMPORARY = f"{STATE}/tmp"  # noqa: S108  (a folder inside the output, not the system's)
_PUBLISHING = f"{STATE}/publishing.json"
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h
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

    def put(self, path: str, data: bytes) -> FileRecord:
        """Write a small file whole."""
        with self.create(path) as file:
            file.write(data)
            return file.commit()

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

    def lock(self, wait_seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Hold the output alone; `Busy` if another run still holds it after ``wait_seconds``."""
        return lock.acquire_lock(self.root, wait_seconds)

    def is_locked(self) -> bool:
        """Tell whether another process holds the output at this moment."""
        return lock.is_locked(self.root)


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
