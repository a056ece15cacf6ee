"""From a job to its plan: look at input and model, and make every choice that is left open."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa

from batchnorm_tool import environment, features, models
from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.commands.progress import Progress, SilentProgress, loading_model
from batchnorm_tool.commands.run import fit as fitting
from batchnorm_tool.errors import InputError, JobError, Refused, capture_warnings
from batchnorm_tool.features.matching import names_in
from batchnorm_tool.inputs import reading
from batchnorm_tool.inputs import table as inputs_table
from batchnorm_tool.inputs.files import InputFile, Table
from batchnorm_tool.job import Job
from batchnorm_tool.models import batching, conversion, placement, security
from batchnorm_tool.models.batching import IdentityPredictor, Predictor, backend_name
from batchnorm_tool.models.cache import Key, ModelCache, cache_warnings
from batchnorm_tool.models.conversion import ConversionRequest
from batchnorm_tool.pipeline import output_schema
from batchnorm_tool.pipeline import plan as planning
from batchnorm_tool.pipeline.plan import Plan, ResolvedOptions
from batchnorm_tool.pipeline.worker import load_model
from batchnorm_tool.storage import checked_json

# Rows that are read to see what the model makes of them, and to time it.
_SAMPLE_ROWS = 256
_STORED_BATCH = 4096
# Parts are multiples of it where batches may be of any size.
_GRID_ROWS = 1024

T = TypeVar("T")
_Sample = dict[str, np.ndarray]
_Columns = dict[str, tuple[str, ...]]


@dataclass
class Preparation:
    """A job whose input and model file have been looked at, and whose model loads when needed.

    Args:
        job: What was asked for; the columns of a keys file become its key if it names none.
        limit: Only so many rows from the start; ``None`` for all.
        least_rows: Choose a batch size for so many rows at least: later refreshes may have more.
        progress: Hears what takes time.

    Raises:
        Refused: Input or model cannot be read at all, or do not fit the job.
    """

    job: Job
    limit: int | None = None
    least_rows: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    table: Table = field(init=False)
    report: security.ModelReport | None = field(init=False, default=None)
    carried: pa.Schema = field(init=False)
    _predictor: Predictor | None = field(init=False, default=None)
    _planned: ResolvedOptions | None = field(init=False, default=None)
    _warnings: list[str] = field(init=False, default_factory=list)
    _means: Mapping[str, tuple[float, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.job.runs_code_of_user:
            environment.leave_out_pandas()
        with capture_warnings(self._warnings.append), self.progress.stage("looking at the input"):
            self.table = inputs_table.open_table(self.job.input)
        self.table.check_apart(self.job.output.path)
        self._means = fitting.read_means(self.job.normalize)
        self.job = _with_key(self.job, self.table)
        if self.job.model is not None:
            with self.progress.stage("examining the model"):
                self.report = security.examined(self.job.model.path)
        with self._naming_the_input():
            self.carried = output_schema.carried_schema(
                self.job.input, self.table.schema, self.table.rows
            )
        self.table.check([*output_schema.key_columns(self.job.input), *self.job.input.passthrough])

    @property
    def options_fingerprint(self) -> str:
        """Hash of all that the open choices are made from."""
        return self.fingerprint_over(self.table.files)

    def fingerprint_over(self, files: Sequence[InputFile]) -> str:
        """Return what `options_fingerprint` is over another state of the input's files."""
        job = self.job.to_dict()
        chosen = {name: job[name] for name in ("input", "model", "output")}
        chosen["model"] = planning.chosen_model(self.job)
        chosen["norms"] = [job["normalize"][name] for name in ("norm", "p", "outputs", "axis")]
        chosen |= self.further_options
        chosen["engine"] = [self.job.engine.device, self.job.engine.threads]
        for name in ("invalid", "deduplicate"):
            del chosen["input"][name]
        # Without a model, their order is the order of the outputs, and a mapping hides it.
        chosen["order"] = list(job["input"]["features"] or ())
        chosen["content"] = self.content
        chosen["transform"] = self.transform_sha256
        chosen["files"] = [file.to_dict() for file in files]
        return checked_json.sha256([chosen, self.rows])

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return self.table.rows if self.limit is None else min(self.table.rows, self.limit)

    @property
    def content(self) -> str | None:
        """Hash of the model's architecture and weights; ``None`` without a model."""
        return self.report.content if self.report else None

    @property
    def transform_sha256(self) -> str | None:
        """SHA-256 of the source of ``input.transform``; ``None`` without one."""
        name = self.job.input.transform
        return None if name is None else features.load_transform(name).source_sha256

    @property
    def further_options(self) -> dict[str, object]:
        """What else than a norm is asked for, as a part of what choices are made from."""
        options = self.job.normalize.further_options()
        # Choices that were made before there were any stay.
        return {"options": [options, dict(self._means)]} if any(options) else {}

    def plan(self, choices: ResolvedOptions | None = None, *, fits: bool = True) -> Plan:
        """Return the plan of the run; unless it ``fits``, without what is fitted over all rows."""
        # Warnings are found again below, whoever made the choices.
        with capture_warnings(lambda _: None):
            resolved = self._resolve() if choices is None else self._confirmed(choices)
        self._check_columns(resolved.carried, resolved.outputs)
        if choices is None and fits:
            resolved = self.fitted(resolved)
        return self._plan_of(resolved, self.warnings(resolved))

    def fitted(self, resolved: ResolvedOptions) -> ResolvedOptions:
        """Return choices with those for which all rows are read, where there are any."""
        if not fitting.is_fitted(self.job.normalize):
            return resolved
        with capture_warnings(lambda _: None):
            fitted = fitting.fit(self._plan_of(resolved), self.predictor(), self.progress)
        return replace(resolved, fitted=fitted)

    def _plan_of(self, resolved: ResolvedOptions, warnings: tuple[str, ...] = ()) -> Plan:
        return Plan(
            job=self.job,
            files=self.table.files,
            resolved=resolved,
            identity=planning.identify(self.job, resolved, self.table.files, self.limit),
            options_fingerprint=self.options_fingerprint,
            limit=self.limit,
            warnings=warnings,
        )

    def _check_columns(self, carried: pa.Schema, outputs: Sequence[Field]) -> None:
        """Refuse names of columns and files that cannot be beside one another."""
        given = fitting.given(self.job.normalize, outputs, self._means)
        layouts = output_schema.output_specs(self.job, outputs, given)
        output_schema.output_schema(carried, layouts)
        output_schema.directories((), layouts, self.job.output.format)

    def plan_like(self, before: ResolvedOptions) -> Plan:
        """Return a plan by what is known without the model, and by an earlier run's choices.

        Space and result of its identity are those of the true plan wherever they differ from the
        earlier run's.

        Raises:
            Refused: The model's file or the input shows that the job cannot be done.
        """
        signature, model = self._check_before_loading(), self.job.model
        names = (model.outputs if model else None) or [field.name for field in before.outputs]
        part_rows = self.job.output.part_rows
        outputs = tuple(Field(name, (1,), "float32") for name in names)
        features = before.features
        if signature is not None:
            outputs, features = signature
        given = fitting.given(self.job.normalize, outputs, self._means)
        resolved = replace(
            before,
            part_rows=before.part_rows if part_rows == "auto" else part_rows,
            outputs=outputs,
            features=features,
            model_content=self.content,
            transform=self.transform_sha256,
            fitted={**(before.fitted or {}), **(given or {})} or None,
        )
        return self._plan_of(resolved)

    def _check_before_loading(self) -> tuple[tuple[Field, ...], _Columns] | None:
        """Refuse what the model's file shows to be wrong, as it is refused once it is loaded.

        Returns:
            The outputs, but for their shapes, and the columns; ``None`` where the file does not
            tell.
        """
        model, report = self.job.model, self.report
        if model is None or report is None:
            return None
        security.check(model, report)
        # A class of the user's may do anything with what the file says.
        interface = report.interface if model.trust is None else None
        signature = interface.chosen(model) if interface else None
        if signature is None:
            return None
        places = batching.choose_outputs(signature.outputs, model.outputs)
        names = [signature.outputs[place] for place in places]
        widths = fitting.assumed_widths(self.job.normalize, names, self._means)
        outputs = tuple(Field(name, (widths[name],), "float32") for name in names)
        with capture_warnings(lambda _: None):
            columns = self._match(signature.inputs)
        self._check_columns(self.carried, outputs)
        return outputs, columns

    def warnings(self, resolved: ResolvedOptions) -> tuple[str, ...]:
        """Return what a person should know, whether the choices are new or were made earlier."""
        return tuple(dict.fromkeys(self._findings(resolved)))

    def kept_choices(self) -> ResolvedOptions:
        """Return the choices of an earlier dry run of the same, or make and keep them.

        They are for looking at; a run makes its own. Without a model they take no time, and are not
        kept. Nothing is fitted.
        """
        if self.job.model is None or self.report is None:
            return self._resolve()
        security.check(self.job.model, self.report)
        gpus = [os.environ.get("CUDA_VISIBLE_DEVICES"), len([*Path("/dev").glob("nvidia[0-9]*")])]
        versions = environment.versions(("tensorflow", "keras", "onnxruntime", "batchnorm-tool"))
        size = [environment.available_cores(), os.sysconf("SC_PHYS_PAGES")]
        key: Key = {"cpu": environment.cpu(), "gpus": gpus, "versions": versions, "size": size}
        key["request"] = self.options_fingerprint

        def choose() -> ResolvedOptions:
            with capture_warnings(lambda _: None):
                return self._resolve()

        return ModelCache.of_user().remembered("choices", key, ResolvedOptions, choose)

    def refitted(self, choices: ResolvedOptions) -> ResolvedOptions:
        """Return choices made for another state of the input, and what follows from this one."""
        wanted = self.predictor().inputs if self.job.model is not None else ()
        columns = self._match(wanted)
        return replace(
            choices,
            inputs=self._fields(columns, wanted),
            features=columns,
            carried=self.carried,
            model_content=self.content,
            transform=self.transform_sha256,
        )

    def keep_backend(self, choices: ResolvedOptions) -> ResolvedOptions | None:
        """Return choices made earlier, with the graph that their back end runs now.

        ``None`` where ``auto`` has to make them anew. Nothing is loaded that the model cache knows.
        """
        self._planned, model = choices, self.job.model
        if choices.backend is None or model is None or choices.backend.largest_difference is None:
            return choices  # TensorFlow, or an ONNX file, whose content is the graph
        purpose: Literal["convert", "export"]
        purpose = "convert" if choices.backend.name == "onnxruntime" else "export"
        request = ConversionRequest(model, self.content, self.job.engine, purpose=purpose)
        found = ModelCache.of_user().find(request.key)
        try:
            record = (found and found.entry.proof) or self.predictor().backend
        except Refused:
            if model.backend != "auto":
                raise
            self._planned = None
            return None
        return replace(choices, backend=record)

    def is_fallback(self, choices: ResolvedOptions | None) -> bool:
        """Tell whether ``auto`` took TensorFlow earlier for want of what may be there now."""
        model = self.job.model
        return bool(choices and model and model.backend == "auto" and choices.backend is None)

    def _confirmed(self, choices: ResolvedOptions) -> ResolvedOptions:
        """Return choices made earlier; where other bits are accepted, for the device here."""
        self._planned = choices
        if not self.job.engine.mixed_bits:
            return choices
        model = self.predictor()
        return replace(choices, device=model.device, threads=model.threads, backend=model.backend)

    def _findings(self, resolved: ResolvedOptions) -> Iterator[str]:
        yield from self._warnings
        found: list[str] = []
        with capture_warnings(found.append):
            columns = self._match(resolved.inputs if self.job.model is not None else ())
            self._sample(columns, resolved.inputs)
        yield from found
        yield from output_schema.single_number_warnings(resolved.layouts(self.job))
        yield from fitting.missing_means(self.job.normalize, resolved.fitted or {})
        for finding in self.report.findings if self.report else ():
            if finding.severity == "warn":
                yield f"The model holds {finding.what} (in {finding.where})."
        if self.job.model is not None and self.job.model.backend != "tensorflow":
            yield from cache_warnings()
        if self.job.model is not None and backend_name(resolved.backend) == "tensorflow":
            request = ConversionRequest(self.job.model, self.content, self.job.engine)
            yield from conversion.fallback_warnings(request)
        if not self.rows:
            yield "The input has no rows: the result is valid, but empty."

    def predictor(self) -> Predictor:
        """Return the model, loaded once."""
        if self._predictor is None:
            self._predictor = self._open_model()
        return self._predictor

    def independent_batch_size(
        self, resolved: ResolvedOptions, sizes: Sequence[int] | None = None
    ) -> int | None:
        """Return the first of several batch sizes at which bits do not depend on a row's place.

        By default of the chosen one and, where it was left open, one near it.
        """
        model, chosen = self.predictor(), resolved.batch_size
        if self.job.model is None:
            return chosen
        if sizes is None:
            sizes = (chosen, chosen * 3 // 4) if self.job.model.batch_size == "auto" else (chosen,)
        return self._on_sample(
            dict(resolved.features),
            resolved.inputs,
            lambda sample: placement.independent_batch_size(model, sample, sizes),
        )

    def _open_model(self) -> Predictor:
        if self.job.model is None:
            return IdentityPredictor(self._fields(self._match(()), ()))
        model, engine = self.job.model, self.job.engine
        rows = partial(proof_rows, self.job, self.limit)
        if self._planned is not None:
            model = planning.with_planned_backend(model, self._planned)
        request = ConversionRequest(model, self.content, engine, rows, rows=self.rows)
        is_onnx = self.report is not None and self.report.kind == "onnx"
        by_tensorflow = model.backend == "tensorflow" and not is_onnx
        if not (by_tensorflow or is_onnx):
            converting = self.progress.stage("converting the model")
            with converting, capture_warnings(self._warnings.append):
                conversion.ensure_converted(request)
        load = partial(load_model, model, self.content, engine)
        converting = self.progress.stage("converting the model", slow=True)
        with loading_model(self.progress, tensorflow=by_tensorflow):
            return conversion.load_or_convert(load, request, converting)

    def _resolve(self) -> ResolvedOptions:
        self._check_before_loading()
        model = self.predictor()
        wanted = model.inputs if self.job.model is not None else ()
        columns = self._match(wanted)
        inputs = self._fields(columns, wanted)
        with self.progress.stage("trying the model on the first rows"):
            return self._on_sample(
                columns, inputs, lambda sample: self._choose(model, columns, inputs, sample)
            )

    def _choose(
        self, model: Predictor, columns: _Columns, inputs: tuple[Field, ...], sample: _Sample
    ) -> ResolvedOptions:
        batch_size = self._batch_size(model, sample)
        # Kept: the work would compile it again.
        self._predictor = sized = model.with_batch_size(batch_size)
        accepted = self.job.model is not None and self.job.model.batch_dependent == "accept"
        outputs = placement.examine(model, sized, sample, batch_dependent=accepted)
        part_rows = self.job.output.part_rows
        if accepted and part_rows != "auto" and part_rows % batch_size:
            raise JobError(
                f"`output.part_rows` is {part_rows}, and `model.batch_dependent: accept` needs "
                f"whole batches in every part. Set it to a multiple of {batch_size}, or to auto."
            )
        fitted = fitting.given(self.job.normalize, outputs, self._means)
        layouts = output_schema.output_specs(self.job, outputs, fitted)
        row_bytes = planning.written_bytes(layouts)
        sample_bytes = sum(array[:1].nbytes for array in sample.values())
        # Where the batch size changes no bits, it changes the files neither.
        free = model.backend is not None and model.backend.independent
        if part_rows == "auto":
            timed = model.with_batch_size(_GRID_ROWS) if free and not model.batch_size else sized
            rate = placement.rows_per_second(timed, sample)
            part_rows = planning.choose_part_rows(
                _GRID_ROWS if free else batch_size,
                self.rows,
                rows_per_second=rate,
                bytes_per_row=row_bytes,
            )
        return ResolvedOptions(
            batch_size=batch_size,
            chunk_rows=planning.choose_chunk_rows(
                placement.SMALLEST if free else batch_size, part_rows, row_bytes + sample_bytes
            ),
            part_rows=part_rows,
            inputs=inputs,
            outputs=outputs,
            features=columns,
            carried=self.carried,
            device=model.device,
            threads=model.threads,
            model_content=self.content,
            transform=self.transform_sha256,
            backend=model.backend,
            fitted=fitted,
        )

    def first_rows(self, inputs: tuple[Field, ...], most: int) -> _Sample:
        """Return the features of so many rows, of those that are good."""
        columns = self._match(inputs)
        return self._sample(columns, self._fields(columns, inputs), most)

    def _match(self, inputs: tuple[Field, ...]) -> _Columns:
        with self._naming_the_input():
            return features.match_features(self.table.schema, inputs, self.job.input, self._head)

    @contextmanager
    def _naming_the_input(self) -> Iterator[None]:
        """Put the first file before the words of whoever sees only its columns."""
        try:
            yield
        except InputError as error:
            path = self.table.files[0].path
            told = error.message if path in error.message else f"{path}: {error.message}"
            raise InputError(told) from error

    def _fields(self, columns: _Columns, inputs: tuple[Field, ...]) -> tuple[Field, ...]:
        """Return the inputs with every open size made known by the first rows."""
        if self.job.input.transform is not None:
            return inputs
        rows = reading.head_with_lists(self.table, names_in(columns), _SAMPLE_ROWS)
        with self._naming_the_input():
            return features.infer_fields(rows, columns, inputs, self.job.input)

    def _head(self, columns: _Columns, most: int = _SAMPLE_ROWS) -> pa.Table:
        """Return the first rows, with the feature columns."""
        return reading.head(self.table, names_in(columns), min(self.rows, most))

    def _sample(
        self, columns: _Columns, inputs: tuple[Field, ...], most: int = _SAMPLE_ROWS
    ) -> _Sample:
        """Return the features of the first good rows; one row of filler where there is none."""
        reader = features.FeatureReader(
            columns, inputs, self.job.input, check_nonfinite=self.job.model is not None
        )
        arrays, faults = reader.read(self._head(columns, most))
        good = faults == Reason.GOOD
        if good.any():
            return {name: array[good] for name, array in arrays.items()}
        return batching.filler(inputs)

    def _on_sample(
        self, columns: _Columns, inputs: tuple[Field, ...], use: Callable[[_Sample], T]
    ) -> T:
        """Return what ``use`` makes of the sample, or of the rows in it on which the model runs."""
        filler = None if self.job.input.invalid == "fail" else batching.filler(inputs)
        return models.on_good_rows(self.predictor(), self._sample(columns, inputs), use, filler)

    def _batch_size(self, model: Predictor, sample: _Sample) -> int:
        if self.job.model is None:
            return _STORED_BATCH
        if self.job.model.batch_size != "auto":
            return self.job.model.batch_size
        if model.batch_size is not None:
            return model.batch_size
        if self.job.model.batch_dependent == "accept":
            raise JobError(
                "`model.batch_size` is missing: with `model.batch_dependent: accept` it "
                "determines which rows are predicted together. Set it to the batch size that "
                "model.predict() uses."
            )
        if model.backend is not None and model.backend.batch_size is not None:
            return model.backend.batch_size
        with self.progress.stage("measuring the batch size"):
            part = self.job.model.model_dump(include={"layer", "signature", "outputs"})
            named = {"content": self.content, **part}
            rows = max(self.rows, self.least_rows)
            return placement.remembered_batch_size(model, sample, rows, named)


def proof_rows(job: Job, limit: int | None, inputs: tuple[Field, ...]) -> _Sample:
    """Return the first good rows as a model takes them, to compare back ends on."""
    with capture_warnings(lambda _: None):
        return Preparation(job, limit).first_rows(inputs, conversion.PROOF_ROWS)


def _with_key(job: Job, table: Table) -> Job:
    """Return the job with the columns of its keys file as the key, if it names no other."""
    if job.input.key is not None or not table.keys:
        return job
    key = table.keys[0] if len(table.keys) == 1 else list(table.keys)
    return job.model_copy(update={"input": job.input.model_copy(update={"key": key})})
