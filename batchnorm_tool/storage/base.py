"""What an output is written through, wherever it lies."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import BinaryIO

from batchnorm_tool.storage.files import FileRecord, OutputFile

STATE = "_state"
TEMPORARY = f"{STATE}/tmp"  # noqa: S108  (a folder inside the output, not the system's)


class Storage(ABC):
    """Where an output lives. Paths are relative to it, with ``/`` between their parts."""

    @abstractmethod
    def create(self, path: str) -> OutputFile:
        """Begin a file that appears under ``path`` when it is committed."""

    @abstractmethod
    def get(self, path: str) -> bytes | None:
        """Return the content of a small file, or ``None`` where there is none."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a committed file to read it."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return the size of a committed file in bytes, or ``None`` where there is none."""

    @abstractmethod
    def names(self, directory: str = "") -> list[str]:
        """Return sorted names of what lies in ``directory``; empty where it does not exist."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file or a whole directory; harmless where there is none."""

    @abstractmethod
    def staged(self, path: str) -> str:
        """Return where a file is written that publishing will make visible as ``path``."""

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
        """Tell whether a publication has begun and not ended: it must be finished first."""

    @abstractmethod
    def lock(self, wait_seconds: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Hold the output alone; `Busy` if another run still holds it after ``wait_seconds``."""

    def put(self, path: str, data: bytes) -> FileRecord:
        """Write a small file whole."""
        with self.create(path) as file:
            file.write(data)
            return file.commit()
