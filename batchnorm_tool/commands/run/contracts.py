"""The contract of a result: what a query must do alike, and rows that show whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnorm_tool.chunk import INPUT_REASONS, Chunk, Reason, fitting_rows
from batchnorm_tool.contract import Canary, Contract, ContractFeature, ContractModel
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import BatchnormToolError, Interrupted, capture_warnings
from batchnorm_tool.formats import format_named
from batchnorm_tool.formats.arrow_columns import regrouped, rows_of
from batchnorm_tool.gate.output_limits import keys_to_json
from batchnorm_tool.inputs.reading import Part, Slice
from batchnorm_tool.job import Job
from batchnorm_tool.norms.output_spec import OutputSpec
from batchnorm_tool.norms.stats import VectorStats
from batchnorm_tool.pipeline.manifest import PartRecord, existing_record
from batchnorm_tool.pipeline.output_schema import decoded_rows, directories, output_schema
from batchnorm_tool.pipeline.plan import Identity, Plan, ResolvedOptions
from batchnorm_tool.pipeline.scored_chunk import DROP, QUARANTINE, Policies
from batchnorm_tool.pipeline.worker import ChunkReader
from batchnorm_tool.storage import Storage

# Of each part only rows at its beginning are read again, and of many parts only some: what a
# contract takes must not grow with the rows. Where a part begins within a row group, all of that
# before it is decoded: of 1 M rows of 128 floats, 16 parts took a tenth of the run's CPU time.
_PARTS, _WINDOW_ROWS, _WINDOW_BYTES = 4, 1024, 4 << 20
# Of the features of all canaries: a contract is sent along, and images are large.
_FEATURE_BYTES = 1 << 20


@dataclass
class _Window:
    """The first rows of a part, as they were read and as they are stored.

    Attributes:
        chunk: What the model got.
        origins: The rows in ``chunk`` that their input did not remove, ``int64[n]``.
        lost: How many rows of the part were removed because of their prediction.
        stored: Rows of the part, from its first one on.
        lengths: By which a stored row is chosen, ``float64[m]``.
        free: Which of them may be chosen, ``bool[m]``.
    """

    chunk: Chunk
    origins: np.ndarray
    lost: int
    stored: pa.Table
    lengths: np.ndarray
    free: np.ndarray

    def take(self, length: float) -> tuple[int, int] | None:
        """Choose the row whose length is nearest: its places in ``chunk`` and in ``stored``."""
        while self.free.any():
            away = np.where(self.free, np.abs(self.lengths - length), np.inf)
            row = int(away.argmin())
            self.free[row] = False
            if (origin := self._origin(row)) is not None:
                return origin, row
        return None

    def _origin(self, row: int) -> int | None:
        """Find which row was read that is stored as ``row``; ``None`` where several may be."""
        # It was read at its own place, or later by as many rows as were lost in between.
        found = self.origins[row : row + self.lost + 1]
        if self.lost:
            carried = self.chunk.carried
            wanted = self.stored.select(carried.column_names).slice(row, 1)
            found = found[[carried.slice(at, 1).equals(wanted) for at in found.tolist()]]
        return int(found[0]) if len(found) == 1 else None


@dataclass(frozen=True)
class CanarySearch:
    """The choice of canary rows among those of a plan, whose finished parts are staged.

    It depends on plan, parts and input alone, so that a run that was killed writes the same
    contract as one that was not. ``statistics`` are those of each output over all parts.
    """

    plan: Plan
    storage: Storage
    statistics: Mapping[str, VectorStats]

    def rows(self, count: int) -> Iterator[Canary]:
        """Yield at most ``count`` rows; fewer where their features are large.

        Their norms are near the quantiles of all norms, within what is read of each part.
        """
        parts = min(_PARTS, self.plan.part_count)
        numbers = [at * self.plan.part_count // parts for at in range(parts)]
        windows, left = [*filter(None, map_in_order(self._window, numbers))], _FEATURE_BYTES
        for at in range(count if windows else 0):
            window = windows[at % len(windows)]
            if (found := window.take(self._quantile((at + 0.5) / count))) is None:
                continue
            canary = self._canary(window, *found)
            size = sum(map(_size, canary.features.values()))
            if size <= left:
                left -= size
                yield canary

    def _quantile(self, share: float) -> float:
        output = self._outputs[0]
        norms = self.statistics[output.name].norms
        # Where nothing is divided by, the norms beside the vectors are 1.
        label = "l2" if output.norm.name == "none" else output.norm.label
        return norms[label].quantile(share) or 0.0

    @cached_property
    def _outputs(self) -> tuple[OutputSpec, ...]:
        return self.plan.resolved.layouts(self.plan.job)

    @cached_property
    def _reader(self) -> ChunkReader:
        return ChunkReader(self.plan)

    @capture_warnings(lambda _: None)  # they were told when the part was done
    def _window(self, number: int) -> _Window | None:
        """Read the beginning of a part again; ``None`` where nothing of it is stored for sure."""
        resolved = self.plan.resolved
        row_bytes = sum(field.row_bytes for field in (*resolved.inputs, *resolved.outputs))
        most = fitting_rows(row_bytes, _WINDOW_BYTES, min(_WINDOW_ROWS, resolved.chunk_rows))
        chunk = next(self._reader.read(_beginning(self.plan.part(number), most)), None)
        if chunk is None:
            return None
        record = existing_record(self.storage, number)
        actions = Policies.of(self.plan.job).actions
        removing = [reason for reason in Reason if actions[reason] in (DROP, QUARANTINE)]
        # Only the model finds these: reading a row does not tell that it is one of them.
        late = {*removing} - (INPUT_REASONS - {Reason.MODEL_FAILURE})
        lost = sum(record.reasons.get(reason.label, 0) for reason in late)
        origins = np.flatnonzero(~np.isin(chunk.faults, removing))
        if len(origins) <= lost:
            return None
        stored = self._stored(record, len(origins) - lost)
        lengths = np.stack([_lengths(stored, output) for output in self._outputs])
        free = (np.isfinite(lengths) & (lengths > 0)).all(axis=0)
        return _Window(chunk, origins, lost, stored, lengths[0], free)

    def _stored(self, record: PartRecord, rows: int) -> pa.Table:
        """Return the first rows of a part as they lie in its staged files."""
        job, table = self.plan.job, dict[str, pa.Array]()
        schema = output_schema(self.plan.resolved.carried, self._outputs)
        held = directories(schema.names, self._outputs, job.output.format)
        for file in record.files:
            names = held.get(file.path.partition("/")[0], ())
            path = str(self.storage.root / self.storage.staged(file.path))
            form = format_named(path.rpartition(".")[2])
            if names:
                wanted = names if form.is_table else form.inspect(path).schema.names
                found = next(regrouped(form.read(path, wanted, 0, rows, rows), rows))
                table |= dict(zip(names, found.combine_chunks().columns, strict=True))
        return pa.table([table[name] for name in schema.names], schema=schema)

    def _canary(self, window: _Window, origin: int, row: int) -> Canary:
        chunk, outputs = window.chunk, self._outputs
        stored = {
            name: rows_of(window.stored[name].slice(row, 1).combine_chunks())[0]
            for one in outputs
            for name in (one.vector_column, one.norm_column)
        }
        keys = chunk.carried.select(range(max(1, self._reader.keys))).slice(origin, 1)
        return Canary(
            {name: array[origin, ...] for name, array in chunk.features.items()},
            {one.name: stored[one.vector_column].reshape(one.stored_shape) for one in outputs},
            {one.name: stored[one.norm_column] for one in outputs},
            next(keys_to_json(keys)) if self.plan.job.contract.keys else None,
        )


def _beginning(part: Part, rows: int) -> Part:
    slices = []
    for some in part.slices:
        slices.append(Slice(some.file, some.start, min(some.stop, some.start + rows)))
        rows -= slices[-1].rows
    return Part(part.number, part.first_row, tuple(some for some in slices if some.rows))


def _lengths(stored: pa.Table, output: OutputSpec) -> np.ndarray:
    """Return a length for each stored row, ``float64[n]``: its largest; NaN where it has none."""
    if output.norm.name == "none":
        vectors = decoded_rows(stored[output.vector_column].combine_chunks(), output)
        return np.linalg.norm(vectors.astype(np.float64), axis=1)
    norms = rows_of(stored[output.norm_column].combine_chunks())
    return np.asarray(norms.reshape(stored.num_rows, -1).max(axis=1))


def _size(features: np.ndarray) -> int:
    if features.dtype != object:
        return features.nbytes
    return sum(len(str(text).encode(errors="replace")) for text in features.flat)


def contract_of(
    job: Job, resolved: ResolvedOptions, identity: Identity, canaries: Iterable[Canary] = ()
) -> Contract:
    """Return the contract of what a job makes with the choices in ``resolved``."""
    model, columns = job.model, resolved.features
    made_by = None
    if model is not None:
        content = resolved.model_content or ""
        made_by = ContractModel(Path(model.path).name, content, model.layer, model.signature)
    return Contract(
        space=identity.space_id,
        features=tuple(
            ContractFeature(
                input=each.name,
                columns=tuple(columns.get(each.name, ())),
                dtype=each.dtype,
                shape=tuple(size or 0 for size in each.shape),
            )
            for each in resolved.inputs
        ),
        outputs=resolved.layouts(job),
        canaries=tuple(canaries),
        model=made_by,
        transform=resolved.transform,
    )


def find_canaries(
    plan: Plan, storage: Storage, statistics: Mapping[str, VectorStats], tell: Callable[[str], None]
) -> tuple[Canary, ...]:
    """Return the canary rows of a plan whose parts are done; ``tell`` hears why there are none."""
    count = plan.job.contract.canaries
    if not (count and statistics):  # or no rows
        return ()
    try:
        return tuple(CanarySearch(plan, storage, statistics).rows(count))
    except Interrupted:
        raise
    except (BatchnormToolError, OSError, pa.ArrowException) as error:
        # The vectors are right without it: hours of work are not lost for a file that has gone.
        tell(f"The contract has no canary rows: {error}")
        return ()
