"""Read quarantined rows again: the parts that hold them are done again, all others stay.

A finished run becomes an unfinished one beside itself, which lacks those parts and otherwise goes
the line of every run. Readers keep the result until the new one takes its place, and a kill leaves
what the same command finishes.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq

from batchnorm_tool.chunk import Chunk, Reason
from batchnorm_tool.commands.progress import Progress
from batchnorm_tool.commands.run.prepare import Preparation
from batchnorm_tool.display import did_you_mean, plural
from batchnorm_tool.errors import FRESH, RECREATE, InputError, JobError, Lines, OutputError
from batchnorm_tool.inputs.files import InputFile
from batchnorm_tool.inputs.reading import Part, Slice
from batchnorm_tool.pipeline import output_state
from batchnorm_tool.pipeline.manifest import Manifest
from batchnorm_tool.pipeline.output_state import OutputState
from batchnorm_tool.pipeline.part_output import (
    PARTS_PATH,
    QUARANTINE_DIRECTORY,
    PartHashes,
    read_records,
)
from batchnorm_tool.pipeline.plan import Identity, Plan, ResolvedOptions
from batchnorm_tool.pipeline.scored_chunk import QUARANTINE, Policies
from batchnorm_tool.pipeline.worker import ChunkReader
from batchnorm_tool.readers.run import damaged_if_unreadable
from batchnorm_tool.storage import Storage

RETRY = "--retry-quarantined"
_LABELS = [reason.label for reason in Reason if reason != Reason.GOOD]
_NAMED_PARTS = 5
_MORE = "More than the quarantined rows changed in the input; nothing was written."
_ADVICE = f"Restore all other rows, or replace the result with `{FRESH}`."


@dataclass(frozen=True)
class Retry:
    """What it takes to read the quarantined rows of a finished run again.

    Attributes:
        path: The output directory.
        manifest: That of the finished run.
        quarantined: Rows in quarantine that are read again, by the labels of their reasons.
        plan: The plan of the run over the input as it is now; ``None`` where there is no such row.
        again: Numbers of the parts that are done again.
    """

    path: str
    manifest: Manifest
    quarantined: Mapping[str, int]
    plan: Plan | None = None
    again: frozenset[int] = frozenset()

    @property
    def rows(self) -> int:
        """Rows of the parts that are done again."""
        return sum(self.plan.part(number).rows for number in self.again) if self.plan else 0


def check_reasons(
    retry_quarantined: bool,  # noqa: FBT001  (the argument of `run`)
    reason: str | Sequence[str] | None,
    *,
    fresh: bool,
    limit: int | None,
) -> tuple[str, ...] | None:
    """Return the labels of the reasons asked for, none for all; ``None`` without a retry."""
    given = (reason,) if isinstance(reason, str) else tuple(reason or ())
    if not retry_quarantined:
        if given:
            raise JobError(f"`reason` chooses quarantined rows: add `{RETRY}`.")
        return None
    for name, is_given in ((FRESH, fresh), ("--limit", limit is not None)):
        if is_given:
            raise JobError(
                f"`{RETRY}` reads some rows of a finished run again, and `{name}` begins another "
                "run. Remove one of them."
            )
    for name in given:
        if name not in _LABELS:
            raise JobError(
                f"`reason`: expected one of {', '.join(_LABELS)}. Received: {name}."
                f"{did_you_mean(name, _LABELS)}"
            )
    return given


def plan_retry(
    preparation: Preparation,
    storage: Storage,
    there: OutputState,
    reasons: Collection[str],
    progress: Progress,
) -> Retry:
    """Find what is to be done, and check that nothing else has changed; nothing is written.

    Raises:
        OutputError: The output holds no finished run, or one of another job.
        InputError: Other rows have changed than those in quarantine for one of ``reasons``.
    """
    manifest = there.manifest
    if manifest is None:
        raise OutputError(
            f"The output directory `{there.path}` holds no finished run, and `{RETRY}` reads some "
            "rows of one again. Run the job without it."
        )
    quarantined = _in_quarantine(manifest, reasons)
    asked = {label for label, rows in quarantined.items() if rows}
    if not asked:
        return Retry(there.path, manifest, quarantined)
    _check_files(manifest.inputs, preparation.table.files)
    plan = _plan(preparation, there, manifest)
    has_records = PARTS_PATH in [file.path for file in manifest.files]
    records = read_records(storage) if has_records else ()
    rows = {record.part: (record.hashes, set(record.reasons)) for record in records}
    if not rows or not all(hashes for hashes, _ in rows.values()):
        raise OutputError(
            f"The result in `{there.path}` lacks records of its parts, or hashes of their rows, so "
            f"that none can be kept: an earlier version wrote it. {RECREATE.capitalize()}."
        )
    if plan.files != manifest.inputs:
        check = _Check(plan, manifest, storage, asked, progress)
        check.check_rows({number: hashes for number, (hashes, _) in rows.items()})
    judged = asked | output_state.reasons_judged_otherwise(manifest.job, plan.job)
    kept = {number for number, (_, reasons) in rows.items() if not judged & reasons}
    if not _counts_stay(manifest, plan):
        kept = set()
    again = frozenset(range(plan.part_count)) - kept
    return Retry(there.path, manifest, quarantined, plan, again)


def begin_retry(plan: Plan, again: Collection[int], storage: Storage, there: OutputState) -> Plan:
    """Make the state of an unfinished run; returns its plan, whose finished parts may stay."""
    before = there.plan
    if before is not None and output_state.continues(before.identity, plan):
        # A retry that was stopped, maybe one for fewer reasons; or a run of the very same.
        output_state.extend_reopened(storage, again)
        return before
    output_state.reopen(storage, plan, read_records(storage), again)
    return plan


def _in_quarantine(manifest: Manifest, reasons: Collection[str]) -> dict[str, int]:
    """Count the quarantined rows for each of ``reasons``; for those that have any, without."""
    actions = Policies.of(manifest.job).actions
    found = {
        reason.label: manifest.reasons.get(reason.label, 0)
        for reason in Reason
        if actions[reason] == QUARANTINE
    }
    if reasons:
        return {label: found.get(label, 0) for label in reasons}
    return {label: rows for label, rows in found.items() if rows}


def _check_files(before: Sequence[InputFile], now: Sequence[InputFile]) -> None:
    """Refuse another list of files, and files with more or fewer rows."""
    old, new = ({file.path: file.rows for file in files} for files in (before, now))
    # Files that are there first: it matters more what became of these.
    for path in sorted({*old, *new}, key=lambda path: (path not in old, path)):
        if old.get(path) != new.get(path):
            was, now_is = (plural(o[path], "row") if path in o else "no file" for o in (old, new))
            raise InputError(f"{path}: {_MORE} Expected: {was}. Received: {now_is}. {_ADVICE}")


def _plan(preparation: Preparation, there: OutputState, manifest: Manifest) -> Plan:
    """Return the plan over the input as it is now, once it can take parts of the finished run."""
    choices = None
    if preparation.fingerprint_over(manifest.inputs) == manifest.options_fingerprint:
        choices = preparation.refitted(manifest.resolved)
    plan = preparation.plan(choices)
    before = _over_this_input(manifest.identity, plan)
    if not output_state.continues(before, plan):
        other = replace(there, plan=None, manifest=replace(manifest, identity=before))
        output_state.refuse_other(other, plan, keeps_parts=True)
    _check_types(manifest.resolved, plan)
    if there.plan is not None and there.parts_done:
        under_way = _over_this_input(there.plan.identity, plan)
        if not output_state.continues(under_way, plan):
            output_state.refuse_other(there, plan, keeps_parts=True)
    return plan


def _over_this_input(identity: Identity, plan: Plan) -> Identity:
    """Return an identity with the input and the policies of ``plan``, which may be others."""
    result = {**identity.result, "input": plan.identity.result["input"]}
    return replace(identity, result=result, policies=plan.identity.policies)


def _check_types(before: ResolvedOptions, plan: Plan) -> None:
    old, new = _types(before), _types(plan.resolved)
    names = [name for name in old if old[name] != new.get(name)]
    other = [f"`{name}` ({old[name]} there, {new.get(name)} now)" for name in names]
    if other:
        raise InputError(
            f"{plan.files[0].path}: {_MORE} Of other types than the run read are: "
            f"{', '.join(other)}. {_ADVICE}"
        )


def _types(resolved: ResolvedOptions) -> dict[str, str]:
    carried = {field.name: str(field.type) for field in resolved.carried}
    inputs = {field.name: f"{field.dtype}{list(field.shape)}" for field in resolved.inputs}
    return {**carried, **inputs}


def _counts_stay(manifest: Manifest, plan: Plan) -> bool:
    """Tell whether rows that were counted as reused in a part still are whatever others hold."""
    asked = plan.job.input.deduplicate
    if asked != manifest.job.input.deduplicate:
        return False
    return not asked or plan.files == manifest.inputs


@dataclass(frozen=True)
class _Check:
    """The comparison of an input with the rows that a finished run read."""

    plan: Plan
    manifest: Manifest
    storage: Storage
    asked: Collection[str]
    progress: Progress

    def check_rows(self, recorded: Mapping[int, Mapping[str, str]]) -> None:
        """Read all parts in changed files, and refuse other rows than those that may change."""
        parts = list(filter(self._changed, map(self.plan.part, range(self.plan.part_count))))
        found = ChunkReader(self.plan).over(parts, self._hashes, self.progress.advance)
        lines = []
        with self.progress.work(sum(part.rows for part in parts), 0), contextlib.closing(found):
            for part, hashes in zip(parts, found, strict=True):
                before = recorded.get(part.number, {})
                other = {
                    label
                    for label in {*before, *hashes} - {*self.asked}
                    if before.get(label) != hashes.get(label)
                }
                if other:
                    lines.append(self._describe(part, other))
        if lines:
            more = [f"  and {plural(len(lines) - _NAMED_PARTS, 'more part')}"]
            more = more if len(lines) > _NAMED_PARTS else []
            raise InputError(Lines(_MORE, *lines[:_NAMED_PARTS], *more, _ADVICE))

    def _changed(self, part: Part) -> list[Slice]:
        """Return the rows of a part that are in files of another content than before."""
        files, before = self.plan.files, self.manifest.inputs
        return [some for some in part.slices if files[some.file] != before[some.file]]

    def _describe(self, part: Part, other: Collection[str]) -> str:
        places = [
            f"{self.plan.files[some.file].path}, rows {some.start} to {some.stop - 1}"
            for some in self._changed(part)
        ]
        what = "rows that were not in quarantine"
        if Reason.GOOD.label not in other:
            what = f"rows in quarantine for {', '.join(sorted(other))}, which is not asked for,"
        return f"  {'; '.join(places)} (part {part.number}): {what} changed"

    def _hashes(self, part: Part, chunks: Iterator[Chunk]) -> dict[str, str]:
        """Hash the rows of a part as its worker did, those in quarantine apart."""
        quarantined, found = self._quarantined(part), PartHashes()
        for chunk in chunks:
            start = chunk.first_row - part.first_row
            found.add(chunk, quarantined[start : start + chunk.rows])
        return found.to_dict()

    def _quarantined(self, part: Part) -> np.ndarray:
        """Return the reason of each row of a part that is in quarantine, ``uint8[n]``."""
        found = np.zeros(part.rows, np.uint8)
        files = [file.path for file in self.manifest.parts[part.number].files]
        for path in files:
            if path.startswith(f"{QUARANTINE_DIRECTORY}/"):
                self._mark(part, path, found)
        return found

    def _mark(self, part: Part, path: str, found: np.ndarray) -> None:
        # Behind the carried columns, whatever these are called.
        first = len(self.plan.resolved.carried.names)
        with damaged_if_unreadable(path), self.storage.open(path) as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            names = file.schema_arrow.names[first : first + 3]
            files, rows, labels = file.read(columns=names).select(names).columns
        files, rows = np.array(files.to_pylist()), rows.to_numpy()
        reasons = np.array([Reason[label.upper()] for label in labels.to_pylist()], np.uint8)
        start = 0
        for some in part.slices:
            here = files == self.plan.files[some.file].path
            here &= (rows >= some.start) & (rows < some.stop)
            found[start + rows[here] - some.start] = reasons[here]
            start += some.rows
