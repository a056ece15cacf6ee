"""The only place where read, predict, normalize, measure and write meet.

::

    slices -> Chunk -> Predictor -> normalize -> VectorStats -> Sink -> PartRecord

`Worker.process_part` does one part from its rows to its commit record. It knows nothing of engines:
whoever calls it, in whatever order, leaves the same bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool import environment, errors, models
from batchnorm_tool.chunk import Chunk, numbered
from batchnorm_tool.display import plural
from batchnorm_tool.errors import RECREATE, Interrupted, ModelError, OutputError, WorkFailed
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.matching import names_in
from batchnorm_tool.formats.arrow_columns import regrouped
from batchnorm_tool.inputs.reading import Part, read_slices
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.models import security
from batchnorm_tool.models.batching import IdentityPredictor, Predictor, backend_name
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline.manifest import PartRecord, record_path, refusal_path
from batchnorm_tool.pipeline.part_output import PartSummary, PartWriter
from batchnorm_tool.pipeline.plan import PLAN_PATH, Plan, with_planned_backend
from batchnorm_tool.pipeline.repeats import Predicted, Repeats, SharedPredictions
from batchnorm_tool.pipeline.scored_chunk import (
    Policies,
    predict_rows,
    score_chunk,
    warn_of_negative_ids,
)
from batchnorm_tool.pipeline.timing import StageTimings
from batchnorm_tool.storage import Storage

_Made = TypeVar("_Made")
if TYPE_CHECKING:
    from batchnorm_tool.models.backends import DeviceName


class ChunkReader:
    """The reader of a plan's parts, chunk by chunk, as a model sees them; threads may share it.

    Unless it ``carries`` key and passed-through columns, features alone are read.
    """

    def __init__(self, plan: Plan, *, carries: bool = True) -> None:
        self._plan, self._carried = plan, plan.resolved.carried if carries else pa.schema([])
        self._reader = FeatureReader(
            plan.resolved.features,
            plan.resolved.inputs,
            plan.job.input,
            check_nonfinite=plan.job.model is not None,
        )

    def read(self, part: Part) -> Iterator[Chunk]:
        """Yield the part's rows in chunks on a grid that starts at its first row."""
        most = self._plan.resolved.chunk_rows
        batches = read_slices(self._plan.files, part.slices, self._columns, most)
        # On a grid that begins with the part, however files and row groups are cut: a row's place
        # in its batch decides its last bits.
        for row, table in numbered(regrouped(batches, most), part.first_row):
            yield Chunk(row, self._carry(table, row), *self._reader.read(table))

    def over(
        self,
        parts: Iterable[Part],
        make: Callable[[Part, Iterator[Chunk]], _Made],
        advance: Callable[[int], None],
        threads: int | None = None,
    ) -> Generator[_Made, None, None]:
        """Yield what is made of the chunks of each part, in order; several threads work meanwhile.

        What is to be said of rows is not said here, but when they are scored.
        """
        stop = threading.Event()

        def chunks(part: Part) -> Iterator[Chunk]:
            for chunk in self.read(part):
                if stop.is_set():
                    raise Interrupted("Stopped while reading rows; run the same command again.")
                yield chunk
                advance(chunk.rows)

        def made(part: Part) -> _Made:
            with errors.capture_warnings(lambda _: None):
                return make(part, chunks(part))

        return environment.map_in_order(made, parts, threads, stop.set)

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        """What is read: carried columns and features, each once."""
        carried = [name for name in self._carried.names if self._is_stored(name)]
        return tuple(dict.fromkeys([*carried, *names_in(self._plan.resolved.features)]))

    @cached_property
    def keys(self) -> int:
        """How many of the carried columns, the first ones, identify a row."""
        return len(output_schema.key_columns(self._plan.job.input))

    def _is_stored(self, column: str) -> bool:
        return self.keys > 0 or column != output_schema.ROW_COLUMN

    def _carry(self, table: pa.Table, first_row: int) -> pa.Table:
        """Return key and passed-through columns of ``table``; the row number if there is no key."""
        columns = [
            table[name]
            if self._is_stored(name)
            else pa.array(np.arange(first_row, first_row + table.num_rows))
            for name in self._carried.names
        ]
        return pa.table(columns, schema=self._carried)


