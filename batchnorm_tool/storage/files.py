"""Files that appear whole and synced, or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchnorm_tool.errors import BatchnormToolError, OutputError, WorkFailed, is_transient


@dataclass(frozen=True)
class FileRecord:
    """A committed file: path below the output, size in bytes, SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str


@contextlib.contextmanager
def write_errors(path: object) -> Iterator[None]:
    """Map what the operating system says while writing to one error of ours."""
    try:
        yield
    except OSError as error:
        message = f"Cannot write `{path}`: {describe_error(error)}."
        if not is_worth_retrying(error):
            message += " Choose an `output.path` that this user may write to."
            raise OutputError(message) from error
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message += " Free some space, then run the same command again to resume."
        elif error.errno in {errno.EMFILE, errno.ENFILE}:
            message += " Raise the limit on open files (`ulimit -n`), then run again."
        else:
            message += " Finished work is kept: fix the cause and run the same command again."
        raise WorkFailed(message) from error


@contextlib.contextmanager
def read_errors(path: object) -> Iterator[None]:
    """Map what the operating system says while reading to one error of ours."""
    try:
        yield
    except OSError as error:
        kind = WorkFailed if is_worth_retrying(error) else OutputError
        raise kind(
            f"Cannot read `{path}`: {describe_error(error)}. Finished work is kept: fix the cause "
            "and run the same command again."
        ) from error


def is_worth_retrying(error: OSError) -> bool:
    """Tell whether running it again may help: what was removed from an output is made again."""
    return is_transient(error) or error.errno == errno.ENOENT


def describe_error(error: OSError) -> str:
    """Return what the operating system says."""
    return error.strerror or str(error)


def fault_in(root: Path, expected: FileRecord, source: str) -> tuple[str | None, bool]:
    """Say what is wrong with a committed file, if anything is, and whether to decode it."""
    # One of the right size is worth decoding: it may still tell which row is broken.
    path = root / expected.path
    above = path.parents[: len(Path(expected.path).parents) - 1]
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or any(folder.is_symlink() for folder in above):
            return f"`{expected.path}` is not a regular file.", False
        if status.st_size != expected.bytes:
            sizes = f"{status.st_size:,} bytes; the {source} has {expected.bytes:,}"
            return f"`{expected.path}` has {sizes}.", False
        digest = record_of(root, expected.path).sha256
    except FileNotFoundError:
        return f"`{expected.path}` is missing.", False
    except OSError as error:
        return f"`{expected.path}` cannot be read: {error.strerror}.", False
    if digest != expected.sha256:
        digests = f"SHA-256 {digest[:16]}…; the {source} has {expected.sha256[:16]}…"
        return f"`{expected.path}` is not what was written: {digests}.", True
    return None, True


def record_of(root: Path, path: str) -> FileRecord:
    """Return the record of a file as it lies there; `OSError` where it cannot be read."""
    with (root / path).open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return FileRecord(path, opened.tell(), digest)


