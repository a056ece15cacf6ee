"""What a verification finds: the first findings in words, all of them in number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchnorm_tool.errors import Damaged, Lines

if TYPE_CHECKING:
    import numpy as np

_NAMED = 20
_NAMED_ROWS = 3
_REMEDY = "Restore it from a copy, or make it again with `--fresh`."


@dataclass
class Findings:
    """Damage found in one run or store; memory is bounded however much there is.

    Attributes:
        texts: The first findings.
        count: All findings.
    """

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, text: str) -> None:
        """Take in one finding."""
        self.count += 1
        if len(self.texts) < _NAMED:
            self.texts.append(text)

    def add_rows(self, file: str, rows: np.ndarray, text: str) -> None:
        """Take in one finding that several rows of a file share.

        Args:
            file: Path below the output.
            rows: ``int[n]``, row numbers in that file; nothing is found where there are none.
            text: What is wrong with each.
        """
        if not len(rows):
            return
        named = ", ".join(f"{int(row):,}" for row in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
        self.add(f"`{file}`, row {named}{more}: {text}")

    def raise_if_any(self, path: str, remedy: str = _REMEDY) -> None:
        """Raise `Damaged` with all of them and what to do, or nothing where there are none."""
        if not self.count:
            return
        more = self.count - len(self.texts)
        listed = [*self.texts, *([f"… and {more:,} more"] if more else [])]
        head = f"`{path}` is damaged; {self.count:,} finding{'s' * (self.count > 1)}:"
        raise Damaged(Lines(head, *(f"  {text}" for text in listed), remedy))
