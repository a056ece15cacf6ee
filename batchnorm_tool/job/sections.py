"""The sections of a job: each class is one section of the job file, each attribute one key."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from batchnorm_tool.job import types
from batchnorm_tool.job.messages import Expects, complaints_of, refusal
from batchnorm_tool.job.types import CountOrAuto, FormatName, LocalOrUri, Name, Names, option, wrong
from batchnorm_tool.norms.norm import Norm
from batchnorm_tool.registry import ENGINES, NORMS, load, spellings


class Section(pydantic.BaseModel):
    """A section of the job file: frozen, with unknown keys refused and wrong values explained."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        validate_default=True,
        defer_build=True,  # of each on its own: most are only read as parts of a job
    )

    def __init__(self, /, **data: Any) -> None:
        """Check the keys and values given; relative paths start from the current directory.

        Raises:
            JobError: Keys are unknown or missing, or values do not fit; it names all of them.
        """
        try:
            super().__init__(**data)
        except ValidationError as error:
            complaints = complaints_of(error, type(self), data)
            raise refusal(type(self).__name__, complaints) from error

    # Without this mark pydantic would call __init__ for nested sections too, and the first wrong
    # one would hide what is wrong in the others.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class TaggedSection(Section):
    """A section whose keys depend on one of them, its tag: those of ``to: parquet``, say.

    A class that derives from this one directly has the keys that all have in common. Whatever the
    registry loads for a value of the tag names the class of its own section as ``section``: that
    one, or one that derives from it and adds keys.
    """

    tag: ClassVar[str]
    registry: ClassVar[Mapping[str, str]]

    def __new__(cls, /, **data: Any) -> Self:
        """Make an object of the class that the tag stands for."""
        return super().__new__(cls.class_for(data))

    @classmethod
    def class_for(cls, data: object) -> type[Self]:
        """Return the class of a section with these values."""
        name = data.get(cls.tag) if isinstance(data, Mapping) else None
        if cls is cls._common() and isinstance(name, str) and name in cls.registry:
            return cls._class_of(name)
        return cls

    @classmethod
    def complaint(cls, error: str, key: str, data: Mapping[str, object]) -> str | None:
        """Say what is wrong with a key, where the tag has to do with it."""
        chosen = f"`{cls.tag}: {data.get(cls.tag)}`"
        if error == "missing" and key != cls.tag:
            return f"is missing: {chosen} needs it."
        everywhere = {name for one in cls.registry for name in cls._class_of(one).model_fields}
        if error == "extra_forbidden" and key in everywhere:
            own = [name for name in cls.model_fields if name not in cls._common().model_fields]
            return f"is not for {chosen}, which takes {', '.join(f'`{name}`' for name in own)}."
        return None

    @classmethod
    def _common(cls) -> type[Self]:
        return next(one for one in cls.__mro__ if TaggedSection in one.__bases__)

    @classmethod
    def _class_of(cls, name: str) -> type[Self]:
        return load(cls.registry, name).section

    @model_validator(mode="wrap")
    @classmethod
    def _check_as_named(
        cls, data: Any, check: pydantic.ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        own = cls.class_for(data)
        return check(data) if own is cls else own.model_validate(data, context=info.context)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if cls is not cls._common():
            return handler(core_schema)
        found = []
        for name in cls.registry:
            own = cls._class_of(name)
            schema = handler(core_schema if own is cls else own.__pydantic_core_schema__)
            known = types.or_variable({"const": name, "type": "string"})
            tag = schema["properties"][cls.tag] | known
            found.append({**schema, "properties": {**schema["properties"], cls.tag: tag}})
        return {"anyOf": found} if len(found) > 1 else found[0]


class Input(Section):
    """What is read: the ``input`` section."""

    path: Annotated[
        LocalOrUri | types.LocalOrUris | Annotated[dict[Name, LocalOrUri], Field(min_length=1)],
        Expects("a path, a list of paths, or {column: path} for several NPY files side by side"),
    ] = Field(description="File, directory, glob, list of them, or {column: path of an NPY file}.")
    format: FormatName | None = option(None, "Default: detected from the content, not the suffix.")
    key: Annotated[Name | Names | None, Expects("a column name, or a list of column names")] = (
        option(None, "Key columns; default: the global row number.")
    )
    keys: Annotated[LocalOrUri | None, Expects("the path of an NPY or Parquet file")] = option(
        None, "Key file for NPY input, in row order."
    )
    features: Annotated[
        Name | Names | Annotated[dict[Name, Name | Names], Field(min_length=1)] | None,
        Expects("a column name, a list of them, or {model input: column or list of columns}"),
    ] = option(None, "Feature columns; default: matched to the model's inputs.")
    passthrough: Annotated[list[Name], Expects("a list of column names")] = option(
        list, "Columns to copy to the output."
    )
    invalid: Literal["fail", "quarantine", "nullify", "drop"] = option(
        "fail", "Policy for rows with null, ragged or non-finite features."
    )
    fill: Annotated[
        dict[Name, Annotated[int | types.Finite | str, Expects("text or a finite number")]],
        Expects("{column: text or a finite number}"),
    ] = option(dict, "Replacement for nulls, per column.")
    decode: Annotated[dict[Name, Literal["jpeg", "png"]], Expects("{column: `jpeg` or `png`}")] = (
        option(dict, "Columns with encoded images.")
    )
    transform: Annotated[
        types.FunctionName | None,
        Expects("`module:function`, such as `my_package.features:prepare`"),
    ] = option(None, "A function from an Arrow table to named arrays.")
    dtype: Literal["bfloat16"] | None = option(None, "Type of NPY arrays stored as |V2.")
    deduplicate: types.Flag = Field(
        default=False, description="Predict rows that have the same features once in a run."
    )

    @property
    def paths(self) -> list[str]:
        """Every path in ``path``, however it was given."""
        return list(self.path.values()) if isinstance(self.path, dict) else _as_list(self.path)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._refuse_keys_for_npy()
        given = self.features
        for names in given.values() if isinstance(given, dict) else [given]:
            types.check_distinct(_as_list(names), "column", "features", " for one input")
        keys = _as_list(self.key)
        types.check_distinct(keys, "column", "key")
        types.check_distinct(
            [*keys, *self.passthrough], "column", "passthrough", " (keys included)"
        )
        return self

    def _refuse_keys_for_npy(self) -> None:
        if self.format in (None, "npy"):
            return
        columns = self.path if isinstance(self.path, dict) else None
        given = {"keys": self.keys, "path": columns, "dtype": self.dtype}
        for key in (key for key, value in given.items() if value is not None):
            what = "holds several NPY files" if key == "path" else "is for NPY input"
            hint = " Did you mean `key`, which names a column?" if key == "keys" else ""
            text = f"{what}, but `input.format` is `{self.format}`. Change one of them.{hint}"
            raise wrong(text, key)


class Trust(Section):
    """Custom classes that the safety gate lets past."""

    classes: Annotated[
        list[types.ClassName],
        Field(min_length=1),
        Expects("a list of installed classes, such as [my_package.layers.L2Distance]"),
    ] = Field(description="Trusted installed classes, as module.Class.")


class Model(Section):
    """What predicts: the ``model`` section."""

    path: LocalOrUri = Field(description="A .keras, .h5 or .onnx file, or a SavedModel directory.")
    layer: Annotated[Name | None, Expects("the name of a layer")] = option(
        None, "Use the output of this inner layer."
    )
    signature: Annotated[Name | None, Expects("the name of a signature")] = option(
        None, "Signature of a SavedModel; default: serving_default."
    )
    outputs: Annotated[Names | None, Expects("a list of output names")] = option(
        None, "Outputs, each normalized; default: the only output."
    )
    backend: Literal["tensorflow", "onnxruntime", "auto"] = option(
        "tensorflow",
        "What computes; onnxruntime starts at once, after one conversion that must prove "
        "itself; auto: it, unless it fails or is slower.",
    )
    batch_size: CountOrAuto = option(
        "auto", "Rows per model call; auto: measured once, then fixed."
    )
    batch_dependent: Literal["refuse", "accept"] = option(
        "refuse",
        "Whether to accept a model whose predictions depend on the other rows of their batch: "
        "batches are then of `batch_size` rows in stored order.",
    )
    sha256: Annotated[types.ModelHash | None, Expects("a SHA-256 of 64 hexadecimal digits")] = (
        option(None, "Expected SHA-256; any other model file is refused.")
    )
    trust: Annotated[
        types.TrustedHash | Trust | None,
        Expects("`sha256:` and 64 hexadecimal digits, or {classes: [module.Class]}"),
    ] = option(None, "One exact file, or classes, that may pass the safety gate.")

    @field_validator("outputs")
    @classmethod
    def _check_distinct(cls, outputs: list[str] | None) -> list[str] | None:
        types.check_distinct(outputs or [], "output")
        return outputs


def _unused(description: str) -> Any:
    return option(None, description, exclude_if=lambda value: value is None)


def _norms_in_words() -> str:
    words = [
        f"{name} ({', '.join(others)})" if others else name
        for name, others in spellings(NORMS).items()
        if name != "lp"
    ]
    return f"{', '.join(words)}, or lp with p."


class VectorOptions(Section):
    """What can become of a vector besides its norm; left out of a job's values where unused.

    A result that was made before there were these keys stays the same.
    """

    truncate: types.Truncation = _unused("Keep only so many of the first components.")
    project_mean: types.MeanSource = _unused(
        "Project off the mean direction: fit (of all rows), or an .npy file with one."
    )
    dtype: Literal["int8", "binary"] | None = _unused(
        "Store components as int8, with one scale for all, or as single bits."
    )


class OutputNorm(VectorOptions):
    """How one model output is normalized where several differ; what is left out is as common."""

    norm: types.NormName | None = option(None, "Norm; default: the common norm.")
    p: types.ExponentOfNorm = option(None, "The p of `norm: lp`.")
    axis: types.AxisValue | None = option(None, "Axis; default: the common axis.")


class Normalize(VectorOptions):
    """What becomes of each prediction: the ``normalize`` section."""

    norm: types.NormName = option("l2", _norms_in_words())
    p: types.ExponentOfNorm = option(None, "The p of `norm: lp`.")
    outputs: Annotated[dict[Name, OutputNorm], Expects("{output: {norm: …, p: …, axis: …}}")] = (
        option(dict, "Settings per output, where they differ.")
    )
    axis: types.AxisValue = option(-1, "-1: each vector; all: the whole output of a row.")
    zero: Literal["keep", "nullify", "drop", "quarantine", "fail"] = option(
        "keep", "Policy for zero vectors; a kept one is not a bad row."
    )
    nonfinite: Literal["quarantine", "fail", "nullify", "keep", "drop"] = option(
        "quarantine", "Policy for rows with NaN or inf in their prediction."
    )
    max_bad_fraction: types.Fraction = option(
        0.001, "Largest share of bad rows; above it nothing is published."
    )

    def for_output(self, name: str) -> tuple[Norm, types.Axis]:
        """Return the norm and the axis of one output: -1 (each vector), or ``"all"`` (a whole row).

        An output that ``outputs`` does not list has the common ones.
        """
        own = self.outputs.get(name, OutputNorm())
        p = self.p if own.norm is None and own.p is None else own.p
        axis = self.axis if own.axis is None else own.axis
        return Norm.parse(own.norm or self.norm, p), axis

    def options_for(self, name: str) -> VectorOptions:
        """Return the further options of one output."""
        own = self.outputs.get(name, OutputNorm())
        names = VectorOptions.model_fields
        given = {key: getattr(own, key) or getattr(self, key) for key in names}
        return VectorOptions.model_construct(**given)

    @property
    def all_options(self) -> list[VectorOptions]:
        """The further options, common ones and those of any output."""
        return [self, *self.outputs.values()]

    def further_options(self) -> list[dict[str, object]]:
        """Return what is asked for besides norms; nothing but empty ones where nothing is."""
        return [each.model_dump(include={*VectorOptions.model_fields}) for each in self.all_options]

    @property
    def mean_paths(self) -> list[str]:
        """The files with a direction to project off."""
        found = [each.project_mean for each in self.all_options]
        return [path for path in dict.fromkeys(found) if path not in (None, "fit")]

    @property
    def quantized(self) -> str | None:
        """The dtype of stored components that are no floats, of any output."""
        return next((each.dtype for each in self.all_options if each.dtype), None)

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        for name in self.outputs:
            with types.norm_errors(f"outputs.{name}.p"):
                self.for_output(name)
        if self.quantized and self.nonfinite == "keep":
            text = f"cannot be `keep` with `dtype: {self.quantized}`, which has no NaN or infinity."
            raise wrong(f"{text} Choose quarantine, fail, nullify or drop.", "nonfinite")
        return self


class OutputColumns(Section):
    """The names of the two columns that every run adds."""

    vector: types.ColumnName = option("vector", "Column of the vectors.")
    norm: types.ColumnName = option("norm", "Column of the norms before normalization.")

    @field_validator("norm")
    @classmethod
    def _check_different(cls, norm: str, info: ValidationInfo) -> str:
        if norm == info.data.get("vector"):
            raise wrong(f"is `{norm}`, the name of the vector column. Use another name.")
        return norm


# Of `formats.parquet` and `formats.arrow`.
_OWN_COMPRESSION = {"parquet": "zstd:1", "arrow": "none"}


class Output(Section):
    """What is written: the ``output`` section."""

    path: LocalOrUri = Field(
        description="Directory of the result; it is created, and used by this job only."
    )
    format: FormatName = option("parquet", "Format of vectors and norms.")
    dtype: Literal["float32", "float16", "float64"] = option(
        "float32", "Type of the vectors; norms are always float64."
    )
    columns: OutputColumns = option(OutputColumns, "Names of the vector and the norm column.")
    part_rows: CountOrAuto = option(
        "auto", "Rows per file, which is the unit of work, commit and retry."
    )
    byte_stream_split: types.Flag = Field(
        default=False, description="About 10 % smaller Parquet, unreadable for Spark before 4.3."
    )

    # Left out where it is the format's own: a result that was made without the key stays the same.
    compression: types.Compression = option(
        None,
        "zstd, zstd:LEVEL, lz4 or none; default: zstd:1 in Parquet, none in Arrow.",
        exclude_if=lambda value: value is None,
    )

    @field_validator("compression")
    @classmethod
    def _check_compression(cls, wanted: str | None, info: ValidationInfo) -> str | None:
        chosen = info.data.get("format", "parquet")
        if wanted and chosen == "npy":
            raise wrong("is for Parquet and Arrow, but `output.format` is `npy`. Remove it.")
        exact = "zstd:1" if wanted == "zstd" else wanted
        return None if exact == _OWN_COMPRESSION.get(chosen) else exact

    @field_validator("byte_stream_split")
    @classmethod
    def _check_format(cls, wanted: bool, info: ValidationInfo) -> bool:  # noqa: FBT001
        chosen = info.data.get("format", "parquet")
        if wanted and chosen != "parquet":
            raise wrong(f"is for Parquet, but `output.format` is `{chosen}`. Remove it.")
        return wanted


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


class ContractOptions(Section):
    """What goes with a result to those who query it: the ``contract`` section."""

    canaries: Annotated[Literal[16, 0], Expects("16, or 0 for none")] = option(
        16, "Rows of the input that the contract has with their vectors; 0: none."
    )
    keys: types.Flag = Field(default=False, description="Whether these rows keep their keys.")


class Engine(TaggedSection):
    """Where the work is done: the ``engine`` section.

    An engine's own keys are those of a class derived from this one, its ``section``.
    """

    tag = "kind"
    registry = ENGINES

    kind: types.EngineName = option("local", "What distributes parts to workers.")
    devices: Annotated[
        Literal["auto", "cpu", "gpu"]
        | Annotated[list[types.GpuNumber | Literal["cpu"]], Field(min_length=1)],
        Expects(
            "`auto`, `cpu`, `gpu`, or a list of GPU numbers, such as [0, 1], or of processes on "
            "the CPU, such as [cpu, cpu]"
        ),
    ] = option("auto", "auto, cpu, gpu, or a list with a GPU number or `cpu` per process.")
    workers: CountOrAuto = option("auto", "Parts processed in parallel, over all processes.")
    threads: types.Count = option(1, "Threads within one model call; they affect low-order bits.")
    mixed_bits: types.Flag = Field(
        default=False, description="Resume even if low-order bits of new parts may differ."
    )

    @property
    def device(self) -> Literal["auto", "cpu", "gpu"]:
        """The kind of the devices: bits depend on it, and not on how many there are."""
        if isinstance(self.devices, str):
            return self.devices
        return "cpu" if "cpu" in self.devices else "gpu"

    @field_validator("threads")
    @classmethod
    def _check_threads(cls, threads: int) -> int:
        if threads > 1024:  # with 2**31 - 1 TensorFlow takes the process down
            raise wrong(f"must be at most 1,024. Received: {threads}. One per core is enough.")
        return threads

    @field_validator("devices")
    @classmethod
    def _check_alike(cls, devices: str | list[int | str]) -> str | list[int | str]:
        numbers = [] if isinstance(devices, str) else [each for each in devices if each != "cpu"]
        if numbers and len(numbers) < len(devices):
            raise wrong(
                "mixes the CPU with GPUs, whose low-order bits differ. Expected only GPU numbers, "
                f"or only `cpu`. Received: {devices}."
            )
        if len(set(numbers)) < len(numbers):
            raise wrong(
                "lists a GPU twice, but each GPU is used by one process. List each once. "
                f"Received: {devices}."
            )
        return devices
