"""The job: the frozen, picklable *what* of a run, read from a job file or built in Python."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from batchnorm_tool.errors import JobError
from batchnorm_tool.job import loader
from batchnorm_tool.job.messages import complaints_of, format_value, mask_values, refusal
from batchnorm_tool.job.refresh_sections import Gate, Keep, Publish, Publishes, Store
from batchnorm_tool.job.sections import (
    ContractOptions,
    Engine,
    Input,
    Model,
    Normalize,
    Output,
    OutputColumns,
    OutputNorm,
    Section,
    Trust,
)
from batchnorm_tool.job.types import Axis, JobSchema, is_within, option, wrong

__all__ = [
    "Axis",
    "ContractOptions",
    "Engine",
    "Gate",
    "Input",
    "Job",
    "Keep",
    "Model",
    "Normalize",
    "Output",
    "OutputColumns",
    "OutputNorm",
    "Publish",
    "Store",
    "Trust",
    "job_schema",
]

STATE_SUFFIX = ".state"
"""What lies beside a store is in a directory of its name and this."""

_STAGED_OUTPUT = f"{STATE_SUFFIX}/night/scored"
"""Where a refresh stages its vectors, behind the path of its store."""


class Job(Section):
    """Everything that a run is asked for; two equal jobs over equal input give equal results.

    Paths in a job are absolute: relative ones start from the job file's directory, or from the
    current directory where a job is built in Python.

    Attributes:
        input: What to read.
        model: What predicts; ``None`` where the predictions are stored already.
        normalize: How to normalize the predictions.
        output: What to write.
        contract: What goes with the result to those who query it.
        engine: Where and how to run.
        store: Where a refresh keeps its embeddings; ``None`` in a job that is only run.
        gate: What a refresh may not publish without a person.
        publish: What gets each version that a refresh publishes.

    Example:
        >>> job = Job(input=Input(path="/data/x.parquet"), output=Output(path="/data/unit"))
        >>> job.normalize.norm, job.model
        ('l2', None)
    """

    input: Input = Field(description="What to read.")
    model: Model | None = option(None, "What predicts; omit it for stored predictions.")
    normalize: Normalize = option(Normalize, "How to normalize the predictions.")
    output: Output = Field(description="What to write.")
    # Left out where nothing is said of it: a result that was made without the section stays.
    contract: ContractOptions = option(
        ContractOptions,
        "What goes with the result to those who query it.",
        exclude_if=lambda value: value == ContractOptions(),
    )
    engine: SerializeAsAny[Engine] = option(Engine, "Where and how to run.")
    store: Store | None = option(None, "For refresh: where vectors are kept.")
    gate: Gate = option(Gate, "For refresh: limits for publishing a version.")
    publish: Publishes = option(list, "For refresh: targets of each published version.")

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """Read a job file.

        Args:
            path: YAML, or TOML if it is named ``.toml``. Texts may hold ``${NAME}`` and
                ``${NAME:-default}`` for environment variables.
            overrides: ``section.key=value`` each, as though they stood in the file.

        Returns:
            The valid job. Whether its files exist is not checked.

        Raises:
            JobError: The file cannot be read, or does not hold a job; all that is wrong with its
                keys and values is named at once.
        """
        data = loader.set_values(loader.read_job_file(path), overrides)
        expanded, unset = loader.expand_environment(data, os.environ)
        base = Path(path).absolute().parent
        return cls._checked(expanded, os.fspath(path), base, unset)

    @classmethod
    def from_dict(cls, data: Mapping[str, object], base: str | os.PathLike[str] = ".") -> Self:
        """Return a job from plain values, such as those of `to_dict`; no variables are expanded.

        Args:
            data: The sections, as in a job file.
            base: The directory that relative paths start from.

        Raises:
            JobError: The values do not make a job; all that is wrong with them is named at once.
        """
        if not isinstance(data, Mapping):
            raise JobError(f"A job must be a mapping of sections. Received: {format_value(data)}.")
        return cls._checked(dict(data), "job", Path(base).absolute(), {})

    def to_dict(self) -> dict[str, Any]:
        """Return every key with its value, defaults included, ready for JSON.

        `from_dict` makes an equal job of it.
        """
        return self.model_dump()

    def to_yaml(self, *, defaults: bool = False) -> str:
        """Return the YAML of a job file that loads back to an equal job; its paths are absolute.

        Args:
            defaults: Write the keys that have their default values, too.
        """
        return loader.as_yaml(self.model_dump(exclude_defaults=not defaults))

    @property
    def runs_code_of_user(self) -> bool:
        """Whether a function or a class of the user's takes part."""
        return self.input.transform is not None or bool(self.model and self.model.trust)

    def masked(self) -> dict[str, object]:
        """Return `to_dict` with whatever looks like a secret in a URI replaced by ``***``."""
        return mask_values(self.to_dict())

    @classmethod
    def _checked(
        cls, data: dict[str, object], where: str, base: Path, unset: Mapping[str, str]
    ) -> Self:
        try:
            job = cls.model_validate(data, context={"base": str(base)})
        except ValidationError as error:
            # A key whose variable is not set is not judged by the text that stands there now.
            complaints = {**complaints_of(error, cls, data), **unset}
            raise refusal(where, complaints) from error
        if unset:
            raise refusal(where, unset)
        return job

    @model_validator(mode="before")
    @classmethod
    def _fill_empty_sections(cls, data: Any) -> Any:
        """Take a section without keys, which YAML reads as null, for one without changes."""
        if not isinstance(data, Mapping):
            return data
        kept = {key: value for key, value in data.items() if value is not None}
        filled: dict[str, Any] = {"input": {}, "output": {}, **kept}
        store, output = filled.get("store"), filled["output"]
        path = store.get("path") if isinstance(store, Mapping) else None
        # A job with a store stages its vectors there.
        if isinstance(path, str) and isinstance(output, Mapping) and "path" not in output:
            filled["output"] = {**output, "path": _staged_output(path)}
        return filled

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        """Refuse places that would be read as input, that replace what is read, or that overlap."""
        given = (*self.input.paths, self.input.keys, self.model.path if self.model else None)
        given += tuple(self.normalize.mean_paths)
        read = [path for path in given if path is not None]
        written = self._written()
        for (key, places), path in itertools.product(written.items(), self.input.paths):
            if is_within(places[0], path):
                text = f"is inside the input, {path}, and would be read as input."
                raise wrong(f"{text} Choose another path.", key)
        for path in read:
            if is_within(path, self.output.path):
                text = f"contains {path}, which a new result would replace. Choose another path."
                raise wrong(text, "output.path")
        for path, place in itertools.product(read, written.get("store.path", ())):
            if is_within(path, place):
                text = f"contains {path}, which the job reads. Choose another path."
                raise wrong(text, "store.path")
        for (key, ones), (other, twos) in itertools.combinations(written.items(), 2):
            pairs = itertools.product(ones, twos)
            if any(is_within(one, two) or is_within(two, one) for one, two in pairs):
                raise wrong(f"is the same path as `{key}`. Choose another path.", other)
        return self

    @model_validator(mode="after")
    def _check_quantized(self) -> Self:
        """Refuse what a result without floats cannot hold."""
        dtype, output = self.normalize.quantized, self.output
        if dtype and output.dtype != "float32":
            text = f"is for floats, and `normalize.dtype` is `{dtype}`. Received: {output.dtype}."
            raise wrong(f"{text} Remove one of them.", "output.dtype")
        policies = (self.input.invalid, self.normalize.zero, self.normalize.nonfinite)
        if dtype and output.format == "npy" and "nullify" in policies:
            text = f"cannot be `npy` with the policy `nullify` and `normalize.dtype: {dtype}`: an "
            raise wrong(f"{text}array of integers has no nulls. Choose parquet.", "output.format")
        if dtype and output.byte_stream_split:
            text = f"is for floats, and `normalize.dtype` is `{dtype}`. Remove one of them."
            raise wrong(text, "output.byte_stream_split")
        return self

    @model_validator(mode="after")
    def _check_deduplicate(self) -> Self:
        if self.input.deduplicate and self.model is None:
            text = "needs a model: stored predictions are only normalized, and none is made twice."
            raise wrong(f"{text} Remove it, or add the section `model`.", "input.deduplicate")
        return self

    def _written(self) -> dict[str, list[str]]:
        """Return every place that is written to, by its key."""
        written = {} if is_staged(self) else {"output.path": [self.output.path]}
        if self.store is not None:
            store = self.store.path.rstrip("/")
            written["store.path"] = [store, store + STATE_SUFFIX]
            paths = [getattr(target, "path", None) for target in self.publish]
            written |= {f"publish.{at}.path": [path] for at, path in enumerate(paths) if path}
        return written


def check_job(function: str, given: object) -> None:
    """Refuse what a function took for a job, most often the path of one."""
    if not isinstance(given, Job):
        raise JobError(
            f"`{function}` takes a Job. Received: {given!r}. Read a job file with `Job.load(path)`."
        )


def is_staged(job: Job) -> bool:
    """Tell whether a job names no output, so that a refresh stages its vectors beside the store."""
    return job.store is not None and job.output.path == _staged_output(job.store.path)


def _staged_output(store: str) -> str:
    return store.rstrip("/") + _STAGED_OUTPUT


def job_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a job file, by which editors check YAML."""
    schema = Job.model_json_schema(schema_generator=JobSchema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "batchnorm_tool job file",
        "description": "Streams rows through a Keras model and writes unit vectors.",
    }
