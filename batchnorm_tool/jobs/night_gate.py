"""What the gate is shown of a night: counts, and samples of its vectors and of the live ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchnorm_tool import gate
from batchnorm_tool.difference import Fate
from batchnorm_tool.formats.vectors import rows_of
from batchnorm_tool.jobs.night_candidate import KEPT, PREDICTED, fates_of, indexed, where
from batchnorm_tool.jobs.vector_check import length_tolerance
from batchnorm_tool.norms import Norm
from batchnorm_tool.store.index import KEY_ID, binary_rows, read_index
from batchnorm_tool.store.key_places import KeyPlaces
from batchnorm_tool.store.rows import as_ids, take_by_key
from batchnorm_tool.store.rows_file import read_rows
from batchnorm_tool.store.state import NORM, QUARANTINED, STATUS, index_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchnorm_tool.difference import Difference
    from batchnorm_tool.gate import Finding
    from batchnorm_tool.jobs.night_candidate import Candidate
    from batchnorm_tool.jobs.night_plan import NightPlan
    from batchnorm_tool.jobs.night_rows import NightRows

# Rows whose vectors are compared: a mean is then within 1 % of a standard deviation.
_SAMPLE_ROWS = 10_000
# Norms that are compared; beyond that, as many at equal distances: shares are then within 0.2 %.
_NORMS = 100_000


def judge_input(
    plan: NightPlan, difference: Difference, last: dict[str, Any] | None
) -> list[Finding]:
    """Hold tonight's input against the limits of the job.

    Args:
        plan: What the night is asked to do.
        difference: What differs from the live version.
        last: What the record of the live version says of its input.
    """
    return gate.judge_input(
        plan.job.gate.input.limits(),
        gate.Counts(live_rows=difference.live_rows, **_of_kinds(difference)),
        difference.statistics.to_dict(),
        last["reference"] if last else None,
        mode=plan.store.mode,
        new_space=plan.new_space,
    )


_KINDS = ("rows_in", "new", "changed", "touched", "same", "vanished", "recomputed", "bad")


def _of_kinds(difference: Difference) -> dict[str, int]:
    return {name: getattr(difference.counts, name) for name in _KINDS}


def judge_output(night: NightRows, candidate: Candidate, difference: Difference) -> list[Finding]:
    """Audit the staged rows, and hold them against the limits of the job."""
    findings = gate.audit(_audit_facts(night, candidate, difference), _audited(night))
    written = candidate.rows["predicted"] + candidate.rows["reused"]
    bad = gate.BadCounts(
        changed_rows=written + difference.counts.bad,
        changed_bad=candidate.bad[0],
        whole_rows=candidate.rows["live"] + candidate.rows["quarantined"],
        whole_bad=candidate.bad[1],
        rows=candidate.bad_rows,
    )
    limits = night.plan.job.gate.output.limits()
    step = max(1, written // _SAMPLE_ROWS)
    changed = _staged(night, [PREDICTED], step).vectors()
    if night.facts.live is None or night.plan.new_space:
        return findings + gate.judge_output(limits, changed, changed, None, bad)
    step = max(1, candidate.rows["live"] // _SAMPLE_ROWS)
    live, stays = _live(night, step)
    whole = _joined([live.kept(stays), _staged(night, [PREDICTED, KEPT], step)])
    return findings + gate.judge_output(limits, changed, whole.vectors(), live.vectors(), bad)


def _audited(night: NightRows) -> gate.RowAudit:
    layout = night.plan.layout
    norm = Norm.parse(layout.norm_label)
    tolerance = 0.0
    if norm.name != "none":
        tolerance = length_tolerance(norm, layout.width, np.dtype(layout.dtype))
    found = gate.RowAudit(norm, tolerance)
    for path in (PREDICTED, KEPT):
        for table in read_rows(night.state.storage, path):
            rows = _rows(table, layout.vector, layout.norm)
            found.add(*rows, table.select(list(layout.keys)))
    return found


def _rows(table: pa.Table, vector: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[n, d]`` and norms ``float64[n]`` of a table."""
    columns = (table[name].combine_chunks() for name in (vector, norm))
    vectors, norms = (rows_of(column) for column in columns)
    return vectors, norms