class Worker:
    """The work that turns part numbers into committed parts; threads may share one.

    The batch size of its predictor is fixed to the plan's; `timings` tells what each stage took.
    Rows that ``shared`` predictions know to have the features of others are predicted once.
    """

    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        predictor: Predictor,
        shared: SharedPredictions | None = None,
    ) -> None:
        self.plan = plan
        self.storage = storage
        self.predictor = predictor
        self.shared = shared
        self.timings = StageTimings()
        self.layouts = plan.resolved.layouts(plan.job)
        self.policies = Policies.of(plan.job)
        self._bits = plan.identity.bits_id
        self._reader = ChunkReader(plan)

    def process_part(
        self,
        number: int,
        advance: Callable[[int], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> PartRecord:
        """Score one part and commit it, or a record of why it cannot be."""
        part = self.plan.part(number)
        repeats = None if self.shared is None else self.shared.repeats
        summary = PartSummary(part, self.plan.files, self.policies, self._reader.keys, repeats)
        with errors.capture_warnings(summary.warnings.add), self._open_writer(part) as writer:
            for chunks in self._together(self._timed(self._reader.read(part))):
                if stopped():
                    raise Interrupted(
                        "Stopped between two chunks; run the same command again to resume."
                    )
                for chunk, predicted in zip(chunks, self._predict(chunks, part), strict=True):
                    self._process_chunk(chunk, predicted, summary, writer)
                    advance(chunk.rows)
            return self._commit(summary, writer)

    def _together(self, chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
        """Yield the chunks, those together that are predicted together."""
        if self.shared is None:
            return ([chunk] for chunk in chunks)
        return self.shared.together(chunks, self.plan.resolved.batch_size)

    def _open_writer(self, part: Part) -> PartWriter:
        with self.timings.stage("write"):
            return PartWriter(self.plan, self.storage, part, self.layouts)

    def _commit(self, summary: PartSummary, writer: PartWriter) -> PartRecord:
        with self.timings.stage("write"):
            files = () if summary.counts.failed else writer.commit()
        with self.timings.stage("statistics"):
            record = summary.record(self._bits, files)
        with self.timings.stage("write"):
            # Written last: a part without a record is made again, whatever there is of its files.
            # Not synced, which took a tenth of a small model's time: where a power cut loses or
            # empties it, its part is made again.
            path = refusal_path if summary.counts.failed else record_path
            self.storage.put(path(record.part), record.to_json(), durable=False)
        return record

    def _predict(self, chunks: Sequence[Chunk], part: Part) -> Sequence[Predicted]:
        for chunk in chunks:
            warn_of_negative_ids(chunk, self.predictor, self.plan.resolved.features)
        predict = partial(predict_rows, self.predictor, self.layouts)
        with self.timings.stage("predict"), self._saying_where(part, chunks):
            if self.shared is None:
                return [predict(chunk.features) for chunk in chunks]
            return self.shared.predict(chunks, predict)

    @contextlib.contextmanager
    def _saying_where(self, part: Part, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Put the place of the rows before the words of whatever fails with them."""
        try:
            yield
        except (ModelError, WorkFailed) as error:
            file, row = part.locate(chunks[0].first_row)
            after = sum(chunk.rows for chunk in chunks) - 1
            where = f"{self.plan.files[file].path}, row {row} and the {after} after it"
            kind = ModelError if isinstance(error, ModelError) else WorkFailed
            raise kind(f"{where}: {error.message}") from error

    def _process_chunk(
        self, chunk: Chunk, predicted: Predicted, summary: PartSummary, writer: PartWriter
    ) -> None:
        with self._saying_where(summary.part, [chunk]):
            scored = score_chunk(chunk, predicted, self.layouts, self.timings)
        with self.timings.stage("statistics"):
            actions = self.policies.actions[scored.faults]
            summary.add(scored, actions)
        if not summary.counts.failed:  # a part that breaks a policy is read on only to be counted
            with self.timings.stage("write"):
                writer.write(scored, actions)

    def _timed(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Yield the same chunks; whatever brings the next one is the stage of reading."""
        while True:
            with self.timings.stage("read"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def load_model(model: Model, content: str | None, engine: Engine) -> Predictor:
    """Load a job's model as it was when it was examined for the plan."""
    with security.admit(model) as admitted:
        if admitted.report.content != content:
            raise ModelError(
                f"{model.path}: the model file has changed since the run was planned. Run again "
                "once it no longer changes."
            )
        return models.load_predictor(model, admitted.path, engine, admitted.report)


def open_worker(storage: Storage, device: DeviceName) -> Worker:
    """Return a worker of the run whose plan lies in an output, its model loaded."""
    plan = Plan.from_json(storage.get(PLAN_PATH))
    if plan is None:
        raise WorkFailed("The plan of this run is missing from its output. Run again to resume.")
    if not plan.job.runs_code_of_user:
        environment.leave_out_pandas()
    return make_worker(storage, plan, _load(plan, device), Repeats.stored(storage))


def make_worker(
    storage: Storage, plan: Plan, model: Predictor, repeats: Repeats | None = None
) -> Worker:
    """Return a worker that computes with a loaded model; its batch size becomes the plan's."""
    planned = (plan.resolved.device, plan.resolved.threads)
    if (model.device, model.threads) != planned:
        raise OutputError(
            f"The run in `{plan.job.output.path}` was planned on the {planned[0]} "
            f"with {plural(planned[1], 'thread')} per operation, and here the model runs on "
            f"the {model.device} with {model.threads}, which gives different low-order bits. "
            f"Resume on the original machine, {RECREATE}, or accept both with `--mixed-bits`."
        )
    graphs = [each and each.graph_sha256 for each in (plan.resolved.backend, model.backend)]
    if graphs[0] != graphs[1] and not plan.job.engine.mixed_bits:
        raise OutputError(
            f"The run in `{plan.job.output.path}` was planned with another back end or converted "
            f"graph (SHA-256 {graphs[0] or 'of none: TensorFlow'}, and here {graphs[1]}), which "
            f"gives different low-order bits. Run again, and if that does not help, {RECREATE}."
        )
    if plan.job.model is not None and backend_name(model.backend) == "tensorflow":
        # Onnxruntime has a store of its own, and was no faster with it.
        environment.keep_freed_memory()
    shared = None if repeats is None else SharedPredictions(repeats, plan.resolved.outputs)
    return Worker(plan, storage, model.with_batch_size(plan.resolved.batch_size), shared)


def _load(plan: Plan, device: DeviceName) -> Predictor:
    if plan.job.model is None:
        return IdentityPredictor(plan.resolved.inputs)
    engine = plan.job.engine.model_copy(update={"devices": [device]})
    model = with_planned_backend(plan.job.model, plan.resolved)
    return load_model(model, plan.resolved.model_content, engine)
