"""One run at a time in an output directory: a lock that ends with its process or a reboot."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchnorm_tool.errors import Busy, OutputError, is_transient
from batchnorm_tool.storage.files import describe_error, make_directories, write_errors

_LOCK_POLL_SECONDS = 0.05
# `show` looks whether an output is locked by locking it for a moment.
_LOCK_PATIENCE_SECONDS = 0.2
# Holders that each took the directory back between two steps of one who waits.
_OFTEN_GONE = 100


@contextlib.contextmanager
def acquire_lock(root: Path, wait_seconds: float) -> Iterator[None]:
    """Hold ``root`` alone: ``flock`` on the directory, which dies with its process."""
    deadline = time.monotonic() + max(wait_seconds, _LOCK_PATIENCE_SECONDS)
    # Not a lock file: after a kill it would stay, and no later run could tell it from one in use.
    descriptor, made = _lock_root(root, deadline)
    try:
        yield
    finally:
        # While it is still held: later, it may be another run's.
        _remove_if_empty(made)
        os.close(descriptor)


def is_locked(root: Path) -> bool:
    """Tell whether another process holds ``root`` at this moment."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


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
        missing.update(make_directories(root))
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
        f"The output directory `{root}` cannot be created: {describe_error(error)}. Choose an "
        "`output.path` that this user may write to."
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
            f"The output directory `{root}` cannot be locked: {describe_error(error)}. Choose an "
            "`output.path` on a file system that supports `flock`."
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