def _audit_facts(night: NightRows, candidate: Candidate, difference: Difference) -> gate.AuditFacts:
    index = read_index(night.state.storage, index_path(night.version), [KEY_ID])
    ids = (as_ids(binary_rows(table[KEY_ID].combine_chunks())) for table in index)
    every = np.concatenate([np.empty((0, 2), np.uint64), *ids])
    fates = fates_of(night)
    return gate.AuditFacts(
        mode=night.plan.store.mode,
        rows_in=difference.counts.rows_in,
        live=candidate.rows["live"],
        quarantined=candidate.rows["quarantined"],
        before=len(fates),
        new=difference.counts.new,
        gone=int((fates == Fate.GONE).sum()),
        distinct_keys=_distinct(every),
    )


def _distinct(ids: np.ndarray) -> int:
    """How many different ids there are in ``uint64[n, 2]``."""
    words = np.sort(ids[:, 0])
    if not (words[1:] == words[:-1]).any():  # three times as fast as looking at both words
        return len(ids)
    return len(ids) - len(KeyPlaces(ids).repeated())


@dataclass(frozen=True)
class _Sample:
    """Every so many-th row of a set, and the norms of all of its rows.

    Attributes:
        keys: The key columns of the sampled rows.
        unit: Their vectors ``[n, d]``.
        sample_norms: Their norms ``float64[n]``.
        norms: ``float64[m]``.
    """

    keys: pa.Table
    unit: np.ndarray
    sample_norms: np.ndarray
    norms: np.ndarray

    def vectors(self) -> gate.Vectors:
        """As the gate takes it."""
        step = max(1, len(self.norms) // _NORMS)
        return gate.Vectors(self.unit, self.sample_norms, self.norms[::step], self.keys)

    def kept(self, stays: tuple[np.ndarray, np.ndarray]) -> _Sample:
        """The rows that stay: ``bool[n]`` of the sampled ones, ``bool[m]`` of all."""
        few, all_of_them = stays
        return _Sample(
            self.keys.filter(pa.array(few)),
            self.unit[few],
            self.sample_norms[few],
            self.norms[all_of_them],
        )


def _joined(samples: Iterable[_Sample]) -> _Sample:
    several = list(samples)
    return _Sample(
        pa.concat_tables(sample.keys for sample in several),
        np.concatenate([sample.unit for sample in several]),
        np.concatenate([sample.sample_norms for sample in several]),
        np.concatenate([sample.norms for sample in several]),
    )


def _live(night: NightRows, step: int) -> tuple[_Sample, tuple[np.ndarray, np.ndarray]]:
    """The live version, and which of its rows stay as they are: of the sample, and of the norms."""
    layout = night.facts.layout or night.plan.layout
    keys = list(layout.keys)
    every = max(1, step * _SAMPLE_ROWS // _NORMS)
    tables, stays = [layout.key_schema.empty_table()], [np.zeros(0, bool)]
    norms, norms_stay, first = [np.zeros(0)], [np.zeros(0, bool)], 0
    for table, fates in indexed(night, [*keys, STATUS, NORM]):
        stored = where(table[STATUS], lambda status: not status.startswith(QUARANTINED))
        rows = np.flatnonzero(stored)
        few, some = rows[-first % step :: step], rows[-first % every :: every]
        tables.append(table.select(keys).take(pa.array(few)))
        stays.append(fates[few] == Fate.SAME)
        norms.append(table[NORM].to_numpy()[some])
        norms_stay.append(fates[some] == Fate.SAME)
        first += len(rows)
    wanted = pa.concat_tables(tables)
    columns = [layout.vector, layout.norm]
    version = night.facts.lance_version
    taken = list(take_by_key(night.state.path, version, wanted, keys, columns))
    schema = pa.schema([layout.schema.field(name) for name in columns])
    unit, sample_norms = _rows(
        pa.concat_tables([schema.empty_table(), *taken]), layout.vector, layout.norm
    )
    sample = _Sample(wanted, unit, sample_norms, np.concatenate(norms))
    return sample, (np.concatenate(stays), np.concatenate(norms_stay))


def _staged(night: NightRows, paths: list[str], step: int) -> _Sample:
    """Every ``step``-th row of staged files."""
    layout = night.plan.layout
    empty = night.schema.empty_table()
    tables, norms, first = [empty], [np.zeros(0)], 0
    for path in paths:
        for table in read_rows(night.state.storage, path):
            places = np.arange(-first % step, table.num_rows, step)
            tables.append(table.take(pa.array(places)))
            norms.append(table[layout.norm].to_numpy())
            first += table.num_rows
    sampled = pa.concat_tables(tables)
    unit, sample_norms = _rows(sampled, layout.vector, layout.norm)
    return _Sample(sampled.select(list(layout.keys)), unit, sample_norms, np.concatenate(norms))