def unknown_files(root: Path, known: Collection[str], directory: str = "") -> Iterator[str]:
    """Yield what a directory holds and is not known: files, links, directories of no such file."""
    parents = {str(parent) for path in known for parent in Path(path).parents}
    for folder, folders, names in os.walk(root / directory):
        for name in sorted([*names, *folders]):
            path = Path(folder) / name
            found = path.relative_to(root).as_posix()
            is_known = found in (known if name in names or path.is_symlink() else parents)
            if not is_known:
                yield found


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
        # Kept: after a failed sync the system may say that all is well, and have dropped the data
        # (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
        self._failure: BatchnormToolError | None = None
        self._descriptor: int | None = None
        with write_errors(path):
            self._descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)

    def writable(self) -> bool:
        """Return true: the file is there to be written."""
        return True

    def tell(self) -> int:
        """Return the number of bytes written so far."""
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
            raise ValueError(
                f"patch of {len(data)} bytes at {offset} reaches beyond {self._size} bytes"
            )
        if self._discarded:
            return
        with self._whole_or_failed() as descriptor:
            _write_all(descriptor, memoryview(data), offset)
        self._patched = True

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Do nothing: writers close what they get, but only `commit` makes the file count."""

    def commit(self, *, durable: bool = True) -> FileRecord:
        """Sync the content, let the file appear under its name, sync the directory.

        One that is not ``durable`` may be lost, or be empty, after a power cut.
        """
        with self._whole_or_failed() as descriptor:
            digest = self._digest(descriptor)
            if durable:
                os.fsync(descriptor)
            self._close()
            is_new = not self._path.exists()
            self._temporary.replace(self._path)
            if is_new:
                # A name that may be lost with the next power cut must not stay: `discard` removes
                # it. One that was there before stays: after a cut it has the one content or the
                # other, and readers count on it.
                self._temporary = self._path
            if durable:
                sync_directory(self._path.parent)
        self._committed = True
        return FileRecord(self._name, self._size, digest)

    def __exit__(self, *_: object) -> None:
        self.discard()

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
        """Lend the open descriptor; a failure while it is used is final."""
        if self._failure is not None:
            raise self._failure
        if self._descriptor is None:
            raise ValueError(f"`{self._path}` is already committed or discarded")
        try:
            with write_errors(self._path):
                yield self._descriptor
        except BatchnormToolError as error:
            self._failure = error
            raise

    def _close(self) -> None:
        """Close once, even if that fails: the number may be another file's a moment later."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _digest(self, descriptor: int) -> str:
        if not self._patched:
            # Of what was handed over, not of what is read back: it must not vouch for a disk's
            # mistake.
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


def sync_directory(directory: Path) -> None:
    """Make sure that the names in ``directory`` outlive a power cut."""
    sync_path(directory, os.O_DIRECTORY)


def sync_path(path: Path, flags: int = 0) -> None:
    """Make sure that a file's content, or a directory's names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(directory: Path) -> list[Path]:
    """Make ``directory`` and its parents, each entry synced in the directory above it."""
    if directory.is_dir():
        return []
    made = make_directories(directory.parent)
    try:
        directory.mkdir()
        made.append(directory)
    except FileExistsError:
        if directory.is_symlink() or directory.is_file():
            raise  # else somebody has made it meanwhile, and perhaps taken it back
    sync_directory(directory.parent)
    return made


def save_report(directory: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    """Write texts, by file name, into a directory that is made if need be; each in one step."""
    target, made = Path(directory).absolute(), list[Path]()
    with _errors(directory, "directory"):
        try:
            made = make_directories(target)
            for name, content in files.items():
                _replace(target / name, content)
        except OSError:
            with contextlib.suppress(OSError):
                for path in reversed(made):
                    path.rmdir()
            raise


def save_page(path: str | os.PathLike[str], content: str) -> None:
    """Write one page; a file of that name is replaced in one step."""
    with _errors(path, "file"):
        place = Path(os.path.realpath(path))  # a link stays one
        if place.exists() and not place.is_file():
            place.write_text(content, encoding="utf-8")  # the other end of a pipe
        else:
            _replace(place, content)


def check_directory(directory: str | os.PathLike[str]) -> None:
    """Refuse a place where no report can be written, before the work; nothing is written."""
    if not os.fspath(directory):
        raise _refusal(Path(), "it has no name")
    place = Path(directory).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise _refusal(Path(directory), f"`{place}` is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _refusal(Path(directory), os.strerror(errno.EACCES))


@contextlib.contextmanager
def _errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_transient(error):
            with write_errors(os.fspath(path)):
                raise
        raise _refusal(Path(path), str(error.strerror), what) from error
    except ValueError as error:  # a name that no file can have
        raise _refusal(Path(path), str(error), what) from error


def _refusal(path: Path, reason: str, what: str = "directory") -> OutputError:
    return OutputError(
        f"`{path}` cannot be written to: {reason}. Expected a {what}. Choose another one."
    )


def _replace(path: Path, content: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    aside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
