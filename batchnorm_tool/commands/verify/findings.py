"""What is found damaged in a run or a store, and where it lies."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from batchnorm_tool.display import plural
from batchnorm_tool.errors import Damaged, Lines
from batchnorm_tool.storage import FileRecord
from batchnorm_tool.storage.files import fault_in

# Findings that are kept in words, and rows that one of them names; all others are only counted.
_NAMED = 20
_NAMED_ROWS = 3


@dataclass
class Findings:
    """Damage found in one run or store; memory is bounded however much there is.

    ``texts`` say what the first findings are, ``count`` is of all.
    """

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        """Take in one finding."""
        self.count += 1
        if len(self.texts) < _NAMED:
            self.texts.append(text)

    def add_count(self, what: str, found: int, expected: int) -> None:
        """Take in that there are not as many rows as a manifest says, if that is so."""
        if found != expected:
            self.add(f"{plural(found, 'row')} {what}; the manifest has {expected:,}.")

    def add_file(self, root: str, file: FileRecord, source: str) -> bool:
        """Take in what is wrong with a file that ``source`` tells of, if anything is.

        Returns:
            Whether it is worth decoding: a file of the right size may still tell which row is
            broken.
        """
        finding, is_readable = fault_in(Path(root), file, source)
        if finding is not None:
            self.add(finding)
        return is_readable

    def raise_if_any(self, path: str, remedy: str) -> None:
        """Raise `Damaged` with all of them and what to do, or nothing where there are none."""
        if not self.count:
            return
        more = self.count - len(self.texts)
        listed = [*self.texts, *([f"… and {more:,} more"] if more else [])]
        head = f"`{path}` is damaged; {plural(self.count, 'finding')}:"
        raise Damaged(Lines(head, *(f"  {text}" for text in listed), remedy))


@dataclass(frozen=True)
class Place:
    """Where a batch lies: a file, and the number of its first row in it."""

    findings: Findings
    file: str
    first: int

    def report(self, rows: np.ndarray, text: str) -> None:
        """Take in one finding that some rows of the batch share, ``int[n]``."""
        if not len(rows):
            return
        named = ", ".join(f"{int(row) + self.first:,}" for row in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
        self.findings.add(f"`{self.file}`, row {named}{more}: {text}")
