"""Counting rows by what became of them, and remembering where the first bad ones lie."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.chunk import Reason
from batchnorm_tool.chunk_statistics import ChunkStatistics
from batchnorm_tool.manifest import FIRST_BAD_ROWS, BadRow, PartRecord, RowCounts
from batchnorm_tool.policies import DROP, FAIL, NULLIFY, QUARANTINE, Policies

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from batchnorm_tool.plan import Part
    from batchnorm_tool.scored import Scored
    from batchnorm_tool.sources import InputFile
    from batchnorm_tool.storage import FileRecord
    from batchnorm_tool.vector_stats import VectorStats


@dataclass
class Tally:
    """What a part has come to so far.

    Args:
        part: The part.
        files: All input files of the plan.
        policies: The fate of bad rows.
        keys: How many of the carried columns, from the left, identify a row.
        warnings: What a person should know of the rows, each text once.
    """

    part: Part
    files: Sequence[InputFile]
    policies: Policies
    keys: int
    counts: RowCounts = field(default_factory=RowCounts)
    reasons: Counter[str] = field(default_factory=Counter)
    first_bad_rows: list[BadRow] = field(default_factory=list)
    first_failed_rows: list[BadRow] = field(default_factory=list)
    statistics: dict[str, VectorStats] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin the statistics of the part's chunks."""
        self.chunks = ChunkStatistics(self.part.number)

    def add(self, scored: Scored, actions: np.ndarray) -> None:
        """Count the rows of a chunk, of which each meets one of ``actions`` (``uint8[n]``)."""
        self.counts = self.counts + self._counts(scored.faults, actions)
        self.chunks.add(scored)
        for name, stats in scored.statistics.items():
            known = self.statistics.get(name)
            self.statistics[name] = stats if known is None else known.merge(stats)
        self._remember(scored, self.policies.bad[scored.faults], self.first_bad_rows)
        self._remember(scored, actions == FAIL, self.first_failed_rows)

    def record(self, bits: str, files: tuple[FileRecord, ...]) -> PartRecord:
        """The commit record of the part, whose ``files`` are in place.

        Of a part that broke a policy, it names the rows that did.
        """
        return PartRecord(
            part=self.part.number,
            first_row=self.part.first_row,
            bits=bits,
            counts=self.counts,
            reasons=dict(self.reasons),
            first_bad_rows=tuple(self.first_failed_rows or self.first_bad_rows),
            files=files,
            statistics=self.statistics,
            warnings=tuple(sorted(self.warnings)),
            chunks=self.chunks.to_text(),
        )

    def _remember(self, scored: Scored, chosen: np.ndarray, rows: list[BadRow]) -> None:
        """Add the first of the ``chosen`` rows (``bool[n]``) to ``rows``, until it is full."""
        space_left = FIRST_BAD_ROWS - len(rows)
        offsets = np.flatnonzero(chosen)[:space_left]
        rows += [self._bad_row(scored, int(offset)) for offset in offsets]

    def _counts(self, faults: np.ndarray, actions: np.ndarray) -> RowCounts:
        rows = len(faults)
        if not faults.any():
            return RowCounts(rows_in=rows, rows_out=rows)
        by_reason = np.bincount(faults, minlength=len(Reason))
        by_action = np.bincount(actions, minlength=FAIL + 1)
        counted = {reason: int(by_reason[reason]) for reason in Reason if by_reason[reason]}
        counted.pop(Reason.GOOD, None)
        self.reasons.update({reason.label: count for reason, count in counted.items()})
        return RowCounts(
            rows_in=rows,
            rows_out=rows - int(by_action[[DROP, QUARANTINE, FAIL]].sum()),
            bad=int(by_reason[self.policies.bad].sum()),
            zero=counted.get(Reason.ZERO_VECTOR, 0),
            nullified=int(by_action[NULLIFY]),
            dropped=int(by_action[DROP]),
            quarantined=int(by_action[QUARANTINE]),
            failed=int(by_action[FAIL]),
        )

    def _bad_row(self, scored: Scored, offset: int) -> BadRow:
        row = scored.chunk.first_row + offset
        file, file_row = self.part.locate(row)
        key = key_text(scored.chunk.carried, offset, self.keys)
        return BadRow(row, self.files[file].path, file_row, key, scored.reason(offset))


def key_text(carried: pa.Table, offset: int, keys: int) -> str:
    """The key of one row as a person reads it: the first ``keys`` columns, at least one."""
    columns = carried.columns[: max(1, keys)]
    return ", ".join(str(column[offset].as_py()) for column in columns)
